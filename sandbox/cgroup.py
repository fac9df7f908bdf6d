"""Control groups of the slots (cgroups(7)): the kernel counts and bounds an execution as a whole.

`Groups` is owned by the pool's process. It makes one group for each slot, in a group of its own,
where the host lets it: v2 in a subtree that is delegated to this process (systemd's Delegate=yes,
or root where no systemd rules), else v1 as root. It removes what it made, and at its next start
what a killed one left. It never writes to a group that is not its own but for what v2 demands: the
processes of a delegated group move to a leaf in it ("no internal processes") and back.
Sources: the kernel's admin-guide/cgroup-v2 and cgroup-v1, systemd's CGROUP_DELEGATION.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["Group", "Groups"]

_CONTROLLERS = ("memory", "pids", "cpu")
_PERIOD_US = 100_000  # the kernel's own
_KILL_ROUNDS, _REMOVE_ROUNDS = 100, 50  # of 1 ms; a dying process needs one or two
_LEAF = "flowmonkey-rest"  # where the processes of a delegated group go


class Group:
    """One slot's group. Every method raises OSError if the kernel refuses."""

    def __init__(self, folders: Mapping[str, Path], version: int) -> None:
        self._folders = dict(folders)
        self._memory, self._version = folders["memory"], version
        self._limits: tuple[int, int, float] | None = None
        for folder in set(folders.values()):
            folder.mkdir(exist_ok=True)
        if version == 2:
            _write_if_there(self._memory / "memory.swap.max", "0")
            _write_if_there(self._memory / "memory.oom.group", "0")
        else:
            _write_if_there(self._memory / "memory.swappiness", "0")

    def add(self, pid: int) -> None:
        """Move a process, and so all that it will make, into the group.

        On v1 the kernel may take 10 ms over it: once for a fork server, not for an execution.
        """
        for folder in set(self._folders.values()):
            _write(folder / "cgroup.procs", str(pid))

    def limit(self, memory_bytes: int, tasks: int, cpu_share: float) -> None:
        """Bound what all processes of the group have together; writes only what has changed.

        Memory includes page cache, tmpfs and the kernel's own (stacks, socket buffers), and none
        of it is swapped out. `tasks` are processes and threads, `cpu_share` a share of one CPU.
        """
        old = self._limits or (-1, -1, -1.0)
        self._limits = None  # whatever fails is written again
        if memory_bytes != old[0]:
            self._limit_memory(memory_bytes)
        if tasks != old[1]:
            _write(self._folders["pids"] / "pids.max", str(tasks))
        if cpu_share != old[2]:
            quota, cpu = round(cpu_share * _PERIOD_US), self._folders["cpu"]
            if self._version == 2:
                _write(cpu / "cpu.max", f"{quota} {_PERIOD_US}")
            else:
                _write(cpu / "cpu.cfs_quota_us", str(quota))
        self._limits = (memory_bytes, tasks, cpu_share)

    def oom_kills(self) -> int:
        """How many processes of the group the kernel has killed for memory, ever."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return _counts(self._memory / name).get("oom_kill", 0)

    def throttled(self) -> int:
        """In how many periods of 100 ms the group had used up its share of the CPU."""
        return _counts(self._folders["cpu"] / "cpu.stat").get("nr_throttled", 0)

    def memory_bytes(self) -> int:
        """What the group holds now."""
        name = "memory.current" if self._version == 2 else "memory.usage_in_bytes"
        return int((self._memory / name).read_text())

    def peak_bytes(self) -> int:
        """The most memory that the group ever had at a time; 0 if the kernel does not say (v2
        before Linux 5.19)."""
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        try:
            return int((self._memory / name).read_text())
        except FileNotFoundError:
            return 0

    def pids(self) -> list[int]:
        """The processes that are in it."""
        return _pids(self._folders["pids"])

    def kill(self) -> None:
        """Kill every process in it; returns when that is ordered, not when they are gone."""
        if self._version == 2:
            with suppress(FileNotFoundError):  # since Linux 5.14
                _write(self._memory / "cgroup.kill", "1")
                return
        for _ in range(_KILL_ROUNDS):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.001)

    def remove(self) -> None:
        """Remove the group, which must be empty."""
        for folder in set(self._folders.values()):
            _remove(folder)

    def _limit_memory(self, size: int) -> None:
        if self._version == 2:
            _write(self._memory / "memory.max", str(size))
            return
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        limits = [self._memory / name for name in names]
        if not limits[1].exists():  # no accounting of swap
            limits.pop()
        # Memory alone must never be above memory and swap together.
        if size > int(limits[0].read_text()):
            limits.reverse()
        for path in limits:
            _write(path, str(size))
        # v1 counts the buffers of TCP apart, and only once they are bounded.
        _write_if_there(self._memory / "memory.kmem.tcp.limit_in_bytes", str(size))


class Groups:
    """The groups of one pool: `slot` makes one, `close` removes all."""

    def __init__(
        self, version: int, tops: Mapping[str, Path], given: frozenset[str] = frozenset()
    ) -> None:
        self.version = version
        self._tops = dict(tops)  # by controller; v2: all the same
        self._given = given  # v2: the controllers that the group above them had to give
        self._slots: list[Group] = []

    @classmethod
    def open(cls, name: str, family: int = 0) -> Groups:
        """Find a place and make the group that holds the others, named after `name` and this
        process. `family`: the process whose descendants are moved with this one (0: itself).
        Raises OSError whose words say why this host gives none and what to do."""
        own, mounts = _own_groups(), _mounts()
        of_v2 = _controllers(own, mounts)
        if missing := [c for c in _CONTROLLERS if c not in own and c not in of_v2]:
            raise _refused(f"the kernel has no controller for {', '.join(missing)}")
        if all(controller in of_v2 for controller in _CONTROLLERS):
            return cls._open_v2(name, own, mounts, family or os.getpid())
        return cls._open_v1(name, own, mounts)

    @classmethod
    def _open_v1(cls, name: str, own: Mapping[str, str], mounts: Mapping[str, _Mount]) -> Groups:
        parents = {}
        for controller in _CONTROLLERS:
            if controller not in mounts:
                raise _refused(f"the {controller} hierarchy (version 1) is not mounted")
            parents[controller] = mounts[controller].folder(own[controller])
            _remove_leftovers(parents[controller], name)
        try:
            return cls(1, _make_tops(parents, name))
        except OSError as exc:
            raise _refused(
                f"control groups of version 1 cannot be made here ({exc.strerror})",
                "run the daemon as root, or on a host with version 2 under systemd",
            ) from exc

    @classmethod
    def _open_v2(
        cls, name: str, own: Mapping[str, str], mounts: Mapping[str, _Mount], family: int
    ) -> Groups:
        parent = _place(own[""], mounts[""])
        _remove_leftovers(parent, name)
        try:
            given = _give_controllers(parent, family)
            tops = _make_tops(dict.fromkeys(_CONTROLLERS, parent), name)
            groups = cls(2, tops, given)
        except _Refused:
            raise
        except OSError as exc:
            raise _refused(f"no group can be made in {parent} ({exc.strerror})", _DELEGATE) from exc
        top = tops["memory"]
        try:
            _write(top / "cgroup.subtree_control", _wanted(_CONTROLLERS))
        except OSError as exc:
            groups.close()
            raise _refused(f"{top} gets no controllers ({exc.strerror})", _DELEGATE) from exc
        return groups

    def slot(self, number: int) -> Group:
        """The group of a slot, made if it is not there."""
        folders = {c: top / f"slot-{number}" for c, top in self._tops.items()}
        group = Group(folders, self.version)
        self._slots.append(group)
        return group

    def close(self) -> None:
        """Kill what is left in the groups and remove them; may wait some milliseconds.

        What the kernel still holds then is removed at the next `open`.
        """
        for group in self._slots:
            with suppress(OSError):
                group.kill()
        with suppress(OSError):
            for group in self._slots:
                group.remove()
            for top in set(self._tops.values()):
                _remove(top)
            if self.version == 2:
                _take_back(self._tops["memory"].parent, self._given)
        self._slots.clear()


_DELEGATE = (
    "give the daemon a group of its own: Delegate=yes in its unit, or "
    "systemd-run --user --scope -p Delegate=yes flowmonkeyd"
)


class _Mount:
    """Where a hierarchy is mounted, and which of its groups is seen there as the top."""

    def __init__(self, point: str, root: str) -> None:
        self.point, self._root = Path(point), root.rstrip("/")

    def folder(self, group: str) -> Path:
        """The folder of a group, as /proc/PID/cgroup names it."""
        inside = group.removeprefix(self._root) if self._root else group
        if ".." in group.split("/") or not (inside == "" or inside.startswith("/")):
            raise _refused(f"this process's group {group} is not below {self.point}")
        return self.point / inside.lstrip("/")


def _own_groups() -> dict[str, str]:
    """This process's group in each hierarchy: by controller, and "" for version 2."""
    found = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, group = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), group))
    return found


