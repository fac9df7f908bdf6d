"""Landlock's rules for real: what a process that put them on itself can still do, and what not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from sandbox import landlock, linux

_PROJECT = Path(sandbox.__file__).parent.parent
_abi = landlock.abi()
pytestmark = pytest.mark.skipif(_abi == 0, reason="no Landlock here: its rules are NOT tested")
_root_only = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def _since(version: int) -> pytest.MarkDecorator:
    reason = f"Landlock ABI {_abi} is older than {version}: NOT tested"
    return pytest.mark.skipif(_abi < version, reason=reason)


_START = """
import errno, fcntl, json, os, signal, socket, sys
from sandbox import landlock, linux
root = sys.argv[1]
said = {}
def attempt(name, action):
    try:
        action()
        said[name] = "done"
    except OSError as exc:
        said[name] = errno.errorcode[exc.errno]
def make(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC))
def enforce(*places, **options):
    ruleset = landlock.prepare(*places, **options)
    linux.no_new_privs()
    landlock.enforce(ruleset)
"""


def run(folder: Path, code: str) -> dict[str, str]:
    """What the code noted in `said`, in a process of its own."""
    script = f"{_START}\n{code}\nprint(json.dumps(said))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=_PROJECT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def lay_out(folder: Path) -> Path:
    (folder / "read").mkdir()
    (folder / "write" / "sub").mkdir(parents=True)
    (folder / "read" / "file").write_text("x")
    (folder / "write" / "file").write_text("x")
    (folder / "outside").write_text("x")
    (folder / "program").write_text("#!/bin/sh\nexit 0\n")
    (folder / "program").chmod(0o755)
    return folder


def test_files_are_reached_as_the_rules_say_and_no_others(tmp_path):
    code = """
enforce([f"{root}/read"], [f"{root}/write"])
attempt("read", lambda: os.open(f"{root}/read/file", os.O_RDONLY))
attempt("list", lambda: os.listdir(f"{root}/read"))
attempt("write where only reading is", lambda: os.open(f"{root}/read/file", os.O_WRONLY))
attempt("make where only reading is", lambda: make(f"{root}/read/new"))
attempt("remove where only reading is", lambda: os.unlink(f"{root}/read/file"))
attempt("read outside", lambda: os.open(f"{root}/outside", os.O_RDONLY))
attempt("list outside", lambda: os.listdir(root))
attempt("write", lambda: make(f"{root}/write/file"))
attempt("make", lambda: make(f"{root}/write/new"))
attempt("folder", lambda: os.mkdir(f"{root}/write/folder"))
attempt("symlink", lambda: os.symlink("../outside", f"{root}/write/link"))
attempt("through the link", lambda: os.open(f"{root}/write/link", os.O_RDONLY))
attempt("pipe", lambda: os.mkfifo(f"{root}/write/pipe"))
attempt("socket", lambda: socket.socket(socket.AF_UNIX).bind(f"{root}/write/socket"))
attempt("link from outside", lambda: os.link(f"{root}/outside", f"{root}/write/linked"))
attempt("move outside", lambda: os.rename(f"{root}/write/new", f"{root}/moved"))
attempt("remove", lambda: os.unlink(f"{root}/write/new"))
attempt("execute", lambda: os.execv("/bin/true", ["true"]))
"""
    said = run(lay_out(tmp_path), code)
    done = {name for name, outcome in said.items() if outcome == "done"}
    assert done == {"read", "list", "write", "make", "folder", "symlink", "remove"}
    refused = {outcome for name, outcome in said.items() if name not in done}
    assert refused <= {"EACCES", "EXDEV"}


@_since(2)
def test_moves_between_folders_below_a_writable_one_work(tmp_path):
    code = """
enforce([], [f"{root}/write"])
attempt("move", lambda: os.rename(f"{root}/write/file", f"{root}/write/sub/file"))
"""
    assert run(lay_out(tmp_path), code) == {"move": "done"}


@_since(3)
def test_truncating_is_writing(tmp_path):
    code = """
enforce([root], [f"{root}/write"])
attempt("inside", lambda: os.truncate(f"{root}/write/file", 0))
attempt("outside", lambda: os.truncate(f"{root}/outside", 0))
"""
    assert run(lay_out(tmp_path), code) == {"inside": "done", "outside": "EACCES"}


def test_only_a_place_for_programs_can_be_executed(tmp_path):
    """A descriptor is as good a place as a path."""
    code = """
fd = os.open("/bin/sh", os.O_PATH)
libraries = [path for path in ("/lib", "/lib64", "/usr/lib") if os.path.exists(path)]
enforce(["/"], [], [fd, *libraries])
if os.fork() == 0:
    os.execv("/bin/sh", ["sh", "-c", "exit 7"])
