"""Images as Podman lists them, and the empty one that canaries are made of."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from typing import Any

from flowmonkeyd.containermodel import ContainerError, Image
from flowmonkeyd.podman.libpod import Libpod

__all__ = ["canary", "id_of", "listed", "remove"]

_CANARY = "localhost/flowmonkey-canary:1"


async def listed(libpod: Libpod) -> list[Image]:
    """All images, those of the read-only stores too."""
    return [_image(one) for one in await libpod.call("GET", "/images/json", again=True)]


async def id_of(libpod: Libpod, name: str) -> str | None:
    """The id behind a name; None: there is no such image."""
    try:
        return str((await libpod.call("GET", f"/images/{name}/json", again=True))["Id"])
    except ContainerError as exc:
        if exc.code == "NOT_FOUND":
            return None
        raise


async def remove(libpod: Libpod, image_id: str) -> None:
    """Remove an image that no container uses; one that is not there is fine."""
    try:
        await libpod.call("DELETE", f"/images/{image_id}", again=True)
    except ContainerError as exc:
        if exc.code != "NOT_FOUND":
            raise


async def canary(libpod: Libpod) -> str:
    """The id of an image with nothing in it: the init that Podman adds is all that it runs."""
    if (there := await id_of(libpod, _CANARY)) is None:
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            folder = tarfile.TarInfo("run")
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        await libpod.call("POST", "/images/import", {"reference": _CANARY}, made.getvalue())
        there = await id_of(libpod, _CANARY)
    if there is None:
        raise ContainerError("UNAVAILABLE", "podman: it does not keep an image that it was given")
    return there


def _image(one: Mapping[str, Any]) -> Image:
    return Image(
        id=str(one["Id"]),
        names=tuple(one.get("RepoTags") or one.get("Names") or ()),
        size_bytes=int(one.get("Size") or 0),
        created_ms=int(one.get("Created") or 0) * 1000,
        labels=one.get("Labels") or {},
        read_only=bool(one.get("ReadOnly")),
    )