def _mounts() -> dict[str, _Mount]:
    """By controller, and "" for version 2 (proc_pid_mountinfo(5))."""
    found: dict[str, _Mount] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        if kind == "cgroup2":
            found.setdefault("", _Mount(point, root))
        elif kind == "cgroup":
            for controller in set(options.split(",")) & set(_CONTROLLERS):
                found.setdefault(controller, _Mount(point, root))
    return found


def _controllers(own: Mapping[str, str], mounts: Mapping[str, _Mount]) -> list[str]:
    """Those that version 2 has on this host; a controller bound to version 1 is not among them."""
    if "" not in own or "" not in mounts:
        return []
    return (mounts[""].point / "cgroup.controllers").read_text().split()


def _place(own: str, mount: _Mount) -> Path:
    """Where groups of ours may be made on version 2; raises OSError, in words."""
    here = mount.folder(own)
    if here.name == _LEAF:  # where a pool that was killed has put its family
        here = here.parent
    for folder in (here, here.parent):  # the parent: DelegateSubgroup= of systemd.resource-control
        if folder.is_relative_to(mount.point) and _is_delegated(folder):
            return _with_controllers(folder)
    if os.geteuid() != 0:
        if not os.access(here / "cgroup.subtree_control", os.W_OK):
            raise _refused(f"the group {here} is not delegated to this user", _DELEGATE)
        return _with_controllers(here)
    if os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        raise _refused(f"systemd rules the group {here} and has not delegated it", _DELEGATE)
    return _with_controllers(mount.point)


