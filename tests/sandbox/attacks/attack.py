"""An attack: its code, what a success would look like, and who can tell.

Owns the noun `Attack` and the few words that most of them are written with. It runs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sandbox import Limits, Policy, Reply, Reuse

__all__ = ["LIVE_ON", "SURVIVOR", "SYSCALL", "TEMP", "Attack", "call", "tried"]

TEMP = Policy(filesystem="temp")

# The name that a thread or process gives itself (PR_SET_NAME) before it tries to live longer than
# its execution: whoever finds it on the host afterwards has found a success. Another one in each
# process: several may try this at a time.
SURVIVOR = f"fm-{os.urandom(4).hex()}"


class Attack(NamedTuple):
    """An attack and the evidence of its success.

    `code` defines `attack()`, which has succeeded if it returns something true. With `won`, it
    defines the whole handler, and `won` says of the reply whether the attack has succeeded.
    `open`: it succeeds where there is no layer (see the package).
    """

    name: str
    success: str
    code: str
    open: bool = True
    policy: Policy = Policy()
    limits: Limits = Limits(wall_ms=20_000)
    won: Callable[[Reply], object] | None = None
    files: Mapping[str, str | bytes] = {}
    reuse: Reuse | None = None


# `live_on()`: from now on this thread, and those that it starts, go by that name.
LIVE_ON = f"""
import ctypes
def live_on():
    ctypes.CDLL(None).prctl(15, b"{SURVIVOR}", 0, 0, 0)
"""

SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result if result >= 0 else -ctypes.get_errno()
"""


def call(expression: str) -> str:
    """An attack that has succeeded if this system call returns no error."""
    return f"{SYSCALL}\ndef attack():\n    return {expression} >= 0\n"


def tried(body: str, imports: str = "os, socket") -> str:
    """An attack of plain Python: the body of `attack()`."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"import {imports}\ndef attack():\n{lines}"
