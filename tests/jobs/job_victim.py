"""The process that dies with a job: a film of six frames, cut by the test as a handler would.

It keeps each frame, pauses for an event after the third and fails once after the fourth, which its
step retries. What ran in the process that died is gone with it; the next one goes on from the
checkpoint, as a container that was lost would.
"""

import os
from pathlib import Path

from flowmonkeyd import jsontext
from flowmonkeyd.model import ExecutionStatus, StepError, Task
from flowmonkeyd.testing import FlowHarness
from tests.crash.victim import serve
from tests.flows import doc, echo, step
from tests.jobs.instances import Instance, Machine, keep, publish

__all__ = ["FRAMES", "drive", "harness"]

FRAMES = 6
PAUSED_AT, FAILED_AT = 3, 4
DOCUMENT = doc(
    step("film", "acme/film", retry={"maxAttempts": 1, "backoffMs": 50}, out="film", next="z"),
    step("z"),
)


def harness(path: Path, start_ms: int) -> FlowHarness:
    return FlowHarness({"echo": echo}, path=path, start_ms=start_ms)


async def drive(fm: FlowHarness) -> None:
    """A client and a machine that know nothing of deaths."""
    await publish(fm)
    await fm.engine.apply_flow(DOCUMENT)
    await fm.create("f", id="one", idempotency_key="once")
    machine = Machine(fm)
    machine.boot = f"boot of {os.getpid()}"
    while not (run := await fm.get("one")).status.is_final:
        task = await machine.claim()
        if task is not None:
            await work(fm, machine, task)
        elif run.status is ExecutionStatus.WAITING and run.wake_at_ms is None:
            await fm.send_event("uploaded", {"id": 7})
        else:
            fm.advance(50)
            await fm.settle()


async def work(fm: FlowHarness, machine: Machine, task: Task) -> None:
    """A container takes the job; one that had it before died with its process, or is frozen."""
    plan = machine.plan(attempts_max=100)
    job = await fm.engine.open_job(task, plan)
    if job.instance is not None and not job.resuming:
        old = Instance(fm, machine, task, job, job.instance)
        error = StepError("JOB_LOST", "died with the machine")
        await fm.engine.lose_instance(old.fence, None, error)
    instance = await machine.instance(task, plan)
    await instance.begin()
    await cut(instance)


async def cut(instance: Instance) -> None:
    """The handler."""
    engine, job = instance.fm.engine, instance.job
    kept = await engine.checkpoint_of(job.key, "frames")
    frames = [] if kept is None else jsontext.loads(kept.data or b"")
    while len(frames) < FRAMES:
        instance.fm.advance(1000)
        await instance.beat()
        frame = {"frame": len(frames)}
        if len(frames) == PAUSED_AT:
            if instance.job.resume is None:
                await instance.pause("upload", "uploaded", {"id": 7}, None, as_kept(frames))
                return
            frame["upload"] = instance.job.resume.data
        if len(frames) == FAILED_AT and instance.task.attempt == 0:
            await instance.finish(error=StepError("NOT_YET", "not yet"))
            return
        frames.append(frame)
        await instance.save(jsontext.encode(frames), "frames")
    await instance.finish(frames)


def as_kept(frames: list[object]) -> object:
    return keep(jsontext.encode(frames), "frames")


if __name__ == "__main__":
    serve(harness, drive)
