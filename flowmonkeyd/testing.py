"""FlowHarness: the real engine on a real SQLite file, in process, with a clock that only moves
when told (contract section 7).

For people who test their flows and handlers, and for our own tests. Handlers are Python callables
`(input, ctx)`, plain or async, run in this process and only here; everything else is the daemon's
own: store, engine, built-in steps. Nothing sleeps: `run` and `settle` do what can be done and
return.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.clock import RandomIds
from flowmonkeyd.documents import selectors
from flowmonkeyd.documents.flow import flow_digest, parse_flow, parse_text
from flowmonkeyd.engine import Engine, Sent
from flowmonkeyd.errors import Conflict
from flowmonkeyd.model import (
    DEFAULT_TENANT,
    NO_VALUE,
    CancelSource,
    Execution,
    ExecutionStatus,
    Flow,
    HistoryEntry,
    Lane,
    Limits,
    NewExecution,
    Priority,
    Task,
    TaskResult,
    Timeouts,
    WaitKind,
)
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.replies import result_of
from flowmonkeyd.store import Store, executions, history, ledger, waits
from flowmonkeyd.store.executions import Record
from sandbox import Ending, Reply
from sandbox.ctx import Context

__all__ = ["FlowHarness", "ManualClock", "Run"]

Handler = Callable[[Any, Any], Any]

# Rows a reading method returns at most; a test that needs more reads in pages by itself.
ROWS_MAX = 100_000


class ManualClock:
    """A clock that moves only when told."""

    def __init__(self, start_ms: int) -> None:
        self._now_ms = start_ms

    def now_ms(self) -> int:
        return self._now_ms

    def advance(self, ms: int) -> None:
        self._now_ms += ms


@dataclass(frozen=True, slots=True)
class Run:
    """An execution as it stands: its record's fields, its whole context, and `created`."""

    execution: Execution
    context: Mapping[str, Any]
    created: bool = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.execution, name)


