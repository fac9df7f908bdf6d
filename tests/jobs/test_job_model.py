"""Jobs whatever happens in whatever order: kills, pauses, adoptions, reboots, retries, cancels.

Hypothesis plays the executor of containers against the real engine and keeps a naive account of
what it saw: when each instance was at work and until when somebody heard of it, and what was kept.
After each step the tables must say the same: active time is what was seen and no moment twice, the
bill is that of the time, checkpoints are the last ones saved, and of all instances that ever were
only the one that holds the job can write.
"""

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flowmonkeyd.billing import job_nanos
from flowmonkeyd.errors import Conflict, LeaseLost
from flowmonkeyd.jobmodel import Job, JobState
from flowmonkeyd.model import JobEnd, Outcome, StepError, Task, TaskResult
from flowmonkeyd.store import billing, checkpoints, jobs, segments
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, echo, step
from tests.jobs.instances import PLAN, Instance, Machine, publish
from tests.jobs.test_jobs import whole

RETRY = {"maxAttempts": 1, "backoffMs": 50}
FILM = doc(step("s", "acme/film", retry=RETRY, next="z"), step("z"))
LOST = StepError("JOB_LOST", "gone")
NO = StepError("NO", "no")
PICK = st.integers(min_value=0, max_value=10**6)
MS = st.sampled_from([0, 1, 49, 50, 4999, 61_000])


class Account:
    """What was seen of one job."""

    def __init__(self) -> None:
        self.spans: list[list[Any]] = []  # boot, from ns, seen until ns
        self.kept: dict[str, bytes] = {}
        self.billed_ns = 0

    @property
    def active_ns(self) -> int:
        return sum(until - start for _, start, until in self.spans)

    def begin(self, boot: str, ns: int) -> None:
        self.spans.append([boot, ns, ns])

    def seen(self, ns: int) -> None:
        self.spans[-1][2] = max(ns, self.spans[-1][2])


class JobModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.fm = FlowHarness({"echo": echo})
        self.run = self.runner.run
        self.run(self.fm.__aenter__())
        self.run(publish(self.fm))
        self.fm.apply(FILM)
        self.machine = Machine(self.fm)
        self.runs: list[str] = []
        self.accounts: dict[int, Account] = {}
        self.instances: list[Instance] = []
        self.alive: set[str] = set()  # containers that run, or are frozen
        self.at_work: dict[str, Instance] = {}  # those that somebody attends to

    def teardown(self) -> None:
        self.run(self.fm.__aexit__(None, None, None))
        self.runner.close()

    # --- the executor ----------------------------------------------------------------------------

    def working(self, pick: int) -> Instance:
        return list(self.at_work.values())[pick % len(self.at_work)]

    def attend(self, instance: Instance) -> None:
        """The instance begins, or goes on."""
        self.run(instance.begin())
        account = self.accounts.setdefault(instance.job.key, Account())
        account.begin(self.machine.boot, self.machine.ns)
        self.at_work[instance.name] = instance

    def fresh(self, task: Task) -> None:
        instance = self.run(self.machine.instance(task))
        self.instances.append(instance)
        self.alive.add(instance.name)
        self.attend(instance)

    def gone(self, instance: Instance, at_ns: int | None) -> None:
        """Its container has ended; there is another one, or the step has had enough."""
        self.alive.discard(instance.name)
        self.at_work.pop(instance.name, None)
        if at_ns is not None:
            self.accounts[instance.job.key].seen(at_ns)
        lost = self.run(self.fm.engine.lose_instance(instance.fence, at_ns, LOST))
        if lost.may_retry:
            self.fresh(instance.task)
        else:
            self.end(instance.task, TaskResult(Outcome.ERROR, error=LOST, job=JobEnd(lost.job.key)))

    def end(self, task: Task, result: TaskResult) -> None:
        assert result.job is not None
        self.run(self.fm.engine.finish(task.key, task.lease_id, result))
        account = self.accounts[result.job.job]
        account.billed_ns = account.active_ns

    @rule()
    @precondition(lambda self: len(self.runs) < 4)
    def create(self) -> None:
        self.runs.append(self.run(self.fm.create("f")).id)

    @rule()
    def take(self) -> None:
        task = self.run(self.machine.claim())
        if task is None:
            return
        job = self.run(self.fm.engine.open_job(task, PLAN))
        holder = next((one for one in self.instances if one.name == job.instance), None)
        if holder is None:
            self.fresh(task)
            return
        holder.task = task
        if holder.name in self.alive:
            self.attend(holder)
        elif job.resuming:
            self.fresh(task)
        else:
            self.gone(holder, None)

    @rule(pick=PICK)
    @precondition(lambda self: self.at_work)
    def beat(self, pick: int) -> None:
        instance = self.working(pick)
        self.run(instance.beat())
        self.accounts[instance.job.key].seen(self.machine.ns)

    @rule(pick=PICK, name=st.sampled_from("ab"), data=st.binary(max_size=3), twice=st.booleans())
    @precondition(lambda self: self.at_work)
    def save(self, pick: int, name: str, data: bytes, twice: bool) -> None:
        instance = self.working(pick)
        account = self.accounts[instance.job.key]
        assert self.run(instance.save(data, name))
        if twice:
            instance.seq -= 1
            assert not self.run(instance.save(b"again", name))
        account.seen(self.machine.ns)
        account.kept[name] = data

    @rule(pick=PICK, wake_ms=st.sampled_from([None, 100, 60_000]), by_hand=st.booleans())
    @precondition(lambda self: self.at_work)
    def pause(self, pick: int, wake_ms: int | None, by_hand: bool) -> None:
        instance = self.working(pick)
        wake_at_ms = None if wake_ms is None else self.fm.clock.now_ms() + wake_ms
        if by_hand:
            self.run(
                self.fm.engine.pause_by_hand(
                    instance.fence, "uid:0", None, wake_at_ms, self.machine.ns
                )
            )
        else:
            self.run(instance.pause(event="go", wake_at_ms=wake_at_ms))
        self.accounts[instance.job.key].seen(self.machine.ns)
        del self.at_work[instance.name]

    @rule(pick=PICK, seen=st.booleans())
    @precondition(lambda self: self.at_work)
    def lose(self, pick: int, seen: bool) -> None:
        self.gone(self.working(pick), self.machine.ns if seen else None)

    @rule(pick=PICK, succeeds=st.booleans())
    @precondition(lambda self: self.at_work)
    def finish(self, pick: int, succeeds: bool) -> None:
        instance = self.working(pick)
        end = JobEnd(instance.job.key, instance.name, instance.number(), self.machine.ns)
        outcome = Outcome.SUCCESS if succeeds else Outcome.FAILURE
        result = TaskResult(outcome, error=None if succeeds else NO, job=end)
        self.accounts[instance.job.key].seen(self.machine.ns)
        self.end(instance.task, result)
        self.alive.discard(instance.name)
        del self.at_work[instance.name]

    # --- everybody else --------------------------------------------------------------------------

    @rule(ms=MS)
    def advance(self, ms: int) -> None:
        self.fm.advance(ms)
        self.run(self.fm.settle())

    @rule()
    def send_event(self) -> None:
        self.run(self.fm.send_event("go", {"n": 1}))

    @rule(pick=PICK)
    @precondition(lambda self: self.runs)
    def resume(self, pick: int) -> None:
        try:
            self.run(self.fm.engine.resume(self.runs[pick % len(self.runs)]))
        except Conflict:
            pass

    @rule(pick=PICK)
    @precondition(lambda self: self.runs)
    def retry(self, pick: int) -> None:
        try:
            self.run(self.fm.engine.retry(self.runs[pick % len(self.runs)], "s"))
        except Conflict:
            pass

    @rule(pick=PICK)
    @precondition(lambda self: self.runs)
    def cancel(self, pick: int) -> None:
        hints: list[Any] = []
        self.fm.store.on_commit = hints.append
        before = self.run(self.fm.engine.instances_wanted())
        try:
            self.run(self.fm.cancel(self.runs[pick % len(self.runs)]))
        except Conflict:
            return
        after = self.run(self.fm.engine.instances_wanted())
        evicted = set().union(*(one.evicted for one in hints))
        assert evicted == before.keys() - after.keys()
        for name in evicted:
            self.alive.discard(name)
            self.at_work.pop(name, None)
        for job in self.run(self.fm.store.read(self.all_jobs)):
            if job.state is JobState.CANCELLED and job.key in self.accounts:
                self.accounts[job.key].billed_ns = self.accounts[job.key].active_ns

    @rule()
    def restart(self) -> None:
        """The daemon is killed: containers run on, and nobody attends to them."""
        self.run(self.fm.restart())
        self.at_work.clear()

    @rule()
    def reboot(self) -> None:
        self.restart()
        self.alive.clear()
        self.machine.reboot()

    @rule(pick=PICK, how=st.sampled_from(["beat", "save", "pause", "begin", "finish"]))
    @precondition(lambda self: len(self.instances) > len(self.at_work))
    def speak_out_of_turn(self, pick: int, how: str) -> None:
        others = [one for one in self.instances if one.name not in self.at_work]
        instance = others[pick % len(others)]
        acts = {"save": lambda: instance.save(b"stale")}
        before = self.run(self.fm.store.read(whole))
        with pytest.raises(LeaseLost):
            self.run(acts.get(how, getattr(instance, how))())
        assert self.run(self.fm.store.read(whole)) == before

    # --- what must be true -----------------------------------------------------------------------

    def all_jobs(self, conn: Any) -> list[Job]:
        return [one.job for one in jobs.list_page(conn, jobs.Page(1000))]

    @invariant()
    def the_tables_say_what_was_seen(self) -> None:
        self.run(self.fm.store.read(self.look))

    def look(self, conn: Any) -> None:
        for job in self.all_jobs(conn):
            account = self.accounts.get(job.key, Account())
            assert segments.active_ns(conn, job.key) == account.active_ns
            assert billing.charged_to_job(conn, job.key)[1] == job_nanos(
                account.billed_ns, job.nanos_per_s
            )
            names = {one.name for one in checkpoints.of_job(conn, job.key)}
            kept = {name: checkpoints.get(conn, job.key, name) for name in names}
            assert {name: one.data for name, one in kept.items()} == account.kept
            found = segments.of_job(conn, job.key)
            for one, following in pairwise(found):
                assert one.ended
                assert one.boot != following.boot or one.last_ns <= following.started_ns
            self.agrees_with_its_execution(conn, job)

    def agrees_with_its_execution(self, conn: Any, job: Job) -> None:
        (status,) = conn.execute(
            "SELECT status FROM executions WHERE key = ?", (job.execution,)
        ).fetchone()
        waits = conn.execute(
            "SELECT kind FROM waits WHERE execution = ?", (job.execution,)
        ).fetchone()
        if job.state is JobState.PAUSED:
            assert (status, waits) == ("waiting", ("pause",))
        elif not job.state.is_final:
            assert (status, waits) in (("running", None), ("waiting", ("retry",)))
        if job.state.is_final:
            assert job.instance is None
        assert sum(not one.ended for one in segments.of_job(conn, job.key)) <= (
            job.state is JobState.RUNNING
        )
        if job.instance in self.at_work:
            assert job.state is JobState.RUNNING


