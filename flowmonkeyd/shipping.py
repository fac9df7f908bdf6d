"""The handlers that come with FlowMonkey: packages like anyone's, published when they are missing.

They are packed from the folders beside this file and signed with a key of this installation, made
at the first start, in the data directory. They run in the sandbox, within `handlers.allow`, like
everybody's; what the operator does not allow is not published. It decides nothing about them after
that: they can be yanked and deprecated.
"""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from flowmonkeyd import __version__, trust
from flowmonkeyd.documents.archive import (
    FORMAT,
    MANIFEST,
    SIGNATURE,
    content_digest,
    listed_files,
    pack_files,
)
from flowmonkeyd.documents.signing import PrivateKey, sign
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import FlowMonkeyError
from flowmonkeyd.packages import Packages
from flowmonkeyd.settings import Settings
from flowmonkeyd.store import catalog

__all__ = ["TYPES", "install", "package_of"]

PUBLISHER = "flowmonkey"
KEY_FILE = "shipped.key"
TYPES = ("http", "webhook", "transform", "transform-js", "batch")
# `batch` does to each item what `transform` does to one value.
_SHARED = {"batch": ("transform/operations.py",)}
_FOLDER = Path(__file__).resolve().parent / "shipped"

log = logging.getLogger(__name__)


def package_of(handler_type: str) -> dict[str, bytes]:
    """The files of a shipped handler, as built: the same bytes everywhere."""
    folder = _FOLDER / handler_type
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    for name in _SHARED.get(handler_type, ()):
        files[Path(name).name] = (_FOLDER / name).read_bytes()
    document = json.loads(files.pop(MANIFEST))
    document["package"] = {
        "format": FORMAT,
        "files": listed_files(files),
        "builder": f"flowmonkey/{__version__}",
    }
    files[MANIFEST] = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
    return files


async def install(engine: Engine, packages: Packages, settings: Settings) -> list[str]:
    """Publish what is missing, unless the settings say no; the types that were published. What is
    refused is logged."""
    published: list[str] = []
    key: PrivateKey | None = None
    for handler_type in TYPES if settings.shipped.install else ():
        files = package_of(handler_type)
        version = json.loads(files[MANIFEST])["handler"]["version"]
        find = functools.partial(catalog.handler_row, handler_type=handler_type, version=version)
        row = await engine.store.read(find)
        digest = content_digest(files)
        if row is not None and row.digest == digest and packages.path(digest).exists():
            continue
        try:
            if key is None:
                key = await _key(engine, settings.dataDir)
            await _publish(engine, packages, settings, files, key)
            published.append(handler_type)
        except FlowMonkeyError as exc:
            why = "; ".join([exc.message, *(problem.message for problem in exc.problems)])
            log.warning("the shipped handler %s is not published: %s", handler_type, why)
    return published


async def _publish(
    engine: Engine,
    packages: Packages,
    settings: Settings,
    files: Mapping[str, bytes],
    key: PrivateKey,
) -> None:
    signed = {**files, SIGNATURE: sign(files, key, "comes with FlowMonkey")}
    keys = trust.known_keys([key.public.line(PUBLISHER)], ())
    judge = functools.partial(trust.check, keys=keys, settings=settings)
    received = await asyncio.to_thread(packages.receive, pack_files(signed), judge)
    manifest = received.manifest
    await engine.publish(
        manifest.type,
        manifest.version,
        received.digest,
        received.manifest_json,
        received.size_bytes,
        "flowmonkeyd",
        received.signed,
    )


async def _key(engine: Engine, data: Path) -> PrivateKey:
    """This installation's own, which nobody else has; trusted here."""
    key = await asyncio.to_thread(_read_or_make, data / KEY_FILE)
    public = key.public
    await engine.trust_key(public.id, public.text, PUBLISHER, "flowmonkeyd")
    return key


def _read_or_make(path: Path) -> PrivateKey:
    try:
        return PrivateKey.from_pem(path.read_bytes())
    except FileNotFoundError:
        pass
    key, beside = PrivateKey.new(), path.with_suffix(".new")
    beside.unlink(missing_ok=True)
    fd = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        os.write(fd, key.pem())
        os.fsync(fd)
    finally:
        os.close(fd)
    beside.rename(path)
    return key