class FlowHarness:
    """`handlers` maps a handler type to a callable `(input, ctx)`, plain or async."""

    def __init__(
        self,
        handlers: Mapping[str, Handler] | None = None,
        *,
        max_steps: int = 1000,
        start_ms: int = 1_700_000_000_000,
        limits: Limits | None = None,
        path: Path | None = None,
        quotas: Quotas = Quotas(),
    ) -> None:
        self.quotas = quotas  # read at every start
        self.clock = ManualClock(start_ms)
        self._handlers = dict(handlers or {})
        self._limits = limits or Limits(steps_max=max_steps)
        self._given_path = path
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._digests: dict[tuple[str, str], str] = {}
        self._unapplied: list[Mapping[str, Any]] = []

    # --- the engine's life -----------------------------------------------------------------------

    async def __aenter__(self) -> FlowHarness:
        path = self._given_path
        if path is None:
            self._directory = tempfile.TemporaryDirectory(prefix="flowmonkey-test-")
            path = Path(self._directory.name) / "flowmonkey.db"
        self._path = path
        await self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()
        if self._directory is not None:
            self._directory.cleanup()

    async def _start(self) -> None:
        self.store = Store(self._path, self.clock)
        await self.store.open()
        self._group = asyncio.TaskGroup()
        await self._group.__aenter__()
        self._group.create_task(self.store.run())
        local = frozenset(self._handlers)
        self.engine = Engine(self.store, RandomIds(), self._limits, local, self.quotas)
        await self.engine.recover()

    async def _stop(self) -> None:
        await self.store.close()
        await self._group.__aexit__(None, None, None)

    async def restart(self) -> None:
        """As after kill -9: a new engine on the same file; what was not committed is gone."""
        await self._stop()
        await self._start()

    # --- what a test does ----------------------------------------------------------------------

    def apply(self, flow: Mapping[str, Any] | str) -> Flow:
        """Apply a flow document (a mapping, or JSON or YAML text).

        Raises Invalid with every problem, Conflict when this version has other content.
        """
        document = parse_text(flow) if isinstance(flow, str) else flow
        parsed, _ = parse_flow(document)
        name, digest = (parsed.id, parsed.version), flow_digest(document)
        if self._digests.setdefault(name, digest) != digest:
            raise Conflict(f"cannot change flow {parsed.id}@{parsed.version}")
        self._unapplied.append(document)
        return parsed

    async def create(
        self,
        flow_ref: str,
        context: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,
        tenant_id: str = DEFAULT_TENANT,
        priority: Priority = Priority.NORMAL,
        idempotency_key: str | None = None,
        idempotency_window_ms: int = 24 * 3600 * 1000,
        parent: str | None = None,
        timeouts: Timeouts = Timeouts(),
        metadata: Mapping[str, Any] | None = None,
    ) -> Run:
        """Make an execution; `.created` is False when the idempotency key named an earlier one."""
        while self._unapplied:
            await self.engine.apply_flow(self._unapplied[0])
            self._unapplied.pop(0)
        submitted = await self.engine.submit(
            NewExecution(
                flow_ref=flow_ref,
                context=context or {},
                id=id,
                tenant_id=tenant_id,
                priority=priority,
                idempotency_key=idempotency_key,
                idempotency_window_ms=idempotency_window_ms,
                parent_id=parent,
                timeouts=timeouts,
                metadata=metadata or {},
            )
        )
        return _run(submitted.record, submitted.created)

    async def tick(self, execution_id: str) -> Run:
        """Take at most one step of this execution."""
        await self._fire_due()
        await self._step(execution_id)
        return await self.get(execution_id)

    async def run(self, execution_id: str, *, skip_waits: bool = False) -> Run:
        """Run until it has ended or waits; children it waits for run too. Never sleeps.

        With `skip_waits` timed waits (and the backoff of retries) are due at once.
        """
        await self._fire_due()
        while True:
            if await self._step(execution_id):
                continue
            run = await self.get(execution_id)
            if run.status is not ExecutionStatus.WAITING:
                return run
            wait = await self._wait_of(execution_id)
            if wait is not None and wait.wait.kind is WaitKind.CHILD:
                if not await self._run_children(execution_id, skip_waits):
                    return await self.get(execution_id)
            elif skip_waits and run.wake_at_ms is not None:
                await self.engine.resume(execution_id)
            elif run.wake_at_ms is not None and run.wake_at_ms <= self.clock.now_ms():
                await self._fire_due()
            else:
                return run

    async def settle(self) -> None:
        """Everything that can move, in the whole engine, until nothing can."""
        seen, last = -1, 0
        while seen != last:  # whatever moves leaves an event
            seen = last
            await self._fire_due()
            while await self.engine.run_builtins():
                pass
            for task in await self.engine.claim(Lane.SANDBOX, 64, "harness"):
                await self._run_task(task)
            last = await self.store.read(ledger.last_seq)

    def advance(self, ms: int) -> None:
        """Move the clock; what is then due is taken by the next tick, run or settle."""
        self.clock.advance(ms)

    async def resume(self, execution_id: str, data: Any = NO_VALUE) -> Run:
        """End the execution's wait by hand."""
        return _run(await self.engine.resume(execution_id, data=data))

    async def resume_token(self, token: str, data: Any = NO_VALUE) -> Run:
        """End the wait that a resume token belongs to."""
        return _run(await self.engine.resume(None, token, data))

    async def send_event(
        self, name: str, data: Any = None, tenant_id: str = DEFAULT_TENANT
    ) -> Sent:
        """Wake whatever waits for this event."""
        return await self.engine.send_event(name, data, tenant_id)

    async def cancel(
        self,
        execution_id: str,
        *,
        reason: str | None = None,
        source: CancelSource = CancelSource.USER,
    ) -> Run:
        """Cancel the execution and its children."""
        return _run(await self.engine.cancel(execution_id, source, reason))

    async def retry(self, execution_id: str, from_step: str | None = None) -> Run:
        """Run a failed or cancelled execution on."""
        return _run(await self.engine.retry(execution_id, from_step))

    async def get(self, execution_id: str) -> Run:
        """The execution as it stands."""
        return _run(await self.engine.get(execution_id))

    async def history(self, execution_id: str) -> list[HistoryEntry]:
        """Every finished attempt, in order."""
        key = await self._key(execution_id)
        return await self.store.read(lambda conn: history.read(conn, key, 0, ROWS_MAX))

    async def events(self, execution_id: str) -> list[dict[str, Any]]:
        """Every event of the execution, in commit order."""
        key = await self._key(execution_id)
        return await self.store.read(lambda c: ledger.read_of_execution(c, key, 0, ROWS_MAX))

    async def children(self, execution_id: str) -> list[Run]:
        """The executions it started, oldest first."""
        key = await self._key(execution_id)
        page = executions.Page(limit=ROWS_MAX, parent_key=key)
        found = await self.store.read(lambda conn: executions.list_page(conn, page))
        return [await self.get(record.execution.id) for record in reversed(found)]

    # --- how -------------------------------------------------------------------------------------

    async def _fire_due(self) -> None:
        due = await self.engine.fire_due()
        while due is not None and due <= self.clock.now_ms():
            due = await self.engine.fire_due()

    async def _step(self, execution_id: str) -> bool:
        """One queued task of this execution, if there is one."""
        if await self.engine.run_builtin(execution_id):
            return True
        tasks = await self.engine.claim(Lane.SANDBOX, 1, "harness", execution_id=execution_id)
        for task in tasks:
            await self._run_task(task)
        return bool(tasks)

    async def _run_children(self, execution_id: str, skip_waits: bool) -> bool:
        """Run the live children; whether the parent moved."""
        before = (await self.get(execution_id)).execution
        for child in await self.children(execution_id):
            if not child.status.is_final:
                await self.run(child.id, skip_waits=skip_waits)
        return (await self.get(execution_id)).execution != before

    async def _run_task(self, task: Task) -> None:
        result = await self._call(task)
        result = replace(result, worker_id="harness")
        await self.engine.finish(task.key, task.lease_id, result)

    async def _call(self, task: Task) -> TaskResult:
        context = copy.deepcopy(task.context)  # the engine's own, and what runs may change it
        if not task.context_complete:
            context = (await self.get(task.execution_id)).context
        given = selectors.resolve(task.step.input, context)
        reply = await _in_process(self._handlers[task.handler_type], task, given, context)
        return result_of(reply, self.clock.now_ms())

    async def _wait_of(self, execution_id: str) -> waits.WaitRow | None:
        key = await self._key(execution_id)
        return await self.store.write(lambda tx: waits.get(tx, key))

    async def _key(self, execution_id: str) -> int:
        return (await self.engine.get(execution_id)).key


