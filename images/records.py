"""What a storage root holds, read from the records of containers-storage without any program.

Reads only. The records are replaced whole by whoever writes them (rename), so that a reader needs
no lock. Their form: containers/storage, `images.go` and `layers.go`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

__all__ = [
    "RECIPE",
    "Image",
    "brought",
    "containers",
    "images",
    "intact",
    "made_by",
    "stored_bytes",
]


RECIPE = "flowmonkey.recipe"  # the label by which our own images are known


@dataclass(frozen=True, slots=True)
class Image:
    """An image in one root; `id` is the SHA-256 of its configuration, which names its layers.

    `size_bytes` counts the files of all layers, `own_bytes` those of the uppermost.
    """

    id: str
    root: Path
    names: tuple[str, ...]
    labels: Mapping[str, str]
    size_bytes: int
    own_bytes: int
    made_ms: int


def images(roots: Sequence[Path]) -> list[Image]:
    """All images of these roots, the first root's first; what is not whole is left out."""
    records, layers = _both(roots)
    found = []
    for root, listed in records:
        for record in listed:
            config = _config(root, record["id"])
            chain = _chain(layers, record.get("layer", ""))
            if config is None or not chain:
                continue
            sizes = [int(layer.get("diff-size") or 0) for layer in chain]
            labels = config["config"].get("Labels") or {}
            names = tuple(record.get("names") or ())
            made_ms = _instant_ms(chain[0].get("created", ""))
            found.append(Image(record["id"], root, names, labels, sum(sizes), sizes[0], made_ms))
    return found


def made_by(roots: Sequence[Path], recipe: str) -> Image | None:
    """The newest image that a recipe made, whatever its name is now."""
    made = [image for image in images(roots) if image.labels.get(RECIPE) == recipe]
    return max(made, key=lambda image: image.made_ms, default=None)


def brought(roots: Sequence[Path], name: str) -> Image | None:
    """An image of this name that somebody else made (a Containerfile's): it is used as it is."""
    for image in images(roots):
        if name in image.names and RECIPE not in image.labels:
            return image
    return None


def intact(roots: Sequence[Path], image_id: str) -> bool:
    """Whether an image is there, its configuration is what its id says, and so are its layers.

    The digests of the layers are those that the storage wrote down, not of their files now.
    """
    records, layers = _both(roots)
    for root, listed in records:
        for record in listed:
            if record["id"] != image_id:
                continue
            config = _config(root, image_id)
            if config is None:
                return False
            chain = [layer.get("diff-digest") for layer in _chain(layers, record.get("layer", ""))]
            return bool(chain[::-1] == config["rootfs"]["diff_ids"])
    return False


_Records = list[dict[str, Any]]


def _both(roots: Sequence[Path]) -> tuple[list[tuple[Path, _Records]], dict[str, dict[str, Any]]]:
    """The records of images by root, then those of layers by id: in this order, for an image is
    written down after its layers and removed before them."""
    listed = [(root, _records(root, "images")) for root in roots]
    return listed, {one["id"]: one for root in roots for one in _records(root, "layers")}


def _instant_ms(text: str) -> int:
    """Of 2026-11-29T13:37:10.290650718Z; fractions finer than Python's are cut."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    try:
        seconds = datetime.fromisoformat(f"{whole}+00:00").timestamp()
    except ValueError:
        return 0
    return int(seconds) * 1000 + int((fraction + "000")[:3] or 0)


def _records(root: Path, kind: str) -> _Records:
    try:
        read = json.loads((root / f"overlay-{kind}" / f"{kind}.json").read_bytes())
    except (FileNotFoundError, ValueError):  # a killed writer may leave half of one
        return []
    assert isinstance(read, list)
    return read


def _config(root: Path, image_id: str) -> dict[str, Any] | None:
    """An image's configuration; None when it is not what the id says."""
    name = "=" + base64.b64encode(f"sha256:{image_id}".encode()).decode()
    try:
        content = (root / "overlay-images" / image_id / name).read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content).hexdigest() != image_id:
        return None
    config = json.loads(content)
    assert isinstance(config, dict)
    return config


def _chain(layers: Mapping[str, dict[str, Any]], top: str) -> list[dict[str, Any]]:
    """The layers of an image from the uppermost down; none when one is missing."""
    chain = []
    while top:
        layer = layers.get(top)
        if layer is None or "incomplete" in (layer.get("flags") or {}):
            return []
        chain.append(layer)
        top = layer.get("parent", "")
    return chain


def containers(root: Path) -> list[str]:
    """The names of all containers in a root, working containers of builds too."""
    return [name for one in _records(root, "containers") for name in one.get("names") or ()]


def stored_bytes(root: Path) -> int:
    """The bytes of all layers that a root holds itself, each counted once."""
    return sum(int(layer.get("diff-size") or 0) for layer in _records(root, "layers"))
