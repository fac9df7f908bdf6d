"""The pool: slots, the fork servers behind them, and one method that runs a call to its end.

Owns every process of the sandbox. It promises that `run` always comes back with a Reply (or the
caller's own cancellation), that nothing runs if a required layer is missing, that a slot is free
again only once the last process of its execution is dead, and that nothing is left after `close`.
It knows nothing of flows, and reads nothing that a handler wrote except the frames.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from sandbox import seccomp, wire
from sandbox.confine import PACKAGE
from sandbox.forkserver import PYTHON_DEFAULT, Child, ForkServer, ServerFailed
from sandbox.model import (
    ALL_LAYERS,
    Call,
    Ending,
    Layer,
    OnLog,
    Policy,
    PoolSettings,
    Reply,
    Usage,
)
from sandbox.session import Session

__all__ = ["Pool"]

_TRIES = 3  # beside the spares, each of which may have died while it waited; nothing has run then
_NOT_BUILT = {
    "cgroup": "not built yet: memory is bounded by rlimits and the watchdog",
    "landlock": "not built yet: the private root bounds what can be opened",
    "network": "not built yet: handlers have no network",
}
# These mean nothing without the first.
_NEEDS = {
    "private-root": "mount-namespace",
    "proc": "pid-namespace",
    "capabilities": "user-namespace",  # after setuid only a new one allows to empty the sets
    "seccomp": "no-new-privs",  # seccomp(2): or privileges that a child has not
}
_NAMESPACES = ("user", "pid", "mnt", "ipc", "uts", "net", "cgroup")


class Pool:
    """Runs calls in fresh confined processes, `settings.slots` at a time."""

    def __init__(self, settings: PoolSettings | None = None) -> None:
        self.settings = settings or PoolSettings()
        self._servers: list[ForkServer] = []
        self._free = asyncio.Semaphore(self.settings.slots)
        self._layers: dict[str, Layer] = {}
        self._children: set[Child] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._failed: ServerFailed | None = None
        self._started = False

    @property
    def slots(self) -> int:
        """How many executions run at a time."""
        return self.settings.slots

    @property
    def server_pids(self) -> list[int]:
        """Process ids of the fork servers that run."""
        return [server.pid for server in self._servers if server.pid is not None]

    async def start(self) -> None:
        """Start the fork servers and try every layer.

        A host that lacks a layer is no error here: `layers` says so and `run` refuses. Raises
        OSError if the interpreter cannot be executed at all.
        """
        wanted = frozenset(ALL_LAYERS) - self.settings.without - set(_NOT_BUILT)
        problems = {
            **_NOT_BUILT,
            **dict.fromkeys(self.settings.without, "left out by the settings"),
        }
        for layer, needed in _NEEDS.items():
            if needed not in wanted and layer in wanted:
                problems[layer] = f"it needs the layer {needed}"
                wanted -= {layer}
        program = b""
        if "seccomp" in wanted:
            try:
                program = await asyncio.to_thread(seccomp.compile_filter)
            except OSError as exc:
                problems["seccomp"] = str(exc.strerror)
                wanted -= {"seccomp"}
        start = {
            "layers": sorted(wanted),
            "required": sorted(wanted & self.settings.required_layers),
            "host_uid": self.settings.host_uid if os.getuid() == 0 else 0,
            "seccomp": program.hex(),
        }
        cpus = sorted(os.sched_getaffinity(0))
        python = self.settings.python or PYTHON_DEFAULT
        count = min(self.settings.slots, len(cpus))
        for number in range(count):
            turn = cpus[number:] + cpus[:number]
            self._servers.append(ForkServer(python, start, self.settings, turn))
        for server in self._servers:
            server.launch()
        self._layers = await self._try_layers(wanted, problems)
        self._started = True

    async def run(self, call: Call, on_log: OnLog | None = None) -> Reply:
        """Run one call to its end, waiting for a slot first.

        Never raises for what a handler did. A cancelled caller is cancelled at once, and
        everything of the execution is killed.
        """
        refusal = self._refusal(call.policy)
        if refusal is not None:
            return refusal
        return await self._run(call, on_log)

    async def close(self) -> None:
        """Kill everything and wait until it is gone."""
        self._started = False
        for child in self._children:
            child.kill()
        for server in self._servers:
            server.close()
        self._servers.clear()
        await self._empty.wait()  # every running call has its reply

    def layers(self) -> list[Layer]:
        """Every layer with what this host gives, as tried at start."""
        return [self._layers[name] for name in ALL_LAYERS if name in self._layers]

    # --- inside ------------------------------------------------------------------------------

    def _refusal(self, policy: Policy) -> Reply | None:
        if not self._started:
            return _unavailable("the pool is not started")
        if self._failed is not None:
            return _failure(self._failed)
        needed = policy.required | ({"network"} if policy.network is not None else set())
        for name, layer in self._layers.items():
            if not layer.available and (layer.required or name in needed):
                return _unavailable(f"layer {name} cannot be had: {layer.detail}")
        if policy.filesystem == "temp" and not self._layers["private-root"].available:
            return _unavailable("layer private-root cannot be had: it carries the temp")
        return None

    async def _run(self, call: Call, on_log: OnLog | None) -> Reply:
        try:
            request = self._request(call)
        except (TypeError, ValueError) as exc:
            return Reply(Ending.PROTOCOL, None, f"cannot send the input: {exc}")
        await self._free.acquire()
        try:
            child = await self._child_with_package(call)
        except ServerFailed as exc:
            self._free.release()
            return _failure(exc)
        except BaseException:
            self._free.release()
            raise
        try:
            return await Session(child, call, request, on_log).run()
        finally:
            self._let_go(child)

    async def _child_with_package(self, call: Call) -> Child:
        """A child that has its package and its limits; raises ServerFailed."""
        failure = ServerFailed("", "the pool is closed")
        for _ in range(self.settings.spares + _TRIES):
            if not self._servers:
                raise failure
            server = min(self._servers, key=lambda server: server.running)
            child = await server.child()
            self._children.add(child)
            self._empty.clear()
            try:
                temp = call.policy.filesystem == "temp"
                await server.take(child, call.package_dir, call.limits, temp)
                server.refill_soon()
            except ServerFailed as exc:
                self._discard(child)
                if not exc.child_died:
                    raise
                failure = exc
            except BaseException:
                self._discard(child)
                raise
            else:
                return child
        raise failure

    def _discard(self, child: Child) -> None:
        self._children.discard(child)
        child.close()
        if not self._children:
            self._empty.set()

    def _let_go(self, child: Child) -> None:
        """The slot is free once the death is certain: the kill reaches every descendant."""
        self._discard(child)
        if child.ended.done():
            self._free.release()
        else:
            child.ended.add_done_callback(lambda _ended: self._free.release())

    def _request(self, call: Call) -> bytes:
        inside = self._layers["private-root"].available
        return wire.encode(
            {
                "root": PACKAGE if inside else call.package_dir,
                "entrypoint": call.entrypoint,
                "input": call.input,
                "has_input": call.has_input,
                "config": call.config,
                "secrets": dict(call.secrets),
                "execution_id": call.execution_id,
                "flow_id": call.flow_id,
                "step_id": call.step_id,
                "attempt": call.attempt,
                "tenant_id": call.tenant_id,
                "task_id": call.task_id,
                "output_bytes": call.limits.output_bytes,
                "log_bytes": call.limits.log_bytes,
            }
        )

    async def _try_layers(
        self, wanted: frozenset[str], problems: dict[str, str]
    ) -> dict[str, Layer]:
        """Run the trial handler on a real child and compare with what can be seen from here."""
        namespaces = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in _NAMESPACES}
        folder = str(Path(__file__).resolve().parent / "trial")
        trial = Call(folder, "attempts.py:attempt", input={"namespaces": namespaces})
        found: dict[str, Any] = {}
        reason = ""
        try:
            child = await self._child_with_package(trial)
        except ServerFailed as exc:
            self._failed = exc
            problems.setdefault(exc.layer, exc.reason)
            reason = f"not tried: {exc}"
        else:
            for server in self._servers:
                problems.update(server.missing)
            self._layers = _as_set_up(wanted, problems, self.settings.required_layers)
            try:
                found = _seen_from_outside(child.host_pid)
                reply = await Session(child, trial, self._request(trial), None).run()
            finally:
                self._discard(child)
            await child.ended  # nothing of the trial is left
            if reply.result is not None and reply.result["outcome"] == "success":
                found.update(reply.result["output"])
            else:
                reason = f"the trial failed: {reply.message or reply.result}"
        for name, (held, detail) in found.items():
            if not held:
                problems.setdefault(name, detail)
        if reason:
            problems = {**dict.fromkeys(ALL_LAYERS, reason), **problems}
        details = {name: detail for name, (_held, detail) in found.items()}
        return _as_set_up(wanted, problems, self.settings.required_layers, details)


def _as_set_up(
    wanted: frozenset[str],
    problems: dict[str, str],
    required: frozenset[str],
    details: dict[str, str] | None = None,
) -> dict[str, Layer]:
    layers = {}
    for name in ALL_LAYERS:
        held = name in wanted and name not in problems
        detail = problems.get(name) or (details or {}).get(name, "set up")
        layers[name] = Layer(name, held, name in required, detail)
    return layers


def _seen_from_outside(host_pid: int) -> dict[str, tuple[bool, str]]:
    """What /proc/PID/status (proc(5)) says of a child that is ready."""
    try:
        text = Path(f"/proc/{host_pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return {}
    status = {
        name: value.split() for name, _, value in (x.partition(":") for x in text.split("\n"))
    }
    uids = status["Uid"]
    sets = {name: status[name][0] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
    return {
        "unprivileged-uid": ("0" not in uids, f"user {uids[1]} on the host"),
        "capabilities": (not any(int(x, 16) for x in sets.values()), f"bounding {sets['CapBnd']}"),
        "no-new-privs": (status.get("NoNewPrivs") == ["1"], "set"),
    }


def _failure(failure: ServerFailed) -> Reply:
    prefix = f"layer {failure.layer} cannot be had: " if failure.layer else ""
    return _unavailable(prefix + failure.reason)


def _unavailable(message: str) -> Reply:
    return Reply(Ending.UNAVAILABLE, None, message, (), Usage())
