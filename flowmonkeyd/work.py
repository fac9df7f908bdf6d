"""The verbs of workers: claim a task, hand its result in, give it back, run built-in steps.

Every write names the task and its lease, and a lease that is not the task's present one changes
nothing and gets LeaseLost: whatever is delivered twice, late or after a cancel, one result of a
task is applied. Built-in steps are tasks like any other, run by the engine itself inside a
transaction.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowmonkeyd import builtin, decide
from flowmonkeyd.decide import Event
from flowmonkeyd.documents import selectors
from flowmonkeyd.errors import LeaseLost, NotFound
from flowmonkeyd.jobsteps import visit_of
from flowmonkeyd.model import NO_VALUE, Lane, Outcome, Step, StepError, Task, TaskResult
from flowmonkeyd.steps import Steps
from flowmonkeyd.store import Store, Tx, catalog, executions, history, jobs, ledger, tasks
from flowmonkeyd.store.executions import Record

__all__ = ["LEASE_MS", "Work", "key_of", "leased"]

# How long one pass over built-in steps may hold the writer.
BUILTIN_PASS_MS = 10
# A lease outlives two of the longest stateless steps (60 s), for one may wait for another's slot,
# by enough to save the result.
LEASE_MS = 150_000
# A job's ends with its result, its pause, a cancel or the daemon's boot, and never by the clock.
ENDLESS_MS = 100 * 365 * 24 * 3600 * 1000


class Work:
    """What dispatcher and executors ask of the engine, which is a Work with more verbs."""

    def __init__(self, store: Store, steps: Steps) -> None:
        self.store = store
        self._steps = steps
        self._leases = 0
        # How many tasks of a lane could start at once, and who would run them. What becomes ready
        # in a commit is leased in it, so that a step costs one commit and not two.
        self.capacity: dict[Lane, int] = {}
        self.worker = ""

    async def claim(
        self,
        lane: Lane,
        limit: int,
        worker: str,
        handler_type: str | None = None,
        execution_id: str | None = None,
    ) -> list[Task]:
        """Lease up to `limit` tasks from the front of a lane's line, of one handler type or one
        execution when it is named."""

        def change(tx: Tx) -> list[Task]:
            only = None if execution_id is None else key_of(tx, execution_id)
            return self._claim(tx, lane, limit, worker, handler_type, only)

        return await self.store.write(change)

    def _claim(
        self,
        tx: Tx,
        lane: Lane,
        limit: int,
        worker: str,
        handler_type: str | None = None,
        execution: int | None = None,
    ) -> list[Task]:
        first = (tx.boot << 32) + self._leases + 1
        lease_ms = _lease_ms(lane)
        rows = tasks.claim(tx, lane, limit, first, lease_ms, worker, handler_type, execution)
        if not rows:
            return []
        self._leases += len(rows)
        records = executions.load_all(tx, [row.execution for row in rows])
        events: list[tuple[int | None, Event]] = []
        claimed = [self._begin(tx, row, records[row.execution], events) for row in rows]
        ledger.append_all(tx, events)
        return claimed

    def _begin(
        self,
        tx: Tx,
        row: tasks.TaskRow,
        record: Record,
        events: list[tuple[int | None, Event]],
    ) -> Task:
        flow = self._steps.names.flow(tx, record.flow_key, record.flow_digest)
        step = flow.steps[row.step_id]
        execution, begun = decide.begin(record.execution, step, tx.now_ms)
        if row.lane != Lane.CONTAINER or not _goes_on(tx, record, step):
            events += [(record.key, event) for event in begun]
        if execution.status is not record.execution.status:
            executions.save(tx, record, execution, None)
        needed = selectors.keys_needed(step.input)
        record = executions.with_keys(
            tx, record, record.context.spilled if needed is None else needed
        )
        package = catalog.package_of(tx, row.type, row.version)
        assert row.lease_id is not None
        assert row.claimed_at_ms is not None
        return Task(
            id=f"{execution.id}.{execution.step_count + 1}.{step.id}",
            key=row.execution,
            lease_id=row.lease_id,
            execution_id=execution.id,
            flow_id=execution.flow_id,
            flow_version=execution.flow_version,
            step=step,
            attempt=row.attempt,
            handler_type=row.type,
            handler_version=row.version,
            tenant_id=execution.tenant_id,
            context=record.context.values,
            queued_at_ms=row.queued_at_ms,
            claimed_at_ms=row.claimed_at_ms,
            package_digest=package.digest if package else None,
            manifest=package.manifest if package else None,
            context_complete=record.context.is_complete,
        )

    async def finish(
        self,
        key: int,
        lease_id: int,
        result: TaskResult,
        logs: Sequence[tuple[int, str, str | None, str, Mapping[str, Any] | None]] = (),
    ) -> None:
        """Apply the result of a leased task, exactly once. Raises LeaseLost for a stale lease."""

        def change(tx: Tx) -> None:
            row = leased(tx, key, lease_id)
            if logs:
                history.append_logs(tx, key, row.step_id, row.attempt, logs)
            record = executions.load(tx, key)
            flow = self._steps.names.flow(tx, record.flow_key, record.flow_digest)
            self._steps.finished(tx, record, flow, result, row)
            if self.capacity:
                tx.hints.ready.add(row.lane)  # who ran it can run another

        await self.store.write(change)

    async def release(self, key: int, lease_id: int, delay_ms: int = 0) -> None:
        """Give a task back, to its place in the line or after a delay. Raises LeaseLost."""

        def change(tx: Tx) -> None:
            leased(tx, key, lease_id)
            if delay_ms > 0:
                tasks.delay(tx, key, tx.now_ms + delay_ms)
            else:
                tasks.release(tx, key)

        await self.store.write(change)

    async def extend(self, key: int, lease_id: int) -> None:
        """The worker is alive: its lease starts anew. Raises LeaseLost."""

        def change(tx: Tx) -> None:
            row = leased(tx, key, lease_id)
            tasks.extend(tx, key, lease_id, _lease_ms(row.lane))

        await self.store.write(change)

    async def append_logs(
        self,
        key: int,
        lease_id: int,
        lines: Iterable[tuple[int, str, str | None, str, Mapping[str, Any] | None]],
    ) -> None:
        """Keep log lines of a running attempt. Raises LeaseLost."""

        def change(tx: Tx) -> None:
            row = leased(tx, key, lease_id)
            history.append_logs(tx, key, row.step_id, row.attempt, lines)

        await self.store.write(change)

    async def note_secrets(
        self, key: int, lease_id: int, names: tuple[str, ...], provider: str
    ) -> None:
        """An attempt is about to be given these secrets. Raises LeaseLost."""

        def change(tx: Tx) -> None:
            row = leased(tx, key, lease_id)
            handler = {"type": row.type, "version": row.version}
            data = {"names": names, "handler": handler, "attempt": row.attempt}
            ledger.append(tx, key, [("secret.read", row.step_id, data | {"provider": provider})])

        await self.store.write(change)

    async def context_text(self, key: int) -> bytes:
        """The JSON text of an execution's whole context, for a handler that may read it."""
        return await self.store.read(lambda conn: executions.context_text(conn, key))

    async def run_builtins(self) -> bool:
        """Run queued built-in steps for a while; whether there may be more."""
        return await self.store.write(self._run_builtins)

    def run_ready(self, tx: Tx) -> None:
        """As `Store.before_commit`: built-in steps that became ready in a transaction run in it,
        so that a flow of built-in steps costs one commit and not one for each, and other tasks
        are leased in it if there is room to run them. A bug that raises here is met again, and
        reported, by the dispatcher's own passes."""
        if Lane.BUILTIN.value in tx.hints.ready and not self._run_builtins(tx):
            tx.hints.ready.discard(Lane.BUILTIN.value)
        for lane, room in self.capacity.items():
            if lane.value in tx.hints.ready and room > 0:
                tx.hints.claimed[lane.value] = self._claim(tx, lane, room, self.worker)
                # Either the line is empty now, or there is no more room.
                tx.hints.ready.discard(lane.value)

    def _run_builtins(self, tx: Tx) -> bool:
        until = time.monotonic() + BUILTIN_PASS_MS / 1000
        while (row := tasks.next_queued(tx, Lane.BUILTIN)) is not None:
            self._run_builtin(tx, row)
            if time.monotonic() >= until:
                return True
        return False

    async def run_builtin(self, execution_id: str) -> bool:
        """Run the queued built-in step of this one execution; whether there was one."""

        def change(tx: Tx) -> bool:
            row = tasks.get(tx, key_of(tx, execution_id))
            if row is None or row.lane != Lane.BUILTIN or row.state != "queued":
                return False
            self._run_builtin(tx, row)
            return True

        return await self.store.write(change)

    def _run_builtin(self, tx: Tx, row: tasks.TaskRow) -> None:
        record = executions.load(tx, row.execution)
        flow = self._steps.names.flow(tx, record.flow_key, record.flow_digest)
        step = flow.steps[row.step_id]
        execution, events = decide.begin(record.execution, step, tx.now_ms)
        ledger.append(tx, record.key, events)
        record = _with_needed(tx, record, step)
        record = record._replace(execution=execution)
        values = record.context.values
        try:
            given = NO_VALUE
            if step.handler.type == "sub-flow":
                given = selectors.resolve(step.input, values)
            result = builtin.run(step, values, given, tx.now_ms)
        except Exception as exc:
            error = StepError("HANDLER_ERROR", f"{type(exc).__name__}: {exc}", retryable=False)
            result = TaskResult(Outcome.ERROR, error=error)
        self._steps.finished(tx, record, flow, result, row)


