"""Blobs of agents: checkpoints on their way between an agent and the disk.

A small one is bytes; a large one goes through a file, a part at a time, with file work on threads.
What is received has the size and the SHA-256 that were announced.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from flowmonkeyd.agentmodel import BlobHead
from flowmonkeyd.agentwire import PART_BYTES, ProtocolError
from flowmonkeyd.errors import Unavailable

__all__ = ["SMALL_BLOB_BYTES", "Blob", "move", "not_kept", "receive"]

SMALL_BLOB_BYTES = 64 * 1024  # up to here it is a row of a table, not a file
WRITE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes of a checkpoint as they are stored: `data`, or the file `file` where they are many. A
    received file is on disk (fsync) and there until the callback returns: to be moved away."""

    head: BlobHead
    data: bytes | None = None
    file: Path | None = None

    async def parts(self) -> AsyncIterator[bytes]:
        """The file's content as an agent is sent it. Raises OSError if it is shorter."""
        assert self.file is not None
        with await asyncio.to_thread(FileIO, self.file) as file:
            left = self.head.size
            while left:
                part = await asyncio.to_thread(file.read, min(left, PART_BYTES))
                if not part:
                    raise OSError(f"{self.file} has less than {self.head.size} bytes")
                left -= len(part)
                yield part


async def receive(head: BlobHead, parts: AsyncIterator[bytes], spool: Path) -> Blob:
    """The announced blob, once its parts have come. Raises ProtocolError if it is another one, and
    Unavailable, after the last part, if it cannot be kept."""
    if head.size <= SMALL_BLOB_BYTES:
        data = b"".join([part async for part in parts])
        _verify(head, hashlib.sha256(data).hexdigest())
        return Blob(head, data=data)
    file = _Spooled(spool / secrets.token_hex(16))
    try:
        waiting = bytearray()
        async for part in parts:
            waiting += part
            if len(waiting) >= WRITE_BYTES:
                await asyncio.to_thread(file.add, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(file.finish, bytes(waiting))
        _verify(head, file.digest.hexdigest())
        if file.problem is not None:
            raise not_kept(file.problem)
    except BaseException:
        file.remove()
        raise
    return Blob(head, file=file.path)


def move(source: Path, target: Path) -> None:
    """A received file to its place, for good: its content was flushed by who received it."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source.rename(target)
    for folder in (target.parent, target.parent.parent):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def not_kept(problem: OSError) -> Unavailable:
    """What the handler is told when the disk does not take its checkpoint."""
    code = "DISK_FULL" if problem.errno in (errno.ENOSPC, errno.EDQUOT) else None
    return Unavailable(f"cannot keep a checkpoint: {problem.strerror}", code=code)


def _verify(head: BlobHead, sha256: str) -> None:
    if sha256 != head.sha256:
        raise ProtocolError("a blob is not the one that was announced: another SHA-256")


class _Spooled:
    """A file that is being received; what goes wrong with the disk is kept for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.digest = hashlib.sha256()
        self.problem: OSError | None = None
        self._file: FileIO | None = None

    def add(self, data: bytes) -> None:
        """Append; once that has failed only the digest goes on."""
        self.digest.update(data)
        try:
            if self.problem is None:
                self._file = self._file or FileIO(self.path, "xb")
                view = memoryview(data)
                while view:
                    view = view[self._file.write(view) :]
        except OSError as exc:
            self.problem = exc

    def finish(self, data: bytes) -> None:
        """Append the last and have it on disk."""
        self.add(data)
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
        except OSError as exc:
            self.problem = self.problem or exc
        self._close()

    def remove(self) -> None:
        """Leave nothing behind."""
        self._close()
        self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
