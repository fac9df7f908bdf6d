"""What the kernel says of one container: its limits, its walls, whether it is frozen, how it ended.

Reads /proc/PID and the control groups that the process is in, version 1 or 2, and writes to the
freezer and to processes of that group only. It asks nobody who could be mistaken: what a container
engine was told and what it says it did are no facts here. `unmet` is the verdict, in words that
name the layer. Knows no engine. Sources: proc(5), the kernel's admin-guide/cgroup-v2 and cgroup-v1.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "LAYERS",
    "Facts",
    "Groups",
    "Limits",
    "cgroup_version",
    "read_facts",
    "uid_outside",
    "unmet",
]

# Each of them is read back before a container is given anything to do.
LAYERS = (
    *("memory", "swap", "cpu", "pids", "files", "capabilities", "no-new-privileges", "seccomp"),
    *("network", "routes", "root", "users", "namespaces", "freezer"),
)
_CONTROLLERS = ("memory", "cpu", "pids", "freezer")
_OF_CPU = ("quota", "period")
_OWN_NAMESPACES = ("ipc", "mnt", "net", "pid", "uts")
_SECCOMP_FILTER = 2  # linux/seccomp.h
# The kernel rounds memory limits down to pages, cgroup v1 to its own counters' unit, a page too.
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container may have; `cpus` is a share of one CPU's time, `files` of one process."""

    memory_bytes: int
    cpus: float
    pids: int
    files: int


@dataclass(frozen=True, slots=True)
class Facts:
    """A process and its groups as the kernel has them; None: not limited, or not to be known."""

    memory_bytes: int | None
    swap_bytes: int | None
    cpus: float | None
    pids: int | None
    files: int | None
    capabilities: int
    no_new_privs: bool
    seccomp: int
    interfaces: tuple[str, ...]
    routes: int
    read_only_root: bool
    uid_outside: int | None  # of the container's root
    shared: frozenset[str]  # namespaces that are this process's own
    freezer: bool


def unmet(facts: Facts, limits: Limits) -> list[str]:
    """The layers that are not as asked, each as `layer: what is there`. Empty: all of them hold."""
    most = limits.memory_bytes
    wanted = f"asked for {most} bytes"
    # A period of 100 ms and whole microseconds: rounded, never more.
    cpu_is_met = facts.cpus is not None and facts.cpus <= limits.cpus + 1e-4
    checks = {
        "memory": (_within(facts.memory_bytes, most), f"{facts.memory_bytes} bytes, {wanted}"),
        "swap": (facts.swap_bytes == 0, f"{facts.swap_bytes} bytes of swap may be used"),
        "cpu": (cpu_is_met, f"{facts.cpus} CPUs, asked for {limits.cpus}"),
        "pids": (_within(facts.pids, limits.pids), f"{facts.pids}, asked for {limits.pids}"),
        "files": (_within(facts.files, limits.files), f"{facts.files}, asked for {limits.files}"),
        "capabilities": (facts.capabilities == 0, f"it has some: {facts.capabilities:#x}"),
        "no-new-privileges": (facts.no_new_privs, "not set"),
        "seccomp": (facts.seccomp == _SECCOMP_FILTER, f"mode {facts.seccomp}"),
        "network": (facts.interfaces in ((), ("lo",)), f"it has {', '.join(facts.interfaces)}"),
        "routes": (facts.routes == 0, f"{facts.routes} lead out"),
        "root": (facts.read_only_root, "it can be written"),
        "users": (bool(facts.uid_outside), f"its root is user {facts.uid_outside} of the host"),
        "namespaces": (not facts.shared, f"{', '.join(sorted(facts.shared))} of the host"),
        "freezer": (facts.freezer, "there is none that this process may use"),
    }
    return [f"{layer}: {checks[layer][1]}" for layer in LAYERS if not checks[layer][0]]


def _within(value: int | None, most: int) -> bool:
    return value is not None and most - _PAGE < value <= most


