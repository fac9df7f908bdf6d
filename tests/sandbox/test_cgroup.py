"""Control groups for real, on whatever this host gives: what they bound, count and leave behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import sandbox
from sandbox import cgroup
from sandbox.cgroup import Group, Groups

MIB = 1 << 20
_PROJECT = Path(sandbox.__file__).parent.parent
try:
    Groups.open("flowmonkey-test").close()
    _why = ""
except OSError as exc:
    _why = str(exc)
_needs_groups = pytest.mark.skipif(bool(_why), reason=f"control groups are NOT tested: {_why}")


@pytest.fixture
def groups():
    groups = Groups.open("flowmonkey-test")
    yield groups
    groups.close()


def places(groups: Groups) -> set[Path]:
    return set(groups._tops.values())


def run(group: Group, code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in the group; it begins once it is in."""
    code = f"import os, sys\nsys.stdin.read(1)\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        group.add(process.pid)
        out, err = process.communicate("!", timeout=60)
    finally:
        process.kill()
        process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@_needs_groups
def test_a_memory_hog_is_killed_and_counted(groups):
    group = groups.slot(0)
    group.limit(64 * MIB, 32, 1.0)
    assert group.oom_kills() == 0
    done = run(group, "x = []\nwhile True: x.append(bytearray(1 << 20))")
    assert done.returncode == -signal.SIGKILL
    assert group.oom_kills() == 1
    assert 60 * MIB < group.peak_bytes() <= 64 * MIB


@_needs_groups
def test_limits_can_go_down_and_up_again(groups):
    group = groups.slot(0)
    hungry = f"x = b'x' * {80 * MIB}; print(len(x))"
    for size, killed in ((160, False), (48, True), (200, False), (200, False), (48, True)):
        group.limit(size * MIB, 32, 1.0)
        assert (run(group, hungry).returncode == -signal.SIGKILL) is killed, size
    assert group.oom_kills() == 2


@_needs_groups
def test_memory_of_the_kernel_is_counted(groups):
    """Socket buffers belong to nobody's address space: 40 MB of them against a limit of 32."""
    group = groups.slot(0)
    group.limit(256 * MIB, 32, 1.0)
    fill = """
import socket
pairs = []
for _ in range(200):
    a, b = socket.socketpair()
    a.setblocking(False)
    try:
        while True: a.send(bytes(4096))
    except BlockingIOError: pass
    pairs.append((a, b))
print('held')
"""
    before = group.memory_bytes()
    assert run(group, fill).stdout == "held\n"
    assert group.peak_bytes() - before > 30 * MIB
    group.limit(32 * MIB, 32, 1.0)
    done = run(group, fill)
    assert done.stdout == ""
    assert done.returncode == -signal.SIGKILL or "ENOBUFS" in done.stderr or "105" in done.stderr


@_needs_groups
def test_tasks_are_bounded_processes_and_threads_alike(groups):
    group = groups.slot(0)
    group.limit(256 * MIB, 5, 1.0)
    code = """
import threading
made, kept = 1, threading.Event()
try:
    while made < 20:
        threading.Thread(target=kept.wait, daemon=True).start()
        made += 1
except RuntimeError: pass
try:
    if os.fork() == 0: os._exit(0)
except BlockingIOError:
    print(made, flush=True)
os._exit(0)
"""
    done = run(group, code)
    assert (done.stdout, done.stderr) == ("5\n", "")


@_needs_groups
@pytest.mark.slow
def test_cpu_beyond_the_share_waits(groups):
    group = groups.slot(0)
    group.limit(256 * MIB, 32, 0.2)
    assert group.throttled() == 0
    # A twentieth of a second a quarter: two periods at least are used up.
    done = run(group, "import time\nwhile time.process_time() < 0.06: pass")
    assert done.returncode == 0
    assert group.throttled() >= 1


