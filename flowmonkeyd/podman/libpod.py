"""Our own `podman system service` process, and calls to it. The only door to podman-py.

It has its own storage, state, configuration and working directory, so that every container it
lists is ours and nobody's settings are in the way. A process that has died is started again by the
next call; one that does not answer within the deadline is killed, and so replaced. Containers do
not notice either. Calls run in threads and are finished even when who asked for them is cancelled.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowmonkeyd.containermodel import ContainerError
from sandbox.egress.namespace import FILES

__all__ = ["PATH", "RUN_LENGTH_MAX", "Ask", "Libpod", "NotAnswering", "Places"]

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

# A start takes 0.1 s of two threads' time; more at once only wait for each other.
_THREADS = 8
_START_S = 20.0
# Go's words for a bug; Podman 4.3 answers so once in a while when it has just begun.
_PANIC = "runtime error: "
_STOP_S = 5.0
# Where Debian has the OCI runtimes and conmon, whoever started the daemon.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# sun_path of unix(7) has 108 bytes; the longest socket is an agent's, RUN/c/INSTANCE/agent.sock.
RUN_LENGTH_MAX = 107 - len("/c//agent.sock") - 32


class NotAnswering(ContainerError):
    """Podman's process cannot be started, went away or is too slow. What it did is not known."""

    def __init__(self, why: str) -> None:
        super().__init__("UNAVAILABLE", f"podman: {why}")


class _NotBegun(NotAnswering):
    """The process was gone before it could be asked anything: it has done nothing."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where everything of one installation is."""

    root: Path  # survives a boot: images, containers
    run: Path  # does not
    stores: tuple[Path, ...] = ()  # images of others, read only

    @property
    def storage(self) -> Path:
        """Images and the containers' own layers."""
        return self.root / "storage"

    @property
    def state(self) -> Path:
        """What is valid for this boot only, of the storage."""
        return self.run / "state"

    @property
    def tmp(self) -> Path:
        """The same of Podman; conmon's sockets and the exit codes are in it."""
        return self.run / "tmp"

    @property
    def etc(self) -> Path:
        """Files that every container has in /etc: who knows names."""
        return self.run / "etc"

    @property
    def socket(self) -> Path:
        """Where the service process listens."""
        return self.run / "podman.sock"

    @property
    def log(self) -> Path:
        """What the service process says on its own account; begun anew with each."""
        return self.run / "podman.log"

    def environment(self) -> dict[str, str]:
        """For every program that is to work with this storage (podman, buildah)."""
        kept = ("HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PATH": PATH,
            "CONTAINERS_CONF": str(self.run / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.run / "storage.conf"),
        }

    def make(self, cgroup_manager: str, runtime: str) -> None:
        """Folders and configuration. What is in them is nobody's but ours."""
        for folder in (self.root, self.run, self.storage, self.state, self.tmp, self.run / "work"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.etc.mkdir(mode=0o755, exist_ok=True)
        for path, text in FILES.items():
            (self.etc / Path(path).name).write_text(text)
            (self.etc / Path(path).name).chmod(0o644)
        stores = ", ".join(json.dumps(str(store)) for store in self.stores)
        (self.run / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = {json.dumps(str(self.storage))}\n'
            f"runroot = {json.dumps(str(self.state))}\n"
            f"[storage.options]\nadditionalimagestores = [{stores}]\n"
        )
        (self.run / "containers.conf").write_text(
            "[containers]\ndefault_sysctls = []\ndefault_capabilities = []\n"
            f'[engine]\ncgroup_manager = "{cgroup_manager}"\nevents_logger = "none"\n'
            f'runtime = "{runtime}"\n'
            # The default, in shared memory, is one for all of the machine's Podmans.
            'lock_type = "file"\n'
            f"tmp_dir = {json.dumps(str(self.tmp))}\n"
            f"static_dir = {json.dumps(str(self.root / 'libpod'))}\n"
            f"volume_path = {json.dumps(str(self.root / 'volumes'))}\n"
        )


class Libpod:
    """`run` starts the process when there is none; `close` ends it and leaves the containers."""

    def __init__(self, places: Places, program: str, deadline_s: float) -> None:
        self.places = places
        self._program = program
        self._deadline_s = deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Any = None
        self._starting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="podman")

    def end_strays(self) -> None:
        """End the service processes that a killed daemon may have left. Blocks."""
        for pid in self._strays():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def close(self) -> None:
        """End the process. Nobody may be in a call."""
        async with self._starting:
            await self.stop()
        await asyncio.to_thread(self._threads.shutdown)

    async def stop(self) -> None:
        """End the process; the next call starts another one, with the configuration as it is."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, _STOP_S)
            self._end()

    async def run(self, calls: Callable[[Ask], _Answer]) -> _Answer:
        """Several requests in one thread, within one deadline.

        Raises ContainerError: `NotAnswering`, else what Podman answered (NOT_FOUND, UNAVAILABLE).
        When it is cancelled it first lets them end, so that
        what they have made can be removed after it.
        """
        async with self._starting:
            await self._ensure()
        try:
            return await self._finished(calls)
        except _NotBegun:
            async with self._starting:
                self._end()
                await self._ensure()
            return await self._finished(calls)

    async def _finished(self, calls: Callable[[Ask], _Answer]) -> _Answer:
        ask = Ask(self._client, self.places.socket, self._deadline_s)
        running = asyncio.get_running_loop().run_in_executor(self._threads, calls, ask)
        try:
            return await self._within_deadline(running)
        except asyncio.CancelledError:
            with suppress(ContainerError):
                await self._within_deadline(running)
            raise

    async def call(
        self,
        method: str,
        path: str,
        params: dict[str, Any] | None = None,
        body: Any = None,
        again: bool = False,
    ) -> Any:
        """One request; `again`: once more if the process went away, as it is harmless."""
        try:
            return await self.run(lambda ask: ask(method, path, params, body))
        except NotAnswering:
            if not again:
                raise
        return await self.run(lambda ask: ask(method, path, params, body))

    async def _within_deadline(self, running: asyncio.Future[_Answer]) -> _Answer:
        done, _ = await asyncio.wait({running}, timeout=self._deadline_s)
        if not done:
            log.warning("podman does not answer; its service process is replaced")
            self._end()  # and with it the connection on which the thread waits
            with suppress(ContainerError):
                await running
            raise NotAnswering(f"it did not answer within {self._deadline_s:g} s")
        return running.result()

    async def _ensure(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None:
            log.warning("podman's service process has ended (%s)", self._process.returncode)
            self._end()
        starting = asyncio.get_running_loop().run_in_executor(None, self._start)
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Who ends the process next must find it: a thread cannot be cancelled.
            await asyncio.wait({starting})
            raise

    def _start(self) -> None:
        places = self.places
        places.socket.unlink(missing_ok=True)
        # Should this daemon be killed, nobody is left behind.
        tied = [found, "--pdeathsig", "KILL"] if (found := shutil.which("setpriv")) else []
        # Said again: without root Podman 4.3 takes these places from nowhere else.
        where: list[str | Path] = ["--storage-driver", "overlay", "--root", places.storage]
        where += ["--runroot", places.state, "--tmpdir", places.tmp]
        for store in places.stores:
            where += ["--storage-opt", f"additionalimagestore={store}"]
        words = ["--log-level", "error", "system", "service", "--time", "0"]
        with open(places.log, "wb") as output:
            self._process = subprocess.Popen(
                [*tied, self._program, *where, *words, f"unix://{places.socket}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=places.environment(),
                # conmon leaves files where the service process was started.
                cwd=places.run / "work",
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while not _is_listening(places.socket):
            if self._process.poll() is not None or time.monotonic() > until:
                self._end()
                raise NotAnswering(f"its service process does not start: {self._last_words()}")
            time.sleep(0.005)
        self._client = _client(places.socket)

    def _end(self) -> None:
        """Kill the process; the threads' connections break. It is started again by `_ensure`."""
        if self._process is not None:
            # Without root Podman runs itself again; conmon and what it started have left the group.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._client is not None:
            # close() of requests leaves idle connections to the garbage collector.
            for adapter in self._client.adapters.values():
                for key in list(adapter.poolmanager.pools.keys()):
                    adapter.poolmanager.pools[key].close()
            self._client = None

    def _last_words(self) -> str:
        lines = self.places.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it says nothing"

    def _strays(self) -> list[int]:
        address = f"unix://{self.places.socket}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    words = (folder / "cmdline").read_bytes().split(b"\0")
                    if address in words and b"service" in words:
                        found.append(int(folder.name))
        return found


