"""The kernel's words read: each layer that does not hold is named. Version 2 as files, where this
machine has it as a tree too."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowmonkeyd.confinement import LAYERS, Facts, Groups, Limits, read_facts, unmet

_MIB = 1024 * 1024
_LIMITS = Limits(512 * _MIB, 0.5, pids=128, files=1024)
_CONFINED = Facts(
    memory_bytes=512 * _MIB,
    swap_bytes=0,
    cpus=0.5,
    pids=128,
    files=1024,
    capabilities=0,
    no_new_privs=True,
    seccomp=2,
    interfaces=("lo",),
    routes=0,
    read_only_root=True,
    uid_outside=2_000_000,
    shared=frozenset(),
    freezer=True,
)


def test_what_is_as_asked_has_nothing_unmet():
    assert unmet(_CONFINED, _LIMITS) == []
    assert unmet(replace(_CONFINED, interfaces=()), _LIMITS) == []


@pytest.mark.parametrize(
    ("layer", "fact"),
    [
        ("memory", {"memory_bytes": None}),
        ("memory", {"memory_bytes": 513 * _MIB}),
        ("memory", {"memory_bytes": 1 * _MIB}),
        ("swap", {"swap_bytes": None}),
        ("swap", {"swap_bytes": 4096}),
        ("cpu", {"cpus": None}),
        ("cpu", {"cpus": 0.6}),
        ("pids", {"pids": None}),
        ("pids", {"pids": 129}),
        ("files", {"files": None}),
        ("files", {"files": 4096}),
        ("capabilities", {"capabilities": 1 << 21}),
        ("no-new-privileges", {"no_new_privs": False}),
        ("seccomp", {"seccomp": 0}),
        ("seccomp", {"seccomp": 1}),
        ("network", {"interfaces": ("lo", "eth0")}),
        ("network", {"interfaces": ("eth0",)}),
        ("routes", {"routes": 1}),
        ("root", {"read_only_root": False}),
        ("users", {"uid_outside": 0}),
        ("users", {"uid_outside": None}),
        ("namespaces", {"shared": frozenset({"net"})}),
        ("freezer", {"freezer": False}),
    ],
)
def test_each_layer_that_does_not_hold_is_named(layer, fact):
    [said] = unmet(replace(_CONFINED, **fact), _LIMITS)
    assert said.startswith(f"{layer}: ")


def test_every_layer_is_tried_above():
    marks = test_each_layer_that_does_not_hold_is_named.pytestmark
    assert {row[0] for row in marks[0].args[1]} == set(LAYERS)


def test_this_process_is_not_confined():
    missing = {one.partition(":")[0] for one in unmet(read_facts(os.getpid(), own()), _LIMITS)}
    assert {"namespaces", "root"} <= missing


def own() -> Groups:
    return Groups.of("self")


@pytest.fixture
def version_2(tmp_path) -> Groups:
    """A control group of version 2 as the kernel would show it."""
    files = {
        "memory.max": "536870912\n",
        "memory.swap.max": "0\n",
        "memory.current": "1048576\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n",
        "cpu.max": "50000 100000\n",
        "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
        "pids.max": "128\n",
        "cgroup.events": "populated 1\nfrozen 0\n",
        "cgroup.procs": "12\n13\n",
        "cgroup.freeze": "0\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return Groups(2, dict.fromkeys(("memory", "cpu", "pids", "freezer"), tmp_path))


def test_version_2_is_read(version_2):
    assert version_2.limits() == (512 * _MIB, 0, 0.5, 128)
    assert version_2.oom_kills() == 1
    assert version_2.cpu_ns() == 1_500_000
    assert version_2.memory_bytes() == _MIB
    assert version_2.pids() == [12, 13]
    assert version_2.has_freezer()
    assert version_2.is_frozen() is False


def test_version_2_without_a_limit_is_none(version_2):
    folder = version_2.folders["memory"]
    for name, text in (
        *(("memory.max", "max\n"), ("memory.swap.max", "max\n")),
        *(("cpu.max", "max 100000\n"), ("pids.max", "max\n")),
    ):
        (folder / name).write_text(text)
    assert version_2.limits() == (None, None, None, None)


def test_version_2_frozen_is_what_its_events_say(version_2):
    version_2.order(frozen=True)
    assert version_2.freezer.read_text() == "1"
    assert version_2.is_frozen() is False  # ordered, not done
    (version_2.folders["freezer"] / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert version_2.is_frozen()


def test_a_group_that_is_gone_says_nothing(tmp_path):
    gone = Groups(2, dict.fromkeys(("memory", "cpu", "pids", "freezer"), tmp_path / "gone"))
    assert gone.exist() is False
    assert gone.oom_kills() is None
    assert gone.memory_bytes() is None
    assert gone.pids() == []
    assert gone.has_freezer() is False
    memory, _swap, cpus, pids = gone.limits()
    assert (memory, cpus, pids) == (None, None, None)


@pytest.mark.parametrize(
    ("groups", "mounts", "version", "folder"),
    [
        (
            "0::/user.slice/x.scope\n",
            "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n",
            2,
            "/sys/fs/cgroup/user.slice/x.scope",
        ),
        (
            "4:memory:/a\n3:cpu,cpuacct:/b\n2:pids:/c\n1:freezer:/d\n0::/\n",
            "31 24 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
            "33 24 0:29 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
            "34 24 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
            "35 24 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            1,
            "/sys/fs/cgroup/memory/a",
        ),
    ],
    ids=["unified", "hybrid"],
)
def test_where_the_groups_of_a_process_are(tmp_path, groups, mounts, version, folder):
    for name, text in (("7/cgroup", groups), ("self/mountinfo", mounts)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    found = Groups.of(7, tmp_path)
    assert (found.version, str(found.folders["memory"])) == (version, folder)


@pytest.mark.parametrize(
    "groups",
    [
        # As the kernel shows one of version 1 that has ended: in the root, with everybody.
        "4:memory:/\n3:cpu,cpuacct:/\n2:pids:/\n1:freezer:/\n0::/fm-1/libpod-aa\n",
        "4:memory:/fm-1/aa\n3:cpu,cpuacct:/fm-1/aa\n2:pids:/\n1:freezer:/fm-1/aa\n0::/\n",
        "0::/\n",
        "0::/fm-1/bb\n",
    ],
)
def test_a_process_that_has_ended_or_is_anothers_has_no_groups_of_ours(tmp_path, groups):
    (tmp_path / "7").mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "7/cgroup").write_text(groups)
    (tmp_path / "self/mountinfo").write_text("")
    with pytest.raises(ProcessLookupError):
        Groups.of(7, tmp_path, marks=("aa",))


def test_groups_that_we_are_in_are_never_killed(tmp_path):
    child = subprocess.Popen(["/bin/sleep", "60"])
    (tmp_path / "cgroup.procs").write_text(f"{child.pid}\n{os.getpid()}\n")
    try:
        Groups(1, dict.fromkeys(("memory", "cpu", "pids", "freezer"), tmp_path)).kill()
        assert child.poll() is None
        (tmp_path / "cgroup.procs").write_text(f"{child.pid}\n")
        Groups(1, dict.fromkeys(("memory", "cpu", "pids", "freezer"), tmp_path)).kill()
        assert child.wait() == -9
    finally:
        child.kill()
        child.wait()


def test_a_hierarchy_that_is_seen_in_part_only_is_not_used(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "self").mkdir()
    (tmp_path / "7/cgroup").write_text("0::/docker/x\n")
    (tmp_path / "self/mountinfo").write_text(
        "30 24 0:26 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
    )
    with pytest.raises(FileNotFoundError):
        Groups.of(7, tmp_path)


@pytest.fixture
def unified():
    """A real group of version 2 with a process in it that counts; without controllers will do."""
    for point in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if (point / "cgroup.procs").exists() and os.access(point / "cgroup.procs", os.W_OK):
            break
    else:
        pytest.skip("NO control groups of version 2 that could be written")
    folder = point / f"flowmonkey-test-{os.getpid()}"
    folder.mkdir()
    code = "import sys\nwhile True: sys.stdin.read(0)"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    (folder / "cgroup.procs").write_text(str(child.pid))
    yield Groups(2, dict.fromkeys(("memory", "cpu", "pids", "freezer"), folder)), child
    child.kill()
    child.stdin.close()
    child.wait()
    folder.rmdir()


@pytest.mark.root
def test_version_2_freezes_thaws_and_kills_what_is_frozen(unified):
    groups, child = unified
    assert groups.pids() == [child.pid]
    groups.order(frozen=True)
    while not groups.is_frozen():
        pass
    spent = Path(f"/proc/{child.pid}/stat").read_text().split()[13:15]
    assert Path(f"/proc/{child.pid}/stat").read_text().split()[13:15] == spent
    groups.order(frozen=False)
    while groups.is_frozen():
        pass
    groups.order(frozen=True)
    groups.kill()
    assert child.wait(timeout=10) == -9
