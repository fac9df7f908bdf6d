"""The verbs that change state. Each is one `Store.write`: one function, one transaction.

Nobody is told anything before the commit that makes it true; every write of a worker names its task
and lease, and a stale lease changes nothing. All memory can be lost at any moment: what must happen
next is in the tables, and the start after `kill -9` is the ordinary start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowmonkeyd import decide, jobsteps, jsontext
from flowmonkeyd.clock import Ids
from flowmonkeyd.documents.flow import flow_digest, parse_flow
from flowmonkeyd.errors import Conflict, Invalid, NotFound, Problem, TooMany
from flowmonkeyd.jobmodel import JobRules
from flowmonkeyd.jobwork import JobWork
from flowmonkeyd.model import (
    NO_VALUE,
    CancelSource,
    ExecutionStatus,
    Lane,
    Limits,
    NewExecution,
    StepError,
    WaitKind,
)
from flowmonkeyd.publishing import Publishing
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.references import References
from flowmonkeyd.steps import Steps
from flowmonkeyd.store import (
    Store,
    Tx,
    catalog,
    checkpoints,
    executions,
    idempotency,
    ledger,
    tasks,
    waits,
)
from flowmonkeyd.store.executions import Record
from flowmonkeyd.work import Work, key_of

__all__ = ["Applied", "Engine", "Sent", "Submitted"]

# Due rows handled in one transaction; the rest follow in the next.
DUE_BATCH = 256


@dataclass(frozen=True, slots=True)
class Submitted:
    """An execution as it stood at the commit; `created` is False for an idempotency hit.
    `warnings` are about handlers that a new one uses."""

    record: Record
    created: bool
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    row: catalog.FlowRow
    created: bool
    warnings: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """A user event: its seq in the ledger and the executions it woke."""

    seq: int
    woken: tuple[str, ...]


class Engine(Work, JobWork, Publishing):
    """All verbs: those of workers, those on jobs and on handlers, and these. `local_types` are
    handler types that run in process (the test harness only)."""

    def __init__(
        self,
        store: Store,
        ids: Ids,
        limits: Limits = Limits(),
        local_types: frozenset[str] = frozenset(),
        quotas: Quotas = Quotas(),
        job_rules: JobRules = JobRules(),
    ) -> None:
        super().__init__(store, Steps(limits, ids, References(local_types), quotas, job_rules))

    # --- flows -----------------------------------------------------------------------------------

    async def apply_flow(self, document: Mapping[str, Any], by: str | None = None) -> Applied:
        """Add a flow version; the same document again is unchanged.

        Raises Invalid with every problem, Conflict when the version exists with other content.
        """
        flow, warnings = parse_flow(document)
        digest, text = flow_digest(document), jsontext.dumps(document)

        def change(tx: Tx) -> Applied:
            unknown = [
                Problem(
                    f"$.steps.{step.id}.type",
                    f"no published handler for {step.handler.type!r} yet",
                    "warning",
                )
                for step in flow.steps.values()
                if self._steps.names.resolve(tx, step.handler, {}) is None
            ]
            self._steps.names.pins(tx, flow)
            unknown += self._steps.names.notes(tx, flow)
            row = catalog.flow_row(tx, flow.id, flow.version)
            if row is not None:
                if row.digest != digest:
                    raise Conflict(
                        f"cannot change flow {flow.id}@{flow.version}: a version never changes "
                        "once applied; give the document a new version"
                    )
                return Applied(row, False, (*warnings, *unknown))
            steps = len(flow.steps)
            row = catalog.insert_flow(tx, flow.id, flow.version, flow.name, digest, text, steps)
            data = {"flowId": flow.id, "flowVersion": flow.version, "by": by}
            ledger.append_one(tx, "flow.applied", data)
            return Applied(row, True, (*warnings, *unknown))

        return await self.store.write(change)

    # --- executions ----------------------------------------------------------------------------

    async def submit(self, new: NewExecution, by: str | None = None) -> Submitted:
        """Make an execution and queue its first step.

        Raises NotFound (no such flow), Invalid (context limits), Conflict (id taken).
        """
        return (await self.submit_batch([new], by))[0]

    async def submit_batch(
        self, batch: Sequence[NewExecution], by: str | None = None
    ) -> list[Submitted]:
        """Make them all or none, in one commit."""

        def change(tx: Tx) -> list[Submitted]:
            made = []
            for number, new in enumerate(batch):
                try:
                    record, created = self._steps.start(tx, new, by)
                    notes = self._steps.names.notes(tx, record.execution) if created else ()
                    made.append(Submitted(record, created, notes))
                except (Invalid, NotFound, Conflict, TooMany) as exc:
                    if len(batch) == 1:
                        raise
                    message = f"{exc.message} (item {number})"
                    raise type(exc)(message, exc.code, exc.problems) from exc
            return made

        return await self.store.write(change)

    async def get(self, execution_id: str) -> Record:
        """The execution with its whole context. Raises NotFound."""
        return await self.store.read(
            lambda conn: executions.shown(conn, key_of(conn, execution_id))
        )

    async def cancel(
        self,
        execution_id: str,
        source: CancelSource = CancelSource.USER,
        reason: str | None = None,
        by: str | None = None,
    ) -> Record:
        """Cancel an execution, its wait, task, tokens and children, in one transaction.

        Raises NotFound, or Conflict when it has ended.
        """

        def change(tx: Tx) -> Record:
            key = key_of(tx, execution_id)
            status = executions.load(tx, key).execution.status
            if status.is_final:
                message = f"cannot cancel {execution_id}: it has ended ({status.value})"
                raise Conflict(message, code="EXECUTION_ENDED")
            self._steps.cancelled(tx, key, source, reason, by)
            return executions.shown(tx, key)

        return await self.store.write(change)

    async def resume(
        self,
        execution_id: str | None,
        token: str | None = None,
        data: Any = NO_VALUE,
        by: str | None = None,
    ) -> Record:
        """End the wait of an execution, by id, by token or by both; of parallel calls one wins.

        Raises NotFound, Conflict (it does not wait, or waits for a child), Invalid (a bad token,
        or data that breaks a context limit).
        """

        def change(tx: Tx) -> Record:
            key = self._key_to_resume(tx, execution_id, token)
            record = executions.load(tx, key)
            wait = waits.get(tx, key)
            if wait is None or record.execution.status is not ExecutionStatus.WAITING:
                status = record.execution.status.value
                message = f"cannot resume {record.execution.id}: it does not wait ({status})"
                raise Conflict(message, code="NOT_WAITING")
            if wait.wait.kind is WaitKind.CHILD:
                message = f"cannot resume {record.execution.id}: it waits for a child execution"
                raise Conflict(message, code="NOT_WAITING")
            if token is not None:
                waits.use_token(tx, token)
                ledger.append(tx, key, [("token.used", wait.step_id, {"by": by})])
            outcome = self._steps.woken(tx, record, wait, data, "hand", by)
            if isinstance(outcome, StepError):
                message = f"cannot resume {record.execution.id}: {outcome.message}"
                raise Invalid(message, code=outcome.code)
            return executions.shown(tx, key)

        return await self.store.write(change)

    def _key_to_resume(self, tx: Tx, execution_id: str | None, token: str | None) -> int:
        key = None if execution_id is None else key_of(tx, execution_id)
        if token is None:
            if key is None:
                raise Invalid("cannot resume: name an execution or a token")
            return key
        row = waits.token_row(tx, token)
        if row is None or (key is not None and row.execution != key):
            raise Invalid("cannot resume: the token is unknown", code="INVALID_TOKEN")
        if row.state != "active":
            raise Invalid(f"cannot resume: the token has been {row.state}", code="INVALID_TOKEN")
        if row.expires_at_ms < tx.now_ms:
            raise Invalid("cannot resume: the token has expired", code="INVALID_TOKEN")
        return row.execution

    async def retry(
        self, execution_id: str, from_step: str | None = None, by: str | None = None
    ) -> Record:
        """Run a failed or cancelled execution on, from the step it ended at or from `from_step`.

        Raises NotFound (execution or step), Conflict (it has not failed).
        """

        def change(tx: Tx) -> Record:
            key = key_of(tx, execution_id)
            record = executions.load(tx, key)
            status = record.execution.status
            if status not in (ExecutionStatus.FAILED, ExecutionStatus.CANCELLED):
                raise Conflict(
                    f"cannot retry {execution_id}: it is {status.value}; only a failed or "
                    "cancelled execution can be retried"
                )
            steps_max = self._steps.limits.steps_max
            if record.execution.step_count >= steps_max:
                message = f"cannot retry {execution_id}: it reached its limit of {steps_max} steps"
                raise Conflict(message, code="MAX_STEPS")
            flow = self._steps.names.flow(tx, record.flow_key, record.flow_digest)
            step_id = from_step or record.execution.current_step_id or flow.initial_step_id
            step = flow.steps.get(step_id)
            if step is None:
                message = f"flow {flow.id}@{flow.version} has no step {step_id!r}"
                raise NotFound(message, code="STEP_NOT_FOUND")
            decision = decide.retry(record.execution, step, tx.now_ms)
            decision.events = [(n, s, {**(d or {}), "by": by}) for n, s, d in decision.events]
            if record.parent_key is not None:
                waits.child_again(tx, record.parent_key, key)
            jobsteps.reopened(tx, record._replace(execution=decision.execution))
            self._steps.save(tx, record, decision)
            return executions.shown(tx, key)

        return await self.store.write(change)

    async def send_event(self, name: str, data: Any, tenant_id: str, by: str | None = None) -> Sent:
        """Wake every execution of the tenant that waits for this event, in one transaction."""

        def change(tx: Tx) -> Sent:
            shown = {"name": name, "tenantId": tenant_id, "by": by}
            seq = ledger.append_one(tx, "event.received", shown)
            woken, after = [], 0
            while page := waits.for_event(tx, name, tenant_id, after, DUE_BATCH):
                after = page[-1].execution
                for wait in page:
                    if decide.event_matches(wait.wait.event_filter, data):
                        record = executions.load(tx, wait.execution)
                        self._steps.woken_or_failed(tx, record, wait, data, "event")
                        woken.append(record.execution.id)
            return Sent(seq, tuple(woken))

        return await self.store.write(change)

    # --- time ------------------------------------------------------------------------------------

    async def fire_due(self) -> int | None:
        """Do what is due now, a bounded batch; when the next thing is due (None: nothing is)."""

        def change(tx: Tx) -> int | None:
            tasks.requeue_due(tx, DUE_BATCH)
            for _ in range(DUE_BATCH):
                # In the order of their times, as if each had been seen at its moment: what came
                # first decides, however long the daemon was down.
                wait, late = waits.due(tx), executions.overdue(tx)
                if late is not None and (wait is None or late[1] < wait.due_at_ms):
                    self._steps.overdue(tx, late[0])
                elif wait is not None:
                    self._steps.due(tx, wait)
                else:
                    break
            more = idempotency.forget_expired(tx) | checkpoints.expire(tx)
            due = (
                tasks.next_due_ms(tx),
                waits.next_due_ms(tx),
                executions.next_deadline_ms(tx),
                checkpoints.next_expiry_ms(tx),
            )
            if more:
                return tx.now_ms
            return min((at_ms for at_ms in due if at_ms is not None), default=None)

        return await self.store.write(change)

    async def recover(self) -> int:
        """At every start: claims of earlier boots are dead; how many tasks run again."""

        def change(tx: Tx) -> int:
            ledger.sync_types(tx)
            self._steps.quotas.recount(tx)
            released = tasks.release_of_earlier_boots(tx, tx.boot << 32)
            ledger.append_one(tx, "daemon.started", {"boot": tx.boot, "tasksReleased": released})
            tx.hints.ready.update(lane.value for lane in Lane)
            return released

        return await self.store.write(change)
