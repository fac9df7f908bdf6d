"""The real daemon in a process of its own, as a person would start it.

It says READY over NOTIFY_SOCKET, as to systemd, so nobody sleeps or polls for it; that its children
end with it is waited for on their pidfds.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.daemon import BARE

BIN = Path(sys.executable).parent
READY_S = 20.0
STOP_S = 20.0
COMMAND_S = 60.0


class RunningDaemon:
    """A `flowmonkeyd` on a folder of its own; stop, kill and start it as often as you like."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "fm.sock"
        self.data_dir = folder / "data"
        self.log = folder / "daemon.log"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon does not run"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None

    @property
    def env(self) -> dict[str, str]:
        """The environment in which flowctl finds this daemon."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLOWMONKEY_")}
        path = f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**inherited, "PATH": path, "FLOWMONKEY_SOCKET": str(self.socket)}

    def start(self, *flags: str) -> None:
        """Start it and return when it is ready."""
        assert self._process is None, "the daemon runs already"
        place = self._folder / "notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, self.log.open("ab") as log:
            told.bind(str(place))
            told.settimeout(READY_S)
            self._process = subprocess.Popen(
                [
                    BIN / "flowmonkeyd",
                    f"--data-dir={self.data_dir}",
                    f"--socket={self.socket}",
                    *flags,
                ],
                env={**self.env, "NOTIFY_SOCKET": str(place), **BARE},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            try:
                while b"READY=1" not in told.recv(4096):
                    pass
            except TimeoutError:
                self.kill9()
                pytest.fail(f"the daemon did not start:\n{self.log.read_text()}")
            finally:
                place.unlink()

    def stop(self) -> None:
        """SIGTERM: it must drain, exit with 0 and leave no process behind."""
        code, left = self._end(signal.SIGTERM)
        assert code == 0, f"flowmonkeyd ended with {code}:\n{self.log.read_text()}"
        assert not left, f"flowmonkeyd left processes behind: {left}"
        assert not self.socket.exists(), "flowmonkeyd left its socket behind"

    def kill9(self) -> None:
        """SIGKILL, as a crash would: its children must end with it all the same."""
        _, left = self._end(signal.SIGKILL)
        assert not left, f"processes outlived flowmonkeyd: {left}"

    def crash(self) -> None:
        """SIGKILL while it starts and ends containers, whose processes may outlive it."""
        self._end(signal.SIGKILL)

    def flowctl(self, *args: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run flowctl against this daemon, whatever becomes of it."""
        return subprocess.run(
            [BIN / "flowctl", *args],
            env=self.env,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )

    def _end(self, number: signal.Signals) -> tuple[int, list[int]]:
        """Its exit code, and which of its descendants have not ended."""
        process, self._process = self._process, None
        assert process is not None, "the daemon does not run"
        descendants = [(pid, fd) for pid in _below(process.pid) if (fd := _pidfd(pid)) is not None]
        try:
            process.send_signal(number)
            try:
                code = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                pytest.fail(f"the daemon did not end:\n{self.log.read_text()}")
            return code, [pid for pid, fd in descendants if not _has_ended(fd)]
        finally:
            for _, fd in descendants:
                os.close(fd)


@pytest.fixture
def stopped_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    """A daemon yet to be started; if it runs after the test, it must end as it should."""
    running = RunningDaemon(tmp_path_factory.mktemp("fm"))
    yield running
    if running.is_running:
        running.stop()


@pytest.fixture
def daemon(stopped_daemon: RunningDaemon) -> RunningDaemon:
    """A daemon that is ready."""
    stopped_daemon.start()
    return stopped_daemon


def _below(pid: int) -> list[int]:
    """Every descendant of a process."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += [int(child), *_below(int(child))]
    return found


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _has_ended(fd: int) -> bool:
    """Whether the process has ended or does so soon (a pidfd is readable then)."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(5000))
