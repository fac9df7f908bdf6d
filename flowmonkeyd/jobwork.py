"""The verbs on jobs: what an instance of a stateful handler does to the tables.

A part of the engine; each is one `Store.write`. Every one names the task's lease and the instance
that has the job, and neither a stale lease (LeaseLost) nor another instance (Superseded) changes
anything. Messages of an instance are numbered; one that was applied already is answered as it was
and applied no more, even when the lease has ended with it. Times of CLOCK_BOOTTIME come in as
`at_ns`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flowmonkeyd import decide, jobsteps
from flowmonkeyd.billing import segment_start_ns
from flowmonkeyd.documents.versions import newest
from flowmonkeyd.errors import Conflict, Invalid, NotFound, Superseded
from flowmonkeyd.jobmodel import (
    CHECKPOINT_NAMES_MAX,
    Checkpoint,
    Fence,
    Job,
    JobPlan,
    JobState,
    Lost,
    NewCheckpoint,
    Progress,
)
from flowmonkeyd.model import CancelSource, RetryPolicy, StepError, Task, Wait, WaitKind
from flowmonkeyd.steps import Steps
from flowmonkeyd.store import (
    Store,
    Tx,
    catalog,
    checkpoints,
    executions,
    images,
    jobs,
    segments,
    tasks,
    waits,
)
from flowmonkeyd.work import leased

__all__ = ["JobWork"]

# Handlers may tell their progress as often as they like; the ledger keeps one of them a second.
PROGRESS_EVENT_MS = 1000
# Heartbeats come every few seconds; the ledger keeps the first of each minute.
HEARTBEAT_EVENT_MS = 60_000


class JobWork:
    """What the executor of containers asks of the engine, which has the store and the steps."""

    store: Store
    _steps: Steps

    async def open_job(self, task: Task, plan: JobPlan) -> Job:
        """Find or make the job of the visit that a leased task belongs to. An earlier one keeps
        its own plan. Raises LeaseLost."""

        def change(tx: Tx) -> Job:
            row = leased(tx, task.key, task.lease_id)
            record = executions.load(tx, task.key)
            visit = jobsteps.visit_of(record.execution)
            job = jobs.of_visit(tx, task.key, row.step_id, visit)
            if job is None:
                job_id = self._steps.ids.execution_id(tx.now_ms)
                handler = (row.type, row.version)
                return jobs.insert(
                    tx, job_id, task.key, visit, row.step_id, handler, row.attempt, plan
                )
            if job.step_attempt != row.attempt:
                job = jobs.save(tx, replace(job, step_attempt=row.attempt))
            return job

        return await self.store.write(change)

    async def claim_instance(
        self, key: int, lease_id: int, job: int, instance: str, container: str | None
    ) -> Job:
        """An instance takes the job: its attempt is the next one, and no other may write any more.

        Raises LeaseLost.
        """

        def change(tx: Tx) -> Job:
            leased(tx, key, lease_id)
            before = _found(tx, job)
            if before.instance is not None and before.instance != instance:
                jobsteps.told(
                    tx,
                    before,
                    "job.superseded",
                    {"instance": before.instance, "attempt": before.attempt},
                )
                tx.hints.evicted.add(before.instance)
            jobsteps.stopped(tx, before, None)
            after = jobsteps.moved(
                tx,
                before,
                "begin",
                attempt=before.attempt + 1,
                instance=instance,
                container=container,
                seq=0,
                heartbeat_at_ms=tx.now_ms,
                started_at_ms=before.started_at_ms or tx.now_ms,
            )
            shown = {"instance": instance, "attempt": after.attempt}
            jobsteps.told(tx, after, "job.claimed", shown)
            return after

        return await self.store.write(change)

    async def begin_active(self, fence: Fence, boot_id: str, at_ns: int) -> Job:
        """Active time begins, since `at_ns`: the instance has accepted its task, was adopted by a
        new daemon, or goes on after a pause. A segment left open ends at its last heartbeat."""

        def change(tx: Tx) -> Job:
            job = _fenced(tx, fence)
            last = segments.last(tx, job.key)
            segments.end(tx, job.key)
            start_ns = at_ns
            if last is not None:
                start_ns = segment_start_ns(at_ns, boot_id, last.boot, last.last_ns)
            segments.begin(tx, job.key, job.attempt, boot_id, start_ns)
            if job.resuming is not None:
                shown = {"attempt": job.attempt, "how": job.resuming, "pausedMs": job.last_pause_ms}
                jobsteps.told(tx, job, "job.resumed", shown)
            return jobsteps.moved(tx, job, "begin", resuming=None, heartbeat_at_ms=tx.now_ms)

        return await self.store.write(change)

    async def heartbeat(self, fence: Fence, at_ns: int, progress: Progress | None = None) -> None:
        """The instance is alive at `at_ns`, which is billed until then, and has come so far."""

        def change(tx: Tx) -> None:
            job = _fenced(tx, fence)
            segments.renew(tx, job.key, at_ns)
            before_ms = job.heartbeat_at_ms or 0
            if tx.now_ms // HEARTBEAT_EVENT_MS > before_ms // HEARTBEAT_EVENT_MS:
                jobsteps.told(tx, job, "job.heartbeat", {"attempt": job.attempt})
            if not self._progress(tx, job, progress):
                jobs.heard(tx, job.key)

        await self.store.write(change)

    def _progress(self, tx: Tx, job: Job, progress: Progress | None) -> bool:
        """Keep what is new of it, and tell it if that is not too soon; whether it was saved."""
        changes: dict[str, Any] = {}
        if progress is not None and progress != job.progress:
            changes = {"progress": progress, "progress_at_ms": tx.now_ms}
        at_ms = changes.get("progress_at_ms", job.progress_at_ms)
        told_ms = job.progress_told_at_ms
        is_untold = at_ms is not None and (told_ms is None or told_ms < at_ms)
        if is_untold and (told_ms is None or tx.now_ms - told_ms >= PROGRESS_EVENT_MS):
            now = progress or job.progress
            shown = {"percent": now.percent, "message": now.message, "etaMs": now.eta_ms}
            jobsteps.told(tx, job, "job.progress", shown)
            changes["progress_told_at_ms"] = tx.now_ms
        if changes:
            jobs.save(tx, replace(job, **changes, heartbeat_at_ms=tx.now_ms))
        return bool(changes)

    # --- checkpoints -----------------------------------------------------------------------------

    async def save_checkpoint(
        self, fence: Fence, seq: int, checkpoint: NewCheckpoint, settled: bool, at_ns: int
    ) -> bool:
        """Keep a value; False when this message was applied already. `settled`: it was saved after
        the handler was given the data of its resume, which is kept no longer.

        Raises Invalid (CHECKPOINT_TOO_LARGE) when all of the job's would be over its limit.
        """

        def change(tx: Tx) -> bool:
            job = _fenced(tx, fence, seq)
            if job.seq >= seq:
                return False
            segments.renew(tx, job.key, at_ns)
            _keep(tx, job, checkpoint)
            resume = None if settled else job.resume
            jobs.save(tx, replace(job, seq=seq, resume=resume, heartbeat_at_ms=tx.now_ms))
            return True

        return await self.store.write(change)

    async def clear_checkpoints(self, fence: Fence, seq: int, name: str | None) -> bool:
        """Forget one, or with None all; False when this message was applied already."""

        def change(tx: Tx) -> bool:
            job = _fenced(tx, fence, seq)
            if job.seq >= seq:
                return False
            checkpoints.clear(tx, job.key, name)
            jobs.save(tx, replace(job, seq=seq, heartbeat_at_ms=tx.now_ms))
            return True

        return await self.store.write(change)

    async def checkpoint_of(self, job: int, name: str) -> Checkpoint | None:
        """One checkpoint with its data, unless that is in a file."""
        return await self.store.read(lambda conn: checkpoints.get(conn, job, name))

    async def checkpoints_of(self, job: int) -> list[Checkpoint]:
        """All of a job, by name, without their data."""
        return await self.store.read(lambda conn: checkpoints.of_job(conn, job))

    async def checkpoint_files(self) -> set[str]:
        """Every file that a checkpoint names; others in the folder are left over."""
        return await self.store.read(checkpoints.files)

    # --- pause, time, loss -----------------------------------------------------------------------

    async def pause_job(
        self, fence: Fence, seq: int, wait: Wait, checkpoint: NewCheckpoint | None, at_ns: int
    ) -> Job:
        """The handler pauses: checkpoint, end of the active time and wait (of the kind PAUSE) in
        one transaction. The task is dropped, so the caller returns None from `Executor.run`.

        When this message was applied already, the job as it is now: paused, or resumed since.
        Raises Invalid (CHECKPOINT_TOO_LARGE).
        """
        assert wait.kind is WaitKind.PAUSE

        def change(tx: Tx) -> Job:
            job = _fenced(tx, fence, seq)
            if job.seq >= seq:
                return job
            if checkpoint is not None:
                _keep(tx, job, checkpoint)
            return self._pause(tx, replace(job, seq=seq, resume=None), wait, at_ns, None)

        return await self.store.write(change)

    async def pause_by_hand(
        self, fence: Fence, by: str, reason: str | None, wake_at_ms: int | None, at_ns: int
    ) -> Job:
        """As `pause_job`, asked for by somebody: without a checkpoint, and its handler does not
        know of it, so that what an earlier pause has resumed with is kept."""

        def change(tx: Tx) -> Job:
            job = _fenced(tx, fence)
            wait = Wait(WaitKind.PAUSE, wake_at_ms, reason)
            return self._pause(tx, job, wait, at_ns, by)

        return await self.store.write(change)

    def _pause(self, tx: Tx, job: Job, wait: Wait, at_ns: int, by: str | None) -> Job:
        jobsteps.stopped(tx, job, at_ns)
        job = jobsteps.moved(
            tx,
            job,
            "pause",
            resuming=None,
            paused_at_ms=tx.now_ms,
            paused_by_hand=by is not None,
        )
        shown: dict[str, Any] = {"attempt": job.attempt, "reason": wait.reason}
        shown |= {"event": wait.event, "wakeAtMs": wait.wake_at_ms}
        if by is not None:
            shown["by"] = by
        jobsteps.told(tx, job, "job.paused", shown)
        record = executions.load(tx, job.execution)
        flow = self._steps.names.flow(tx, record.flow_key, record.flow_digest)
        decision = decide.park(record.execution, flow.steps[job.step_id], wait, tx.now_ms)
        self._steps.save(tx, record, decision, tasks.get(tx, job.execution))
        return job

    async def extend_ttl(self, fence: Fence, seq: int, ms: int) -> Job:
        """More active time, up to the hard limit. Raises Invalid beyond it."""

        def change(tx: Tx) -> Job:
            job = _fenced(tx, fence, seq)
            if job.seq >= seq:
                return job
            ttl_ms = job.ttl_ms + ms
            if ms <= 0 or ttl_ms > job.ttl_hard_ms:
                raise Invalid(
                    f"cannot extend the time of the job by {ms} ms: it has {job.ttl_ms} ms, and "
                    f"ttl.hard is {job.ttl_hard_ms} ms"
                )
            return jobs.save(tx, replace(job, seq=seq, ttl_ms=ttl_ms, updated_at_ms=tx.now_ms))

        return await self.store.write(change)

    async def active_ns(self, job: int) -> int:
        """How long a job was active in this attempt of its step, to its last heartbeat: what its
        TTL has used."""

        def look(conn: Any) -> int:
            found = jobs.get(conn, job)
            return segments.active_ns(conn, job) - (found.active_before_ns if found else 0)

        return await self.store.read(look)

    async def lose_instance(self, fence: Fence, at_ns: int | None, error: StepError) -> Lost:
        """The instance is gone without an answer, or there was none to be had (the fence names
        none), since `at_ns` or (None) since its last heartbeat.
        Nobody has the job; whether it may have another instance is in what is returned."""

        def change(tx: Tx) -> Lost:
            job = _fenced(tx, fence)
            jobsteps.stopped(tx, job, at_ns)
            failures = job.failures + 1
            may_retry = failures < job.attempts_max
            rules = self._steps.job_rules
            policy = RetryPolicy(backoff_ms=rules.backoff_ms, max_backoff_ms=rules.max_backoff_ms)
            backoff_ms = decide.backoff_ms(policy, failures - 1) if may_retry else 0
            job = jobsteps.moved(
                tx, job, "lose", failures=failures, instance=None, container=None, error=error
            )
            if may_retry:
                shown = {"attempt": job.attempt, "code": error.code, "message": error.message}
                jobsteps.told(
                    tx, job, "job.failed", {**shown, "retry": True, "backoffMs": backoff_ms}
                )
            return Lost(job, may_retry, backoff_ms)

        return await self.store.write(change)

    async def evict_instance(self, job: int, instance: str) -> bool:
        """The frozen container of a paused job was removed; whether it was that job's. When the
        job is resumed it gets a new one."""

        def change(tx: Tx) -> bool:
            found = jobs.get(tx, job)
            if found is None or found.instance != instance or found.state is not JobState.PAUSED:
                return False
            jobs.save(tx, replace(found, instance=None, container=None, updated_at_ms=tx.now_ms))
            return True

        return await self.store.write(change)

    async def uses_containers(self) -> bool:
        """Whether a stateful handler was ever published here."""
        return await self.store.read(catalog.has_stateful)

    async def stateful_images(self) -> list[tuple[str, str]]:
        """The manifest, as text, and the image's id of each stateful type's newest version that is
        not yanked and has its image."""

        def look(conn: Any) -> list[tuple[str, str]]:
            by_type: dict[str, dict[str, tuple[str, str]]] = {}
            for handler_type, version, manifest, image_id in images.of_handlers(conn):
                by_type.setdefault(handler_type, {})[version] = (manifest, image_id)
            return [
                versions[best]
                for versions in by_type.values()
                if (best := newest(versions, None)) is not None
            ]

        return await self.store.read(look)

    async def resume_job(self, job: int, data: Any, by: str | None = None) -> None:
        """End a job's pause by hand. Raises Conflict when it is not paused, Invalid for data that
        no context could hold."""

        def change(tx: Tx) -> None:
            found = _found(tx, job)
            wait = waits.get(tx, found.execution)
            if found.state is not JobState.PAUSED or wait is None:
                message = f"cannot resume job {found.id}: it is {found.state.value}"
                raise Conflict(message, code="NOT_WAITING")
            record = executions.load(tx, found.execution)
            outcome = self._steps.woken(tx, record, wait, data, "hand", by)
            if isinstance(outcome, StepError):
                message = f"cannot resume job {found.id}: {outcome.message}"
                raise Invalid(message, code=outcome.code)

        await self.store.write(change)

    async def cancel_job(
        self, job: int, source: CancelSource, reason: str | None, by: str | None = None
    ) -> None:
        """Cancel the execution of a job that has not ended. Raises Conflict when it has, even if
        its execution goes on."""

        def change(tx: Tx) -> None:
            found = _found(tx, job)
            if found.state.is_final:
                message = f"cannot cancel job {found.id}: it has ended ({found.state.value})"
                raise Conflict(message, code="JOB_ENDED")
            self._steps.cancelled(tx, found.execution, source, reason, by)

        await self.store.write(change)

    async def instances_wanted(self) -> dict[str, tuple[int, JobState]]:
        """Every instance that has a job, with the job's key and state: the containers to adopt, and
        those a sweep must leave alone."""
        return await self.store.read(jobs.instances)


def _found(tx: Tx, key: int) -> Job:
    job = jobs.get(tx, key)
    if job is None:
        raise NotFound(f"no job {key}")
    return job


def _fenced(tx: Tx, fence: Fence, seq: int | None = None) -> Job:
    """The job, if the instance has it and the lease holds, or this message was applied already.

    Raises Superseded, LeaseLost.
    """
    job = _found(tx, fence.job)
    if job.instance != fence.instance or job.execution != fence.key:
        raise Superseded(f"job {job.id} is another instance's")
    if seq is None or job.seq < seq:
        leased(tx, fence.key, fence.lease_id)
    return job


def _keep(tx: Tx, job: Job, checkpoint: NewCheckpoint) -> None:
    """Store one under the job's limits, and tell it."""
    count, size = checkpoints.besides(tx, job.key, checkpoint.name)
    size += checkpoint.size_bytes
    if size > job.checkpoint_bytes_max:
        raise Invalid(
            f"cannot keep the checkpoint {checkpoint.name!r}: the job's checkpoints would have "
            f"{size} bytes, and checkpoint.maxSize is {job.checkpoint_bytes_max}",
            code="CHECKPOINT_TOO_LARGE",
        )
    if count >= CHECKPOINT_NAMES_MAX:
        raise Invalid(
            f"cannot keep the checkpoint {checkpoint.name!r}: the job has {count} already, which "
            "is the limit; clear some",
            code="CHECKPOINT_TOO_LARGE",
        )
    checkpoints.put(tx, job.key, job.attempt, checkpoint)
    shown = {"attempt": job.attempt, "name": checkpoint.name, "sizeBytes": checkpoint.size_bytes}
    jobsteps.told(tx, job, "job.checkpoint", shown)
