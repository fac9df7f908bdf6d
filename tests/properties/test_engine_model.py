"""The engine and its store against `tests/oracle.py`, whatever happens in whatever order.

Hypothesis drives both: creates, claims, results (in time, late, twice), waits, events, cancels,
retries by hand, the clock, restarts at any point. After each step every execution is compared:
none is lost, no result is applied twice, the status is legal, the history has no gap and is as long
as `stepCount`, the ledger has no gap and only grows.
"""

import asyncio
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flowmonkeyd.errors import Conflict, Invalid, LeaseLost
from flowmonkeyd.model import (
    Lane,
    Outcome,
    StepError,
    Task,
    TaskResult,
    Timeouts,
    Wait,
    WaitKind,
)
from flowmonkeyd.store import executions, history, ledger
from flowmonkeyd.testing import FlowHarness
from flowmonkeyd.work import LEASE_MS
from tests.flows import doc, echo, step, sub_flow, wait_for_event
from tests.oracle import Oracle, Run, comparable

STEPS_MAX = 9
LINE = doc(
    step("a", "t", retry={"maxAttempts": 2}, out="r.n", next="b", fail="c"),
    step("b", "t", retry={"maxAttempts": 2, "backoffMs": 100}, out="r.m", next="w", fail="c"),
    step("c", "t", out="big"),
    wait_for_event("w", config={"filter": {"id": 1}, "maxWaitMs": 1000}, resume="c"),
    id="line",
)
SLEEPY = doc(step("d", "delay", config={"ms": 500}, next="t"), step("t", "t"), id="sleepy")
FAMILY = doc(
    sub_flow("s", "line", retry={"maxAttempts": 1}, out="kid", next="e", fail="m"),
    step("m", "t"),
    wait_for_event("e"),
    id="family",
)
FAN = doc(
    sub_flow("s", "sleepy", config={"forEach": "items"}, out="kids", fail="m"),
    step("m", "t"),
    id="fan",
)
LOOP = doc(
    step(
        "k",
        "conditional",
        config={
            "conditions": [{"path": "n", "op": "gt", "value": 2, "target": "t"}],
            "default": None,
        },
    ),
    step("t", "t", out="n", next="k", fail="k"),
    id="loop",
)
DEEP = doc(sub_flow("s", "family", out="kid"), id="deep")
FLOWS = [LINE, SLEEPY, FAMILY, FAN, LOOP, DEEP]

