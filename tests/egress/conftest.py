"""A handler's side of the gateway: a real process in real namespaces, and servers to reach.

`cell` starts the process (`inside.py`) and opens the gateway on its sockets, `container` starts one
without a gateway; `table` is the resolver that the tests write; `server` listens on the host's
loopback, on a port that the gateway serves.
"""

import asyncio
import contextlib
import importlib.metadata
import json
import os
import shutil
import socket
import sys
import textwrap
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sandbox.egress.dns import Unknown
from sandbox.egress.gateway import Gateway

INSIDE = Path(__file__).with_name("inside.py")
LOOPBACK = ("127.0.0.0/8", "::1/128")


class Table:
    """A resolver that answers what the test says: name to addresses, or to a list of such answers,
    one for each look-up; an exception is raised; a name that is not there is unknown."""

    def __init__(self):
        self.names = {}
        self.asked = []
        self.futures = []
        self.left = 0

    def lookup(self, name):
        self.asked.append(name)
        future = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        answer = self.names.get(name, Unknown(name))
        if isinstance(answer, list) and answer and isinstance(answer[0], list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        elif answer != "never":
            future.set_result(list(answer))
        return future

    def leave(self):
        self.left += 1

    def close(self):
        pass


class Cell:
    """The process inside, and its gateway if it has one."""

    def __init__(self, gateway, table, control, reader, writer, process):
        self.gateway = gateway
        self.table = table
        self.process = process
        self._control = control
        self._reader = reader
        self._writer = writer

    async def run(self, code, *args):
        """The result of `main` of this code, run inside; "Error: text" of what it raised."""
        request = {"code": textwrap.dedent(code), "args": args}
        self._writer.write(json.dumps(request).encode() + b"\n")
        line = await self._reader.readline()
        assert line, "the process inside died"
        answer = json.loads(line)
        return answer["result"] if "result" in answer else answer["error"]

    def run_while_the_loop_stands(self, code, *args):
        """The same, while the gateway can look at nothing."""
        request = {"code": textwrap.dedent(code), "args": args}
        self._control.setblocking(True)
        self._control.sendall(json.dumps(request).encode() + b"\n")
        answer = json.loads(self._control.recv(1 << 16))
        self._control.setblocking(False)
        return answer["result"] if "result" in answer else answer["error"]

    async def visit(self, egress, code, *args):
        """One execution: its result and its traffic."""
        visit = self.gateway.open(egress)
        try:
            result = await self.run(code, *args)
        finally:
            traffic = visit.close()
        return result, traffic


@contextlib.asynccontextmanager
async def process_inside(ports, uid):
    """The sockets that it sent; the way to it, streams over that, and the process."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(INSIDE)),
            *(str(theirs.fileno()), str(uid), ",".join(map(str, ports))),
            pass_fds=(theirs.fileno(),),
        )
    try:
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        there = loop.create_future()
        loop.add_reader(ours.fileno(), there.set_result, None)
        await there
        loop.remove_reader(ours.fileno())
        said, fds, _flags, _address = socket.recv_fds(ours, 1000, 200)
        assert said == b"ready", said
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 24)
        yield fds, (ours, reader, writer, process)
    finally:
        if ours.fileno() >= 0:
            with contextlib.suppress(NameError, OSError):
                writer.close()
                await writer.wait_closed()
        ours.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


@contextlib.asynccontextmanager
async def servers():
    """See `server`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(serve, host="127.0.0.1", port=0):
            async def closing(reader, writer):
                try:
                    await serve(reader, writer)
                except (ConnectionError, asyncio.IncompleteReadError):
                    pass
                finally:
                    writer.close()
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()

            listening = await asyncio.start_server(closing, host, port)
            await stack.enter_async_context(listening)
            return listening.sockets[0].getsockname()[1]

        yield start


@contextlib.asynccontextmanager
async def cells(table):
    """See `cell`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(*ports, uid=None, resolver=None):
            inside = process_inside(ports, os.getuid() if uid is None else uid)
            fds, parts = await stack.enter_async_context(inside)
            gateway = Gateway(fds, ports, table if resolver is None else resolver)
            stack.callback(gateway.close)
            return Cell(gateway, table, *parts)

        yield start


@contextlib.asynccontextmanager
async def containers():
    """See `container`."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(uid=None):
            inside = process_inside((), os.getuid() if uid is None else uid)
            _fds, parts = await stack.enter_async_context(inside)
            made = Cell(None, None, *parts)
            made.pidfd = os.pidfd_open(made.process.pid)
            stack.callback(os.close, made.pidfd)
            return made

        yield start


def copy_for_everybody(folder, *trees):
    """Folders and files, where every account may read them."""
    for tree in map(Path, trees):
        copy = shutil.copytree if tree.is_dir() else shutil.copy
        copy(tree, folder / tree.name)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def copy_packages(folder, *names):
    """What pip would install there for these, from what is installed here."""
    found = set()
    wanted = list(names)
    while wanted:
        if (name := wanted.pop()) not in found:
            found.add(name)
            requirements = map(Requirement, importlib.metadata.requires(name) or ())
            wanted += [
                one.name
                for one in requirements
                if one.marker is None or one.marker.evaluate({"extra": ""})
            ]
    for name in found:
        for file in importlib.metadata.files(name) or ():
            if ".." not in file.parts and ".dist-info" not in file.parts[0]:
                target = folder / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file.locate(), target)  # with its time: *.pyc know it


@pytest.fixture
async def container():
    """Starts a process that has a network of its own with nothing but loopback, as a container's
    init has; `pidfd` means it."""
    async with containers() as start:
        yield start


@pytest.fixture
def table():
    """The names that there are."""
    return Table()


@pytest.fixture
async def server():
    """Starts `serve(reader, writer)` on a loopback address; returns its port."""
    async with servers() as start:
        yield start


@pytest.fixture
async def cell(table):
    """Starts a process inside with a gateway for these ports."""
    async with cells(table) as start:
        yield start