def key_of(source: Any, execution_id: str) -> int:
    """The key of an execution. Raises NotFound."""
    key = executions.key_of(source, execution_id)
    if key is None:
        raise NotFound(f"no execution {execution_id!r}")
    return key


def leased(tx: Tx, key: int, lease_id: int) -> tasks.TaskRow:
    """The task that this lease holds. Raises LeaseLost."""
    row = tasks.leased(tx, key, lease_id)
    if row is None:
        why = "cancelled, expired or given to another"
        raise LeaseLost(f"the lease of task {key} is over: {why}")
    return row


def _lease_ms(lane: str) -> int:
    return ENDLESS_MS if lane == Lane.CONTAINER else LEASE_MS


def _goes_on(tx: Tx, record: Record, step: Step) -> bool:
    """Whether the attempt has begun already: its job was paused, or an instance has or had it."""
    job = jobs.of_visit(tx, record.key, step.id, visit_of(record.execution))
    return job is not None and (
        job.instance is not None or job.resuming is not None or job.failures > 0
    )


def _with_needed(tx: Tx, record: Record, step: Step) -> Record:
    """The record with the context values that a built-in step reads."""
    if not record.context.spilled:
        return record
    names = set(builtin.keys_needed(step))
    if step.handler.type == "sub-flow":
        needed = selectors.keys_needed(step.input)
        names |= record.context.spilled.keys() if needed is None else needed
    return executions.with_keys(tx, record, names)
