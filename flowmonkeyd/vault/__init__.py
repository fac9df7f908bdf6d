"""Secrets of users: who keeps them, under which key, and how one is handed to a handler.

A value leaves a provider for one attempt of one step that declares it, and for nobody else. The
rest of the program knows the protocol `Vault` and chooses one in `main`.
"""

from flowmonkeyd.vault.provider import (
    NAME,
    VALUE_BYTES_MAX,
    VALUE_CHARS_MIN,
    Kept,
    Value,
    Vault,
    value_of,
)

__all__ = ["NAME", "VALUE_BYTES_MAX", "VALUE_CHARS_MIN", "Kept", "Value", "Vault", "value_of"]