def _is_delegated(folder: Path) -> bool:
    """systemd marks what it has given away (CGROUP_DELEGATION)."""
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            return os.getxattr(folder, name) == b"1" and os.access(folder, os.W_OK)
    return False


def _with_controllers(folder: Path) -> Path:
    there = (folder / "cgroup.controllers").read_text().split()
    if missing := [c for c in _CONTROLLERS if c not in there]:
        raise _refused(
            f"the group {folder} lacks the controllers {', '.join(missing)}",
            "delegate them (Delegate=yes or Delegate=cpu memory pids; for memory the kernel may "
            "need cgroup_enable=memory)",
        )
    return folder


def _give_controllers(parent: Path, family: int) -> frozenset[str]:
    """Let groups below `parent` have the controllers; returns those that they did not have."""
    control = parent / "cgroup.subtree_control"
    missing = frozenset(_CONTROLLERS) - set(control.read_text().split())
    try:
        if missing:
            _write(control, _wanted(missing))
        return missing
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
    # "No internal processes", but in the host's root.
    others = [pid for pid in _pids(parent) if not _is_ours(pid, family)]
    # The top, where no systemd rules, is that of a container: all of it is given to us.
    if others and not _is_delegated(parent) and parent != _mounts()[""].point:
        raise _refused(f"other processes are in {parent}: {others[0]}", _DELEGATE)
    leaf = parent / _LEAF
    leaf.mkdir(exist_ok=True)
    for _ in range(_REMOVE_ROUNDS):  # they may fork meanwhile
        if not (pids := _pids(parent)):
            break
        _move(pids, leaf)
    _write(control, _wanted(missing))
    return missing


