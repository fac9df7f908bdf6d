"""Containers with their agents: started, adopted, frozen, and ended for certain.

An instance is one container of ours with the agent inside it answering on its socket, with a
gateway if it may use the network, and with somebody who sees its end. Starting one is all or
nothing. Ending one is immediate for who asks; the removal goes on in the background, and is
finished before `Instances` is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flowmonkeyd.agents import Agent, Unanswered
from flowmonkeyd.agentwire import ProtocolError
from flowmonkeyd.containermodel import Container, ContainerError, Exit, Found, Spec
from flowmonkeyd.containers import Containers
from flowmonkeyd.warm import Kind
from sandbox.confine import LayerFailed

if TYPE_CHECKING:
    from sandbox.egress.gateway import Gateway, Visit

__all__ = ["APP", "SPECIALISED", "Instance", "Instances"]

log = logging.getLogger(__name__)

# Where the package is in a handler's image, and in a generic container that was given one.
APP, SPECIALISED = "/app", "/run/flowmonkey/app"
_APP_FOLDER = "app"
# The agent of a cold container answers in 0.1 s; a machine that needs so long has other troubles.
CONNECT_S = 30.0
PREPARE_S = 60.0
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "python": ("/usr/bin/python3", "-I", "/usr/lib/flowmonkey/agent.py"),
    "node": ("/usr/bin/node", "/usr/lib/flowmonkey/agent.cjs"),
}
# What is kept of what a container that ended has printed, for who looks for the reason.
_OUTPUT_CHARS = 2000


class Instance:
    """One container with its agent. `exit` is how it ended, once it has; `on_end` is called then,
    unless somebody has killed it."""

    def __init__(self, kind: Kind | None, container: Container, agent: Agent, end: _End) -> None:
        self.kind = kind
        self.container = container
        self.agent = agent
        self.gateway: Gateway | None = None
        self.visit: Visit | None = None  # of the attempt's network
        self.memory_bytes = 0  # that it may use, once a job has it
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.on_end: Callable[[], None] | None = None
        self.is_specialised = False
        self.has_answered = False  # its job's result is on its way into the tables
        self.is_killed = False
        self._end = end

    @property
    def id(self) -> str:
        return self.container.instance

    @property
    def is_alive(self) -> bool:
        """Nobody has seen its end, and its agent keeps to the rules."""
        return not self.is_killed and not self.exit.done() and self.agent.problem is None

    def end(self) -> None:
        """It has ended for all that anybody can see; the rest of it goes in the background."""
        if not self.is_killed:
            self.is_killed = True
            self._end(self)

    async def kill(self) -> None:
        """The same, for the warm pool."""
        self.end()

    def specialise(self, package: Path) -> None:
        """Show a generic container the files of a package. OSError when that cannot be."""
        target = self.container.folder / _APP_FOLDER
        shutil.copytree(package, target, copy_function=_link, dirs_exist_ok=True)
        self.is_specialised = True


_End = Callable[[Instance], None]


def _link(source: str, target: str) -> str:
    """Packages are read-only and readable by everyone, whatever names their files have."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copyfile(source, target)
    return target


