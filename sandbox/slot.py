"""One place for an execution at a time: its fork server, CPU, control group and gateway.

Owns what is slow to make or needs privilege, so that executions need not make it. Also keeps the
processes that an operator lets serve again (`Reuse`); nothing of those runs between their
executions. It promises that a kept process only ever serves calls with one and the same key.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from sandbox import nodejs
from sandbox.child import Child, Fitting, Profile
from sandbox.forkserver import ForkServer, ServerFailed
from sandbox.model import MIB, Call, PoolSettings

if TYPE_CHECKING:
    from sandbox.cgroup import Group
    from sandbox.egress.gateway import Gateway

__all__ = ["Slot", "fitting_of", "key_of", "profile_of"]

KEPT_MAX = 8
# What the group holds besides the handler and what waits: the fork server, kernel memory for all.
_GROUP_SLACK_BYTES = 96 * MIB
_GROUP_SLACK_TASKS = 64
_GROUP_STEP_BYTES = MIB
_SPARE_BYTES = {False: 8 * MIB, True: 64 * MIB}
_STOP_AFTER_S = 0.05
# A fork server is replaced after so many executions or seconds: its children share the layout of
# its memory and its hash seed.
_SERVER_CALLS_MAX, _SERVER_AGE_MAX_S = 5_000, 3600.0


def profile_of(call: Call) -> Profile:
    """The kind of child that a call needs."""
    heap_mib = nodejs.heap_mib(call.limits.memory_bytes) if call.runtime == "node" else 0
    return _profile(call.runtime, call.policy.network is not None, heap_mib)


@functools.cache
def _profile(runtime: str, network: bool, heap_mib: int) -> Profile:
    return Profile(runtime + ("+network" if network else ""), heap_mib)


def fitting_of(call: Call) -> Fitting:
    """What a child is given for a call before the call itself.

    Nothing of a handler with network runs ahead: while another execution has the slot's gateway,
    it would reach what that one may.
    """
    limits = call.limits
    uses = 1 if call.reuse is None else call.reuse.uses
    cpu_ms = uses * limits.cpu_time_ms
    temp = limits.temp_bytes if call.policy.filesystem == "temp" else 0
    return Fitting(
        call.package_dir,
        limits.memory_bytes,
        -(-cpu_ms // 1000),
        limits.open_files,
        limits.threads,
        temp,
        limits.cores,
        call.entrypoint,
        call.preload and call.policy.network is None,
        call.reuse is not None,
    )


def key_of(call: Call) -> Hashable:
    """What must be the same for two calls to share a process; None for a call that shares none."""
    if call.reuse is None:
        return None
    where = (call.package_dir, call.entrypoint, call.runtime, call.tenant_id)
    return (*where, call.limits, call.policy, call.reuse)


class Slot:
    """A fork server with everything that one execution at a time may use of the host."""

    def __init__(
        self, number: int, start: dict[str, Any], settings: PoolSettings, group: Group | None
    ) -> None:
        self.number = number
        self.group = group
        self._settings = settings
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._listeners: list[int] = []
        self._gateway: Gateway | None = None
        self._kept: dict[Hashable, Child] = {}
        self._stopped: set[Child] = set()
        self.idle_since = self._loop.time()
        self.server: ForkServer | None = None
        self._closed = False
        self._oom_kills = 0

    @property
    def kept(self) -> int:
        """How many processes are kept for another execution."""
        return len(self._kept)

    def launch(self) -> ForkServer:
        """The slot's fork server, started if it was not; raises ServerFailed after `close`, and
        OSError if it cannot be executed."""
        if self._closed:
            raise ServerFailed("", "the pool is closed")
        if self.server is None:
            join: Callable[[int], None] = self.group.add if self.group else lambda _pid: None
            server = ForkServer(self._start, self._settings, join, self._take_listeners)
            server.launch()
            self.server = server
        return self.server

    def require(self, layers: list[str]) -> None:
        """From now on nothing runs here without these layers."""
        self._start = {**self._start, "required": layers}
        if self.server is not None:
            self.server.require(layers)

    def check(self) -> None:
        """See that the slot's fork server answers."""
        if self.server is not None:
            self.server.check()

    def gateway(self) -> Gateway | None:
        """The gateway of the slot's network; None if its server could not open one."""
        if self._gateway is None and self._listeners:
            from sandbox.egress.gateway import Gateway  # its libraries are for those who need them

            self._gateway = Gateway(self._listeners, self._settings.ports)
            self._listeners = []
        return self._gateway

    def limit(self, call: Call) -> None:
        """Bound the slot's control group for this call; raises ServerFailed."""
        if self.group is None:
            return
        temp = call.limits.temp_bytes if call.policy.filesystem == "temp" else 0
        kept = 0
        for child in self._kept.values():
            kept += child.last_peak_bytes
        ahead: set[Fitting] = set()
        if self.server is not None:
            for profile in self.server.profiles:
                kept += self.server.spares(profile) * _SPARE_BYTES[profile.is_node]
            ahead = self.server.imports
        if call.preload and (fitting := fitting_of(call)).preload:
            ahead.add(fitting)
        # A process grows by a page now and then: the group's files are not written for each.
        kept += -kept % _GROUP_STEP_BYTES
        # What is imported ahead may take as much as its own call.
        for fitting in ahead:
            kept += fitting.memory_bytes
        try:
            self.group.limit(
                memory_bytes=call.limits.memory_bytes + temp + _GROUP_SLACK_BYTES + kept,
                tasks=call.limits.threads + _GROUP_SLACK_TASKS,
                cpu_share=call.limits.cpu_share,
            )
        except OSError as exc:
            raise ServerFailed("cgroup", f"cannot bound the group: {exc.strerror}") from exc

    def was_oom_killed(self) -> bool:
        """Whether the kernel has killed a process of the group for memory since this was asked
        last."""
        if self.group is None:
            return False
        before = self._oom_kills
        try:
            self._oom_kills = self.group.oom_kills()
        except OSError:
            return False
        return self._oom_kills > before

    # --- kept processes ----------------------------------------------------------------------

    def has_kept(self, key: Hashable) -> bool:
        """Whether a process waits for a call with this key."""
        return key in self._kept

    async def prepare(self, call: Call, wanted: Hashable) -> None:
        """Nothing of another execution runs, or has the network, while this one does."""
        leaving = []
        for key, child in list(self._kept.items()):
            if key == wanted:
                continue
            if call.policy.network is not None and child.profile.name.endswith("+network"):
                self._drop(key)
                leaving.append(child.ended)
            else:
                self._stop(child)
        if leaving:
            await asyncio.wait(leaving)

    def take_kept(self, key: Hashable) -> Child | None:
        """A process that served this key before and may serve it again."""
        child = self._kept.pop(key, None)
        if child is None:
            return None
        child.alarm.off()
        if child in self._stopped:
            self._stopped.discard(child)
            child.go_on()
        late = self._loop.time() - child.idle_since > child.idle_s
        # Whatever has come since the last result, nobody asked for it.
        if late or child.ended.done() or not child.is_silent:
            child.close()
            return None
        return child

    def keep(self, call: Call, key: Hashable, child: Child) -> bool:
        """Keep a process for another call like this one, unless it has had its time."""
        reuse = call.reuse
        if reuse is None or child.uses >= reuse.uses or key in self._kept:
            return False
        now = self._loop.time()
        if now - child.made_at > reuse.age_ms / 1000:
            return False
        # Together they hold what one execution may: nobody else's executions are counted with.
        while self._kept and (
            len(self._kept) >= KEPT_MAX
            or sum(map(_own_bytes, (child, *self._kept.values()))) > call.limits.memory_bytes
        ):
            self._drop(next(iter(self._kept)))
        self._kept[key] = child
        child.alarm.set(_STOP_AFTER_S, lambda: self._stop(child))
        child.idle_s = reuse.idle_ms / 1000
        child.idle_since = now
        return True

    def holds(self, child: Child) -> bool:
        """Whether this process is kept here."""
        return child in self._kept.values()

    def trim(self, now: float, is_extra: bool) -> None:
        """Of a free slot: let go of what has been idle for long (kept processes, spares, the whole
        server of an extra slot), and replace a server that has become old."""
        for key, child in list(self._kept.items()):
            if now - child.idle_since > child.idle_s or child.ended.done():
                self._drop(key)
        if self.server is None:
            return
        self.server.trim(now)
        old = self.server.served > _SERVER_CALLS_MAX
        if old or now - self.server.launched_at > _SERVER_AGE_MAX_S:
            self._stop_server()
            self.launch()
        elif is_extra and now - self.idle_since > self._settings.idle_ms / 1000:
            self._stop_server()

    def close(self) -> None:
        """Kill everything of the slot; does not wait for its end."""
        self._closed = True
        self._stop_server()

    # --- inside ------------------------------------------------------------------------------

    def _stop_server(self) -> None:
        for key in list(self._kept):
            self._drop(key)
        if self.server is not None:
            self.server.close()
            self.server = None
        self._take_listeners([])

    def _stop(self, child: Child) -> None:
        child.alarm.off()
        if child not in self._stopped:
            self._stopped.add(child)
            child.stop()

    def _drop(self, key: Hashable) -> None:
        child = self._kept.pop(key)
        self._stopped.discard(child)
        child.close()

    def _take_listeners(self, fds: list[int]) -> None:
        """The sockets of a new server's gateway; those of the one before are dead."""
        if self._gateway is not None:
            self._gateway.close()
            self._gateway = None
        for fd in self._listeners:
            os.close(fd)
        self._listeners = fds


def _own_bytes(child: Child) -> int:
    return max(0, child.last_peak_bytes - child.bare_bytes)
