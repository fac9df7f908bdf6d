"""Runs stateless handlers in the sandbox: Task to Call, Reply to TaskResult.

What comes back is bytes from a stranger that the sandbox has parsed; here it becomes a result only
when every part has the right shape, else the attempt ends with `INVALID_RESULT`. Limits come from
the handler's manifest and the step, the lower of the two.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.clock import Clock
from flowmonkeyd.dispatcher import Finished, Log, OnLogs
from flowmonkeyd.documents import selectors
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.engine import Engine
from flowmonkeyd.model import (
    NO_VALUE,
    Outcome,
    StepError,
    Task,
    TaskResult,
    Wait,
    WaitKind,
)
from flowmonkeyd.packages import Packages
from sandbox import Call, Ending, Limits, LogLine, Policy, Pool, Reply

__all__ = ["Stateless", "result_of"]

# Log lines of a running handler are handed over this often, so that `logs -f` follows it.
LOGS_EVERY_S = 0.25
MANIFESTS_MAX = 512
MIB = 1024 * 1024

_ERRORS = {
    Ending.TIMEOUT: "TIMEOUT",
    Ending.MEMORY: "MEMORY_LIMIT",
    Ending.CPU: "CPU_LIMIT",
    Ending.OUTPUT: "OUTPUT_TOO_LARGE",
    Ending.CRASH: "HANDLER_CRASHED",
    Ending.PROTOCOL: "INVALID_RESULT",
    Ending.UNAVAILABLE: "SANDBOX_UNAVAILABLE",
}


class Stateless:
    """The executor of the sandbox lane."""

    def __init__(
        self, pool: Pool, packages: Packages, engine: Engine, clock: Clock, output_bytes: int
    ) -> None:
        self._pool = pool
        self._packages = packages
        self._engine = engine
        self._clock = clock
        self._output_bytes = output_bytes
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
            reply = await self._pool.run(call, lines.append)
            follower.cancel()
        result = result_of(reply, self._clock.now_ms())
        return Finished(result, [_line(line) for line in lines])

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
            limits=Limits(
                wall_ms=wall_ms,
                memory_bytes=manifest.memory_mib * MIB,
                output_bytes=self._output_bytes,
            ),
            policy=Policy(filesystem=manifest.filesystem, network=manifest.network),
        )


def result_of(reply: Reply, now_ms: int) -> TaskResult:
    """The result a reply amounts to. Pure."""
    usage = {
        "peakMemoryBytes": reply.usage.peak_memory_bytes,
        "cpuMs": reply.usage.cpu_ms,
    }
    if reply.ending is not Ending.RESULT or reply.result is None:
        retryable = reply.ending is not Ending.UNAVAILABLE
        error = StepError(_ERRORS.get(reply.ending, "INVALID_RESULT"), reply.message, retryable)
        result = TaskResult(Outcome.ERROR, error=error)
    else:
        try:
            result = _result(reply.result, now_ms)
        except (KeyError, TypeError, ValueError) as exc:
            error = StepError("INVALID_RESULT", f"the handler's answer is not a result: {exc}")
            result = TaskResult(Outcome.ERROR, error=error)
    return replace(result, duration_ms=reply.usage.wall_ms, usage=usage, worker_id="sandbox")


def _result(answer: Mapping[str, Any], now_ms: int) -> TaskResult:
    jsontext.size_bytes(answer)  # ValueError for text that is no Unicode, such as a lone surrogate
    emitted = tuple((str(name), data) for name, data in answer.get("emitted", ()))
    outcome = answer["outcome"]
    if outcome == "success":
        return TaskResult(
            Outcome.SUCCESS,
            output=answer.get("output", NO_VALUE),
            next_step=_next(answer),
            updates=_object(answer.get("updates", {}), "updates"),
            emitted=emitted,
        )
    if outcome == "failure":
        error = _object(answer["error"], "error")
        return TaskResult(
            Outcome.FAILURE,
            error=StepError(
                _text(error["code"], 200),
                _text(error["message"], 16_384),
                error.get("retryable", True) is not False,
                error.get("details"),
            ),
            next_step=_next(answer),
            emitted=emitted,
        )
    if outcome == "wait":
        wait = _wait(_object(answer["wait"], "wait"), now_ms)
        return TaskResult(Outcome.WAIT, wait=wait, emitted=emitted)
    raise ValueError(f"unknown outcome {outcome!r:.100}")


def _wait(wait: Mapping[str, Any], now_ms: int) -> Wait:
    wake_at_ms = None
    if wait.get("durationMs") is not None:
        duration_ms = wait["durationMs"]
        if isinstance(duration_ms, bool) or not isinstance(duration_ms, int | float):
            raise TypeError("durationMs is not a number")
        if not 0 <= duration_ms < 2**47:
            raise ValueError("durationMs is out of range")
        wake_at_ms = now_ms + int(duration_ms)
    elif wait.get("until") is not None:
        wake_at_ms = _moment(wait["until"])
    reason = None if wait.get("reason") is None else _text(wait["reason"], 1000)
    if wait.get("event") is not None:
        event = _text(wait["event"], 200)
        filters = wait.get("filter")
        if filters is not None:
            filters = _object(filters, "filter")
        return Wait(WaitKind.EVENT, wake_at_ms, reason, event, filters)
    kind = WaitKind.SIGNAL if wake_at_ms is None else WaitKind.TIME
    return Wait(kind, wake_at_ms, reason)


def _moment(until: Any) -> int:
    if isinstance(until, str):
        moment = datetime.fromisoformat(until)
        if moment.tzinfo is None:
            raise ValueError("`until` has no time zone")
        return int(moment.timestamp() * 1000)
    if isinstance(until, bool) or not isinstance(until, int | float):
        raise TypeError("`until` is neither a time nor milliseconds")
    return int(until)


def _next(answer: Mapping[str, Any]) -> Any:
    following = answer.get("next", NO_VALUE)
    if following is None or following is NO_VALUE or isinstance(following, str):
        return following
    raise TypeError("`next` is not a step id")


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is not an object")
    return value


def _text(value: Any, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is missing")
    return value[:longest]


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