class Instances:
    """Makes and ends instances. `run()` must be running, and ends what is left to be ended."""

    def __init__(self, containers: Containers, spool: Path, ports: Collection[int]) -> None:
        """Large checkpoints are received into `spool`; `ports` are those the gateway serves."""
        self._containers = containers
        self._spool = spool
        self._ports = tuple(ports)
        self._group: asyncio.TaskGroup | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._watching: dict[Instance, asyncio.Task[None]] = {}
        self._pending: set[str] = set()  # of those that are being started or ended

    @property
    def known(self) -> set[str]:
        """The ids of all that live, start or end just now."""
        return {one.id for one in self._watching} | self._pending

    async def run(self) -> None:
        """Have a place for watching and ending, until cancelled; the containers run on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                while self._ending:
                    await asyncio.wait(set(self._ending))
                for one, watching in list(self._watching.items()):
                    watching.cancel()
                    await self._close(one)
                self._group = None

    async def start(self, kind: Kind, role: Literal["warm", "job"] = "warm") -> Instance:
        """Start one of a kind and wait for its agent.

        Raises ContainerError, Unanswered, ProtocolError, LayerFailed; then nothing is left of it.
        """
        instance = secrets.token_hex(16)
        self._pending.add(instance)
        try:
            return await self._start(kind, role, instance)
        finally:
            self._pending.discard(instance)

    async def _start(self, kind: Kind, role: Literal["warm", "job"], instance: str) -> Instance:
        containers = self._containers
        folder = containers.folder(instance)
        (folder / _APP_FOLDER).mkdir(exist_ok=True)
        agent = Agent(instance, folder, self._spool)
        await agent.open()
        container: Container | None = None
        made: Instance | None = None
        try:
            container = await containers.start(
                Spec(
                    instance=instance,
                    role=role,
                    image_id=kind.image_id,
                    resources=kind.resources,
                    folder=folder,
                    command=COMMANDS[kind.runtime],
                    network=kind.network,
                )
            )
            made = self._watched(kind, container, agent)
            if kind.network:
                made.gateway = await self._gateway(container)
            await self._answered(made)
            if kind.package is not None:
                # What goes wrong with the import is told again with the task, to whom it concerns.
                await agent.prepare(*kind.package, PREPARE_S)
            return made
        except BaseException:
            if made is not None:
                await made.kill()
            else:
                await agent.close()
                if container is not None:
                    await asyncio.shield(containers.kill(container))
            raise

    async def _answered(self, made: Instance) -> None:
        """Wait for its agent. One that ends instead is told of, with what it printed."""
        async with asyncio.TaskGroup() as group:
            connecting = group.create_task(_quietly(made.agent.connected(CONNECT_S)))
            futures: set[asyncio.Future[Any]] = {connecting, made.exit}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            connecting.cancel()
        if not connecting.cancelled() and connecting.result() is None:
            return
        if made.exit.done():
            said = (await self._containers.output(made.container))[-_OUTPUT_CHARS:].strip()
            code = made.exit.result().code
            message = f"the container ended before its agent answered (code {code}): {said}"
            raise ContainerError("HANDLER_CRASHED", message)
        problem = connecting.result() if not connecting.cancelled() else None
        raise problem or Unanswered(f"the agent of {made.id} did not answer")

    async def _gateway(self, container: Container) -> Gateway:
        try:
            pidfd = self._containers.pidfd(container)
        except KeyError:
            raise LayerFailed("network", "the container has ended") from None
        from sandbox.egress.container import open_gateway  # its libraries are for who has a network

        return await open_gateway(pidfd, self._ports)

    async def adopt(self, found: Found, blob_max_bytes: int) -> Instance:
        """Take over one that runs or is frozen since an earlier daemon; its agent comes by itself
        once it runs. Raises OSError, LayerFailed."""
        container = found.container
        agent = Agent(
            container.instance, container.folder, self._spool, blob_max_bytes=blob_max_bytes
        )
        await agent.open()
        made = self._watched(None, container, agent)
        try:
            if found.network:
                made.gateway = await self._gateway(container)
        except BaseException:
            await made.kill()
            raise
        return made

    async def freeze(self, one: Instance) -> None:
        """Stop it where it is; it costs memory only. Raises ContainerError: kill it then."""
        one.agent.hold()
        await self._containers.freeze(one.container)

    async def thaw(self, one: Instance) -> None:
        """Let it go on. Raises ContainerError."""
        await self._containers.thaw(one.container)

    def _watched(self, kind: Kind | None, container: Container, agent: Agent) -> Instance:
        assert self._group is not None
        one = Instance(kind, container, agent, self._bury)
        self._watching[one] = self._group.create_task(self._watch(one), name=f"watch-{one.id}")
        return one

    async def _watch(self, one: Instance) -> None:
        how = await self._containers.ended(one.container)
        if not one.exit.done():
            one.exit.set_result(how)
        if one.on_end is not None and not one.is_killed:
            one.on_end()

    def _bury(self, one: Instance) -> None:
        """Kill and remove it, by a task of its own."""
        if (watching := self._watching.pop(one, None)) is not None:
            watching.cancel()
        if not one.exit.done():
            one.exit.set_result(Exit(None, None, False))
        if self._group is None:
            return  # the next start finds it
        self._pending.add(one.id)
        task = self._group.create_task(self._remove(one), name=f"end-{one.id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _remove(self, one: Instance) -> None:
        try:
            await self._close(one)
            await self._containers.kill(one.container)
        except (ContainerError, OSError) as exc:
            log.warning("a container cannot be removed now: %s", exc, extra={"instance": one.id})
        finally:
            self._pending.discard(one.id)

    async def _close(self, one: Instance) -> None:
        if one.gateway is not None:
            one.gateway.close()
            one.gateway = None
        with suppress(OSError):
            await one.agent.close()


async def _quietly(connected: Awaitable[object]) -> Exception | None:
    try:
        await connected
    except (Unanswered, ProtocolError) as exc:
        return exc
    return None
