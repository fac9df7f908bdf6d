"""Instances of a stateful handler, played by the test: the real engine, no container.

`machine` gives CLOCK_BOOTTIME, which moves with the harness's clock and starts anew at a reboot.
"""

from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import Conflict
from flowmonkeyd.jobmodel import Fence, Job, JobPlan, NewCheckpoint, Progress
from flowmonkeyd.model import (
    JobEnd,
    Lane,
    Outcome,
    StepError,
    Task,
    TaskResult,
    Wait,
    WaitKind,
)
from flowmonkeyd.testing import FlowHarness

__all__ = ["HOUR_MS", "PLAN", "ByHand", "Instance", "Machine", "keep", "publish"]

HOUR_MS = 3600_000
PLAN = JobPlan(
    resources="heavy",
    nanos_per_s=100_000,  # 0.0001 $
    ttl_ms=HOUR_MS,
    ttl_soft_ms=HOUR_MS,
    ttl_hard_ms=24 * HOUR_MS,
    attempts_max=3,
    checkpoint_bytes_max=1000,
)


async def publish(fm: FlowHarness, type: str = "acme/film", stateful: bool = True) -> None:
    manifest = {"handler": {"type": type, "version": "1.0.0", "stateful": stateful}}
    await fm.engine.publish(type, "1.0.0", f"digest of {type}", jsontext.dumps(manifest), 1)


def keep(data: bytes, name: str = "default", file: str | None = None) -> NewCheckpoint:
    """A checkpoint of these bytes, in the table or in a file of this name."""
    digest = sha256(data).hexdigest()
    kept = None if file else data
    return NewCheckpoint(name, len(data), "bytes", "none", digest, kept, file)


class Machine:
    """The machine: boots, and its clock that runs with the harness's."""

    def __init__(self, fm: Any) -> None:
        """`fm` has an engine and a clock: a FlowHarness, or a served API."""
        self._fm = fm
        self._booted_ms = fm.clock.now_ms()
        self.boot = "boot 1"
        self.instances = 0

    @property
    def ns(self) -> int:
        return (self._fm.clock.now_ms() - self._booted_ms) * 1_000_000

    def jump(self, ms: int) -> None:
        """The clock on the wall is set, and no time goes by."""
        self._fm.advance(ms)
        self._booted_ms += ms

    def reboot(self) -> None:
        self._booted_ms = self._fm.clock.now_ms()
        self.boot = f"boot {int(self.boot.split()[1]) + 1}"

    @staticmethod
    def plan(**changes: Any) -> JobPlan:
        return replace(PLAN, **changes)

    async def claim(self, execution_id: str | None = None) -> Task | None:
        """The next task of the lane."""
        found = await self._fm.engine.claim(Lane.CONTAINER, 1, "w", execution_id=execution_id)
        return found[0] if found else None

    async def start(self, execution_id: str | None = None, plan: JobPlan = PLAN) -> "Instance":
        """A new container takes the next task and runs."""
        task = await self.claim(execution_id)
        assert task is not None, "no task"
        instance = await self.instance(task, plan)
        await instance.begin()
        return instance

    async def instance(self, task: Task, plan: JobPlan = PLAN) -> "Instance":
        """A new container takes a task; it has not accepted it yet."""
        engine = self._fm.engine
        job = await engine.open_job(task, plan)
        self.instances += 1
        name = f"{self.instances:032x}"
        job = await engine.claim_instance(task.key, task.lease_id, job.key, name, f"c-{name}")
        return Instance(self._fm, self, task, job, name)

    async def thaw(self, frozen: "Instance") -> "Instance":
        """The frozen container of a job that was resumed goes on, under the new task."""
        task = await self.claim(frozen.task.execution_id)
        assert task is not None, "no task"
        job = await self._fm.engine.open_job(task, PLAN)
        assert job.instance == frozen.name
        again = replace(frozen, task=task, job=job)
        await again.begin()
        return again


@dataclass
class Instance:
    fm: FlowHarness
    machine: Machine
    task: Task
    job: Job
    name: str
    seq: int = 0
    lost: list[str] = field(default_factory=list)

    @property
    def fence(self) -> Fence:
        return Fence(self.task.key, self.task.lease_id, self.job.key, self.name)

    def number(self) -> int:
        self.seq += 1
        return self.seq

    async def begin(self) -> None:
        machine = self.machine
        self.job = await self.fm.engine.begin_active(self.fence, machine.boot, machine.ns)

    async def beat(self, progress: Progress | None = None) -> None:
        await self.fm.engine.heartbeat(self.fence, self.machine.ns, progress)

    async def save(
        self, data: bytes, name: str = "default", settled: bool = True, file: str | None = None
    ) -> bool:
        kept = keep(data, name, file)
        return await self.fm.engine.save_checkpoint(
            self.fence, self.number(), kept, settled, self.machine.ns
        )

    async def pause(
        self,
        reason: str | None = "upload",
        event: str | None = None,
        filter: Any = None,
        wake_at_ms: int | None = None,
        checkpoint: NewCheckpoint | None = None,
    ) -> Job:
        wait = Wait(WaitKind.PAUSE, wake_at_ms, reason, event, filter)
        return await self.fm.engine.pause_job(
            self.fence, self.number(), wait, checkpoint, self.machine.ns
        )

    async def finish(self, output: Any = "done", error: StepError | None = None) -> None:
        outcome = Outcome.SUCCESS if error is None else Outcome.ERROR
        end = JobEnd(self.job.key, self.name, self.number(), self.machine.ns)
        result = TaskResult(outcome, output=output, error=error, worker_id=self.name, job=end)
        await self.fm.engine.finish(self.task.key, self.task.lease_id, result)


@dataclass
class ByHand:
    """Who runs the containers, as the API knows it: pauses the instances that it was given."""

    engine: Engine
    instances: dict[str, Instance]

    async def pause(self, job_id: str, by: str, reason: str | None) -> None:
        instance = self.instances.get(job_id)
        if instance is None:
            raise Conflict(f"cannot pause job {job_id}: it is not running", code="NOT_RUNNING")
        await self.engine.pause_by_hand(instance.fence, by, reason, None, instance.machine.ns)