attempt("program", lambda: os.execv(f"{root}/program", ["program"]))
said["status"] = os.waitstatus_to_exitcode(os.wait()[1])
"""
    assert run(lay_out(tmp_path), code) == {"program": "EACCES", "status": 7}


_CONNECT = """
listener = socket.create_server(("127.0.0.1", 0))
enforce(["/"], [], allow_tcp={allow})
attempt("connect", lambda: socket.create_connection(listener.getsockname()))
attempt("bind", lambda: socket.socket().bind(("127.0.0.1", 0)))
"""


@_since(4)
@pytest.mark.parametrize(("allow", "connected"), [(False, "EACCES"), (True, "done")])
def test_tcp(tmp_path, allow, connected):
    said = run(tmp_path, _CONNECT.format(allow=allow))
    assert said == {"connect": connected, "bind": "EACCES"}


@_since(5)
def test_devices_take_no_requests(tmp_path):
    code = """
ask = lambda: fcntl.ioctl(os.open("/dev/null", os.O_RDONLY), 0x5401, bytes(64))  # TCGETS
attempt("before", ask)
enforce(["/"], ["/dev/null"])
attempt("after", ask)
attempt("write", lambda: make("/dev/null"))
"""
    assert run(tmp_path, code) == {"before": "ENOTTY", "after": "EACCES", "write": "done"}


@_since(6)
def test_signals_and_abstract_sockets_stay_inside(tmp_path):
    name = f"\0landlock-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        code = f"""
def call():
    with socket.socket(socket.AF_UNIX) as one: one.connect({name!r})
attempt("socket before", call)
attempt("signal before", lambda: os.kill(os.getppid(), 0))
enforce(["/"], [])
attempt("socket", call)
attempt("signal", lambda: os.kill(os.getppid(), 0))
attempt("signal to itself", lambda: os.kill(os.getpid(), 0))
"""
        said = run(tmp_path, code)
    assert said == {
        "socket before": "done",
        "signal before": "done",
        "socket": "EPERM",
        "signal": "EPERM",
        "signal to itself": "done",
    }


@_root_only
def test_a_rule_covers_what_is_mounted_later_but_not_on_its_own_folder(tmp_path):
    """The fork server mounts the package and temp into a child that is confined already."""
    code = """
linux.unshare(linux.CLONE_NEWNS)
linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
os.chdir(root)  # by whole paths, nobody may come here
root = "."
for name in ("read/later", "write/later", "exact"):
    os.mkdir(f"{root}/{name}")
ruleset = landlock.prepare(["/"], [f"{root}/write", f"{root}/exact"])
ready, go = os.pipe(), os.pipe()
pid = os.fork()
if pid:
    os.close(ready[1])  # a child that fails is heard
    os.read(ready[0], 1)
    for name in ("read/later", "write/later", "exact"):
        linux.mount("tmpfs", f"{root}/{name}", "tmpfs", linux.MS_NOSUID, "size=64k,mode=777")
    os.write(go[1], b".")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
linux.unshare(linux.CLONE_NEWUSER)
linux.drop_capabilities()
linux.no_new_privs()
landlock.enforce(ruleset)
attempt("mount", lambda: linux.mount("tmpfs", f"{root}/write/sub", "tmpfs", 0))
os.write(ready[1], b".")
os.read(go[0], 1)
attempt("list a later mount", lambda: os.listdir(f"{root}/read/later"))
attempt("write where reading is", lambda: make(f"{root}/read/later/x"))
attempt("write below the rule's folder", lambda: make(f"{root}/write/later/x"))
attempt("write on the rule's folder", lambda: make(f"{root}/exact/x"))
"""
    folder = lay_out(tmp_path)
    folder.chmod(0o755)
    assert run(folder, code) == {
        "mount": "EPERM",
        "list a later mount": "done",
        "write where reading is": "EACCES",
        "write below the rule's folder": "done",
        "write on the rule's folder": "EACCES",
    }


def test_nothing_can_be_enforced_by_a_process_that_may_gain_privileges(tmp_path):
    code = """
ruleset = landlock.prepare(["/"], [])
if os.getuid() == 0:
    os.setuid(65534)
attempt("enforce", lambda: landlock.enforce(ruleset))
"""
    assert run(tmp_path, code) == {"enforce": "EPERM"}


@pytest.mark.parametrize("version", range(1, _abi + 1))
def test_the_kernel_takes_the_rules_of_every_older_abi(version):
    os.close(linux.landlock_create_ruleset(*landlock._handled(version)))


def test_what_an_older_kernel_does_not_hold_is_said():
    assert landlock.shortcomings(6) == landlock.shortcomings(7) == []
    assert len(landlock.shortcomings(3)) == 3
    assert "TCP is not refused" in landlock.shortcomings(3)


def test_a_place_that_is_not_there_is_an_error_and_leaves_nothing_open():
    with pytest.raises(FileNotFoundError):
        landlock.prepare(["/"], ["/nowhere"])