async def _in_process(
    handler: Handler, task: Task, given: Any, context: Mapping[str, Any]
) -> Reply:
    """Call a handler as the sandbox's runner would, and pass its answer through JSON as a frame."""
    request = {
        "has_input": given is not NO_VALUE,
        "execution_id": task.execution_id,
        "flow_id": task.flow_id,
        "step_id": task.step.id,
        "attempt": task.attempt,
        "tenant_id": task.tenant_id,
        "task_id": task.id,
        "config": copy.deepcopy(dict(task.step.config)),
        "secrets": {},
    }
    ctx = Context(request, lambda *_: None, lambda: copy.deepcopy(dict(context)))
    try:
        returned = handler(None if given is NO_VALUE else given, ctx)
        if inspect.isawaitable(returned):
            returned = await returned
        answer = ctx.finished(returned)
    except Exception as exc:
        message = f"{type(exc).__name__}: {exc}"
        trace = "".join(traceback.format_exception(exc))[-16_384:]
        answer = ctx.failure("HANDLER_ERROR", message, details={"traceback": trace}).value
        answer = ctx.collected(answer)
    try:
        return Reply(Ending.RESULT, jsontext.loads(jsontext.dumps(answer)))
    except ValueError as exc:
        return Reply(Ending.PROTOCOL, message=f"the handler's result is not JSON: {exc}")


def _run(record: Record, created: bool = True) -> Run:
    return Run(record.execution, record.context.values, created)