@dataclass(frozen=True, slots=True)
class Groups:
    """The control groups of a process: a folder for each controller, on version 2 all the same."""

    version: int
    folders: Mapping[str, Path]

    @classmethod
    def of(cls, pid: int | str, proc: Path = Path("/proc"), marks: Sequence[str] = ("",)) -> Groups:
        """Those a process is in, the path of each with one of the marks in it. Raises OSError when
        it is gone or a hierarchy is not mounted.

        One that has ended and was not waited for yet is shown in the root of all groups, where
        everybody is: without marks, `kill` would mean the whole machine.
        """
        groups = dict(_group_lines((proc / str(pid) / "cgroup").read_text()))
        for controller in _CONTROLLERS if "memory" in groups else ("",):
            if not any(mark in groups.get(controller, "") for mark in marks):
                raise ProcessLookupError(f"process {pid} has ended or is another's")
        mounts = dict(_group_mounts((proc / "self/mountinfo").read_text()))
        if "memory" in groups:
            missing = [c for c in _CONTROLLERS if c not in groups or c not in mounts]
            if missing:
                raise FileNotFoundError(f"no hierarchy for {', '.join(missing)} is mounted")
            folders = {c: mounts[c] / groups[c].lstrip("/") for c in _CONTROLLERS}
            return cls(1, folders)
        if "" not in groups or "" not in mounts:
            raise FileNotFoundError("no hierarchy of control groups is mounted")
        return cls(2, dict.fromkeys(_CONTROLLERS, mounts[""] / groups[""].lstrip("/")))

    @property
    def name(self) -> str:
        """The last part of their path."""
        return self.folders["memory"].name

    def exist(self) -> bool:
        """Whether the kernel still has them."""
        return self.folders["memory"].exists()

    def limits(self) -> tuple[int | None, int | None, float | None, int | None]:
        """(memory and swap in bytes, CPUs, pids) that may be used; None without a limit."""
        memory, cpu, pids = (self.folders[c] for c in ("memory", "cpu", "pids"))
        if self.version == 2:
            most = _number(memory / "memory.max")
            swap = _number(memory / "memory.swap.max", _host_swap())
            quota, period = [*_read(cpu / "cpu.max").split(), "", ""][:2]
        else:
            most = _number(memory / "memory.limit_in_bytes")
            both = _number(memory / "memory.memsw.limit_in_bytes")
            swap = _host_swap() if both is None or most is None else max(0, both - most)
            quota, period = (_read(cpu / f"cpu.cfs_{one}_us").strip() for one in _OF_CPU)
        cpus = int(quota) / int(period) if quota.isdigit() and period.isdigit() else None
        return most, swap, cpus, _number(pids / "pids.max")

    def oom_kills(self) -> int | None:
        """How many of its processes the kernel has killed for memory; None: it is gone."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        found = re.search(r"^oom_kill (\d+)$", _read(self.folders["memory"] / name), re.MULTILINE)
        return int(found[1]) if found else None

    def pids(self) -> list[int]:
        """The processes in it; none when it is gone."""
        with suppress(OSError):
            return [int(line) for line in _read(self.folders["pids"] / "cgroup.procs").split()]
        return []

    def cpu_ns(self) -> int | None:
        """The CPU time that its processes have used; None: not to be known."""
        if self.version == 2:
            text = _read(self.folders["cpu"] / "cpu.stat")
            found = re.search(r"^usage_usec (\d+)$", text, re.MULTILINE)
            return int(found[1]) * 1000 if found else None
        # The controllers cpu and cpuacct may be mounted apart.
        beside = str(self.folders["cpu"]).replace("/cpu/", "/cpuacct/", 1)
        return _number(Path(beside) / "cpuacct.usage")

    def memory_bytes(self) -> int | None:
        """What it holds now; None: it is gone."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return _number(self.folders["memory"] / name)

    def memory_peak_bytes(self) -> int | None:
        """The most it has held; None: it is gone, or the kernel (before 5.19) does not say."""
        name = "memory.peak" if self.version == 2 else "memory.max_usage_in_bytes"
        return _number(self.folders["memory"] / name)

    def has_freezer(self) -> bool:
        """Whether this process may freeze it."""
        return os.access(self.freezer, os.W_OK)

    def order(self, frozen: bool) -> None:
        """Tell the freezer; `is_frozen` says when it has happened. Raises OSError."""
        if self.version == 2:
            self.freezer.write_text("1" if frozen else "0")
        else:
            self.freezer.write_text("FROZEN" if frozen else "THAWED")

    def is_frozen(self) -> bool:
        """Whether every process in it stands still."""
        if self.version == 2:
            events = _read(self.folders["freezer"] / "cgroup.events")
            return re.search(r"^frozen 1$", events, re.MULTILINE) is not None
        return _read(self.freezer).strip() == "FROZEN"

    def kill(self) -> None:
        """Kill the processes that are in it, frozen ones too, without letting them run on. Never a
        group that we are in ourselves."""
        pids = self.pids()
        if os.getpid() in pids:
            return
        with suppress(OSError):
            if self.version == 2:
                (self.folders["freezer"] / "cgroup.kill").write_text("1")  # since Linux 5.14
        # On version 1 a frozen process meets its signal when it thaws, before anything else.
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        with suppress(OSError):
            self.order(frozen=False)

    @property
    def freezer(self) -> Path:
        """The file that freezes and thaws."""
        name = "cgroup.freeze" if self.version == 2 else "freezer.state"
        return self.folders["freezer"] / name


