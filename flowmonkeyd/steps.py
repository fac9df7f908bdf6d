"""What a decision does to the tables: every write that moves an execution goes through here.

The functions run on the writer thread inside one transaction and are shared by the engine's verbs:
start an execution, save a decision, queue a step, end an execution and tell its parent, cancel a
tree. They never commit, never wait and never tell anybody anything.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from flowmonkeyd import builtin, decide, jobsteps
from flowmonkeyd.clock import Ids
from flowmonkeyd.context import Context
from flowmonkeyd.errors import Conflict, Invalid, NotFound
from flowmonkeyd.jobmodel import JobRules, PauseEnd
from flowmonkeyd.model import (
    NO_VALUE,
    CancelSource,
    Execution,
    ExecutionStatus,
    Flow,
    Lane,
    Limits,
    NewExecution,
    Outcome,
    Step,
    StepError,
    TaskResult,
    Wait,
    WaitKind,
)
from flowmonkeyd.quotas import Quotas
from flowmonkeyd.references import BUILTIN_VERSION, References, pin_of, split_ref
from flowmonkeyd.store import Tx, billing, executions, history, idempotency, ledger, tasks, waits
from flowmonkeyd.store.executions import Record

__all__ = ["Steps"]

# A sub-flow that starts itself ends here rather than filling the disk.
DEPTH_MAX = 16


class Steps:
    """The changes, with what they need: limits, ids, and what names mean."""

    def __init__(
        self,
        limits: Limits,
        ids: Ids,
        names: References,
        quotas: Quotas,
        job_rules: JobRules = JobRules(),
    ) -> None:
        self.quotas = quotas
        self.job_rules = job_rules
        self.limits = limits
        self.ids = ids
        self.names = names

    # --- start ---------------------------------------------------------------------------------

    def start(
        self,
        tx: Tx,
        new: NewExecution,
        by: str | None,
        parent: Record | None = None,
        child_index: int | None = None,
    ) -> tuple[Record, bool]:
        """Make an execution, or find the one its idempotency key names: (record, made)."""
        flow_id, _ = split_ref(new.flow_ref)
        if new.idempotency_key is not None:
            known = idempotency.execution_of(tx, new.tenant_id, flow_id, new.idempotency_key)
            if known is not None:
                data = {"idempotencyKey": new.idempotency_key}
                ledger.append(tx, known, [("idempotency.hit", None, data)])
                return executions.shown(tx, known), False
        flow_key, digest, flow = self.names.find_flow(tx, new.flow_ref)
        change = Context().change(new.context, self.limits)
        if isinstance(change, StepError):
            raise Invalid(f"cannot start {new.flow_ref!r}: {change.message}", code=change.code)
        if new.parent_id is not None:
            parent_key = executions.key_of(tx, new.parent_id)
            if parent_key is None:
                raise NotFound(f"cannot start: no parent execution {new.parent_id!r}")
            parent = executions.load(tx, parent_key)
        execution = Execution(
            id=new.id or self.ids.execution_id(tx.now_ms),
            flow_id=flow.id,
            flow_version=flow.version,
            status=ExecutionStatus.PENDING,
            current_step_id=flow.initial_step_id,
            step_count=0,
            tenant_id=new.tenant_id,
            priority=new.priority,
            created_at_ms=tx.now_ms,
            updated_at_ms=tx.now_ms,
            idempotency_key=new.idempotency_key,
            metadata=new.metadata,
            parent_execution_id=parent.execution.id if parent else None,
        )
        if new.id is not None and executions.key_of(tx, new.id) is not None:
            message = f"cannot start: an execution with the id {new.id!r} exists already"
            raise Conflict(message, code="EXECUTION_EXISTS")
        self.quotas.started(tx, new.tenant_id, parent is not None)
        pins = self.names.pins(tx, flow)
        record = executions.insert(
            tx, execution, (flow_key, digest), pins, change, parent, child_index, new.timeouts
        )
        key = record.key
        if new.idempotency_key is not None:
            window_ms = new.idempotency_window_ms
            idempotency.remember(tx, new.tenant_id, flow_id, new.idempotency_key, key, window_ms)
        data = {"flowId": flow.id, "flowVersion": flow.version}
        if by is not None:
            data["by"] = by
        ledger.append(tx, key, [("execution.created", None, data)])
        step = flow.steps[flow.initial_step_id]
        found = self.names.resolve(tx, step.handler, pins)
        if found is None:
            self._no_handler(tx, record, step)
            record = executions.shown(tx, key)
        else:
            lane, version = found
            priority = tasks.PRIORITIES.index(execution.priority)
            tasks.enqueue(tx, key, step.id, 0, lane, step.handler.type, version, priority)
        return record, True

    def _start_children(
        self, tx: Tx, record: Record, result: TaskResult
    ) -> list[tuple[int, str]] | StepError:
        """Make the children a sub-flow step asked for: their keys and ids, or why it cannot be."""
        if record.depth >= DEPTH_MAX:
            message = f"cannot start a sub-flow {DEPTH_MAX} levels deep; does it start itself?"
            return StepError("SUB_FLOW_ERROR", message, retryable=False)
        parent = record.execution
        made = []
        for index, child in enumerate(result.children):
            new = NewExecution(
                flow_ref=child.flow_ref,
                context=child.context,
                id=self.ids.execution_id(tx.now_ms),
                tenant_id=child.tenant_id or parent.tenant_id,
                priority=parent.priority,
                metadata=child.metadata,
            )
            try:
                child_record, _ = self.start(tx, new, None, record, index)
            except (NotFound, Invalid) as exc:
                return StepError("SUB_FLOW_ERROR", exc.message, retryable=False)
            assert new.id is not None
            made.append((child_record.key, new.id))
        return made

    # --- what follows from an attempt ------------------------------------------------------------

    def finished(
        self, tx: Tx, record: Record, flow: Flow, result: TaskResult, task: tasks.TaskRow
    ) -> Record:
        """An attempt of the execution's current step ended: save what follows."""
        step = flow.steps[task.step_id]
        if result.children:
            children = self._children_savepoint(tx, record, result)
            if isinstance(children, StepError):
                result = replace(
                    result, outcome=Outcome.FAILURE, error=children, wait=None, children=()
                )
            elif result.outcome is Outcome.WAIT:
                assert result.wait is not None
                decision = decide.park(record.execution, step, result.wait, tx.now_ms)
                return self._parked(tx, record, decision, task, [key for key, _ in children])
            else:
                result = replace(result, output=_started([i for _, i in children], result))
        record = executions.with_keys(tx, record, decide.keys_to_finish(step))
        decision = decide.finish(
            flow, record.execution, record.context, result, tx.now_ms, self.limits
        )
        self._write_history(tx, record, decision, result, task)
        return self.save(tx, record, decision, task)

    def _parked(
        self,
        tx: Tx,
        record: Record,
        decision: decide.Decision,
        task: tasks.TaskRow,
        children: list[int],
    ) -> Record:
        """The attempt waits for its children; one whose handler is missing has ended already."""
        live = set(executions.live_children(tx, record.key))
        left = sum(child in live for child in children)
        awaited = waits.Children(children[0], len(children), left)
        record = self.save(tx, record, decision, task, awaited)
        return record if left else self._children_ended(tx, record.key)

    def _children_savepoint(
        self, tx: Tx, record: Record, result: TaskResult
    ) -> list[tuple[int, str]] | StepError:
        """All children or none: a refused one takes its sisters with it."""
        tx.execute("SAVEPOINT children")
        children = self._start_children(tx, record, result)
        if isinstance(children, StepError):
            tx.undo("children")
        tx.execute("RELEASE children")
        return children

    def _write_history(
        self,
        tx: Tx,
        record: Record,
        decision: decide.Decision,
        result: TaskResult,
        task: tasks.TaskRow,
    ) -> None:
        if decision.outcome is None:
            return
        started = task.claimed_at_ms if task.claimed_at_ms is not None else tx.now_ms
        history.append(
            tx,
            record.key,
            decision.execution.step_count,
            task.step_id,
            (task.type, task.version),
            task.attempt,
            decision.outcome,
            result.output if result.outcome is Outcome.SUCCESS else NO_VALUE,
            decision.attempt_error,
            result.started_at_ms or started,
            max(0, started - task.queued_at_ms),
            result.duration_ms,
            result.worker_id,
            result.usage,
        )
        if task.lane == Lane.CONTAINER:
            jobsteps.attempted(
                tx,
                record,
                result,
                decision.attempt_error,
                decision.execution.attempt > record.execution.attempt,
                self.job_rules.checkpoint_keep_ms,
                self.quotas,
            )
        if result.charge is not None:
            billing.charge(tx, record.key, decision.execution.step_count, result.charge)
            self.quotas.spent(tx, record.execution.tenant_id, result.charge.nanos)

    def save(
        self,
        tx: Tx,
        record: Record,
        decision: decide.Decision,
        task: tasks.TaskRow | None = None,
        children: waits.Children | None = None,
    ) -> Record:
        """Write a decision: the execution, its events, and its next task, wait or end."""
        record = executions.save(tx, record, decision.execution, decision.change)
        ledger.append(tx, record.key, decision.events)
        if decision.next_step is not None:
            self._queue(tx, record, decision.next_step)
        elif decision.wait is not None:
            queued_at_ms = task.queued_at_ms if task else tx.now_ms
            self._sleep(tx, record, decision.wait, queued_at_ms, children)
        elif decision.ended:
            self._ended(tx, record)
        return record

    def _queue(self, tx: Tx, record: Record, step: Step) -> None:
        found = self.names.resolve(tx, step.handler, record.pins)
        if found is None:
            self._no_handler(tx, record, step)
            return
        lane, version = found
        if lane is not Lane.BUILTIN and step.handler.type not in self.names.local_types:
            pin = pin_of(step.handler)
            if pin not in record.pins:  # published after the execution was made
                executions.save_pins(tx, record.key, {**record.pins, pin: version})
        tasks.enqueue(
            tx,
            record.key,
            step.id,
            record.execution.attempt,
            lane,
            step.handler.type,
            version,
            tasks.PRIORITIES.index(record.execution.priority),
        )

    def _no_handler(self, tx: Tx, record: Record, step: Step) -> None:
        message = self.names.why_missing(tx, step.handler)
        error = StepError("HANDLER_NOT_FOUND", message, retryable=False)
        self.failed(tx, record, error)

    def failed(self, tx: Tx, record: Record, error: StepError) -> Record:
        """An engine error: the execution fails at once."""
        decision = decide.fail(record.execution, record.context, error, tx.now_ms, self.limits)
        return self.save(tx, record, decision)

    def _sleep(
        self,
        tx: Tx,
        record: Record,
        wait: Wait,
        queued_at_ms: int,
        children: waits.Children | None,
    ) -> None:
        execution = record.execution
        step_id = execution.current_step_id
        assert step_id is not None
        timeout_at_ms = tx.now_ms + record.wait_ms
        # Who paused it knows.
        tasks.drop(tx, record.key, tell=wait.kind is not WaitKind.PAUSE)
        tenant = execution.tenant_id
        waits.insert(tx, record.key, wait, step_id, tenant, timeout_at_ms, queued_at_ms, children)
        if wait.kind in (WaitKind.EVENT, WaitKind.SIGNAL, WaitKind.PAUSE):
            waits.add_token(tx, self.ids.token(), record.key, step_id, timeout_at_ms)
            ledger.append(tx, record.key, [("token.created", step_id, None)])

    # --- the end of a wait, the end of an execution ----------------------------------------------

    def woken(
        self,
        tx: Tx,
        record: Record,
        wait: waits.WaitRow,
        data: Any,
        how: PauseEnd,
        by: str | None = None,
    ) -> Record | StepError:
        """A wait is over. A StepError says why the data cannot be taken; then nothing changed."""
        is_pause = wait.wait.kind is WaitKind.PAUSE
        if is_pause and (problem := jobsteps.fits(data, self.limits)) is not None:
            return problem
        flow = self.names.flow(tx, record.flow_key, record.flow_digest)
        decision = decide.resume(
            flow, record.execution, record.context, wait.wait, data, tx.now_ms, self.limits
        )
        if isinstance(decision, StepError):
            return decision
        self.end_wait(tx, record)
        if is_pause:
            jobsteps.resumed(tx, wait, how, data)
        if by is not None:
            (name, step_id, _), *others = decision.events
            decision.events = [(name, step_id, {"by": by}), *others]
        return self.save(tx, record, decision)

    def end_wait(self, tx: Tx, record: Record) -> None:
        """The wait is gone, and its tokens are worth nothing any more."""
        waits.remove(tx, record.key)
        if waits.revoke_tokens(tx, record.key):
            step_id = record.execution.current_step_id
            ledger.append(tx, record.key, [("token.revoked", step_id, None)])

    def due(self, tx: Tx, wait: waits.WaitRow) -> None:
        """A wait is due: its wake-up or its time-out, whichever was first."""
        if wait.wait.wake_at_ms == wait.due_at_ms:
            record = executions.load(tx, wait.execution)
            self.woken_or_failed(tx, record, wait, NO_VALUE, "time")
        else:
            reason = "the execution waited longer than its limit"
            self.cancelled(tx, wait.execution, CancelSource.TIMEOUT, reason, code="WAIT_TIMEOUT")

    def overdue(self, tx: Tx, key: int) -> None:
        """An execution has taken longer than it may."""
        reason = "the execution took longer than its limit"
        self.cancelled(tx, key, CancelSource.TIMEOUT, reason, code="EXECUTION_TIMEOUT")

    def woken_or_failed(
        self, tx: Tx, record: Record, wait: waits.WaitRow, data: Any, how: PauseEnd
    ) -> None:
        """As `woken`; data that breaks a limit fails the execution."""
        result = self.woken(tx, record, wait, data, how)
        if isinstance(result, StepError):
            self.end_wait(tx, record)
            self.failed(tx, self._unparked(tx, record), result)

    def _unparked(self, tx: Tx, record: Record) -> Record:
        execution, events = decide.unpark(record.execution, tx.now_ms)
        ledger.append(tx, record.key, events)
        return executions.save(tx, record, execution, None)

    def _ended(self, tx: Tx, record: Record) -> None:
        tasks.drop(tx, record.key)
        move: Literal["cancel", "fail"] = "fail"
        if record.execution.status is ExecutionStatus.CANCELLED:
            move = "cancel"
        keep_ms = self.job_rules.checkpoint_keep_ms
        jobsteps.orphaned(tx, record, move, keep_ms, self.quotas)
        if record.parent_key is None:
            return
        if waits.child_ended(tx, record.parent_key, record.key) == 0:
            self._children_ended(tx, record.parent_key)

    def _children_ended(self, tx: Tx, parent_key: int) -> Record:
        """The last child a parked sub-flow step waited for has ended: the attempt ends."""
        parent = executions.load(tx, parent_key)
        wait = waits.get(tx, parent_key)
        assert wait is not None
        assert wait.children is not None
        flow = self.names.flow(tx, parent.flow_key, parent.flow_digest)
        step = flow.steps[wait.step_id]
        children = executions.children_from(tx, wait.children.first, wait.children.count)
        fits = sum(c.context.total_bytes for c in children) <= self.limits.value_bytes_max
        if fits:
            children = [executions.full_context(tx, child) for child in children]
        result = builtin.child_result(
            [
                (
                    c.execution.id,
                    c.execution.flow_id,
                    c.execution.status.value,
                    c.context.values if fits else None,
                    c.execution.error,
                )
                for c in children
            ],
            step,
        )
        self.end_wait(tx, parent)
        parent = self._unparked(tx, parent)
        task = tasks.TaskRow(
            execution=parent_key,
            step_id=wait.step_id,
            attempt=parent.execution.attempt,
            lane=Lane.BUILTIN.value,
            type=step.handler.type,
            version=BUILTIN_VERSION,
            state="leased",
            queued_at_ms=wait.queued_at_ms,
            lease_id=None,
            claimed_at_ms=wait.started_at_ms,
            worker=None,
        )
        result = replace(result, duration_ms=tx.now_ms - wait.started_at_ms)
        return self.finished(tx, parent, flow, result, task)

    def cancelled(
        self,
        tx: Tx,
        key: int,
        source: CancelSource,
        reason: str | None,
        by: str | None = None,
        code: str = "CANCELLED",
    ) -> None:
        """Cancel an execution and all that hangs on it: task, wait, tokens, children."""
        line = [(key, source, reason, code)]
        while line:
            key, source, reason, code = line.pop()
            record = executions.load(tx, key)
            if record.execution.status.is_final:
                continue
            children = executions.live_children(tx, key)
            line.extend((child, CancelSource.PARENT, reason, "CANCELLED") for child in children)
            self.end_wait(tx, record)
            decision = decide.cancel(record.execution, source, reason, tx.now_ms, code)
            data = {"source": source.value, "reason": reason, "childrenCancelled": len(children)}
            if by is not None:
                data["by"] = by
            decision.events.append(("execution.cancelled", record.execution.current_step_id, data))
            self.save(tx, record, decision)


def _started(children: list[str], result: TaskResult) -> Any:
    """What a sub-flow step that does not wait puts out."""
    shown = [
        {
            "childExecutionId": child,
            "flowId": split_ref(request.flow_ref)[0],
            "mode": "fire-and-forget",
        }
        for child, request in zip(children, result.children, strict=True)
    ]
    return shown if result.fan_out else shown[0]
