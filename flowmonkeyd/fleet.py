"""Which instance is whose: the containers of jobs, from the warm pool or a cold start to their end.

Owns every instance that a job has, running, frozen or answered, and the memory that they may use.
It finds those of earlier daemons again by asking Podman, ends what nobody wants any more, and
sweeps up after everybody who died. The tables say who is wanted; here is only where they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from flowmonkeyd.agents import Unanswered
from flowmonkeyd.agentwire import ProtocolError
from flowmonkeyd.containermodel import RESOURCES, ContainerError, Found
from flowmonkeyd.containers import Containers
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import FlowMonkeyError
from flowmonkeyd.instances import APP, Instance, Instances
from flowmonkeyd.jobmodel import JobState
from flowmonkeyd.model import StepError
from flowmonkeyd.packages import Packages
from flowmonkeyd.poolsize import Window
from flowmonkeyd.settings import Settings
from flowmonkeyd.store import Committed
from flowmonkeyd.warm import Floor, Kind, WarmPool
from sandbox.confine import LayerFailed

__all__ = ["UNSTARTABLE", "Fleet", "Images", "Unavailable", "kind_of"]

log = logging.getLogger(__name__)

SWEEP_EVERY_S, SWEEP_GRACE_S = 60.0, 60.0
LIST_AGAIN_S = 1.0
# A manifest can ask for no more; the job's own limit is the engine's to keep.
_BLOB_MAX_BYTES = 1024**3
# What no other try changes.
FINAL = ("IMAGE_UNAVAILABLE", "SANDBOX_UNAVAILABLE")
UNSTARTABLE = (ContainerError, Unanswered, ProtocolError, LayerFailed, OSError)


class Images(Protocol):
    """Who has the images of handlers (`builder`)."""

    async def image_for(self, digest: str) -> str:
        """The id of a package's image, built if need be. Raises FlowMonkeyError with the reason."""

    async def runtime_for(self, digest: str) -> str:
        """The name of the runtime that it stands on."""

    async def runtime_image(self, name: str) -> str:
        """The id of a runtime's image, likewise."""


