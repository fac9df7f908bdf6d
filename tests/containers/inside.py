"""Code in a container that waits for the test, and tests that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from flowmonkeyd.containers import Container

# Code that begins so goes on when the test says `go`: after `start` has looked at it.
WAIT = """
import os, time
while not os.path.exists("/run/flowmonkey/go"):
    time.sleep(0.002)
"""


def go(container: Container) -> None:
    """Let code that begins with WAIT go on."""
    (container.folder / "go").touch()


async def until(told: Callable[[], Awaitable[object]]) -> None:
    """Until it says yes; fails after a while."""
    for _ in range(1000):
        if await told():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never came to that")
