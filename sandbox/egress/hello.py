"""The server name out of the first bytes of a connection, if they are a TLS greeting. Pure.

Reads a ClientHello (RFC 8446 4.1.2, RFC 6066 3), also one that is spread over several records or
arrives byte by byte; looks at no more than 16 KiB and raises nothing but `BadHello`, whatever the
bytes. It never decides whether a name is allowed. What is encrypted (ECH) stays unread: the name
found is the outer one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HELLO_MAX_BYTES", "BadHello", "Hello", "read_hello"]

# A ClientHello with post-quantum key shares and a session ticket has 2 to 3 KiB.
HELLO_MAX_BYTES = 16 * 1024

# RFC 8446 5.1: change_cipher_spec 20, alert 21, handshake 22, application_data 23, heartbeat 24
_RECORD_TYPES, _HANDSHAKE, _CLIENT_HELLO = range(20, 25), 22, 1
_RECORD_MAX_BYTES = 1 << 14
_RECORDS_MAX = 512  # each is read again whenever more has come
_SERVER_NAME, _HOST_NAME = 0, 0
_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,253}")


class BadHello(ValueError):
    """Bytes that begin like TLS and are no proper ClientHello."""


@dataclass(frozen=True, slots=True)
class Hello:
    """How a connection begins: with TLS or not, and the server name said (lower case)."""

    is_tls: bool
    server_name: str | None = None


def read_hello(data: bytes | bytearray) -> Hello | None:
    """What the bytes so far say; None: more of them are needed. Raises BadHello."""
    if not data:
        return None
    if data[0] & 0x80:  # RFC 5246 E.2: a greeting in SSL 2's form, which can name no server
        if len(data) < 3:
            return None
        if data[2] == _CLIENT_HELLO:
            raise BadHello("the TLS greeting is in the form of SSL 2")
    if data[0] not in _RECORD_TYPES:
        return Hello(is_tls=False)
    if len(data) > 1 and data[1] != 3:  # some servers take any version for one of theirs
        raise BadHello("the TLS version is unknown")
    message = _message(data)
    if message is None:
        if len(data) >= HELLO_MAX_BYTES:
            raise BadHello("the TLS greeting is too long")
        return None
    return Hello(is_tls=True, server_name=_server_name(message))


def _message(data: bytes | bytearray) -> bytes | None:
    """The body of the first handshake message, put together from its records."""
    body = bytearray()
    at = 0
    for _ in range(_RECORDS_MAX):
        if at < len(data) and data[at] != _HANDSHAKE:
            # Some servers would skip an alert in front: then what follows was never read.
            raise BadHello("the first TLS record is no handshake")
        if len(data) < at + 5:
            return None
        if data[at + 1] != 3:
            raise BadHello("the TLS version is unknown")
        size = int.from_bytes(data[at + 3 : at + 5], "big")
        if not 1 <= size <= _RECORD_MAX_BYTES:
            raise BadHello("a TLS record has no proper length")
        body += data[at + 5 : at + 5 + size]
        at += 5 + size
        if body and body[0] != _CLIENT_HELLO:
            raise BadHello("the first TLS message is no greeting")
        if len(body) >= 4:
            wanted = int.from_bytes(body[1:4], "big")
            if wanted > HELLO_MAX_BYTES:
                raise BadHello("the TLS greeting is too long")
            if len(body) >= 4 + wanted:
                return bytes(body[4 : 4 + wanted])
    raise BadHello("the TLS greeting is in too many pieces")


def _server_name(message: bytes) -> str | None:
    read = _Reader(message)
    read.take(2 + 32)  # legacy_version, random
    read.vector(1)  # legacy_session_id
    read.vector(2)  # cipher_suites
    read.vector(1)  # legacy_compression_methods
    if read.is_empty:  # before TLS 1.2 there may be no extensions
        return None
    extensions = _Reader(read.vector(2))
    read.end()
    name: str | None = None
    seen = set[int]()
    while not extensions.is_empty:
        kind, content = extensions.number(2), extensions.vector(2)
        if kind in seen:  # RFC 8446 4.2: never two of one type
            raise BadHello("a TLS extension is there twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            name = _host_name(content)
    return name


def _host_name(content: bytes) -> str:
    outer = _Reader(content)
    names = _Reader(outer.vector(2))
    outer.end()
    kind, name = names.number(1), names.vector(2)
    names.end()  # RFC 6066: never two of one type, and there is one type
    # RFC 6066 3: "without a trailing dot"; servers that take it off would find another host.
    if kind != _HOST_NAME or not _NAME.fullmatch(name) or name.endswith(b"."):
        raise BadHello("the TLS server name is none")
    return name.decode("ascii").lower()


class _Reader:
    """Takes lengths and vectors off bytes; too few are BadHello."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        return self._at == len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) != size:
            raise BadHello("the TLS greeting ends too soon")
        self._at += size
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def end(self) -> None:
        if not self.is_empty:
            raise BadHello("the TLS greeting has bytes too many")
