"""The life of a job: made, claimed, run, lost, ended; who may write to it, and who not."""

from flowmonkeyd.jobmodel import JobState
from flowmonkeyd.store import jobs


async def job_of(fm, instance):
    return await fm.store.read(lambda conn: jobs.get(conn, instance.job.key))


async def test_a_stateful_step_is_a_job_and_its_result_goes_on(fm, machine):
    run = await fm.create("f", {"n": 1})
    instance = await machine.start()
    assert (instance.job.state, instance.job.attempt) == (JobState.RUNNING, 1)
    fm.advance(3000)
    await instance.finish({"frames": 3})
    job = await job_of(fm, instance)
    assert (job.state, job.instance) == (JobState.COMPLETED, None)
    run = await fm.run(run.id)
    assert run.status == "completed"
    assert run.context["film"] == {"frames": 3}
