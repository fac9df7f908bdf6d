"""Containers of stateful handlers: started, frozen, watched, killed, swept. One door to Podman.

A container that `start` returns has been read back from the kernel: its limits and walls are as
asked, or it was killed and a `ContainerError` names the layer. Podman is asked to make and remove
containers and to list them; freezing, thawing, the ends of processes and their memory go by the
kernel directly. Containers outlive the daemon: `found` has those that run, `sweep` removes those
that nobody wants, also those that Podman forgot. A list that cannot be had removes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
import shutil
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from flowmonkeyd import confinement
from flowmonkeyd.containermodel import (
    RESOURCES,
    Container,
    ContainerError,
    Exit,
    Found,
    Image,
    Spec,
)
from flowmonkeyd.deaths import Deaths
from flowmonkeyd.podman import creation, images, layers, leftovers, listing, printed
from flowmonkeyd.podman.creation import Creation
from flowmonkeyd.podman.host import Host, installation, run_folder
from flowmonkeyd.podman.libpod import Ask, Libpod, NotAnswering, Places
from flowmonkeyd.podman.listing import Listed
from flowmonkeyd.settings import ContainersSection

__all__ = [
    "RESOURCES",
    "Container",
    "ContainerError",
    "Containers",
    "Exit",
    "Found",
    "Image",
    "Spec",
    "installation",
    "run_folder",
]

log = logging.getLogger(__name__)

_GPU = "gpu"
_LABEL = "flowmonkey."
# Podman refuses to remove what is just ending or just starting; a moment later it does.
_REMOVE_TRIES, _REMOVE_AGAIN_S = 6, 0.15
_ROUNDS = 3
_BY_FORCE = {"force": "true", "timeout": 0, "v": "true"}
# Frozen within 0.2 ms, as a rule.
_FREEZE_TRIES, _FREEZE_ROUND, _FREEZE_AGAIN_S = 1000, 20, 0.001
_BEGIN_TRIES, _BEGIN_AGAIN_S = 5000, 0.001
# conmon writes the exit code within milliseconds of the end; killed, it never does.
_CODE_TRIES, _CODE_AGAIN_S = 200, 0.01
# Ranges of user numbers: 4096 of 65536 end below 2**31.
_RANGES = 4096
_NPROC_MAX = 1 << 20


class Containers:
    """The containers of one installation. All methods but `open` and `close` may run at a time.

    `problem` is None when containers can be started, else the layer that is missing and why;
    `facts` is what `flowctl status` shows. Without Podman `open` says so and everything else is
    refused; nothing else of the daemon depends on it.
    """

    def __init__(self, settings: ContainersSection, root: Path, run: Path, install: str) -> None:
        self.problem: str | None = "containers: not opened yet"
        self.facts: Mapping[str, Any] = {}
        self.places = Places(root, run, tuple(Path(store) for store in settings.imageStores))
        self._settings = settings
        self._install = install
        self._epoch = secrets.token_hex(4)
        self._host: Host
        self._libpod: Libpod | None = None
        self._deaths = Deaths()
        self._starting: set[str] = set()
        self._ranges: dict[str, int] = {}
        self._next_range = secrets.randbelow(_RANGES)

    async def open(self, image_id: str | None = None) -> None:
        """Find out whether and how containers can be run, by running one; takes about 0.5 s.

        The canary is made from `image_id`, or from an empty image of our own.
        """
        chosen = self._settings
        try:
            host = Host.look(chosen.podman, chosen.runtime, self.places, self._install)
            self._host = host
            self._libpod = Libpod(self.places, host.program, chosen.callMs / 1000)
            await asyncio.to_thread(self._libpod.end_strays)
            runtime, version = await self._chosen_runtime(self._libpod, image_id)
        except ContainerError as exc:
            self.problem = exc.message
            log.warning("containers cannot be run: %s", exc.message)
            return
        self.problem = None
        self.facts = {
            "podman": version,
            "runtime": runtime,
            "cgroups": host.version,
            "rootless": host.rootless,
            "proved": list(confinement.LAYERS),
        }

    async def close(self) -> None:
        """End Podman's process and forget the containers, which run on."""
        self._deaths.close()
        if self._libpod is not None:
            await self._libpod.close()
            self._libpod = None
            await asyncio.to_thread(leftovers.remove_empty_groups, self._host.parent)
            await asyncio.to_thread(leftovers.unmount_storage, self.places)
            await asyncio.to_thread(leftovers.end_pause, self.places)
            await asyncio.to_thread(leftovers.remove_run, self.places, self._host.parent)
        self.problem = "containers: closed"

    def folder(self, instance: str) -> Path:
        """The folder for one container, made if it is not there. `kill` and `sweep` remove it."""
        folder = self.places.run / "c" / instance
        # The folders above are ours alone; who is in the container is another user.
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        folder.chmod(0o755)
        return folder

    async def start(self, spec: Spec) -> Container:
        """Start it and read back from the kernel that it is confined as asked.

        Raises ContainerError; then nothing of it is left, or the next sweep removes it.
        """
        if self.problem is not None:
            raise ContainerError("SANDBOX_UNAVAILABLE", f"cannot start it: {self.problem}")
        try:
            try:
                return await self._start(spec)
            except NotAnswering as exc:
                log.warning("started again: %s", exc.message, extra={"instance": spec.instance})
                return await self._start(spec)
        except BaseException:
            await asyncio.to_thread(self._remove_folder, spec.instance)
            raise

    async def kill(self, container: Container) -> None:
        """Kill and remove it, frozen, running, ended or removed already."""
        if container.groups is not None:
            container.groups.kill()
        self._deaths.kill(container.instance)
        await self._remove(container.instance)
        await asyncio.to_thread(self._remove_folder, container.instance)
        if container.groups is not None and container.groups.exist():
            # Without conmon nobody has told the runtime.
            await asyncio.to_thread(leftovers.remove, self.places, self._host.parent, container.id)

    async def freeze(self, container: Container) -> None:
        """Stop all its processes where they are; they keep their memory. Raises ContainerError,
        and then it may still run: kill it."""
        await self._switch(container, frozen=True)

    async def thaw(self, container: Container) -> None:
        """Let it go on. Its clocks have jumped. Raises ContainerError."""
        await self._switch(container, frozen=False)

    def pidfd(self, container: Container) -> int:
        """Its first process, for who is to enter its namespaces now. KeyError if it is killed."""
        return self._deaths.pidfd(container.instance)

    async def ended(self, container: Container) -> Exit:
        """Wait until its first process has ended, and say how."""
        oom = await self._deaths.wait(container.instance)
        code = await self._exit_code(container)
        return Exit(code, code - 128 if code is not None and code > 128 else None, oom)

    async def output(self, container: Container) -> str:
        """The end of what its processes have printed, for who looks for the reason of its end."""
        return await asyncio.to_thread(printed.tail, self.places, container.id)

    async def found(self) -> list[Found]:
        """The containers of this installation, to be adopted or killed. Raises ContainerError."""
        return [
            one
            for listed in await listing.containers(self._podman)
            if (one := self._recognised(listed)) is not None
        ]

    async def sweep(self, keep: Collection[str], grace_s: float) -> int:
        """Remove every container, process, mount and folder that is of no instance in `keep`, of
        none that is being started and not younger than `grace_s`; says how many. When Podman's
        list cannot be had, nothing is removed."""
        if self._libpod is None:
            return 0
        there = await asyncio.to_thread(leftovers.seen, self.places, self._host.parent)
        try:
            listed = await listing.containers(self._podman)
        except ContainerError as exc:
            log.warning("nothing is swept: %s", exc.message)
            return 0
        known, removed = (
            {one.id: one.instance for one in listed},
            there - {one.id for one in listed},
        )
        for one in listed:
            is_ours = one.name.startswith(self._name("")) and one.age_s >= grace_s
            if is_ours and not self._wanted(one.instance, keep):
                if (found := self._recognised(one)) is not None and found.container.groups:
                    found.container.groups.kill()
                await self._remove(one.instance)
                removed.add(known.pop(one.id))
        # With what Podman could not remove of those that it knew.
        for lost in (there | {one.id for one in listed}) - known.keys():
            await asyncio.to_thread(leftovers.remove, self.places, self._host.parent, lost)

        def is_there(instance: str) -> bool:
            return instance in known.values() or self._wanted(instance, keep)

        await asyncio.to_thread(leftovers.remove_unfinished, self.places, grace_s)
        unmounted = await asyncio.to_thread(leftovers.unmounted, self.places)
        removed |= await asyncio.to_thread(
            layers.remove_lost, self.places, self._name(""), is_there, grace_s
        )
        for folder in await asyncio.to_thread(self._old_folders, grace_s):
            if not is_there(folder.name):
                await asyncio.to_thread(self._remove_folder, folder.name)
                removed.add(folder.name)
        return len(removed) + unmounted

    async def images(self) -> list[Image]:
        """All images, those of the read-only stores too. Raises ContainerError."""
        return await images.listed(self._podman)

    async def image_id(self, name: str) -> str | None:
        """The id behind a name; None: there is no such image. Raises ContainerError."""
        return await images.id_of(self._podman, name)

    async def remove_image(self, image_id: str) -> None:
        """Remove an image that no container uses; one that is not there is fine."""
        await images.remove(self._podman, image_id)

    @property
    def _seccomp(self) -> Path:
        return self.places.run / "seccomp.json"

    async def _chosen_runtime(self, libpod: Libpod, image_id: str | None) -> tuple[str, str]:
        """The first with which every layer holds, and Podman's version. As somebody may kill Podman
        or the canary, what has failed is tried again."""
        reasons: dict[str, None] = {}
        for runtime in self._host.runtimes * _ROUNDS:
            await libpod.stop()  # it reads its configuration when it starts
            await asyncio.to_thread(self.places.make, self._host.manager, runtime)
            await asyncio.to_thread(self._seccomp.write_text, self._host.seccomp)
            try:
                for found in await self.found():
                    if found.role == "canary":
                        await self.kill(found.container)
                await self._try_out(image_id or await images.canary(libpod))
                return runtime, (await libpod.call("GET", "/version"))["Version"]
            except ContainerError as exc:
                reasons[f"{exc.message} (with {runtime})"] = None
        raise ContainerError("SANDBOX_UNAVAILABLE", "; ".join(reasons))

    async def _try_out(self, image_id: str) -> None:
        """Start a canary, freeze it, thaw it. Raises ContainerError."""
        instance = secrets.token_hex(16)
        folder = self.folder(instance)
        spec = Spec(instance, "canary", image_id, "light", folder, creation.NO_PROGRAM)
        try:
            canary = await self._start(spec)
            try:
                await self.freeze(canary)
                await self.thaw(canary)
            finally:
                await self.kill(canary)
        finally:
            await asyncio.to_thread(self._remove_folder, instance)

    async def _start(self, spec: Spec) -> Container:
        asked = self._asked(spec)
        ids: list[str] = []

        def make(ask: Ask) -> Any:
            made = ask("POST", "/containers/create", None, creation.body(asked))["Id"]
            ids.append(made)
            ask("POST", f"/containers/{made}/start")
            return ask("GET", f"/containers/{made}/json")

        self._starting.add(spec.instance)
        try:
            return await self._verified(spec, asked, await self._podman.run(make))
        except BaseException as exc:
            await self._remove(spec.instance)
            for made in ids:
                # A Podman killed in the middle of a start had not noted that conmon is there.
                await asyncio.to_thread(leftovers.remove, self.places, self._host.parent, made)
            if isinstance(exc, ContainerError) and not await self._has_image(spec.image_id):
                message = f"image: {spec.image_id} is not there"
                raise ContainerError("NOT_FOUND", message) from exc
            raise
        finally:
            self._starting.discard(spec.instance)

    async def _has_image(self, image_id: str) -> bool:
        """False only when Podman says that it has not."""
        with suppress(ContainerError):
            return await self.image_id(image_id) is not None
        return True

    def _asked(self, spec: Spec) -> Creation:
        if spec.resources == _GPU and not self._settings.gpuDevice:
            message = "gpu: there is none; the operator names one with containers.gpuDevice"
            raise ContainerError("SANDBOX_UNAVAILABLE", message)
        first_uid, rootless = None, self._host.rootless
        if not rootless:
            first_uid = self._settings.uidBase + creation.UIDS * self._range_of(spec.instance)
        limits = RESOURCES[spec.resources]
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        # Without root all containers are of one user, whose processes count together.
        tasks = resource.getrlimit(resource.RLIMIT_NPROC)[1] if rootless else limits.pids
        named = {
            "install": self._install,
            "epoch": self._epoch,
            "instance": spec.instance,
            "role": spec.role,
            "attempt": str(spec.attempt),
            "resources": spec.resources,
            "network": "yes" if spec.network else "no",
        }
        return Creation(
            name=self._name(spec.instance),
            image_id=spec.image_id,
            command=spec.command,
            environment={"FLOWMONKEY_INSTANCE": spec.instance},
            labels={**spec.labels, **{f"{_LABEL}{key}": one for key, one in named.items()}},
            limits=replace(limits, files=min(limits.files, files) if files > 0 else limits.files),
            folder=spec.folder,
            etc=self.places.etc,
            tmp_bytes=spec.tmp_bytes or self._settings.tmpBytes,
            log_bytes=self._settings.logBytesMax,
            seccomp=self._seccomp,
            cgroup=self._host.parent,
            first_uid=first_uid,
            nproc=tasks if tasks > 0 else _NPROC_MAX,
            device=self._settings.gpuDevice if spec.resources == _GPU else None,
        )

    async def _verified(self, spec: Spec, asked: Creation, seen: Mapping[str, Any]) -> Container:
        """The container, once the kernel says that it is as asked; raises ContainerError."""
        if seen["Image"] != spec.image_id:
            message = f"image: it was made of {seen['Image']}, asked for {spec.image_id}"
            raise ContainerError("SANDBOX_UNAVAILABLE", message)
        pid, container_id = int(seen["State"]["Pid"]), str(seen["Id"])
        try:
            groups = self._deaths.watch(spec.instance, pid, (container_id, spec.instance))
            await _begun(pid)
            facts = confinement.read_facts(pid, groups)
        except (OSError, KeyError, ValueError) as exc:
            message = f"it ended as soon as it was started ({exc})"
            raise ContainerError("HANDLER_CRASHED", message) from exc
        if missing := confinement.unmet(facts, asked.limits):
            raise ContainerError("SANDBOX_UNAVAILABLE", "; ".join(missing))
        return Container(
            instance=spec.instance,
            name=asked.name,
            id=container_id,
            pid=pid,
            groups=groups,
            folder=spec.folder,
            first_uid=asked.first_uid,
            started_ms=time.time_ns() // 1_000_000,
        )

    async def _switch(self, container: Container, frozen: bool) -> None:
        """By the kernel alone: `runc pause` can spin for ever where this gives up."""
        groups, done = container.groups, "frozen" if frozen else "thawed"
        if groups is None or not groups.exist():
            raise ContainerError("HANDLER_CRASHED", f"cannot be {done}: it has ended")
        try:
            for attempt in range(1, _FREEZE_TRIES):
                groups.order(frozen)
                if groups.is_frozen() == frozen:
                    return
                if attempt % _FREEZE_ROUND == 0:
                    # Version 1: a thread that waits in execve(2) for a frozen one never freezes.
                    groups.order(frozen=False)
                await asyncio.sleep(_FREEZE_AGAIN_S)
        except OSError as exc:
            raise ContainerError("UNAVAILABLE", f"freezer: it is not {done}: {exc}") from exc
        raise ContainerError("UNAVAILABLE", f"freezer: it is not {done}")

    async def _exit_code(self, container: Container) -> int | None:
        """What conmon wrote down; None when it was not there to see it, or all of it is removed."""
        file = self.places.tmp / "exits" / container.id
        for _ in range(_CODE_TRIES):
            try:
                return int(await asyncio.to_thread(file.read_text))
            except (OSError, ValueError):
                if container.instance not in self._deaths:
                    return None
            await asyncio.sleep(_CODE_AGAIN_S)
        return None

    async def _remove(self, instance: str) -> None:
        """Podman's record and all that belongs to it; what cannot be removed now is swept."""
        where = f"/containers/{self._name(instance)}"
        for attempt in range(_REMOVE_TRIES):
            if attempt:
                await asyncio.sleep(_REMOVE_AGAIN_S)
            try:
                await self._podman.call("DELETE", where, _BY_FORCE)
            except ContainerError as exc:
                if exc.code != "NOT_FOUND":
                    why = exc.message
                    continue
            break
        else:
            log.warning("a container is left to be swept", extra={"why": why})
        self._deaths.forget(instance)
        self._ranges.pop(instance, None)

    def _recognised(self, listed: Listed) -> Found | None:
        instance, labels = listed.labels.get(f"{_LABEL}instance", ""), listed.labels
        if not instance or listed.name != self._name(instance):
            return None
        groups, uid = None, None
        state: Literal["running", "frozen", "exited"] = "exited"
        with suppress(OSError):
            if listed.pid:
                groups = self._deaths.watch(instance, listed.pid, (listed.id, instance))
                uid = confinement.uid_outside(listed.pid)
                state = "frozen" if groups.is_frozen() else "running"
        if uid is not None and not self._host.rootless:
            self._ranges[instance] = (uid - self._settings.uidBase) // creation.UIDS
        container = Container(
            instance=instance,
            name=listed.name,
            id=listed.id,
            pid=listed.pid if groups is not None else 0,
            groups=groups,
            folder=self.places.run / "c" / instance,
            first_uid=uid,
            started_ms=listed.started_ms,
        )
        names = ("role", "attempt", "resources", "network")
        role, attempt, resources, network = (labels.get(_LABEL + name, "") for name in names)
        return Found(container, role, int(attempt or 0), state, resources, network == "yes", labels)

    def _wanted(self, instance: str, keep: Collection[str]) -> bool:
        return instance in keep or instance in self._starting

    def _old_folders(self, grace_s: float) -> list[Path]:
        before, top = time.time() - grace_s, self.places.run / "c"
        folders = top.iterdir() if top.exists() else ()
        return [one for one in folders if one.is_dir() and one.stat().st_mtime <= before]

    def _remove_folder(self, instance: str) -> None:
        folder = self.places.run / "c" / instance
        leftovers.unmount_below(folder)
        shutil.rmtree(folder, ignore_errors=True)

    def _name(self, instance: str) -> str:
        return f"fm-{self._install}-{instance}"

    def _range_of(self, instance: str) -> int:
        """Users of the host that no other container has; the one used longest ago."""
        taken = set(self._ranges.values())
        for _ in range(_RANGES):
            self._next_range = (self._next_range + 1) % _RANGES
            if self._next_range not in taken:
                self._ranges[instance] = self._next_range
                return self._next_range
        raise ContainerError("UNAVAILABLE", f"users: {_RANGES} containers are there already")

    @property
    def _podman(self) -> Libpod:
        if self._libpod is None:
            raise ContainerError("UNAVAILABLE", f"{self.problem}")
        return self._libpod


async def _begun(pid: int) -> None:
    """Until the first process runs a program of the container's: the runtime's own sets up what is
    left to do, then becomes it. Raises OSError when it has ended."""
    for _ in range(_BEGIN_TRIES):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words[0] == creation.NO_PROGRAM[0].encode():
            return
        await asyncio.sleep(_BEGIN_AGAIN_S)
    raise ContainerError("UNAVAILABLE", "the runtime does not let it begin")
