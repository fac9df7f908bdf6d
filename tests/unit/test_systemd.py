"""What systemd is told and what is taken from it, over real datagram sockets and descriptors."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowmonkeyd import systemd

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.fixture(params=["path", "abstract"])
def listener(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@fm-{os.getpid()}-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


@pytest.mark.parametrize(
    ("tell", "heard"),
    [
        (lambda: systemd.ready(), b"READY=1"),
        (lambda: systemd.ready("serving"), b"READY=1\nSTATUS=serving"),
        (lambda: systemd.status("12 running"), b"STATUS=12 running"),
        (lambda: systemd.watchdog(), b"WATCHDOG=1"),
        (lambda: systemd.stopping(), b"STOPPING=1"),
        (lambda: systemd.stopping("draining"), b"STOPPING=1\nSTATUS=draining"),
        (lambda: systemd.notify(MAINPID=7), b"MAINPID=7"),
        (lambda: systemd.status("a\nREADY=1"), b"STATUS=a READY=1"),
    ],
)
def test_each_word_is_one_datagram(listener, tell, heard):
    assert tell() is True
    assert listener.recv(4096) == heard


def test_a_reload_carries_the_monotonic_clock(listener):
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert systemd.reloading()
    word, stamp = listener.recv(4096).decode().split("\n")
    name, _, value = stamp.partition("=")
    assert (word, name) == ("RELOADING=1", "MONOTONIC_USEC")
    assert before <= int(value) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


@pytest.mark.parametrize("path", [None, "", "relative", "vsock:2:1", "/nonexistent/notify"])
def test_nobody_listening_is_no_error(monkeypatch, path):
    if path is None:
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    else:
        monkeypatch.setenv("NOTIFY_SOCKET", path)
    assert systemd.ready() is False


def test_a_full_queue_does_not_block_the_daemon(listener):
    sent = 0
    while systemd.watchdog():
        sent += 1
        assert sent < 100_000
    assert sent > 0


@pytest.mark.parametrize(
    ("usec", "pid", "interval_s"),
    [
        (None, None, None),
        ("30000000", None, 15.0),
        ("30000000", "self", 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("-5", None, None),
        ("soon", None, None),
    ],
)
def test_watchdog_interval(monkeypatch, usec, pid, interval_s):
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(os.getpid()) if value == "self" else value)
    assert systemd.watchdog_interval_s() == interval_s


# What systemd does: descriptors from 3 up, the variables name the process after exec.
_ACTIVATED = """
import os, sys
from flowmonkeyd.systemd import listen_fds
os.dup2(int(sys.argv[3]), 3)
os.closerange(4, 256)
os.environ["LISTEN_FDS"], pid = sys.argv[1], sys.argv[2]
os.environ["LISTEN_PID"] = pid if pid != "self" else str(os.getpid())
fds = listen_fds()
left = [name for name in os.environ if name.startswith("LISTEN_")]
print(fds, [os.get_inheritable(fd) for fd in fds], left, listen_fds())
"""


@pytest.mark.parametrize(
    ("count", "pid", "answer"),
    [
        ("1", "self", "[3] [False] [] []"),
        ("0", "self", "[] [] [] []"),
        ("1", "1", "[] [] [] []"),
        ("many", "self", "[] [] [] []"),
        ("-1", "self", "[] [] [] []"),
        ("2", "self", "[3] [False] [] []"),
    ],
)
def test_listening_sockets_are_taken_once(count, pid, answer):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind("")  # a name of the kernel's choice
        sock.listen()
        program = [sys.executable, "-I", "-c", _ACTIVATED, count, pid, str(sock.fileno())]
        done = subprocess.run(
            program,
            pass_fds=[sock.fileno()],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    assert done.stdout.strip() == answer


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="NO systemd-analyze: units unread")
@pytest.mark.parametrize("unit", ["flowmonkeyd.service", "flowmonkeyd.socket"])
def test_systemd_accepts_the_units(tmp_path, unit):
    """The real files, with a program that exists here: verify looks for it."""
    for name in ("flowmonkeyd.service", "flowmonkeyd.socket"):
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(
            text.replace("/opt/flowmonkey/bin/flowmonkeyd", sys.executable)
        )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
