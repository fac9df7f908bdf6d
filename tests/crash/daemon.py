"""A real flowmonkeyd as a child process, and a client that knows when an answer was lost.

`Daemon` waits for sd_notify's READY instead of polling, kills as `kill -9` does and then proves
that nothing the daemon started outlives it. Nothing here knows what the daemon does.
"""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["BARE", "Client", "Daemon", "DidNotStart", "Lost", "descendants", "package"]

START_S = 20.0
# Tests of shipped handlers want them; the others start quicker without.
BARE = {"FLOWMONKEY_SHIPPED__INSTALL": "false"}
END_S = 30.0


class Lost(Exception):
    """The connection broke: what was asked may have happened or not."""


class DidNotStart(Exception):
    """The daemon ended before it was ready; `code` and `stderr` say how."""

    def __init__(self, code: int, stderr: str) -> None:
        super().__init__(f"exit {code}: {stderr}")
        self.code = code
        self.stderr = stderr


class Client(http.client.HTTPConnection):
    """One connection to the socket."""

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise

    def ask(self, method: str, path: str, body=None) -> tuple[int, dict]:
        """(status, JSON answer). Raises Lost; the next call connects anew."""
        kind, data = "application/json", body
        if isinstance(body, bytes):
            kind = "application/zip"
        elif body is not None:
            data = json.dumps(body)
        try:
            self.request(method, path, data, {"content-type": kind} if data else {})
            response = self.getresponse()
            return response.status, json.loads(response.read())
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            raise Lost(str(exc)) from exc

    def drop(self, method: str, path: str, body: dict) -> None:
        """Ask, and hang up before the answer."""
        try:
            self.request(method, path, json.dumps(body), {"content-type": "application/json"})
        except OSError:
            pass
        finally:
            self.close()

    def must(self, method: str, path: str, body=None) -> dict:
        """The answer, which has to be a good one."""
        status, answer = self.ask(method, path, body)
        assert status < 300, answer
        return answer

    def pages(self, path: str) -> list[dict]:
        """Every item of a list."""
        items, cursor = [], ""
        while cursor is not None:
            page = self.must("GET", f"{path}{'&' if '?' in path else '?'}limit=500{cursor}")
            items.extend(page["items"])
            cursor = page["nextCursor"] and f"&cursor={page['nextCursor']}"
        return items

    def lines(self, path: str):
        """Lines of a stream until its end. Raises Lost when it breaks off."""
        try:
            self.request("GET", path)
            response = self.getresponse()
            while line := response.readline():
                if not line.endswith(b"\n"):
                    raise Lost("broke off in a line")
                if line.strip():
                    yield json.loads(line)
        except (OSError, http.client.HTTPException) as exc:
            raise Lost(str(exc)) from exc
        finally:
            self.close()


class Daemon:
    """A flowmonkeyd on `directory`/data and `directory`/s, to be started, killed, started again."""

    def __init__(self, directory: Path, *flags: str, **environ: str) -> None:
        self.directory = directory
        self.data = directory / "data"
        self.socket = directory / "s"
        self.log = directory / "log"
        self.flags = flags
        self.environ = environ
        self.before: tuple[str, ...] = ()  # a command that executes the daemon
        self.process: subprocess.Popen | None = None
        self._notify: socket.socket | None = None

    def launch(self, pass_fds=()) -> None:
        """Start it and do not wait."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(path))
        environ = {name: text for name, text in os.environ.items() if "FLOWMONKEY" not in name}
        command = [*self.before, sys.executable, "-m", "flowmonkeyd", f"--data-dir={self.data}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, f"--socket={self.socket}", *self.flags],
                env={**environ, "NOTIFY_SOCKET": str(path), **BARE, **self.environ},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )

    def start(self) -> float:
        """Start it and wait until it is ready: the seconds that took. Raises DidNotStart."""
        before = self.log.stat().st_size if self.log.exists() else 0
        began = time.monotonic()
        self.launch()
        while "READY=1" not in (text := self.told(START_S)):
            if not text:
                raise DidNotStart(self.ended(), self.log.read_bytes()[before:].decode())
        return time.monotonic() - began

    def told(self, timeout_s: float) -> str:
        """What it tells systemd next; nothing when it has ended. Fails when the time is up."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            poll = select.poll()
            poll.register(self._notify, select.POLLIN)
            poll.register(pidfd, select.POLLIN)
            ready = [fd for fd, _ in poll.poll(timeout_s * 1000)]
            assert ready, f"the daemon told nothing for {timeout_s} s"
            if self._notify.fileno() in ready:
                return self._notify.recv(65536).decode()
            return ""
        finally:
            os.close(pidfd)

    def client(self, timeout_s: float = 60.0) -> Client:
        return Client(self.socket, timeout_s)

    def kill(self) -> None:
        """`kill -9`; returns when it and all it had started are dead, and fails if they are not."""
        children = {}
        for pid in descendants(self.process.pid):
            try:
                children[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        try:
            self.process.kill()
            self.process.wait(END_S)
            for pid, pidfd in children.items():
                assert select.select([pidfd], [], [], END_S)[0], f"process {pid} was left over"
        finally:
            for pidfd in children.values():
                os.close(pidfd)
            self._close()

    def stop(self) -> int:
        """SIGTERM, and wait for the end: its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.ended()

    def ended(self, timeout_s: float = END_S) -> int:
        """Wait for its end: its exit code."""
        code = self.process.wait(timeout_s)
        self._close()
        return code

    def close(self) -> None:
        """Whatever the test did: nothing is left."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._close()

    def _close(self) -> None:
        if self._notify is not None:
            self._notify.close()
            self._notify = None


def descendants(pid: int) -> list[int]:
    """Everything a process has started and that still runs, nearest first."""
    found, line = [], [pid]
    while line:
        try:
            for task in Path(f"/proc/{line.pop(0)}/task").iterdir():
                children = [int(child) for child in (task / "children").read_text().split()]
                found.extend(children)
                line.extend(children)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def package(handler_type: str, code: str, **execution) -> bytes:
    """A handler package, `code` being its handler.py with `handle`."""
    from flowmonkeyd.documents.archive import pack_files

    about = {
        "type": handler_type,
        "version": "1.0.0",
        "name": handler_type,
        "runtime": "python",
        "entrypoint": "handler.py:handle",
    }
    manifest = {"handler": about, "execution": execution} if execution else {"handler": about}
    return pack_files({"handler.json": json.dumps(manifest).encode(), "handler.py": code.encode()})
