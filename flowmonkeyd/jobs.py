"""Runs stateful handlers in containers: the executor of the container lane.

A task of this lane is a stretch of a job: from here until it ends, pauses, or the daemon does. The
job's row says where it stands; in memory is only which instance is where, which is found again by
asking Podman. An instance is given a task at most once, and nothing of a job runs before the row
names the instance. What a commit makes unwanted (`Committed.evicted`) is ended here; what a
restart leaves running is adopted, and its agent goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from flowmonkeyd.agentmodel import Assignment, Result
from flowmonkeyd.agents import Unanswered
from flowmonkeyd.agentwire import ProtocolError
from flowmonkeyd.attempts import Attempt, End, Rules, boot_id, boottime_ns
from flowmonkeyd.billing import nanos
from flowmonkeyd.clock import Clock
from flowmonkeyd.dispatcher import RETRY_S, Finished, OnLogs
from flowmonkeyd.documents import selectors
from flowmonkeyd.documents.manifest import Manifest, Stateful, parse_manifest
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import Conflict, LeaseLost
from flowmonkeyd.errors import Unavailable as NotNow
from flowmonkeyd.fleet import UNSTARTABLE, Fleet, Unavailable
from flowmonkeyd.instances import APP, SPECIALISED, Instance
from flowmonkeyd.jobmodel import Fence, Job, JobEnd, JobPlan
from flowmonkeyd.loglines import Lines, last_lines
from flowmonkeyd.masking import Masks
from flowmonkeyd.model import NO_VALUE, Outcome, StepError, Task, TaskResult
from flowmonkeyd.replies import masked, result_of
from flowmonkeyd.settings import Settings
from flowmonkeyd.terms import egress_of
from flowmonkeyd.vault import Value, Vault
from flowmonkeyd.vault.access import given as given_secrets
from flowmonkeyd.vault.access import wanted_of
from sandbox import Ending, Reply, Usage, wire
from sandbox.ending import checked_result

__all__ = ["Jobs"]

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")

# An agent that waits answers in a millisecond; one that does not is dead, and the next is tried.
ACCEPT_S = 2.0
INSTANCES_TRIED_MAX = 3


@dataclass(slots=True)
class _Stretch:
    """A task with all that was found out for it."""

    task: Task
    job: Job
    manifest: Manifest
    given: Any
    secrets: Mapping[str, Value]
    masks: Masks | None
    lines: Lines
    began_s: float


class Jobs:
    """The executor. `detach` before the end."""

    def __init__(
        self,
        engine: Engine,
        fleet: Fleet,
        vault: Vault | None,
        clock: Clock,
        settings: Settings,
    ) -> None:
        self._engine = engine
        self._fleet = fleet
        self._vault = vault
        self._clock = clock
        self._settings = settings
        self._checkpoints = settings.dataDir / "checkpoints"
        self._boot = boot_id()
        self._attempts: dict[int, Attempt] = {}
        # By job's key: a stretch that has ended and not let go of its instance yet.
        self._leaving: dict[int, asyncio.Event] = {}
        self._waits: set[asyncio.Timeout] = set()
        self._detaching = False

    @property
    def slots(self) -> int:
        """Jobs that can be running, or waiting for memory, at a time."""
        return self._settings.containers.slots or self._fleet.slots

    @property
    def ahead(self) -> int:
        """None: a job that is leased holds memory."""
        return 0

    def detach(self) -> None:
        """The daemon ends: containers run on, and what they ask waits for the next daemon."""
        self._detaching = True
        for attempt in list(self._attempts.values()):
            attempt.detach()
        for limit in self._waits:
            limit.reschedule(0)

    async def pause(self, job_id: str, by: str, reason: str | None) -> None:
        """Pause a running job for somebody. Raises Conflict when it does not run here now."""
        attempt = next((a for a in self._attempts.values() if a.job.id == job_id), None)
        if attempt is None:
            raise Conflict(f"cannot pause job {job_id}: it is not running", code="NOT_RUNNING")
        await attempt.hold(by, reason)

    # --- a stretch -------------------------------------------------------------------------------

    async def run(self, task: Task, on_logs: OnLogs) -> Finished | None:
        """Run a job on until it ends or pauses (None), from wherever it is."""
        began_s = time.monotonic()
        if task.manifest is None or task.package_digest is None:
            name = f"{task.handler_type}@{task.handler_version}"
            return _failed("HANDLER_NOT_FOUND", f"the package of {name} is gone", fatal=True)
        manifest = parse_manifest(task.manifest)
        try:
            async with self._waiting():
                await self._fleet.ready()
        except _Detached:
            return None
        if self._fleet.problem is not None or manifest.stateful is None:
            why = f"containers cannot be run here: {self._fleet.problem}"
            return _failed("CONTAINERS_UNAVAILABLE", why)
        secrets: Mapping[str, Value] = {}
        if (wanted := wanted_of(manifest)) is not None:
            found = await given_secrets(task, wanted, self._vault, self._engine)
            if isinstance(found, StepError):
                return Finished(TaskResult(Outcome.ERROR, error=found))
            secrets = found
        try:
            given = selectors.resolve(task.step.input, task.context)
        except Exception as exc:
            message = f"cannot resolve the input of step {task.step.id!r}: {exc}"
            return _failed("INPUT_ERROR", message, fatal=True)
        try:
            plan = self._plan(manifest, manifest.stateful, task)
            job = await self._kept(partial(self._engine.open_job, task, plan))
        except (LeaseLost, _Detached):
            return None
        masks = Masks(secrets) if secrets else None
        async with asyncio.TaskGroup() as group:
            lines = Lines(group, on_logs, masks)
            stretch = _Stretch(task, job, manifest, given, secrets, masks, lines, began_s)
            try:
                finished = await self._run(stretch)
            except (LeaseLost, _Detached):
                finished = None  # cancelled meanwhile: what was begun is ended by its commit
            finally:
                lines.end()
        if finished is None:
            if lines.waiting:
                await on_logs(lines.waiting)
            return None
        return replace(finished, logs=[*lines.waiting, *finished.logs])

    def _plan(self, manifest: Manifest, stateful: Stateful, task: Task) -> JobPlan:
        ttl_ms = task.step.timeout_ms or manifest.timeout_ms
        return JobPlan(
            resources=stateful.resources,
            nanos_per_s=nanos(self._settings.billing.jobs.of(stateful.resources)),
            ttl_ms=min(ttl_ms, stateful.ttl_hard_ms),
            ttl_soft_ms=stateful.ttl_soft_ms,
            ttl_hard_ms=stateful.ttl_hard_ms,
            attempts_max=self._settings.jobs.maxAttempts,
            checkpoint_bytes_max=stateful.checkpoint_bytes_max,
        )

    async def _run(self, of: _Stretch) -> Finished | None:
        while True:
            try:
                attempt = await self._continued(of) or await self._fresh(of)
            except Unavailable as exc:
                if not exc.error.retryable:
                    return self._over(of, exc.error)
                attempt = exc.error
            if isinstance(attempt, StepError):
                end = End(lost=attempt)
            else:
                end = await self._attend(of, attempt)
            if end.result is not None:
                assert isinstance(attempt, Attempt)
                return self._answered(of, attempt, end, end.result)
            if end.paused or end.superseded or end.detached:
                return None
            if end.failed is not None:
                job_end = JobEnd(of.job.key, of.job.instance, None, end.at_ns)
                return self._over(of, end.failed, job_end)
            assert end.lost is not None
            losing = partial(self._engine.lose_instance, _fence(of), end.at_ns, end.lost)
            lost = await self._kept(losing)
            of.job = lost.job
            log.info(
                "an instance was lost: %s",
                end.lost.message,
                extra={"job": of.job.id, "attempt": of.job.attempt, "code": end.lost.code},
            )
            if not lost.may_retry:
                return self._over(of, end.lost)
            async with self._waiting():
                await asyncio.sleep(lost.backoff_ms / 1000)

    async def _attend(self, of: _Stretch, attempt: Attempt) -> End:
        """Run an attempt to its end, and see to its instance."""
        key, instance = of.job.key, attempt.instance
        leaving = self._leaving[key] = asyncio.Event()
        self._attempts[key] = attempt
        if self._detaching:
            attempt.detach()
        try:
            end = await attempt.run()
            of.job = attempt.job
            if end.paused:
                await self._fleet.hold(key, instance)
            elif end.lost is not None or end.failed is not None:
                self._fleet.drop(instance)
            elif end.superseded:
                self._fleet.abandon([instance.id])
            return end
        except asyncio.CancelledError:
            if not self._detaching:
                self._fleet.abandon([instance.id])
            raise
        finally:
            del self._attempts[key], self._leaving[key]
            leaving.set()

    def _answered(self, of: _Stretch, attempt: Attempt, end: End, said: Result) -> Finished:
        """The agent's last word as a result. Its instance is ended by the commit that applies it;
        until then the agent would say it again to another daemon."""
        instance = attempt.instance
        instance.has_answered = True
        if said.answer is None:
            ending = Ending(said.ending or "protocol")
            reply = Reply(ending, None, said.message or "", usage=self._usage(attempt))
        else:
            reply = _reply_of(said.answer, self._usage(attempt))
        if instance.visit is not None:
            reply = replace(reply, traffic=instance.visit.close())
        if of.masks is not None:
            reply = masked(reply, of.masks)
        job_end = JobEnd(of.job.key, instance.id, said.seq, end.at_ns)
        now_ms = self._clock.now_ms()
        result = result_of(reply, now_ms, worker_id="container")
        said_last = last_lines(result, reply.traffic, now_ms)
        return Finished(replace(result, job=job_end), said_last)

    def _usage(self, attempt: Attempt) -> Usage:
        groups = attempt.instance.container.groups
        cpu_ns = groups.cpu_ns() if groups is not None else None
        peak = groups.memory_peak_bytes() if groups is not None else None
        return Usage(
            wall_ms=attempt.active_ms, cpu_ms=(cpu_ns or 0) // 10**6, peak_memory_bytes=peak or 0
        )

    def _over(self, of: _Stretch, error: StepError, end: JobEnd | None = None) -> Finished:
        end = end or JobEnd(of.job.key, of.job.instance)
        result = TaskResult(Outcome.ERROR, error=error, worker_id="container", job=end)
        return Finished(result)

    # --- the instance of a stretch ---------------------------------------------------------------

    async def _continued(self, of: _Stretch) -> Attempt | StepError | None:
        """Go on in the instance that the job has: frozen, or adopted. None: it has none; a
        StepError: it had one that is lost."""
        job = of.job
        if (leaving := self._leaving.get(job.key)) is not None:
            await leaving.wait()
        instance = self._fleet.held(job.key)
        if instance is not None and (instance.id != job.instance or not instance.is_alive):
            self._fleet.drop(instance)
            instance = None
        if instance is None:
            if job.instance is None or job.resuming:
                return None
            return StepError("JOB_LOST", "the container is gone, with the machine or without it")
        self._let_online(of, instance)
        try:
            await self._fleet.thaw(instance)
            if not job.resuming:
                async with self._waiting():
                    hello = await instance.agent.connected(self._settings.jobs.adoptMs / 1000)
                if not hello.attempt:  # the daemon died before it gave the task
                    self._fleet.drop(instance)
                    return None
        except UNSTARTABLE as exc:
            self._fleet.drop(instance)
            if job.resuming:
                return None
            return StepError("JOB_LOST", f"the container cannot be taken over: {exc}")
        attempt = await self._begun(of, instance)
        if job.resuming:
            # After a pause by hand its handler does not know of, there is nothing to be given.
            resume = None if job.paused_by_hand else job.resume
            data = resume.data if resume is not None else None
            instance.agent.resume(job.resuming, data, job.last_pause_ms)
        return attempt

    async def _fresh(self, of: _Stretch) -> Attempt:
        """Go on, or begin, in another instance, from the job's checkpoints."""
        why = ""
        for _ in range(INSTANCES_TRIED_MAX):
            assert of.task.package_digest is not None
            async with self._waiting():
                instance = await self._fleet.acquire(
                    of.manifest, of.task.package_digest, of.began_s
                )
            try:
                claiming = partial(
                    self._engine.claim_instance,
                    *(of.task.key, of.task.lease_id, of.job.key),
                    instance=instance.id,
                    container=instance.container.name,
                )
                of.job = await self._kept(claiming)
                self._let_online(of, instance)
                await instance.agent.give(await self._assignment(of, instance), ACCEPT_S)
                return await self._begun(of, instance)
            except (Unanswered, ProtocolError) as exc:
                why = str(exc)
                self._fleet.drop(instance)
            except BaseException:
                self._fleet.drop(instance)
                raise
        message = f"{INSTANCES_TRIED_MAX} containers did not take the task: {why}"
        raise Unavailable("CONTAINERS_UNAVAILABLE", message)

    def _let_online(self, of: _Stretch, instance: Instance) -> None:
        """Give an attempt its network. One that was adopted has no visit yet."""
        egress = egress_of(of.manifest, self._settings)
        if instance.gateway is not None and instance.visit is None and egress is not None:
            instance.visit = instance.gateway.open(egress)

    async def _begun(self, of: _Stretch, instance: Instance) -> Attempt:
        """It runs: its active time begins."""
        fence = replace(_fence(of), instance=instance.id)
        active_ns = await self._engine.active_ns(of.job.key)
        resuming = of.job.resuming
        begun = await self._kept(
            lambda: self._engine.begin_active(fence, self._boot, boottime_ns())
        )
        of.job = replace(begun, resuming=resuming)
        stateful = of.manifest.stateful
        assert stateful is not None
        rules = Rules(
            heartbeat_ms=self._settings.jobs.heartbeatMs,
            interval_ms=stateful.checkpoint_interval_ms,
            pause_max_ms=stateful.pause_ms_max if stateful.pause_enabled else 0,
        )
        return Attempt(
            *(of.task, of.job, instance, self._engine, self._clock, rules),
            *(self._checkpoints, of.lines, of.masks, active_ns),
        )

    async def _assignment(self, of: _Stretch, instance: Instance) -> Assignment:
        task, job, stateful = of.task, of.job, of.manifest.stateful
        assert stateful is not None
        saved = await self._engine.checkpoints_of(job.key)
        resume = job.resume
        return Assignment(
            attempt=job.attempt,
            job_id=job.id,
            task_id=task.id,
            package=SPECIALISED if instance.is_specialised else APP,
            entrypoint=of.manifest.entrypoint,
            execution_id=task.execution_id,
            flow_id=task.flow_id,
            step_id=task.step.id,
            step_attempt=task.attempt,
            tenant_id=task.tenant_id,
            has_input=of.given is not NO_VALUE,
            input=None if of.given is NO_VALUE else of.given,
            config=dict(task.step.config),
            secrets={name: value.text for name, value in of.secrets.items()},
            heartbeat_ms=self._settings.jobs.heartbeatMs,
            interval_ms=stateful.checkpoint_interval_ms,
            checkpoint_max_bytes=job.checkpoint_bytes_max,
            checkpoints={
                one.name: {"size": one.size_bytes, "savedAtMs": one.saved_at_ms} for one in saved
            },
            ttl_ms=job.ttl_ms,
            ttl_soft_ms=job.ttl_soft_ms,
            ttl_hard_ms=job.ttl_hard_ms,
            active_ms=await self._engine.active_ns(job.key) // 10**6,
            pause_max_ms=stateful.pause_ms_max if stateful.pause_enabled else 0,
            resume=None
            if resume is None
            else {
                "by": resume.by,
                "data": resume.data,
                "reason": resume.reason,
                "event": resume.event,
                "pausedMs": resume.paused_ms,
            },
        )

    # --- waiting ---------------------------------------------------------------------------------

    async def _kept(self, verb: Callable[[], Awaitable[_Answer]]) -> _Answer:
        """What a verb of the engine's answers, once the disk has room for what it does."""
        while True:
            try:
                return await verb()
            except NotNow as exc:
                log.warning("the engine refuses for now: %s", exc)
            async with self._waiting():
                await asyncio.sleep(RETRY_S)

    @contextlib.asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        """What is waited for here can be waited for by the next daemon too: raises _Detached when
        this one ends."""
        limit = asyncio.timeout(0 if self._detaching else None)
        try:
            async with limit:
                self._waits.add(limit)
                try:
                    yield
                finally:
                    self._waits.discard(limit)
        except TimeoutError as exc:
            if limit.expired():
                raise _Detached from exc
            raise


class _Detached(Exception):
    """The daemon ends."""


def _fence(of: _Stretch) -> Fence:
    return Fence(of.task.key, of.task.lease_id, of.job.key, of.job.instance)


def _failed(code: str, message: str, fatal: bool = False) -> Finished:
    error = StepError(code, message, retryable=False)
    return Finished(TaskResult(Outcome.ERROR, error=error, fatal=fatal, worker_id="container"))


def _reply_of(answer: Mapping[str, Any], usage: Usage) -> Reply:
    """What a handler has answered, in the shape and within the limits of any other's."""
    try:
        return Reply(Ending.RESULT, checked_result(dict(answer)), usage=usage)
    except wire.ProtocolError as exc:
        return Reply(Ending.PROTOCOL, None, f"broke the protocol: {exc}", usage=usage)
