"""The nouns of containers: what is asked for, what there is, how one ended. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowmonkeyd.confinement import Groups, Limits

__all__ = ["RESOURCES", "Container", "ContainerError", "Exit", "Found", "Image", "Spec"]

# By the class that a manifest names (contract, section 5): CPUs and memory; processes and files so
# that a browser or a transcoder runs in the classes made for them.
_GIB = 1024**3
RESOURCES: Mapping[str, Limits] = {
    "light": Limits(_GIB // 2, 0.5, pids=128, files=1024),
    "medium": Limits(_GIB, 1.0, pids=256, files=1024),
    "heavy": Limits(4 * _GIB, 2.0, pids=512, files=4096),
    "gpu": Limits(16 * _GIB, 4.0, pids=1024, files=4096),
}


class ContainerError(Exception):
    """A container could not be had. `code` is one of `errors.CODES`: SANDBOX_UNAVAILABLE names a
    layer that this host does not give, UNAVAILABLE is Podman's and may pass, HANDLER_CRASHED a
    container that has ended, NOT_FOUND an image that is not there."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Spec:
    """What to start. `folder` becomes /run/flowmonkey, read only (`Containers.folder` makes one);
    `resources` is a key of RESOURCES; `network` is a label: every container starts without any."""

    instance: str
    role: Literal["warm", "job", "canary"]
    image_id: str
    resources: str
    folder: Path
    command: Sequence[str]
    network: bool = False
    attempt: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    tmp_bytes: int = 0  # 0: containers.tmpBytes


@dataclass(frozen=True, slots=True)
class Container:
    """One that was started. `pid` is its first process as the host counts, 0 when it has ended;
    `first_uid` is who its root is on the host, and 1000 more who runs in it."""

    instance: str
    name: str
    id: str
    pid: int
    groups: Groups | None
    folder: Path
    first_uid: int | None
    started_ms: int


@dataclass(frozen=True, slots=True)
class Exit:
    """How a container ended. `code` None: nobody was there to see it. `oom`: the kernel killed
    some process of it for memory."""

    code: int | None
    signal: int | None
    oom: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A container of this installation that was there."""

    container: Container
    role: str
    attempt: int
    state: Literal["running", "frozen", "exited"]
    resources: str
    network: bool
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Image:
    """An image in the storage or in one of the read-only stores."""

    id: str
    names: tuple[str, ...]
    size_bytes: int
    created_ms: int
    labels: Mapping[str, str]
    read_only: bool
