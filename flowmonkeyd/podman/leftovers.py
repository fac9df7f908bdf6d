"""What is left of containers that Podman does not know any more, found where the host keeps it.

A service process killed in the middle of a start leaves conmon, the runtime's entry, a control
group, mounts and folders of which Podman has no record. Each of them names the container's id or
lies below a place of ours, so nothing of anybody else can be meant. All functions block.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from flowmonkeyd.confinement import Groups
from flowmonkeyd.podman.libpod import Places

__all__ = [
    "end_pause",
    "group_folders",
    "remove",
    "remove_empty_groups",
    "remove_run",
    "remove_unfinished",
    "seen",
    "unmount_below",
    "unmount_storage",
    "unmounted",
]

_ID = re.compile(r"[0-9a-f]{64}")
_RUNTIMES = ("runc", "crun")
_RUNTIME_S = 10.0
_EMPTY_ROUNDS = 50
_ROUNDS, _ROUND_S = 200, 0.01  # a killed process needs some milliseconds; a loaded machine more
_MNT_DETACH = 2


def seen(places: Places, parent: str) -> set[str]:
    """The ids of containers of which anything is there, known to Podman or not.

    `parent` is the control group above theirs. Take this before Podman's list: what is made
    meanwhile is then in the list and not in here.
    """
    # A conmon writes it when its container ends, also when Podman has forgotten that meanwhile.
    exits = (file.name for file in (places.tmp / "exits").glob("*"))
    return _there(places, parent) | {name for name in exits if _ID.fullmatch(name)}


def _there(places: Places, parent: str) -> set[str]:
    """The ids of containers that are more than the word that they have ended."""
    found = {found_id for found_id, _ in _conmons(places)}
    found |= {folder.name for folder in _runtime_folders(places)}
    found |= {folder.name for folder in _container_folders(places)}
    for group in group_folders(parent):
        found |= {name for one in _folders(group) for name in _ID.findall(one.name)}
    return found


def remove(places: Places, parent: str, container_id: str) -> None:
    """All of one container, whose id Podman does not know. Harmless when nothing is there."""
    for found_id, pid in _conmons(places):
        if found_id == container_id:
            _kill(pid, container_id)
    _kill_members(container_id)
    for folder in _runtime_folders(places):
        if folder.name == container_id:
            _delete_in_runtime(folder)
    for group in group_folders(parent):
        for one in _folders(group):
            if container_id in one.name:
                _remove_group(one)
    for folder in _container_folders(places):
        if folder.name == container_id:
            unmount_below(folder)
            shutil.rmtree(folder, ignore_errors=True)
    for rest in ("socket", "exits", "persist"):
        path = places.tmp / rest / container_id
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def unmounted(places: Places) -> int:
    """Unmount the roots of containers whose layer the storage does not have any more."""
    top = places.storage / "overlay"
    points = _mount_points(top)  # before the lists: a layer is in its list before it is mounted
    layers = set()
    for name in ("layers.json", "volatile-layers.json"):  # the second: newer storage, containers'
        try:
            listed = json.loads((places.storage / "overlay-layers" / name).read_text())
            layers |= {str(one["id"]) for one in listed}
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # a list that cannot be read condemns nothing
    count = 0
    for point in points if layers else ():
        # The folder itself is a mount too, Podman's own.
        layer = "/".join(point.relative_to(top).parts[:1])
        if _ID.fullmatch(layer) and layer not in layers:
            _unmount(point)
            count += 1
    return count


def end_pause(places: Places) -> None:
    """Without root, Podman keeps a process for its namespaces; it is of no use without containers
    and would be left behind."""
    if any(_conmons(places)):
        return
    with suppress(OSError, ValueError):
        _kill(int((places.tmp / "pause.pid").read_text()), "catatonit")


def unmount_storage(places: Places) -> None:
    """What Podman mounts over its own storage, when no container's root is in it. The `podman
    container cleanup` that a conmon becomes in the end mounts it once more: it is waited for."""
    top = places.storage / "overlay"
    for _ in range(_ROUNDS):
        if not any(_cleanups(places)):
            break
        time.sleep(_ROUND_S)
    while (points := _mount_points(top)) and set(points) == {top}:
        _unmount(top)
        if _mount_points(top) == points:
            return  # it may not be done


def remove_unfinished(places: Places, grace_s: float) -> None:
    """New versions of the storage's lists that were being written when their writer was killed."""
    for file in places.storage.glob("overlay-*/.tmp-*"):
        with suppress(FileNotFoundError):
            if file.is_file() and time.time() - file.stat().st_mtime >= grace_s:
                file.unlink()


def remove_run(places: Places, parent: str) -> None:
    """What does not survive a boot, when there is no container that needs it."""
    if _there(places, parent) or _mount_points(places.run) or list((places.run / "c").glob("*")):
        return
    for name in ("c", "etc", "state", "tmp", "work"):
        shutil.rmtree(places.run / name, ignore_errors=True)
    # By their kinds: the operator may have given us a folder that has other things.
    for pattern in ("podman.*", "*.conf", "seccomp.json"):
        for file in places.run.glob(pattern):
            file.unlink(missing_ok=True)
    with suppress(OSError):
        places.run.rmdir()


def unmount_below(folder: Path) -> None:
    """Whatever is mounted at or below it, the innermost first."""
    for point in sorted(_mount_points(folder), key=lambda one: len(one.parts), reverse=True):
        _unmount(point)


def group_folders(parent: str) -> list[Path]:
    """The control group `parent` in every hierarchy where it is; none for none."""
    found: list[Path] = []
    if not parent:
        return found
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split(" ")[3:5]
        if after.startswith(("cgroup ", "cgroup2 ")) and root == "/":
            found.append(Path(point) / parent.lstrip("/"))
    return [one for one in found if one.is_dir()]


def remove_empty_groups(parent: str) -> None:
    """The group above those of containers, when there is nothing in it but conmon's, empty or soon:
    each ends a moment after its container is removed."""
    for group in group_folders(parent):
        for _ in range(_EMPTY_ROUNDS):
            with suppress(OSError):
                for one in _folders(group):
                    one.rmdir()
                group.rmdir()
            if [one.name for one in _folders(group)] != ["conmon"]:
                break
            time.sleep(_ROUND_S)


def _cleanups(places: Places) -> Iterator[int]:
    """The processes that clean up after a container of ours on their own."""
    storage = str(places.storage).encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"cleanup" in words and any(storage in word for word in words):
                    yield int(folder.name)


def _conmons(places: Places) -> Iterator[tuple[str, int]]:
    """(container id, pid) of each conmon whose bundle is in our storage."""
    bundles = f"{places.storage}/overlay-containers/".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError, ValueError, UnicodeDecodeError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"conmon") and words[words.index(b"-b") + 1].startswith(bundles):
                yield words[words.index(b"-c") + 1].decode(), int(folder.name)


def _runtime_folders(places: Places) -> Iterator[Path]:
    """The OCI runtimes' entries whose bundle is in our storage."""
    own = os.environ.get("XDG_RUNTIME_DIR")
    bundles = f"{places.storage}/overlay-containers/"
    for top in dict.fromkeys(("/run", own) if own else ("/run",)):
        for runtime in _RUNTIMES:
            for folder in _folders(Path(top) / runtime):
                with suppress(OSError):
                    file = folder / ("state.json" if runtime == "runc" else "status")
                    if bundles in file.read_text().replace("\\/", "/"):
                        yield folder


def _container_folders(places: Places) -> Iterator[Path]:
    for top in (places.storage, places.state):
        for folder in _folders(top / "overlay-containers"):
            if _ID.fullmatch(folder.name):
                yield folder


def _folders(top: Path) -> list[Path]:
    with suppress(OSError):
        return [one for one in top.iterdir() if one.is_dir() and not one.is_symlink()]
    return []


def _kill(pid: int, mark: str) -> None:
    """SIGKILL to the process, if its command line still has the mark."""
    with suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def _kill_members(mark: str) -> None:
    """Kill every process in a control group whose path has the mark, until there is none."""
    for _ in range(_ROUNDS):
        members = list(_members(mark))
        if not members:
            return
        for pid, freezer in members:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
            with suppress(OSError):
                freezer.write_text("THAWED" if freezer.name == "freezer.state" else "0")
        time.sleep(_ROUND_S)


def _members(mark: str) -> Iterator[tuple[int, Path]]:
    """(pid, the file that thaws it), zombies left out: they hold nothing."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            if mark in (folder / "cgroup").read_text():
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                if state not in "ZX":
                    yield int(folder.name), Groups.of(folder.name, marks=(mark,)).freezer


def _delete_in_runtime(folder: Path) -> None:
    program = shutil.which(folder.parent.name, path="/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
    if program is not None:
        words = [program, "--root", str(folder.parent), "delete", "--force", folder.name]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(words, capture_output=True, timeout=_RUNTIME_S, check=False)
    shutil.rmtree(folder, ignore_errors=True)


def _remove_group(folder: Path) -> None:
    for one in _folders(folder):
        _remove_group(one)
    for _ in range(_ROUNDS):
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(_ROUND_S)  # the kernel has not let go of its last process yet
        else:
            return


def _mount_points(folder: Path) -> list[Path]:
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        # Space, tab, newline and backslash come as octal numbers.
        text = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), line.split(" ")[4])
        if (point := Path(text)).is_relative_to(folder):
            points.append(point)
    return points


def _unmount(point: Path) -> None:
    """umount2(2), lazily: what is still open in it goes when it is closed."""
    ctypes.CDLL(None).umount2(os.fsencode(point), _MNT_DETACH)