class Unavailable(Exception):
    """There is no container for a job; `error` is why, and whether another try may have one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.error = StepError(code, message, retryable=code not in FINAL)


class Fleet:
    """`work` for as long as instances are had. Belongs to one event loop."""

    def __init__(
        self,
        engine: Engine,
        containers: Containers,
        images: Images,
        packages: Packages,
        settings: Settings,
    ) -> None:
        self._engine = engine
        self._containers = containers
        self._images = images
        self._packages = packages
        self._settings = settings
        self._folder = settings.dataDir / "checkpoints"
        ports = settings.sandbox.network.ports
        self._instances = Instances(containers, self._folder / "incoming", ports)
        warm = settings.warm
        self.pool = WarmPool(
            *(self._instances.start, warm.most, warm.bytesMax, warm.idleMs / 1000),
            at_once=os.cpu_count() or 1,
        )
        total = settings.containers.memoryBytes or _most_of_memory()
        self._room = _Room(total, self._make_room)
        # Those that a job has, by id.
        self._owned: dict[str, Instance] = {}
        # By job's key: in no attempt's hands, frozen or adopted running.
        self._held: dict[int, _Held] = {}
        self._group: asyncio.TaskGroup | None = None
        # By id: cancelled, and with a moment left.
        self._leaving: dict[str, asyncio.Task[None]] = {}
        self._declared: set[Kind] = set()
        self._images_changed = asyncio.Event()
        self._needed, self._ready = asyncio.Event(), asyncio.Event()

    @property
    def problem(self) -> str | None:
        """Why containers cannot be run here; None: they can."""
        return self._containers.problem

    @property
    def is_open(self) -> bool:
        """Whether anybody has needed containers."""
        return self._ready.is_set()

    @property
    def facts(self) -> Mapping[str, Any]:
        """How they are run here."""
        return self._containers.facts

    @property
    def slots(self) -> int:
        """How many jobs can run at a time, by memory."""
        least = min(limits.memory_bytes for limits in RESOURCES.values())
        return max(1, self._room.total // least)

    async def work(self) -> None:
        """Once containers are needed: find out whether they can be had, adopt those that are there
        and keep everything in order until cancelled; the containers of jobs run on."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            try:
                await self._work(group)
            finally:
                self._group = None

    async def _work(self, group: asyncio.TaskGroup) -> None:
        await asyncio.to_thread(self._tidy, await self._engine.checkpoint_files())
        if not await self._engine.uses_containers():
            # Podman's process and a canary are for those who have stateful handlers.
            await self._needed.wait()
        await self._containers.open()
        if self.problem is not None:
            self._ready.set()
            return
        instances = group.create_task(self._instances.run(), name="instances")
        await asyncio.sleep(0)  # it has its place now
        working: list[asyncio.Task[None]] = []
        try:
            await self._adopt_all()
            await self._declare_generic()
            working.append(group.create_task(self._declare(), name="declare"))
            working.append(group.create_task(self.pool.run(), name="warm-pool"))
            working.append(group.create_task(self._sweep(), name="sweep"))
            self._ready.set()
            await asyncio.get_running_loop().create_future()
        finally:
            # One after the other: what waits is ended before those who end it are.
            for task in (*working, *self._leaving.values(), instances):
                task.cancel()
                await asyncio.wait({task})

    async def ready(self) -> None:
        """Containers are needed: wait until it is known whether they can be had (`problem`)."""
        self._needed.set()
        await self._ready.wait()

    def committed(self, hints: Committed) -> None:
        """A commit happened: end the instances that it made unwanted, and files of checkpoints."""
        self.abandon(hints.evicted)
        if hints.images:
            self._images_changed.set()
        if hints.discarded and self._group is not None:
            names = set(hints.discarded)
            self._group.create_task(asyncio.to_thread(self._unlink, names), name="discard")

    # --- having one ------------------------------------------------------------------------------

    async def acquire(self, manifest: Manifest, digest: str, began_s: float) -> Instance:
        """A container with an agent that waits: with the handler imported, or generic and given the
        package, or started now. `began_s` is when it was wanted. Raises Unavailable."""
        try:
            image_id = await self._images.image_for(digest)
            runtime_id = await self._images.runtime_image(await self._images.runtime_for(digest))
        except FlowMonkeyError as exc:
            raise Unavailable("IMAGE_UNAVAILABLE", exc.message) from exc
        kind = kind_of(manifest, image_id)
        size = RESOURCES[kind.resources].memory_bytes
        await self._room.take(size)
        instance: Instance | None = None
        try:
            instance = await self._taken(kind, runtime_id, digest)
            starts = self.pool.warm if instance is not None else self.pool.cold
            if instance is None:
                instance = await self._instances.start(replace(kind, package=None), "job")
        except UNSTARTABLE as exc:
            code = exc.code if isinstance(exc, ContainerError) else "CONTAINERS_UNAVAILABLE"
            raise Unavailable(code, f"cannot start a container: {exc}") from exc
        finally:
            if instance is None:
                self._room.give(size)
        instance.memory_bytes = size
        self._owned[instance.id] = instance
        starts.add((time.monotonic() - began_s) * 1000)
        return instance

    async def _taken(self, kind: Kind, runtime_id: str, digest: str) -> Instance | None:
        found = self.pool.take(kind)
        if found is None:
            like = replace(kind, name="", image_id=runtime_id, package=None)
            generic = next((k for k in self.pool.kinds() if replace(k, name="") == like), None)
            found = None if generic is None else self.pool.take(generic)
            if isinstance(found, Instance):
                try:
                    await asyncio.to_thread(found.specialise, self._packages.path(digest))
                except OSError as exc:
                    log.warning("a container cannot be given its package: %s", exc)
                    found.end()
                    return None
        assert found is None or isinstance(found, Instance)
        return found

    async def _declare_generic(self) -> None:
        """Generic containers that the operator wants to have warm."""
        for name, least in self._settings.warm.runtimes.items():
            try:
                image_id = await self._images.runtime_image(name)
            except FlowMonkeyError as exc:
                log.warning("no containers of %s are kept warm: %s", name, exc.message)
                continue
            runtime = "python" if name.startswith("python") else "node"
            self.pool.declare(Kind(name, image_id, runtime, "light", False), Floor(least))

    async def _declare(self) -> None:
        """Keep containers of handlers warm as the operator has said, of each type's newest version;
        those of one whose image was just built are started for its first calls."""
        promised = 0
        while True:
            self._images_changed.clear()
            kinds = set()
            for text, image_id in await self._engine.stateful_images():
                manifest = parse_manifest(text)
                own = self._settings.handlers.of(manifest.type)
                windows = [Window(one.cron, one.minutes, one.warm) for one in own.warmWindows]
                kind = kind_of(manifest, image_id)
                is_new = kind not in self._declared
                self.pool.declare(kind, Floor(own.warm, windows), promised * is_new)
                kinds.add(kind)
            await self.pool.withdraw(self._declared - kinds)
            self._declared = kinds
            promised = self._settings.warm.onPublish
            await self._images_changed.wait()

    # --- letting it go ---------------------------------------------------------------------------

    def held(self, job: int) -> Instance | None:
        """The instance that waits for the job, frozen or adopted; it is the caller's now."""
        held = self._held.pop(job, None)
        return None if held is None else held.instance

    async def hold(self, job: int, instance: Instance) -> None:
        """The job is paused, which is committed: freeze its instance where it is; if that cannot
        be, it goes, and the job will go on from its checkpoint in another."""
        try:
            await self._instances.freeze(instance)
        except ContainerError as exc:
            log.warning("a paused container cannot be frozen: %s", exc.message)
            await self._evicted(job, instance)
            return
        if instance.id in self._owned:  # nobody has cancelled the job meanwhile
            self._held[job] = _Held(instance, time.monotonic())
            self._room.can_be_made()

    async def thaw(self, instance: Instance) -> None:
        """Let it go on. Raises ContainerError."""
        await self._instances.thaw(instance)

    def drop(self, instance: Instance) -> None:
        """End an instance at once."""
        if self._owned.pop(instance.id, None) is not None:
            self._room.give(instance.memory_bytes)
        instance.end()

    def abandon(self, instance_ids: Collection[str]) -> None:
        """Nobody wants these any more: handlers that run are told, and have a moment."""
        for instance_id in instance_ids:
            instance = self._owned.get(instance_id)
            if instance is None or instance_id in self._leaving:
                continue
            frozen = [key for key, held in self._held.items() if held.instance is instance]
            for key in frozen:
                del self._held[key]
            is_running = instance.is_alive and not instance.has_answered and not frozen
            if not is_running or self._group is None:
                self.drop(instance)
                continue
            instance.agent.cancel("the job was cancelled")
            leaving = self._group.create_task(self._leave(instance), name=f"leave-{instance_id}")
            self._leaving[instance_id] = leaving
            # Not at the end of `_leave`: a task cancelled before its first step never gets there.
            leaving.add_done_callback(partial(self._left, instance))

    async def _leave(self, instance: Instance) -> None:
        await asyncio.wait({instance.exit}, timeout=self._settings.jobs.cancelGraceMs / 1000)

    def _left(self, instance: Instance, _: asyncio.Task[None]) -> None:
        del self._leaving[instance.id]
        self.drop(instance)

    def _unlink(self, names: Collection[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)

    async def _make_room(self) -> bool:
        """Memory is short: a warm one goes, else the frozen one that has waited longest, whose job
        goes on from its checkpoint in another. False: there is none."""
        if await self.pool.relieve():
            return True
        frozen = [key for key, held in self._held.items() if held.is_frozen]
        if not frozen:
            return False
        key = min(frozen, key=lambda one: self._held[one].since_s)
        # Also that of a job that goes on just now: it may be in line behind who wants the room.
        await self._evicted(key, self._held.pop(key).instance)
        return True

    async def _evicted(self, job: int, instance: Instance) -> None:
        """A frozen one goes. The row of its job may name it on: that is found out when the job goes
        on, which it does from its checkpoint in another."""
        self.drop(instance)
        await self._forgotten(job, instance.id)

    async def _forgotten(self, job: int, instance_id: str) -> None:
        try:
            await self._engine.evict_instance(job, instance_id)
        except FlowMonkeyError as exc:
            log.warning("that a container is gone cannot be kept: %s", exc.message)

    # --- what others have left -------------------------------------------------------------------

    async def _adopt_all(self) -> None:
        """Containers that jobs still have are kept for them; others go, with all that Podman has
        lost with an earlier daemon."""
        wanted = await self._engine.instances_wanted()
        there = set()
        for one in await self._found():
            instance_id = one.container.instance
            is_wanted = instance_id in wanted and one.state != "exited"
            if is_wanted and await self._adopted(one, *wanted[instance_id]):
                there.add(instance_id)
                continue
            with contextlib.suppress(ContainerError):
                await self._containers.kill(one.container)
        for instance_id, (key, state) in wanted.items():
            if instance_id not in there and state is JobState.PAUSED:
                await self._forgotten(key, instance_id)
        await self._swept(there, 0)
        if there:
            log.info("containers were adopted", extra={"count": len(there)})

    async def _found(self) -> list[Found]:
        """What is there. To know that nothing is, Podman must have said so."""
        while True:
            try:
                return await self._containers.found()
            except ContainerError as exc:
                log.warning("containers cannot be listed yet: %s", exc.message)
            await asyncio.sleep(LIST_AGAIN_S)

    async def _adopted(self, found: Found, key: int, state: JobState) -> bool:
        try:
            instance = await self._instances.adopt(found, _BLOB_MAX_BYTES)
        except UNSTARTABLE as exc:
            log.warning("a container cannot be adopted: %s", exc)
            return False
        instance.memory_bytes = RESOURCES[found.resources].memory_bytes
        self._room.claim(instance.memory_bytes)
        self._owned[instance.id] = instance
        if state is JobState.PAUSED and found.state == "running":
            await self.hold(key, instance)
        else:
            self._held[key] = _Held(instance, time.monotonic(), found.state == "frozen")
        return True

    async def _sweep(self) -> None:
        """Every minute: what is nobody's goes, and so does what was frozen for long."""
        frozen_s = self._settings.jobs.frozenMs / 1000
        while True:
            await asyncio.sleep(min(SWEEP_EVERY_S, max(frozen_s, 0.05)))
            before_s = time.monotonic() - frozen_s
            for key, held in list(self._held.items()):
                if held.is_frozen and held.since_s <= before_s and key in self._held:
                    del self._held[key]
                    await self._evicted(key, held.instance)
            wanted = await self._engine.instances_wanted()
            keep = {*self._owned, *self._instances.known, *wanted}
            await self._swept(keep, SWEEP_GRACE_S)

    async def _swept(self, keep: Collection[str], grace_s: float) -> None:
        try:
            count = await self._containers.sweep(keep, grace_s)
        except OSError as exc:
            log.warning("leftovers cannot be removed now: %s", exc)
            return
        if count > 0:
            log.warning("leftovers were removed", extra={"count": count})

    def _tidy(self, files: Collection[str]) -> None:
        """Files of checkpoints that no row names are of a write that was interrupted."""
        (self._folder / "incoming").mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder, _, names in os.walk(self._folder):
            for name in names:
                path = Path(folder, name)
                if str(path.relative_to(self._folder)) not in files:
                    path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Held:
    """An instance that waits for its job to go on."""

    instance: Instance
    since_s: float
    is_frozen: bool = True


class _Room:
    """Memory for containers of jobs: as much as they may use, not as they do."""

    def __init__(self, total: int, make: Callable[[], Awaitable[bool]]) -> None:
        self.total = total
        self._left = total
        self._make = make
        self._line = asyncio.Lock()
        self._given = asyncio.Event()

    async def take(self, size: int) -> None:
        """Wait until there is so much, having less wanted containers ended; who alone wants more
        than there is has all. Who comes first is first, so that a large one has its turn."""
        async with self._line:
            while self._left < size and self._left < self.total:
                self._given.clear()
                if not await self._make():
                    await self._given.wait()
            self._left -= size

    def give(self, size: int) -> None:
        """So much is free again."""
        self._left += size
        self._given.set()

    def can_be_made(self) -> None:
        """There is something now that could be ended for who waits."""
        self._given.set()

    def claim(self, size: int) -> None:
        """An adopted one has it already."""
        self._left -= size


def kind_of(manifest: Manifest, image_id: str) -> Kind:
    """What containers of a handler's own image are."""
    stateful = manifest.stateful
    assert stateful is not None
    return Kind(
        name=f"{manifest.type}@{manifest.version}",
        image_id=image_id,
        runtime=manifest.runtime,
        resources=stateful.resources,
        network=manifest.network is not None,
        package=(APP, manifest.entrypoint),
    )


def _most_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 4
