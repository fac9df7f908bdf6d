"""What a job keeps: the list of its checkpoints, and one of them as it was given to be kept.

A value comes from a handler: it is checked whole (its digest, and that it has no more than
`BYTES_MAX` when it is unpacked) before its first byte is sent, in little memory however large.
"""

from __future__ import annotations

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from flowmonkeyd.api.jobs import checkpoint_json, found
from flowmonkeyd.api.requests import Api, answer
from flowmonkeyd.errors import NotFound, TooLarge, Unavailable
from flowmonkeyd.jobmodel import Checkpoint
from flowmonkeyd.store import checkpoints

__all__ = ["download", "list_checkpoints"]

# Four times the most that a manifest may allow for what is stored.
BYTES_MAX = 4 * 1024**3
CHUNK_BYTES = 1024 * 1024
DEFAULT_NAME = "default"
# A running handler may replace its checkpoint, and so the file, while we open it.
TRIES_MAX = 5


async def list_checkpoints(api: Api, request: Request) -> Response:
    """All of a job, by name; there are no more than a page has."""
    job = (await found(api, request)).job
    kept = await api.engine.checkpoints_of(job.key)
    now_ms = api.clock.now_ms()
    return answer({"items": [checkpoint_json(one, now_ms) for one in kept], "nextCursor": None})


async def download(api: Api, request: Request) -> Response:
    """The value of a checkpoint, `default` unless `name` says another, unpacked: JSON, or bytes."""
    job = (await found(api, request)).job
    name = request.query_params.get("name", DEFAULT_NAME)
    folder = api.settings.dataDir / "checkpoints"
    for _ in range(TRIES_MAX):
        kept = await api.engine.store.read(lambda conn: checkpoints.get(conn, job.key, name))
        if kept is None:
            raise NotFound(f"job {job.id} has no checkpoint {name!r}")
        try:
            file = await asyncio.to_thread(_opened, kept, folder)
        except FileNotFoundError:
            continue
        return await _sent(file, kept)
    raise Unavailable(f"cannot read the checkpoint {name!r} of job {job.id}: its file is gone")


async def _sent(file: BinaryIO, kept: Checkpoint) -> Response:
    try:
        size = await asyncio.to_thread(_checked, file, kept)
    except BaseException:
        file.close()
        raise
    kind = "application/json" if kept.encoding == "json" else "application/octet-stream"
    headers = {"content-length": str(size)}
    return StreamingResponse(_chunks(file, kept), headers=headers, media_type=kind)


def _opened(kept: Checkpoint, folder: Path) -> BinaryIO:
    if kept.file is None:
        return io.BytesIO(kept.data or b"")
    return (folder / kept.file).open("rb")


def _checked(file: BinaryIO, kept: Checkpoint) -> int:
    """How many bytes it has when it is unpacked. Raises TooLarge; Unavailable when it is not what
    was kept."""
    digest, size = sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    if digest.hexdigest() != kept.sha256:
        raise Unavailable(f"cannot read the checkpoint {kept.name!r}: it is not what was kept")
    try:
        for chunk in _unpacked(file, kept):
            size += len(chunk)
            if size > BYTES_MAX:
                raise TooLarge(
                    f"cannot send the checkpoint {kept.name!r}: it has over {BYTES_MAX} bytes"
                )
    except zlib.error as exc:
        why = f"cannot unpack the checkpoint {kept.name!r}: {exc}"
        raise Unavailable(why) from None
    return size


def _unpacked(file: BinaryIO, kept: Checkpoint) -> Iterator[bytes]:
    file.seek(0)
    if kept.compression == "none":
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
        return
    inflate = zlib.decompressobj()
    while not inflate.eof:
        packed = inflate.unconsumed_tail or file.read(CHUNK_BYTES)
        if not packed:
            raise zlib.error("it ends in the middle")
        yield inflate.decompress(packed, CHUNK_BYTES)


async def _chunks(file: BinaryIO, kept: Checkpoint) -> AsyncIterator[bytes]:
    with closing(file):
        unpacked = _unpacked(file, kept)
        while (chunk := await asyncio.to_thread(next, unpacked, None)) is not None:
            yield chunk