def cgroup_version() -> int:
    """Which one has the controllers on this host."""
    return 1 if "memory" in dict(_group_lines(Path("/proc/self/cgroup").read_text())) else 2


def read_facts(pid: int, groups: Groups, proc: Path = Path("/proc")) -> Facts:
    """All of it at once, in some 0.2 ms. Raises OSError when the process is gone."""
    of = proc / str(pid)
    lines = (of / "status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    memory, swap, cpus, pids = groups.limits()
    sets = (status[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb"))
    return Facts(
        memory_bytes=memory,
        swap_bytes=swap,
        cpus=cpus,
        pids=pids,
        files=_files((of / "limits").read_text()),
        capabilities=max(int(one, 16) for one in sets),
        no_new_privs=status.get("NoNewPrivs", "").strip() == "1",
        seccomp=int(status.get("Seccomp", "0")),
        interfaces=_interfaces((of / "net/dev").read_text()),
        # The second is not there where IPv6 is switched off.
        routes=_routes((of / "net/route").read_text(), _read(of / "net/ipv6_route")),
        read_only_root=_is_root_read_only((of / "mountinfo").read_text()),
        uid_outside=_uid_outside((of / "uid_map").read_text()),
        shared=frozenset(one for one in _OWN_NAMESPACES if _same(proc, pid, one)),
        freezer=groups.has_freezer(),
    )


def uid_outside(pid: int) -> int | None:
    """Who the root of its user namespace is on the host; None: nobody, or it is gone."""
    return _uid_outside(_read(Path(f"/proc/{pid}/uid_map")))


def _group_lines(text: str) -> Iterator[tuple[str, str]]:
    """(controller, path) of /proc/PID/cgroup, "" for version 2."""
    for line in text.splitlines():
        _number, controllers, path = line.split(":", 2)
        yield from ((controller, path) for controller in controllers.split(","))


def _group_mounts(text: str) -> Iterator[tuple[str, Path]]:
    """(controller, where it is mounted) of mountinfo, "" for version 2.

    A hierarchy of which only a part is seen (in a container) is not ours to use: paths would lie.
    """
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _source, options = after.split(" ", 2)
        root, point = before.split(" ")[3:5]
        if root != "/":
            continue
        if kind == "cgroup2":
            yield "", Path(point)
        elif kind == "cgroup":
            yield from ((one, Path(point)) for one in options.split(",") if one in _CONTROLLERS)


def _files(text: str) -> int | None:
    found = re.search(r"^Max open files +\d+ +(\d+) ", text, re.MULTILINE)
    return int(found[1]) if found else None


def _interfaces(text: str) -> tuple[str, ...]:
    return tuple(line.partition(":")[0].strip() for line in text.splitlines()[2:])


def _routes(v4: str, v6: str) -> int:
    """Routes by an interface that is not the loopback."""
    by = [line.split()[0] for line in v4.splitlines()[1:] if line.strip()]
    by += [line.split()[-1] for line in v6.splitlines() if line.strip()]
    return sum(name != "lo" for name in by)


def _is_root_read_only(mountinfo: str) -> bool:
    roots = [line.split(" ") for line in mountinfo.splitlines() if line.split(" ")[4] == "/"]
    return bool(roots) and "ro" in roots[-1][5].split(",")


def _uid_outside(uid_map: str) -> int | None:
    for line in uid_map.splitlines():
        inside, outside, _size = line.split()
        if inside == "0":
            return int(outside)
    return None


def _same(proc: Path, pid: int, namespace: str) -> bool:
    own, other = (proc / str(one) / "ns" / namespace for one in ("self", pid))
    return own.readlink() == other.readlink()


def _host_swap() -> int:
    """0 where there is none, so that a kernel that does not count it is no problem there."""
    found = re.search(r"^SwapTotal: +(\d+) kB", _read(Path("/proc/meminfo")), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _read(path: Path) -> str:
    """A file of the kernel's, "" if it is not there (any more)."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _number(path: Path, absent: int | None = None) -> int | None:
    """None for "max"."""
    text = _read(path).strip()
    if not text:
        return absent
    return int(text) if text.isdigit() else None
