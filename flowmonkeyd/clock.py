"""Time and identifiers, passed in so that tests can hold them still.

`now_ms` is wall-clock time in integer milliseconds since 1970 UTC: durable times must survive a
reboot, so they cannot be monotonic. Ids sort by the time they were made.
"""

from __future__ import annotations

import os
import secrets
import time
from typing import Protocol

__all__ = ["Clock", "Ids", "RandomIds", "SystemClock"]


class Clock(Protocol):
    """Says what time it is."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01T00:00:00Z."""


class Ids(Protocol):
    """Makes identifiers and secrets nobody can guess."""

    def execution_id(self, now_ms: int) -> str:
        """A new id that sorts after ids of earlier milliseconds."""

    def token(self) -> str:
        """A resume token: 32 random bytes, URL-safe."""


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class RandomIds:
    """Ids of 48 bits of time and 56 random bits, in hexadecimal: they sort by time."""

    def execution_id(self, now_ms: int) -> str:
        return f"{now_ms:012x}{os.urandom(7).hex()}"

    def token(self) -> str:
        return secrets.token_urlsafe(32)
