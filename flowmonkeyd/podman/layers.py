"""Layers that were made for a container which then was not: the storage keeps them for ever.

The service process was killed between its two records, the layer's and the container's. Podman
removes layers of images and of containers only, so this is done as it would: under the lock of
its storage (containers/storage: fcntl(2) on layers.lock, whose bytes tell others to read again).
A layer is ours by its name, which is the container's, or
by having none: image builds name theirs.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from flowmonkeyd.podman.libpod import Places

__all__ = ["remove_lost"]

_WRITER_BYTES = 64
_FOLDER = re.compile(r"[0-9a-f]{64}")
_LINK = re.compile(r"[0-9A-Z]{26}")
# The second of each: newer storages keep what is of containers apart.
_LAYERS = ("layers.json", "volatile-layers.json")
_CONTAINERS = ("containers.json", "volatile-containers.json")


def remove_lost(
    places: Places, prefix: str, is_wanted: Callable[[str], bool], grace_s: float
) -> set[str]:
    """Remove the layers of containers that no container has: those named `prefix`INSTANCE-layer of
    an instance that is not wanted, and those whose name a second try has taken over, both older
    than `grace_s`. Says which (instances, ids). Blocks. When a list is not as expected, or another
    process is writing, nothing is removed."""
    top = places.storage / "overlay-layers"
    removed: set[str] = set()
    try:
        with _locked(top / "layers.lock") as lock:
            for file in [top / name for name in _LAYERS]:
                layers = _list(file)
                lost = [one for one in _unused(places, layers) if _age_s(one) >= grace_s]
                owners = {str(one["id"]): _owner(one, prefix) for one in lost}
                gone = {one: who for one, who in owners.items() if who and not is_wanted(who)}
                if gone:
                    _write(file, [one for one in layers if str(one["id"]) not in gone])
                    os.pwrite(lock, os.urandom(_WRITER_BYTES), 0)
                    for layer_id in gone:
                        _remove_folder(places.storage / "overlay", layer_id)
                    removed |= set(gone.values())
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return removed


def _unused(places: Places, layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that can be written, as a container's can, and that nobody has."""
    used = {str(one["layer"]) for name in _CONTAINERS for one in _containers(places, name)}
    used |= {str(one["parent"]) for one in layers if one.get("parent")}
    return [
        one
        for one in layers
        # An image's has a digest, one that is being written a flag.
        if "diff-digest" not in one and not one.get("flags") and str(one["id"]) not in used
    ]


def _owner(layer: Mapping[str, Any], prefix: str) -> str:
    """The instance it was made for, its own id when it has no name; "": somebody else's."""
    names = layer.get("names") or ()
    if not names:
        return str(layer["id"])
    instances = [_instance(str(name), prefix) for name in names]
    return instances[0] if all(instances) else ""


def _age_s(layer: Mapping[str, Any]) -> float:
    made = datetime.fromisoformat(f"{str(layer['created'])[:19]}+00:00")
    return time.time() - made.timestamp()


def _write(file: Path, layers: list[dict[str, Any]]) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(layers))
    part.chmod(0o600)
    part.rename(file)


def _remove_folder(top: Path, layer_id: str) -> None:
    if not _FOLDER.fullmatch(layer_id):
        return
    folder = top / layer_id
    try:
        link = (folder / "link").read_text()
    except OSError:
        link = ""
    if _LINK.fullmatch(link):
        (top / "l" / link).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _instance(name: str, prefix: str) -> str:
    is_ours = name.startswith(prefix) and name.endswith("-layer")
    return name.removeprefix(prefix).removesuffix("-layer") if is_ours else ""


def _containers(places: Places, name: str) -> list[dict[str, Any]]:
    return _list(places.storage / "overlay-containers" / name)


def _list(file: Path) -> list[dict[str, Any]]:
    try:
        listed = json.loads(file.read_text())
    except FileNotFoundError:
        return []
    return list(listed or ())


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Raises OSError when another process has it."""
    lock = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield lock
    finally:
        os.close(lock)  # and so unlocked
