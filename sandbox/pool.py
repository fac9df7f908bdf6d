"""The pool: slots, and one method that runs a call to its end.

Owns every process of the sandbox. It promises that `run` always comes back with a Reply (or the
caller's own cancellation), that nothing runs if a required layer is missing, that a slot is free
again only once the last process of its execution is dead (or kept, by the operator's wish), and
that nothing is left after `close`. It knows nothing of flows, and reads nothing that a handler
wrote except the frames.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
from collections.abc import Hashable
from typing import Any, Self

from sandbox import layers, nodejs, seccomp, wire
from sandbox.cgroup import Groups
from sandbox.child import Child
from sandbox.confine import PACKAGE
from sandbox.forkserver import ServerFailed
from sandbox.model import (
    ALL_LAYERS,
    MIB,
    Call,
    Ending,
    JsonText,
    Layer,
    OnLog,
    Policy,
    PoolSettings,
    Reply,
    Usage,
)
from sandbox.refused import Watch
from sandbox.session import Session
from sandbox.slot import Slot, fitting_of, key_of, profile_of

__all__ = ["Pool"]

_TRIES = 3  # beside the spares, each of which may have died while it waited; nothing has run then
_TRIM_EVERY_S = 5.0
# More slots help executions that wait for something; those that compute only get in each other's
# way. So another slot is started for who waits if executions spent this long without the CPU
# lately, or if none has ended for a while.
_GROW_AFTER_S, _NONE_ENDED_S = 0.02, 0.1
_WAITED_MS, _SMOOTHING = 10.0, 0.2


class Pool:
    """Runs calls in confined processes, `settings.slots` at a time."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self.settings = settings or PoolSettings()
        self._loop: asyncio.AbstractEventLoop  # from `start` on
        self._slots: list[Slot] = []
        self._free: list[Slot] = []
        self._dormant: list[Slot] = []  # free too, and without a fork server
        self._growth: asyncio.TimerHandle | None = None
        self._waited_ms, self._ended_at = 0.0, 0.0
        self._waiting: collections.deque[asyncio.Future[Slot]] = collections.deque()
        self._layers: dict[str, Layer] = {}
        self._missing: list[Layer] = []
        self._children: set[Child] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._idle = asyncio.Event()
        self._failed: ServerFailed | None = None
        self._groups: Groups | None = None
        self._trim: asyncio.TimerHandle | None = None
        self._node = self._node_problem = ""
        self._floor = 0
        self._filters: dict[str, bytes] = {}
        self._started = False
        self._counts = collections.Counter[str]()

    @property
    def slots(self) -> int:
        """How many executions run at a time."""
        return self.settings.slots

    @property
    def server_pids(self) -> list[int]:
        """Process ids of the fork servers that run."""
        pids = [slot.server.pid for slot in self._slots if slot.server is not None]
        return [pid for pid in pids if pid is not None]

    @property
    def node(self) -> str:
        """The path of the Node that runs handlers; empty if there is none."""
        return self._node

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the fork servers and try every layer.

        A host that lacks a layer is no error here: `layers` says so and `run` refuses. Raises
        OSError if the interpreter cannot be executed at all.
        """
        self._loop = asyncio.get_running_loop()
        wanted, problems = layers.wanted(self.settings)
        try:
            self._node = await asyncio.to_thread(nodejs.find, self.settings.node)
        except OSError as exc:
            self._node_problem = str(exc)
        if "seccomp" in wanted:
            try:
                kinds = self.settings.kinds
                self._filters = await asyncio.to_thread(seccomp.compile_filters, kinds)
            except OSError as exc:
                problems["seccomp"] = str(exc.strerror)
                wanted -= {"seccomp"}
        if "cgroup" in wanted:
            try:
                self._groups = Groups.open("flowmonkey", self.settings.family)
            except OSError as exc:
                problems["cgroup"] = str(exc.strerror)
                wanted -= {"cgroup"}
        cpus = sorted(os.sched_getaffinity(0))
        start = {
            "layers": sorted(wanted),
            "required": sorted(wanted & self.settings.required_layers),
            "host_uid": self.settings.host_uid if os.getuid() == 0 else 0,
            "filters": {name: program.hex() for name, program in self._filters.items()},
            "report_refused": self.settings.report_refused,
            "cpus": cpus,
            "ports": list(self.settings.ports),
            "node": self._node,
            "node_bytes": nodejs.started_bytes(self._node),
            "warm": layers.TRIAL,
        }
        for number in range(self.settings.slots):
            group = self._groups.slot(number) if self._groups is not None else None
            pinned = {**start, "cpu": cpus[number % len(cpus)]}
            self._slots.append(Slot(number, pinned, self.settings, group))
        self._floor = min(len(cpus), len(self._slots))
        for slot in self._slots[: self._floor]:  # the others when they are needed
            slot.launch()
        if self.settings.try_layers:
            self._layers = await self._try_layers(wanted, problems)
        else:
            self._layers = layers.as_set_up(wanted, problems, self.settings.required_layers)
        self._missing = [layer for layer in self._layers.values() if not layer.available]
        held = sorted(layer.name for layer in self._layers.values() if layer.available)
        for slot in self._slots:
            slot.require(held)
        self._free = self._slots[: self._floor][::-1]
        self._dormant = self._slots[self._floor :][::-1]
        self._idle.set()
        self._trim = self._loop.call_later(_TRIM_EVERY_S, self._on_trim)
        self._started = True

    async def run(self, call: Call, on_log: OnLog | None = None) -> Reply:
        """Run one call to its end, waiting for a slot first.

        Never raises for what a handler did. A cancelled caller is cancelled at once, and
        everything of the execution is killed.
        """
        refusal = self._refusal(call)
        if refusal is not None:
            return refusal
        try:
            slot = await self._slot_for(call)
        except ServerFailed as exc:
            return _failure(exc)
        key = None if self.settings.report_refused else key_of(call)
        return await self._run(slot, call, key, on_log)

    async def close(self) -> None:
        """Kill everything and wait until it is gone."""
        self._started = False
        for timer in (self._trim, self._growth):
            if timer is not None:
                timer.cancel()
        for child in self._children:
            child.kill()
        for slot in self._slots:
            slot.close()
        await self._empty.wait()  # every running call has its reply
        for slots in (self._slots, self._free, self._dormant):
            slots.clear()
        for future in self._waiting:
            if not future.done():
                future.set_exception(ServerFailed("", "the pool is closed"))
        self._waiting.clear()
        if self._groups is not None:
            self._groups.close()
            self._groups = None

    async def idle(self) -> None:
        """Wait until every slot is free: nothing of any execution lives, but what is kept."""
        await self._idle.wait()

    def layers(self) -> list[Layer]:
        """Every layer with what this host gives, as tried at start."""
        return [self._layers[name] for name in ALL_LAYERS if name in self._layers]

    def statistics(self) -> dict[str, Any]:
        """What there is now, and what there was since the start: plain values for people."""
        spares = collections.Counter[str]()
        servers = [slot.server for slot in self._slots if slot.server is not None]
        for server in servers:
            for profile in server.profiles:
                spares[str(profile)] += server.spares(profile)
        return {
            "slots": self.slots,
            "busy": len(self._slots) - len(self._free) - len(self._dormant),
            "waiting": len(self._waiting),
            "servers": len(servers),
            "spares": dict(spares),
            "kept": sum(slot.kept for slot in self._slots),
            "started": self._counts["started"],
            "reused": self._counts["reused"],
            "crashed": self._counts["crashed"],
        }

    # --- inside ------------------------------------------------------------------------------

    def _refusal(self, call: Call) -> Reply | None:
        if not self._started:
            return _unavailable("the pool is not started")
        if self._failed is not None:
            return _failure(self._failed)
        policy: Policy = call.policy
        needed = policy.required | ({"network"} if policy.network is not None else set())
        for layer in self._missing:
            if layer.required or layer.name in needed:
                return _unavailable(f"layer {layer.name} cannot be had: {layer.detail}")
        if policy.filesystem == "temp" and not self._layers["private-root"].available:
            return _unavailable("layer private-root cannot be had: it carries the temp")
        kinds = self.settings.kinds
        if kinds is not None and profile_of(call).name not in kinds:
            return _unavailable(f"this pool has no processes for {profile_of(call).name}")
        if call.runtime == "node":
            if not self._node:
                return _unavailable(f"cannot run node: {self._node_problem}")
            if call.limits.memory_bytes < nodejs.NODE_MEMORY_MIN_BYTES:
                least = nodejs.NODE_MEMORY_MIN_BYTES // MIB
                return _unavailable(f"cannot run node in less than {least} MiB of memory")
        return None

    # --- slots -------------------------------------------------------------------------------

    async def _slot_for(self, call: Call) -> Slot:
        """A free slot, in the order of asking; one that keeps a process for this call if any."""
        if self._free and not self._waiting:
            return self._choose(call)
        if self._dormant and self._growth is None:
            self._growth = self._loop.call_later(_GROW_AFTER_S, self._grow)
        future: asyncio.Future[Slot] = self._loop.create_future()
        self._waiting.append(future)
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._release(future.result())  # it came in the same turn of the loop
            raise

    def _grow(self) -> None:
        """Somebody has waited for a slot: start another one, if that helps."""
        self._growth = None
        stuck = self._loop.time() - self._ended_at > _NONE_ENDED_S
        if self._waiting and self._dormant and (stuck or self._waited_ms > _WAITED_MS):
            self._release(self._dormant.pop())
        if self._waiting and self._dormant:
            self._growth = self._loop.call_later(_GROW_AFTER_S, self._grow)

    def _choose(self, call: Call) -> Slot:
        key, profile = key_of(call), profile_of(call)
        free = self._free
        self._idle.clear()

        def rank(slot: Slot) -> tuple[bool, bool, bool]:
            server = slot.server
            ready = server is not None and server.spares(profile) > 0
            return (key is not None and slot.has_kept(key), ready, server is not None)

        best = max(range(len(free)), key=lambda n: rank(free[n])) if len(free) > 1 else 0
        return free.pop(best)

    def _release(self, slot: Slot) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(slot)
                return
        slot.idle_since = self._loop.time()
        self._free.append(slot)
        if len(self._free) + len(self._dormant) == len(self._slots):
            self._idle.set()

    # --- one execution -----------------------------------------------------------------------

    async def _run(self, slot: Slot, call: Call, key: Hashable, on_log: OnLog | None) -> Reply:
        """Run a call in a slot, which is free again once this has come to its end."""
        child: Child | None = None
        failure = ServerFailed("", "no process lives long enough")
        try:
            await slot.prepare(call, key)
            for _ in range(self.settings.spares + _TRIES):
                child = await self._child(slot, call, key)
                try:
                    return await self._converse(slot, call, child, key, on_log)
                except ServerFailed as exc:
                    if not exc.child_died:
                        raise
                    failure = exc
                    self._discard(child)
            return _failure(failure)
        except ServerFailed as exc:
            return _failure(exc)
        finally:
            self._let_go(slot, child)

    async def _child(self, slot: Slot, call: Call, key: Hashable) -> Child:
        """A process for this call, kept from one like it or new; raises ServerFailed."""
        slot.limit(call)
        if key is not None and (kept := slot.take_kept(key)) is not None:
            self._counts["reused"] += 1
            self._children.add(kept)
            self._empty.clear()
            kept.uses += 1
            return kept
        server = slot.launch()
        child = await server.child(profile_of(call), fitting_of(call))
        self._children.add(child)
        self._empty.clear()
        child.uses = 1
        self._counts["started"] += 1
        return child

    async def _converse(
        self, slot: Slot, call: Call, child: Child, key: Hashable, on_log: OnLog | None
    ) -> Reply:
        """One execution on one child, which afterwards is killed, or kept by the slot."""
        try:
            request = self._request(call)  # while the package is being attached
        except (TypeError, ValueError) as exc:
            return Reply(Ending.PROTOCOL, None, f"cannot send the input: {exc}")
        visit = None
        if call.policy.network is not None:
            gateway = slot.gateway()
            if gateway is None:
                raise ServerFailed("network", "the gateway is not there")
            try:
                visit = gateway.open(call.policy.network)
            except ValueError as exc:
                raise ServerFailed("network", str(exc)) from exc
        kept = False
        traffic = None
        watch = self._watch(child)
        try:
            session = Session(child, call, request, on_log, slot, watch)
            reply = await session.run()
            if reply.ending is Ending.RESULT and session.is_clean:
                kept = slot.keep(call, key, child)
        finally:
            if not kept:
                child.kill()
            if watch is not None:
                watch.close()
            if visit is not None:
                traffic = visit.close()
        self._ended_at = self._loop.time()
        waited_ms = reply.usage.wall_ms - reply.usage.cpu_ms
        self._waited_ms += _SMOOTHING * (waited_ms - self._waited_ms)
        if reply.ending in (Ending.CRASH, Ending.MEMORY, Ending.PROTOCOL):
            self._counts["crashed"] += 1
        if watch is not None:
            reply = dataclasses.replace(reply, refused=watch.found())
        return reply if traffic is None else dataclasses.replace(reply, traffic=traffic)

    def _watch(self, child: Child) -> Watch | None:
        program = self._filters.get(child.profile.name)
        return Watch(program) if self.settings.report_refused and program else None

    def _discard(self, child: Child) -> None:
        child.close()
        self._forget(child)

    def _forget(self, child: Child) -> None:
        self._children.discard(child)
        if not self._children:
            self._empty.set()

    def _let_go(self, slot: Slot, child: Child | None) -> None:
        """The slot is free once the death is certain: the kill reaches every descendant."""
        if child is None:
            self._release(slot)
        elif slot.holds(child):
            self._forget(child)
            self._release(slot)
        else:
            child.close_after_death()
            self._forget(child)
            if child.ended.done():
                self._release(slot)
            else:
                child.ended.add_done_callback(lambda _ended: self._release(slot))

    def _request(self, call: Call) -> bytes:
        inside = self._layers["private-root"].available
        said: dict[str, Any] = {
            "root": PACKAGE if inside else call.package_dir,
            "entrypoint": call.entrypoint,
            "has_input": call.has_input,
            "secrets": dict(call.secrets),
            "execution_id": call.execution_id,
            "flow_id": call.flow_id,
            "step_id": call.step_id,
            "attempt": call.attempt,
            "tenant_id": call.tenant_id,
            "task_id": call.task_id,
            "output_bytes": call.limits.output_bytes,
            "log_bytes": call.limits.log_bytes,
            "reuse": call.reuse is not None,
        }
        texts = b"{"
        for name, value in (("input", call.input), ("config", call.config)):
            if isinstance(value, JsonText):
                texts += b'"%s":%s,' % (name.encode(), value)
            else:
                wire.check(value)
                said[name] = value
        return texts + wire.encode_plain(said)[1:]

    # --- housekeeping ------------------------------------------------------------------------

    def _on_trim(self) -> None:
        """Let go of what is idle, and replace fork servers that are old."""
        now = self._loop.time()
        for slot in list(self._free):
            slot.trim(now, self._floor <= slot.number)
            if slot.server is None:
                self._free.remove(slot)
                self._dormant.append(slot)
        self._trim = self._loop.call_later(_TRIM_EVERY_S, self._on_trim)

    # --- at start ----------------------------------------------------------------------------

    async def _try_layers(
        self, wanted: frozenset[str], problems: dict[str, str]
    ) -> dict[str, Layer]:
        """Run the trial handler on a real child and compare with what can be seen from here."""
        required = self.settings.required_layers
        trial = layers.trial()
        slot = self._slots[0]
        self._layers = layers.as_set_up(wanted, problems, required)
        child = watch = None
        try:
            child = await self._child(slot, trial, None)
            watch = self._watch(child)
            problems.update(slot.launch().missing)
            self._layers = layers.as_set_up(wanted, problems, required)
            # Asked of a child that is confined: it has answered the first time by then.
            reply = await Session(child, trial, self._request(trial), None, slot, watch).run()
            found = layers.seen_from_outside(child.host_pid)
        except ServerFailed as exc:
            self._failed = exc
            problems.setdefault(exc.layer, exc.reason)
            return layers.not_tried(wanted, problems, required, str(exc))
        finally:
            if child is not None:
                self._discard(child)
            if watch is not None:
                watch.close()
        await child.ended  # nothing of the trial is left
        return layers.judged(wanted, problems, required, found, reply)


def _failure(failure: ServerFailed) -> Reply:
    prefix = f"layer {failure.layer} cannot be had: " if failure.layer else ""
    return _unavailable(prefix + failure.reason)


def _unavailable(message: str) -> Reply:
    return Reply(Ending.UNAVAILABLE, None, message, (), Usage())