SUCCESS = st.fixed_dictionaries(
    {"outcome": st.just("success")},
    optional={"output": st.sampled_from([None, 0, 7, "x" * 600, {"y": [1]}])},
)
RESULTS = st.one_of(
    SUCCESS,
    SUCCESS,
    st.fixed_dictionaries(
        {
            "outcome": st.sampled_from(["failure", "error"]),
            "code": st.sampled_from(["E1", "E2"]),
            "retryable": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {
            "outcome": st.just("wait"),
            "wait": st.sampled_from(
                [
                    {"kind": "time", "ms": 50},
                    {"kind": "event", "ms": None, "event": "go"},
                    {"kind": "event", "ms": 80, "event": "go", "filter": {"id": 2}},
                ]
            ),
        }
    ),
)
PICK = st.integers(min_value=0, max_value=10**6)


class EngineModel(RuleBasedStateMachine):
    """The two worlds side by side. `tasks` are leases given out, live or long over."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.fm = FlowHarness({"t": echo}, max_steps=STEPS_MAX)
        self.runner.run(self.fm.__aenter__())
        self.oracle = Oracle(FLOWS, STEPS_MAX, LEASE_MS)
        self.oracle.now_ms = self.fm.clock.now_ms()
        self.tasks: list[Task] = []
        self.last_seq = 0
        for document in FLOWS:
            self.runner.run(self.fm.engine.apply_flow(document))

    def teardown(self) -> None:
        self.runner.run(self.fm.__aexit__(None, None, None))
        self.runner.close()

    def run_of(self, execution_id: str) -> Run:
        (found,) = [run for run in self.oracle.runs if run.id == execution_id]
        return found

    def pick(self, number: int, runs: list[Run]) -> Run:
        return runs[number % len(runs)]

    # --- what users do --------------------------------------------------------------------------

    @rule(
        flow=st.sampled_from([f["id"] for f in FLOWS]),
        n=st.integers(0, 4),
        items=st.lists(st.integers(0, 3), max_size=3),
        key=st.sampled_from([None, None, "k1", "k2"]),
        times=st.sampled_from([(10**8, 10**9)] * 4 + [(700, 10**9), (10**8, 300)]),
    )
    def create(self, flow: str, n: int, items: list[int], key: str | None, times: Any) -> None:
        context = {"n": n, "items": items}
        made = self.runner.run(
            self.fm.create(flow, context, idempotency_key=key, timeouts=Timeouts(*times))
        )
        run, created = self.oracle.create(flow, context, key, *times)
        assert made.created == created
        if created:
            run.id = made.id
        assert run.id == made.id

    @precondition(lambda self: self.oracle.runs)
    @rule(number=PICK, sure=st.integers(0, 3))
    def cancel(self, number: int, sure: int) -> None:
        run = self.pick(number, self.oracle.runs)
        if sure and not run.ended:
            return  # else most would end like this
        if run.ended:
            with pytest.raises(Conflict):
                self.runner.run(self.fm.cancel(run.id or ""))
        else:
            self.runner.run(self.fm.cancel(run.id or ""))
            self.oracle.cancel(run)

    @precondition(lambda self: self.oracle.runs)
    @rule(number=PICK, first=st.booleans())
    def retry(self, number: int, first: bool) -> None:
        run = self.pick(number, self.oracle.runs)
        step_id = run.document["initialStepId"] if first else None
        if run.status in ("failed", "cancelled") and len(run.history) < STEPS_MAX:
            self.runner.run(self.fm.retry(run.id or "", step_id))
            self.oracle.retry(run, step_id or run.step_id)
        else:
            with pytest.raises(Conflict):
                self.runner.run(self.fm.retry(run.id or "", step_id))

    @precondition(lambda self: self.oracle.runs)
    @rule(number=PICK, by_token=st.booleans(), n=st.integers(0, 4))
    def resume(self, number: int, by_token: bool, n: int) -> None:
        run = self.pick(number, self.oracle.runs)
        data = {"n": n}
        if run.wait is None or run.wait["kind"] == "child":
            with pytest.raises(Conflict):
                self.runner.run(self.fm.resume(run.id or "", data))
            return
        token = self.runner.run(self.fm.get(run.id or "")).resume_token
        assert (token is not None) == (run.wait["kind"] == "event")
        if not by_token or token is None:
            self.runner.run(self.fm.resume(run.id or "", data))
        elif self.oracle.now_ms > run.wait["timeout"]:
            with pytest.raises(Invalid):
                self.runner.run(self.fm.resume_token(token, data))
            return
        else:
            self.runner.run(self.fm.resume_token(token, data))
            with pytest.raises(Invalid):
                self.runner.run(self.fm.resume_token(token, data))
        self.oracle.resume(run, data)

    @rule(id=st.integers(1, 3))
    def send_event(self, id: int) -> None:
        sent = self.runner.run(self.fm.send_event("go", {"id": id}))
        woken = self.oracle.send_event("go", {"id": id})
        assert sorted(sent.woken) == sorted(run.id or "" for run in woken)

    # --- what workers do ------------------------------------------------------------------------

    @rule(limit=st.integers(1, 4))
    def claim(self, limit: int) -> None:
        tasks = self.runner.run(self.fm.engine.claim(Lane.SANDBOX, limit, "w"))
        queued = [r for r in self.oracle.runs if r.task == "queued" and not r.is_builtin]
        assert len(tasks) == min(limit, len(queued))
        for task in tasks:
            run = self.run_of(task.execution_id)
            assert run in queued
            assert (task.step.id, task.attempt) == (run.step_id, run.attempt)
            self.oracle.claimed(run)
        self.tasks.extend(tasks)

    def holds(self, task: Task) -> bool:
        newest = [t for t in self.tasks if t.key == task.key][-1]
        return newest is task and self.run_of(task.execution_id).task == "leased"

    @precondition(lambda self: self.tasks)
    @rule(number=PICK, result=RESULTS)
    def finish(self, number: int, result: dict[str, Any]) -> None:
        task = self.tasks[-1 - number % len(self.tasks)]
        answer = self.runner.run(self._finish(task, result))
        assert (answer == "applied") == self.holds(task)
        if answer == "applied":
            if "wait" in result:
                wait = dict(result["wait"])
                ms = wait.pop("ms")
                wait["wake"] = None if ms is None else self.oracle.now_ms + ms
                result = {**result, "wait": wait}
            self.oracle.finish(self.run_of(task.execution_id), result)
            assert self.runner.run(self._finish(task, {"outcome": "success"})) == "lost"

    async def _finish(self, task: Task, result: dict[str, Any]) -> str:
        outcome = Outcome(result["outcome"])
        told = TaskResult(outcome, **({"output": result["output"]} if "output" in result else {}))
        if "code" in result:
            error = StepError(result["code"], "no", result["retryable"])
            told = TaskResult(outcome, error=error)
        if "wait" in result:
            wait = result["wait"]
            wake = None if wait["ms"] is None else self.fm.clock.now_ms() + wait["ms"]
            kind, event = WaitKind(wait["kind"]), wait.get("event")
            told = TaskResult(outcome, wait=Wait(kind, wake, None, event, wait.get("filter")))
        try:
            await self.fm.engine.finish(task.key, task.lease_id, told)
        except LeaseLost:
            return "lost"
        return "applied"

    @precondition(lambda self: self.tasks)
    @rule(number=PICK, delay_ms=st.sampled_from([0, 60]))
    def release(self, number: int, delay_ms: int) -> None:
        task = self.tasks[-1 - number % len(self.tasks)]
        if self.holds(task):
            self.runner.run(self.fm.engine.release(task.key, task.lease_id, delay_ms))
            self.oracle.released(self.run_of(task.execution_id), delay_ms)
        else:
            with pytest.raises(LeaseLost):
                self.runner.run(self.fm.engine.release(task.key, task.lease_id, delay_ms))

    # --- what the daemon does -------------------------------------------------------------------

    @rule()
    def run_builtins(self) -> None:
        while self.runner.run(self.fm.engine.run_builtins()):
            pass
        self.oracle.run_builtins()
        self.runner.run(self._meet_children())

    async def _meet_children(self) -> None:
        for run in self.oracle.runs:
            made = [r for r in self.oracle.runs if r.parent is run]
            if any(child.id is None for child in made):
                children = await self.fm.children(run.id or "")
                assert len(children) == len(made), "as many children as the model has, no more"
                for child, known in zip(made, children, strict=True):
                    assert child.id in (None, known.id)
                    child.id = known.id

    @rule(results=st.lists(RESULTS, min_size=1, max_size=8))
    def work(self, results: list[dict[str, Any]]) -> None:
        """Workers that take what there is and finish it in time; then built-in steps."""
        for result in results:
            self.run_builtins()
            known = len(self.tasks)
            self.claim(1)
            if len(self.tasks) > known:
                self.finish(0, result)
        self.run_builtins()

    @rule(ms=st.sampled_from([50, 100, 500, 1000]))
    def sleep(self, ms: int) -> None:
        """Time passes and is noticed."""
        self.advance(ms)
        self.fire_due()
        self.run_builtins()

    @rule(ms=st.sampled_from([1, 49, 50, 100, 299, 300, 500, 700] * 2 + [LEASE_MS, 10**8]))
    def advance(self, ms: int) -> None:
        self.fm.advance(ms)
        self.oracle.now_ms += ms

    @rule()
    def fire_due(self) -> None:
        self.runner.run(self.fm._fire_due())
        self.oracle.due()

    @rule()
    def restart(self) -> None:
        self.runner.run(self.fm.restart())
        self.oracle.restarted()

    # --- what must always hold ------------------------------------------------------------------

    @invariant()
    def both_worlds_agree(self) -> None:
        found, events = self.runner.run(self.fm.store.read(self._read))
        assert len(found) == len(self.oracle.runs), "an execution was lost or made twice"
        for run in self.oracle.runs:
            record, entries, task = found[run.id]
            execution = record.execution
            assert execution.status == run.status, (run.id, run.document["id"])
            assert (execution.current_step_id, execution.attempt) == (run.step_id, run.attempt)
            assert comparable(record.context.values) == comparable(run.context)
            assert (execution.error or {}).get("code") == run.error
            assert (execution.cancellation or {}).get("source") == run.cancelled_by
            assert execution.wake_at_ms == (run.wait["wake"] if run.wait else None)
            assert task == run.task
            assert execution.step_count == len(entries)
            assert [e.seq for e in entries] == list(range(1, len(entries) + 1))
            shown = [
                (e.step_id, e.attempt, e.outcome.value, (e.error or {}).get("code"))
                for e in entries
            ]
            assert shown == run.history
        first = self.last_seq
        assert [e["seq"] for e in events] == list(range(first + 1, first + len(events) + 1))
        self.last_seq += len(events)

    def _read(self, conn: Any) -> Any:
        found = {}
        for key, status in conn.execute("SELECT key, status FROM executions").fetchall():
            record = executions.shown(conn, key)
            assert record.execution.status == status
            row = conn.execute("SELECT state FROM tasks WHERE execution = ?", (key,)).fetchone()
            entries = history.read(conn, key, 0, 1000)
            found[record.execution.id] = (record, entries, row[0] if row else None)
        return found, ledger.read(conn, self.last_seq, 10_000)


def simulate(seed: int, moves: int) -> EngineModel:
    """One long life by chance: deeper than Hypothesis goes, and reproduced by its seed alone."""
    chance, model = random.Random(seed), EngineModel()

    def result() -> dict[str, Any]:
        outcome = chance.choices(["success", "failure", "error", "wait"], [70, 15, 5, 10])[0]
        if outcome == "success":
            return {"outcome": outcome, "output": chance.choice([0, 3, "x" * 600, {"y": [1]}])}
        if outcome == "wait":
            return {"outcome": outcome, "wait": {"kind": "time", "ms": chance.choice([0, 50])}}
        return {"outcome": outcome, "code": "E1", "retryable": chance.random() < 0.8}

    def number() -> int:
        return chance.randrange(10**6)

    def create() -> None:
        flow, key = chance.choice(FLOWS)["id"], chance.choice([None, None, "k1"])
        items = [chance.randrange(4) for _ in range(chance.randrange(4))]
        execution_ms, wait_ms = chance.choice([10**8, 10**8, 2000]), chance.choice([10**9, 900])
        model.create(flow, chance.randrange(5), items, key, (execution_ms, wait_ms))

    acts = {
        create: 6,
        lambda: model.work([result() for _ in range(5)]): 30,
        lambda: model.claim(2): 5,
        lambda: model.tasks and model.finish(number() % 4, result()): 8,
        lambda: model.tasks and model.release(number() % 4, chance.choice([0, 60])): 4,
        model.run_builtins: 10,
        lambda: model.sleep(chance.choice([50, 100, 500, 1000])): 12,
        lambda: model.advance(chance.choice([1, 49, 100, 300, 10**5])): 4,
        model.fire_due: 4,
        lambda: model.send_event(chance.randint(1, 3)): 8,
        lambda: model.oracle.runs and model.resume(number(), chance.random() < 0.5, 3): 8,
        lambda: model.oracle.runs and model.retry(number(), chance.random() < 0.5): 5,
        lambda: model.oracle.runs and model.cancel(number(), chance.randrange(3)): 3,
        model.restart: 2,
    }
    try:
        for act in chance.choices(list(acts), list(acts.values()), k=moves):
            act()
            model.both_worlds_agree()
    except BaseException:
        print(f"simulate(seed={seed}, moves={moves})")
        raise
    finally:
        model.teardown()
    return model


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_long_lives_by_chance(seed: int) -> None:
    model = simulate(seed, 250)
    assert sum(len(run.history) for run in model.oracle.runs) > 10


TestEngineModel = pytest.mark.slow(EngineModel.TestCase)
TestEngineModel.settings = settings(
    max_examples=40,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