class Ask:
    """Requests by one thread: `ask("GET", "/containers/json")` answers the JSON."""

    def __init__(self, client: Any, listening: Path, deadline_s: float) -> None:
        self._client = client
        self._socket = listening
        # Who waits for this thread is first to see that it takes too long, and ends the process.
        self._timeout_s = 2 * deadline_s
        self._has_asked = False

    def __call__(
        self, method: str, path: str, params: dict[str, Any] | None = None, body: Any = None
    ) -> Any:
        from podman.errors import APIError

        if self._client is None or not _is_listening(self._socket):
            kind = NotAnswering if self._has_asked else _NotBegun
            raise kind("its service process went away")
        self._has_asked = True
        sent: dict[str, Any] = {"params": params, "timeout": self._timeout_s}
        if isinstance(body, bytes):
            sent |= {"data": body, "headers": {"Content-Type": "application/x-tar"}}
        elif body is not None:
            sent |= {"data": json.dumps(body), "headers": {"Content-Type": "application/json"}}
        try:
            answer = getattr(self._client, method.lower())(path, **sent)
            text = answer.text
        except (APIError, OSError) as exc:  # those of requests are OSErrors
            raise NotAnswering(f"its service process went away: {exc}") from exc
        if answer.status_code >= 400:
            if _message(text).startswith(_PANIC):
                raise NotAnswering(f"it has crashed: {_message(text)}")
            code = "NOT_FOUND" if answer.status_code == 404 else "UNAVAILABLE"
            raise ContainerError(code, f"podman: {_message(text)}")
        return json.loads(text) if text.strip() else None


def _client(listening: Path) -> Any:
    """podman-py's, with connections that close their socket when they are refused."""
    from podman.api.client import APIClient  # with requests: 0.2 s, for who runs containers
    from podman.api.uds import UDSConnection, UDSConnectionPool

    class Connection(UDSConnection):
        def connect(self) -> None:
            made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            made.settimeout(self.timeout)
            try:
                made.connect(str(listening))
            except OSError:
                made.close()
                raise
            self.sock = made

    class Pool(UDSConnectionPool):
        ConnectionCls = Connection

    client: Any = APIClient(base_url=f"http+unix://{listening}")
    for adapter in client.adapters.values():
        adapter.poolmanager.pool_classes_by_scheme = {"http": Pool, "https": Pool}
    return client


def _message(text: str) -> str:
    """What the error says; Podman's own form, else the text."""
    with suppress(ValueError, TypeError, KeyError):
        return str(json.loads(text)["message"])
    return text.strip()


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