@_needs_groups
def test_kill_ends_everything_in_the_group(groups):
    group = groups.slot(0)
    code = (
        "import os, time\nos.setsid()\nos.fork()\nos.fork()\nprint('x', flush=True)\ntime.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", f"import sys\nsys.stdin.read(1)\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    group.add(process.pid)
    process.stdin.write("!")
    process.stdin.flush()
    for _ in range(4):
        assert process.stdout.readline() == "x\n"
    assert len(group.pids()) == 4
    group.kill()
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert process.stdout.read() == ""  # the other three have closed it
    process.stdin.close()
    process.stdout.close()


@_needs_groups
def test_what_is_not_there_cannot_be_added(groups):
    process = subprocess.Popen(["true"])
    process.wait()
    with pytest.raises(ProcessLookupError):
        groups.slot(0).add(process.pid)


@_needs_groups
def test_close_removes_everything_it_made(groups):
    folders = places(groups)
    for number in range(3):
        groups.slot(number).limit(64 * MIB, 8, 0.5)
    process = subprocess.Popen(["sleep", "60"])
    groups.slot(1).add(process.pid)
    assert all(folder.is_dir() for folder in folders)
    groups.close()
    assert not any(folder.exists() for folder in folders)
    assert process.wait(timeout=10) == -signal.SIGKILL


_OPEN_AND_WAIT = """
import sys
from sandbox import cgroup
from sandbox.cgroup import Groups
groups = Groups.open("flowmonkey-test")
for number in range(2): groups.slot(number)
print(*{str(top) for top in groups._tops.values()}, flush=True)
sys.stdin.read()
"""


@_needs_groups
def test_leftovers_go_at_the_next_start_and_those_of_the_living_stay():
    def start():
        process = subprocess.Popen(
            [sys.executable, "-c", _OPEN_AND_WAIT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=_PROJECT,
        )
        return process, [Path(name) for name in process.stdout.readline().split()]

    dead, left = start()
    living, used = start()
    try:
        dead.kill()
        dead.communicate()
        assert all((folder / "slot-1").is_dir() for folder in left + used)
        Groups.open("flowmonkey-test").close()
        assert not any(folder.exists() for folder in left)
        assert all((folder / "slot-1").is_dir() for folder in used)
    finally:
        living.kill()
        living.communicate()
        Groups.open("flowmonkey-test").close()
    assert not any(folder.exists() for folder in used)


@_needs_groups
def test_two_pools_of_one_process_have_groups_of_their_own(groups):
    other = Groups.open("flowmonkey-test")
    try:
        assert not places(groups) & places(other)
        groups.slot(0).limit(64 * MIB, 8, 0.5)
    finally:
        other.close()
    assert all((folder / "slot-0").is_dir() for folder in places(groups))


@_needs_groups
def test_a_group_that_is_in_use_is_no_leftover(groups):
    """Its name says a process that is gone, but something is in it: it is not ours to touch."""
    folders = {top.with_name("flowmonkey-test-4194304-1-0") for top in places(groups)}
    process = subprocess.Popen(["sleep", "60"])
    try:
        for folder in folders:
            folder.mkdir()
            (folder / "cgroup.procs").write_text(str(process.pid))
        Groups.open("flowmonkey-test").close()
        assert all(folder.is_dir() for folder in folders)
    finally:
        process.kill()
        process.wait()
        for folder in folders:
            with suppress(FileNotFoundError):
                folder.rmdir()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_an_ordinary_user_is_told_why_there_are_none():
    code = (
        "import os; from sandbox.cgroup import Groups\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    Groups.open('flowmonkey-test').close()\n"
        "except OSError as exc:\n    print(exc.strerror)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=_PROJECT, capture_output=True, text=True
    )
    assert done.stdout.startswith("cannot use control groups: "), done
    assert "; " in done.stdout  # and what to do


def test_a_family_is_who_was_started_by_its_eldest():
    """The pool's process moves its parent and its siblings too, when it is told of them."""
    with subprocess.Popen(["sleep", "60"]) as sibling:
        assert cgroup._is_ours(sibling.pid, os.getpid())
        assert cgroup._is_ours(os.getpid(), os.getpid())
        assert not cgroup._is_ours(os.getpid(), sibling.pid)
        assert not cgroup._is_ours(os.getppid(), os.getpid())
        sibling.kill()


def test_where_a_killed_pool_has_put_its_family_is_not_a_place_of_its_own(tmp_path, monkeypatch):
    """Version 2 gives no controllers to who is in the leaf; the group above it is still ours."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)  # nothing but the files' modes decides
    leaf = tmp_path / "ours" / cgroup._LEAF
    leaf.mkdir(parents=True)
    for folder, controllers in ((leaf.parent, "cpu memory pids"), (leaf, "")):
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text("")
    place = cgroup._place(f"/ours/{cgroup._LEAF}", cgroup._Mount(str(tmp_path), "/"))
    assert place == leaf.parent
