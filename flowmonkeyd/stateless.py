"""Runs stateless handlers in the sandbox: Task to Call, Reply to TaskResult.

Resolves the input, takes the lower limits of manifest and step,
hands log lines over while the handler runs. `replies` says what a reply amounts to.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flowmonkeyd.clock import Clock
from flowmonkeyd.dispatcher import Finished, Log, OnLogs
from flowmonkeyd.documents import selectors
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.engine import Engine
from flowmonkeyd.model import NO_VALUE, Outcome, StepError, Task, TaskResult
from flowmonkeyd.packages import Packages
from flowmonkeyd.replies import result_of
from sandbox import Call, Egress, Ending, Limits, LogLine, Policy, Pool, Reply

__all__ = ["Stateless"]

# Log lines of a running handler are handed over this often, so that `logs -f` follows it.
LOGS_EVERY_S = 0.25
MANIFESTS_MAX = 512
# A fork server that is lost three times while one task runs is lost because of that task.
TRIES_MAX = 3
MIB = 1024 * 1024


class Stateless:
    """The executor of the sandbox lane."""

    def __init__(
        self, pool: Pool, packages: Packages, engine: Engine, clock: Clock, limits: Limits
    ) -> None:
        self._pool = pool
        self._packages = packages
        self._engine = engine
        self._clock = clock
        self._limits = limits
        self._manifests: OrderedDict[str, Manifest] = OrderedDict()

    @property
    def slots(self) -> int:
        return self._pool.slots

    async def run(self, task: Task, on_logs: OnLogs) -> Finished:
        """Run a task in a fresh sandboxed process."""
        if task.manifest is None or task.package_digest is None:
            name = f"{task.handler_type}@{task.handler_version}"
            return _failed("HANDLER_NOT_FOUND", f"the package of {name} is gone", fatal=True)
        manifest = self._manifest(task.package_digest, task.manifest)
        secrets = [i.property for i in manifest.inputs if i.source == "vault" and i.required]
        if secrets:
            message = f"no secret {secrets[0]!r} for tenant {task.tenant_id!r}"
            return _failed("SECRET_NOT_FOUND", message)
        try:
            given = selectors.resolve(task.step.input, task.context)
        except Exception as exc:
            message = f"cannot resolve the input of step {task.step.id!r}: {exc}"
            return _failed("INPUT_ERROR", message, fatal=True)
        context: Mapping[str, Any] | bytes = task.context
        if not task.context_complete:
            context = await self._engine.context_text(task.key)
        call = self._call(task, manifest, given, context)
        lines: list[LogLine] = []
        async with asyncio.TaskGroup() as group:
            follower = group.create_task(_follow(lines, on_logs))
            reply = await self._run(call, lines)
            follower.cancel()
        result = result_of(reply, self._clock.now_ms())
        return Finished(result, [_line(line) for line in lines])

    async def _run(self, call: Call, lines: list[LogLine]) -> Reply:
        """Run the call; anew when its fork server was lost, which is no fault of the handler's."""
        for _ in range(TRIES_MAX - 1):
            reply = await self._pool.run(call, lines.append)
            if reply.ending is not Ending.UNAVAILABLE or self._missing_layers():
                return reply
        return await self._pool.run(call, lines.append)

    def _missing_layers(self) -> bool:
        layers = self._pool.layers()
        return not layers or any(layer.required and not layer.available for layer in layers)

    def _manifest(self, digest: str, text: str) -> Manifest:
        manifest = self._manifests.get(digest)
        if manifest is None:
            manifest = self._manifests[digest] = parse_manifest(text)
            if len(self._manifests) > MANIFESTS_MAX:
                self._manifests.popitem(last=False)
        return manifest

    def _call(
        self, task: Task, manifest: Manifest, given: Any, context: Mapping[str, Any] | bytes
    ) -> Call:
        wall_ms = manifest.timeout_ms
        if task.step.timeout_ms is not None:
            wall_ms = min(wall_ms, task.step.timeout_ms)
        assert task.package_digest is not None
        return Call(
            package_dir=str(self._packages.path(task.package_digest)),
            entrypoint=manifest.entrypoint,
            runtime=manifest.runtime,
            input=None if given is NO_VALUE else given,
            has_input=given is not NO_VALUE,
            config=dict(task.step.config),
            context=context,
            execution_id=task.execution_id,
            flow_id=task.flow_id,
            step_id=task.step.id,
            attempt=task.attempt,
            tenant_id=task.tenant_id,
            task_id=task.id,
            limits=replace(self._limits, wall_ms=wall_ms, memory_bytes=manifest.memory_mib * MIB),
            policy=Policy(
                manifest.filesystem,
                None
                if manifest.network is None
                else Egress(manifest.network.allow, manifest.network.deny),
            ),
        )


def _failed(code: str, message: str, fatal: bool = False) -> Finished:
    error = StepError(code, message, retryable=False)
    return Finished(TaskResult(Outcome.ERROR, error=error, fatal=fatal))


async def _follow(lines: list[LogLine], on_logs: OnLogs) -> None:
    while True:
        await asyncio.sleep(LOGS_EVERY_S)
        if lines:
            batch: Sequence[Log] = [_line(line) for line in lines]
            lines.clear()
            await on_logs(batch)


def _line(line: LogLine) -> Log:
    message = line.message.encode(errors="replace").decode()
    return (line.at_ms, line.stream, line.level, message, line.fields or None)