def _take_back(parent: Path, given: frozenset[str]) -> None:
    """Undo `_give_controllers`, unless somebody else has groups there."""
    leaf = parent / _LEAF
    if [path for path in parent.iterdir() if path.is_dir() and path != leaf]:
        return
    if leaf.is_dir():  # of this pool, or of one that is gone
        given = frozenset(_CONTROLLERS)
    if given:
        _write(parent / "cgroup.subtree_control", " ".join(f"-{name}" for name in given))
    if leaf.is_dir():
        _move(_pids(leaf), parent)
        _remove(leaf)


def _move(pids: Iterable[int], folder: Path) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):  # it has ended
            _write(folder / "cgroup.procs", str(pid))


def _is_ours(pid: int, family: int) -> bool:
    """Whether a process is this one's family or was started by it."""
    while pid > 1 and pid != family:
        try:
            pid = int(_stat(pid)[1])
        except OSError:
            return True  # it has ended
    return pid == family


def _make_tops(parents: Mapping[str, Path], name: str) -> dict[str, Path]:
    """A group in each parent, named after this process; a number tells several pools apart."""
    process = f"{name}-{os.getpid()}-{_stat(os.getpid())[19]}"
    for number in range(1000):
        tops = {c: parent / f"{process}-{number}" for c, parent in parents.items()}
        made: list[Path] = []
        try:
            for top in dict.fromkeys(tops.values()):
                top.mkdir()
                made.append(top)
            return tops
        except OSError as exc:
            for top in made:
                top.rmdir()
            if not isinstance(exc, FileExistsError):
                raise
    raise OSError(errno.EEXIST, "a thousand of them are there")


def _stat(pid: int) -> list[str]:
    """Fields of proc_pid_stat(5) from the third on: 1 is the parent, 19 the time of its start."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _remove_leftovers(parent: Path, name: str) -> None:
    """Remove groups of processes that are gone, if nothing is left in them."""
    with suppress(OSError):
        for top in parent.iterdir():
            match = re.fullmatch(re.escape(name) + r"-(\d+)-(\d+)-\d+", top.name)
            if match is None or _is_alive(int(match[1]), match[2]):
                continue
            with suppress(OSError):
                for slot in top.glob("slot-*"):
                    slot.rmdir()
                top.rmdir()


def _is_alive(pid: int, started: str) -> bool:
    try:
        return _stat(pid)[19] == started
    except OSError:
        return False


def _pids(folder: Path) -> list[int]:
    return [int(pid) for pid in (folder / "cgroup.procs").read_text().split()]


def _counts(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def _wanted(controllers: Iterable[str]) -> str:
    return " ".join(f"+{name}" for name in sorted(controllers))


def _remove(folder: Path) -> None:
    for left in range(_REMOVE_ROUNDS, -1, -1):
        try:
            folder.rmdir()
            return
        except FileNotFoundError:
            return
        except OSError as exc:
            if exc.errno != errno.EBUSY or not left:
                raise
            time.sleep(0.001)


def _write(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _write_if_there(path: Path, text: str) -> None:
    with suppress(OSError):  # not every kernel has every knob
        _write(path, text)


class _Refused(OSError):
    """There are words for the operator in it already."""


def _refused(why: str, remedy: str = "") -> _Refused:
    text = f"cannot use control groups: {why}" + (f"; {remedy}" if remedy else "")
    return _Refused(errno.ENOTSUP, text)
