"""Checkpoints as bytes: encoded, compressed where that pays, with their SHA-256.

And `Refused`, which the handler gets when the daemon does not keep one.
"""

from __future__ import annotations

import zlib

from agentjson import decode, encode

try:  # small and enough for a digest; hashlib would bring OpenSSL along
    from _sha256 import sha256  # type: ignore[import-not-found]
except ImportError:
    from hashlib import sha256

TYPE_CHECKING = False  # typing itself would cost 0.6 MiB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Refused", "pack", "unpack"]

COMPRESS_FROM_BYTES = 4 * 1024
COMPRESS_LEVEL = 1
BIG_BYTES = 1024 * 1024  # from here on OpenSSL's SHA-256 is worth its memory


class Refused(Exception):
    """The daemon did not do what was asked; `code` says why."""

    def __init__(self, code: str, message: str, is_retryable: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.is_retryable = is_retryable


def pack(data: Any) -> tuple[dict[str, Any], bytes]:
    """What is said of a checkpoint, and its bytes. TypeError, ValueError for what is not JSON."""
    encoding = "bytes" if isinstance(data, (bytes, bytearray, memoryview)) else "json"
    blob = bytes(data) if encoding == "bytes" else encode(data)
    compression = "none"
    if len(blob) > COMPRESS_FROM_BYTES:
        smaller = zlib.compress(blob, COMPRESS_LEVEL)
        if len(smaller) <= len(blob) * 9 // 10:
            blob, compression = smaller, "zlib"
    head = {"size": len(blob), "encoding": encoding, "compression": compression}
    return {**head, "sha256": _digest(blob)}, blob


def unpack(head: dict[str, Any], blob: bytes) -> Any:
    """The value of a checkpoint. Raises ValueError for one that is not what was said of it."""
    if _digest(blob) != head["sha256"]:
        raise ValueError("a checkpoint is damaged: its SHA-256 is another one")
    data = zlib.decompress(blob) if head["compression"] == "zlib" else blob
    return data if head["encoding"] == "bytes" else decode(data)


def _digest(blob: bytes) -> str:
    if len(blob) >= BIG_BYTES:
        import hashlib

        return hashlib.sha256(blob).hexdigest()
    digest: str = sha256(blob).hexdigest()
    return digest
