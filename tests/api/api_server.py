"""The API in process on a real Unix socket: real store, engine, feed and server, no sandbox."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from flowmonkeyd.api.feed import Feed
from flowmonkeyd.api.requests import Api
from flowmonkeyd.api.server import Server, application
from flowmonkeyd.builder import Builder
from flowmonkeyd.clock import RandomIds, SystemClock
from flowmonkeyd.config import load
from flowmonkeyd.dispatcher import Dispatcher
from flowmonkeyd.engine import Engine
from flowmonkeyd.packages import Packages
from flowmonkeyd.stateless import Stateless
from flowmonkeyd.store import Store
from flowmonkeyd.timers import Timers
from flowmonkeyd.vault.keys import keyring
from flowmonkeyd.vault.local import Local
from flowmonkeyd.vitals import Vitals
from sandbox import HostedPool

SWITCH = {
    "id": "pick",
    "version": "1.0.0",
    "initialStepId": "a",
    "steps": {
        "a": {
            "id": "a",
            "type": "switch",
            "config": {"path": "n", "cases": {"1": "b"}, "default": None},
            "transitions": {},
        },
        "b": {"id": "b", "type": "wait-event", "config": {"event": "go", "filter": {"k": 1}}},
    },
}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self._path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


class Served:
    """A running API; `call` goes through the standard library's client in a thread."""

    def __init__(self, directory: Path):
        self.socket = directory / "s.sock"
        self.store = Store(directory / "fm.db", SystemClock())
        self.engine = Engine(self.store, RandomIds())
        self.feed = Feed()
        self.packages = Packages(directory / "packages")
        self.directory = directory
        self.clock = SystemClock()
        self.no_containers = None  # why this host can run none, if so
        self.builder = Builder(
            self.store,
            self.packages,
            directory / "containers/storage",
            clock=self.clock,
            driver_problem=lambda: self.no_containers,
        )

    async def call(self, method, path, body=None, headers=None):
        return await asyncio.to_thread(self.call_now, method, path, body, headers)

    def call_now(self, method, path, body=None, headers=None):
        connection = Connection(self.socket)
        try:
            if body is not None and not isinstance(body, bytes | str):
                body = json.dumps(body)
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()


@asynccontextmanager
async def served(directory: Path, jobs=None, **given: str):
    """The API on a directory, with dispatcher and timers, until the block ends; `given` are
    settings by their keys, with `__` for dots; `jobs(engine)` is who runs containers."""
    it = Served(directory)
    environ = {"FLOWMONKEY_API__BODY_BYTES_MAX": "2000000"}
    flags = {"dataDir": str(directory), "socket": str(it.socket)}
    flags |= {name.replace("__", "."): text for name, text in given.items()}
    settings = load(flags, environ, True, directory).settings
    dispatcher, timers = Dispatcher(it.engine, {}, "test"), Timers(it.engine, SystemClock())

    def committed(hints):
        for part in (dispatcher, timers, it.feed):
            part.committed(hints)

    it.store.on_commit = committed
    it.store.before_commit = it.engine.run_ready
    pool = HostedPool()  # never started: steps would be refused, and it says so
    vault = Local(it.store, keyring("", directory, {}))
    stateless = Stateless(pool, it.packages, it.engine, SystemClock(), settings, vault)
    vitals = Vitals(it.store, dispatcher, pool, stateless)
    vitals.phase = "ready"
    runs = None if jobs is None else jobs(it.engine)
    api = Api(it.engine, it.packages, it.feed, settings, vitals, vault, runs, it.builder)
    server = Server(application(api), it.socket, 0o660, [])
    server.bind()
    await it.store.open()
    it.packages.open()
    try:
        async with asyncio.TaskGroup() as group:
            writer = group.create_task(it.store.run())
            await it.engine.recover()
            await it.builder.open()
            working = [group.create_task(dispatcher.run()), group.create_task(timers.run())]
            serving = group.create_task(server.serve())
            await server.started()
            yield it
            it.feed.close()
            it.builder.close()
            server.stop()
            await serving
            for task in working:
                task.cancel()
            await asyncio.wait(working)
            await it.store.close()
            await writer
    finally:
        server.unbind()
