"""What is there of an installation's containers, seen without the driver: /proc, mounts, folders.

A zombie is not counted: its parent, process 1, has not asked for its code yet; it holds nothing.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from flowmonkeyd.podman.libpod import Places


def remains(places: Places, install: str) -> list[str]:
    """A word for each process, control group, mount, runtime entry and folder of a container."""
    return [
        *_processes(places, install),
        *_groups(install),
        *_mounts(places),
        *runtime_entries(places),
        *_folders(places),
    ]


def layers(places: Places) -> int:
    """How many layers the storage has: those of containers are among them."""
    return len(json.loads((places.storage / "overlay-layers/layers.json").read_text()))


def _processes(places: Places, install: str) -> list[str]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            in_group = f"/flowmonkey-{install}/" in (folder / "cgroup").read_text()
            of_ours = str(places.storage) in words and " system service " not in words
            if state not in "ZX" and (in_group or of_ours):
                found.append(f"process {folder.name}: {words[:200]}")
    return found


def _groups(install: str) -> list[str]:
    tops = [*Path("/sys/fs/cgroup").iterdir(), Path("/sys/fs/cgroup")]
    parents = [top / f"flowmonkey-{install}" for top in tops]
    return [
        f"control group {one}"
        for parent in parents
        if parent.is_dir()
        for one in parent.iterdir()
        if one.is_dir() and one.name != "conmon"
    ]


def _mounts(places: Places) -> list[str]:
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [
        f"mount {one}"
        for one in points
        if one.startswith((f"{places.root}/", f"{places.run}/"))
        and one != str(places.storage / "overlay")  # Podman's own, over the folder itself
    ]


def runtime_entries(places: Places) -> list[str]:
    """What the OCI runtimes know, with the id of each container."""
    found = []
    for file in [*Path("/run/runc").glob("*/state.json"), *Path("/run/crun").glob("*/status")]:
        with suppress(OSError):
            if str(places.storage) in file.read_text():
                found.append(f"runtime entry {file.parent}")
    return found


def _folders(places: Places) -> list[str]:
    tops = [
        *(places.storage / "overlay-containers", places.state / "overlay-containers"),
        *(places.tmp / "exits", places.tmp / "socket", places.tmp / "persist", places.run / "c"),
    ]
    return [
        f"folder {one}"
        for top in tops
        if top.is_dir()
        for one in top.iterdir()
        if one.name not in ("containers.json", "containers.lock")
    ]
