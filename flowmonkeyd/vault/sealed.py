"""The sealed form of a secret: AES-256-GCM (NIST SP 800-38D) under one key, a nonce for each seal.

One key and a random 96-bit nonce, no data key for each secret: SP 800-38D (8.3) allows 2^32 seals
under a key before nonces may meet, a vault makes thousands, and a new key seals everything anew in
one transaction anyway. What a seal is about (tenant, name, version) is authenticated with it, so
that a row that was moved or renamed in the database does not open. This is the one door to the
cipher; no key and no value is in a repr.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flowmonkeyd import jsontext

__all__ = ["KEY_BYTES", "NONCE_BYTES", "Key", "Sealed", "Unsealable"]

KEY_BYTES = 32
NONCE_BYTES = 12
# What a key's id and a seal are for, so that neither is anything else of the same key.
_ID, _SEAL = b"flowmonkey-vault-key-v1\0", b"flowmonkey-vault-v1\0"


class Unsealable(Exception):
    """The seal is broken: another key, other words around it, or other bytes."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """`text` is the ciphertext with its 16-byte tag."""

    key_id: str
    nonce: bytes
    text: bytes


class Key:
    """A key by its id, which tells nothing of it: 64 bits of a hash of its 256 random ones."""

    __slots__ = ("_aead", "_raw", "id")

    def __init__(self, raw: bytes) -> None:
        if len(raw) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(raw)}")
        self.id = hashlib.sha256(_ID + raw).hexdigest()[:16]
        self._raw = raw
        self._aead = AESGCM(raw)

    @classmethod
    def new(cls) -> Key:
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def parse(cls, text: str) -> Key:
        """From base64, as `openssl rand -base64 32` writes it. Raises ValueError, never quoting."""
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("it is not base64") from None
        return cls(raw)

    def text(self) -> str:
        """Base64, for the key's own file and nothing else."""
        return base64.b64encode(self._raw).decode()

    def __repr__(self) -> str:
        return f"<key {self.id}>"

    def seal(self, plain: bytes, about: Sequence[str | int]) -> Sealed:
        nonce = os.urandom(NONCE_BYTES)
        return Sealed(self.id, nonce, self._aead.encrypt(nonce, plain, _about(about)))

    def unseal(self, sealed: Sealed, about: Sequence[str | int]) -> bytes:
        """Raises Unsealable."""
        try:
            return self._aead.decrypt(sealed.nonce, sealed.text, _about(about))
        except (InvalidTag, ValueError):
            raise Unsealable from None


def _about(words: Sequence[str | int]) -> bytes:
    """As JSON, which no other words have the text of."""
    return _SEAL + jsontext.encode(list(words))
