"""What keeps secrets: the protocol, and what a value is.

Two keep it: `local` in the daemon's own database, sealed, and `hashicorp` in a server elsewhere.
A value is text, or bytes that a handler is given as base64. No value is in a repr, and a value
that could not be masked in what a handler says (it is too short) is none.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from flowmonkeyd.errors import Invalid, Problem

__all__ = [
    "NAME",
    "VALUE_BYTES_MAX",
    "VALUE_CHARS_MIN",
    "Kept",
    "Value",
    "Vault",
    "value_of",
]

# Names go into paths of a server elsewhere, into arguments and into masks.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
# A certificate chain with its key has a tenth of it.
VALUE_BYTES_MAX = 64 * 1024
# What is shorter is in every second text by chance: masking it would tear those to pieces.
VALUE_CHARS_MIN = 4


@dataclass(frozen=True, slots=True)
class Value:
    """A secret in clear. `text` is what a handler gets: of bytes, their base64 (RFC 4648)."""

    text: str = field(repr=False)
    is_binary: bool = False

    @property
    def raw(self) -> bytes:
        return base64.b64decode(self.text) if self.is_binary else self.text.encode()


@dataclass(frozen=True, slots=True)
class Kept:
    """What may be known of a secret: everything but its value."""

    tenant: str
    name: str
    version: int
    is_binary: bool
    created_at_ms: int
    updated_at_ms: int


class Vault(Protocol):
    """Keeps secrets of tenants. Reading never creates anything; errors never quote a value."""

    @property
    def provider(self) -> str:
        """Its name in the settings."""

    async def open(self) -> None:
        """Once, with the store's writer running. Raises Unavailable with what is wrong."""

    async def read(self, tenant: str, names: Sequence[str]) -> Mapping[str, Value]:
        """Those of the names that exist. Raises Unavailable (SECRET_UNAVAILABLE)."""

    async def put(self, tenant: str, name: str, value: Value, by: str) -> tuple[Kept, bool]:
        """Keep a value: what is kept, and whether the name is new. Raises Conflict, Unavailable."""

    async def remove(self, tenant: str, name: str, by: str) -> None:
        """Forget a value. Raises NotFound, Conflict."""

    async def listed(self, tenant: str | None, start: int, limit: int) -> list[Kept]:
        """What is kept, by tenant and name, from a place on. Raises Conflict."""

    async def rotate(self, by: str) -> tuple[str, int]:
        """Seal everything under a new key: its id, and how many. Raises Conflict, Unavailable."""

    async def close(self) -> None:
        """Forget what it knows."""


def value_of(name: str, text: str, is_binary: bool = False) -> Value:
    """A value as it came in, text or base64. Raises Invalid for one that is not to be kept."""
    why = _wrong(text, is_binary)
    if why is not None:
        raise Invalid(
            f"cannot keep the secret {name!r}: {why}", problems=(Problem("$.value", why),)
        )
    return Value(text, is_binary)


def _wrong(text: str, is_binary: bool) -> str | None:
    try:
        size = len(base64.b64decode(text, validate=True)) if is_binary else len(text.encode())
    except (binascii.Error, ValueError):
        return "it is not base64 (RFC 4648, with padding)" if is_binary else "it is not Unicode"
    if size > VALUE_BYTES_MAX:
        return f"it has more than {VALUE_BYTES_MAX} bytes"
    if len(text.strip()) < VALUE_CHARS_MIN:
        return (
            f"it has less than {VALUE_CHARS_MIN} characters, too few to be masked in what a "
            "handler says"
        )
    return None