def simulate(seed: int, moves: int) -> JobModel:
    """One long life by chance: deeper than Hypothesis goes, and reproduced by its seed alone."""
    chance, model = random.Random(seed), JobModel()

    def when(things: Callable[[], Any], act: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: act() if things() else None

    def number() -> int:
        return chance.randrange(10**6)

    def coin() -> bool:
        return chance.random() < 0.5

    at_work, runs = (lambda: model.at_work), (lambda: model.runs)
    acts = {
        when(lambda: len(model.runs) < 30, model.create): 6,
        model.take: 25,
        when(at_work, lambda: model.beat(number())): 15,
        when(at_work, lambda: model.save(number(), chance.choice("ab"), b"x", coin())): 10,
        when(at_work, lambda: model.pause(number(), chance.choice([None, 100]), coin())): 10,
        when(at_work, lambda: model.lose(number(), coin())): 8,
        when(at_work, lambda: model.finish(number(), coin())): 6,
        lambda: model.advance(chance.choice([0, 1, 50, 4999, 61_000])): 15,
        model.send_event: 6,
        when(runs, lambda: model.resume(number())): 6,
        when(runs, lambda: model.retry(number())): 8,
        when(runs, lambda: model.cancel(number())): 4,
        model.restart: 4,
        model.reboot: 1,
        when(
            lambda: len(model.instances) > len(model.at_work),
            lambda: model.speak_out_of_turn(
                number(), chance.choice(["beat", "save", "pause", "begin", "finish"])
            ),
        ): 10,
    }
    try:
        for act in chance.choices(list(acts), list(acts.values()), k=moves):
            act()
            model.the_tables_say_what_was_seen()
    except BaseException:
        print(f"simulate(seed={seed}, moves={moves})")
        raise
    finally:
        model.teardown()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_long_lives_of_jobs_by_chance(seed: int) -> None:
    model = simulate(seed, 300)
    assert len(model.instances) > 20
    assert sum(len(one.spans) for one in model.accounts.values()) > 30


TestJobModel = pytest.mark.slow(JobModel.TestCase)
TestJobModel.settings = settings(
    max_examples=30,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
