"""What a killed daemon is judged by: flows, what each must come to, and a tally of its own.

The tally is kept in this process while the daemon dies and comes back: which submits were accepted,
and every event the stream has told. `check_execution` and `check_ledger` hold the database against
it and against `expected`, which computes results in plain Python. Nothing here asks the engine.
"""

import threading
from collections import Counter
from typing import Any

from tests.crash.daemon import Client, package
from tests.flows import doc, step, sub_flow, wait_for_event

__all__ = ["FLOWS", "KINDS", "PACKAGES", "Tally", "check_execution", "check_ledger", "expected"]

SYNC = """
def handle(n, ctx):
    if ctx.attempt < ctx.config.get("failures", 0):
        return ctx.failure("FLAKY", f"attempt {ctx.attempt}")
    ctx.update("trail", [*ctx.context.get("trail", []), [ctx.step_id, ctx.task_id]])
    return n * ctx.config["times"]
"""
PACKAGES = (
    package("crash/work", SYNC),
    package("crash/async", SYNC.replace("def ", "async def ", 1)),
)
# A killed process of the sandbox costs an attempt, as a handler that crashes does.
RETRY = {"maxAttempts": 20, "backoffMs": 10, "maxBackoffMs": 40}


def _work(id: str, times: int, next: str | None = None, kind: str = "work", failures: int = 0):
    given = {"type": "key", "key": "n"}
    config = {"times": times, "failures": failures}
    return step(id, f"crash/{kind}", input=given, config=config, out=id, retry=RETRY, next=next)


_ONLY_N = {"type": "keys", "keys": ["n"]}
_TO_C = {"conditions": [{"path": "b", "op": "gte", "value": 0, "target": "c"}]}
FLOWS = (
    doc(_work("leaf", 3), id="leaf"),
    doc(
        _work("a", 2, "b"),
        _work("b", 5, "choose", failures=2),
        step("choose", "conditional", config=_TO_C),
        step("c", "delay", config={"ms": 40}, next="e"),
        _work("e", 7, kind="async"),
        id="chain",
    ),
    doc(_work("a", 2, "w"), wait_for_event("w", "go", next="e"), _work("e", 7), id="waiter"),
    doc(
        _work("a", 2, "one"),
        sub_flow("one", "leaf", input=_ONLY_N, out="one", next="many"),
        sub_flow("many", "leaf", input=_ONLY_N, out="many", config={"forEach": "items"}, next="e"),
        _work("e", 7, kind="async"),
        id="parent",
    ),
)
KINDS = ("chain", "chain", "waiter", "waiter", "parent")
# (step, outcome) of each visit, and its type; retries left out.
_VISITS = {
    "leaf": [("leaf", "success")],
    "chain": [
        ("a", "success"), ("b", "success"), ("choose", "success"), ("c", "wait"), ("e", "success"),
    ],
    "waiter": [("a", "success"), ("w", "wait"), ("e", "success")],
    "parent": [("a", "success"), ("one", "success"), ("many", "success"), ("e", "success")],
}  # fmt: skip
_OF_THE_ENGINE = frozenset({"choose", "c", "w", "one", "many"})


def given(flow: str, n: int) -> dict[str, Any]:
    """The context an execution is submitted with."""
    return {"n": n, "items": ["x", "y"]} if flow == "parent" else {"n": n}


def expected(flow: str, context: dict[str, Any]) -> dict[str, Any]:
    """The context at the end, without the trails and the ids of children."""
    n = context["n"]
    if flow == "leaf":
        return {**context, "leaf": n * 3}
    end = {**context, "a": n * 2, "e": n * 7}
    if flow == "chain":
        return {**end, "b": n * 5}
    if flow == "waiter":
        return {**end, "gone": True, "resumeData": {"gone": True}}

    def child(**more: Any) -> dict[str, Any]:
        leaf = expected("leaf", {"n": n, **more})
        return {"flowId": "leaf", "status": "completed", "context": leaf}

    many = [child(item=item, index=index) for index, item in enumerate(context["items"])]
    return {**end, "one": child(), "many": many}


class Tally:
    """Accepted submits, and the stream of events as it was told, over all the daemon's lives."""

    def __init__(self) -> None:
        self.accepted: dict[str, tuple[str, str, int]] = {}  # key -> (id, flow, n)
        self.repeats = 0
        self.events: list[dict[str, Any]] = []
        self.open = threading.Semaphore(60)
        self._lock = threading.Lock()
        self._ours: set[str] = set()
        self._ended: set[str] = set()

    def accept(self, key: str, execution_id: str, flow: str, n: int) -> None:
        """A submit was answered; a repeat has to be answered with the same execution."""
        with self._lock:
            known = self.accepted.setdefault(key, (execution_id, flow, n))
            assert known[0] == execution_id, f"{key} made two executions"
            self._ours.add(execution_id)
            self._let_go(execution_id)

    def heard(self, event: dict[str, Any]) -> None:
        """The stream told something: it must be committed, and stay."""
        self.events.append(event)
        if event["type"] == "execution.completed":
            with self._lock:
                self._ended.add(event["executionId"])
                self._let_go(event["executionId"])

    def _let_go(self, execution_id: str) -> None:
        if execution_id in self._ours and execution_id in self._ended:
            self._ended.discard(execution_id)
            self.open.release()


def check_execution(client: Client, execution: dict[str, Any]) -> Counter[str]:
    """Hold an execution and its history against the oracle; how often each outcome was applied."""
    flow, where = execution["flowId"], f"{execution['id']} ({execution['flowId']})"
    assert execution["status"] == "completed", (where, execution["error"])
    trail, found = _without_trails(execution["context"])
    start = {k: v for k, v in found.items() if k in ("n", "items", "item", "index")}
    assert found == expected(flow, start), where
    history = client.pages(f"/v1/executions/{execution['id']}/history")
    assert [e["seq"] for e in history] == list(range(1, execution["stepCount"] + 1)), where
    visits, attempts = [], []
    for entry in history:
        assert entry["attempt"] == len(attempts), (where, entry)
        attempts.append(entry)
        if entry["outcome"] in ("success", "wait"):
            visits.append((entry["stepId"], entry["outcome"]))
            assert {one["stepId"] for one in attempts} == {entry["stepId"]}, where
            attempts = []
        else:
            assert entry["error"]["code"] in ("FLAKY", "HANDLER_CRASHED"), (where, entry)
    assert visits == _VISITS[flow], where
    # Each handler left its task's id in the context: applied once, by the attempt in the history.
    applied = [
        [entry["stepId"], f"{execution['id']}.{entry['seq']}.{entry['stepId']}"]
        for entry in history
        if entry["outcome"] == "success" and entry["stepId"] not in _OF_THE_ENGINE
    ]
    assert trail == applied, where
    return Counter(entry["outcome"] for entry in history)


def _without_trails(context: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The execution's own trail, and its context without trails and ids of children."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            hidden = ("trail", "childExecutionId")
            return {k: plain(v) for k, v in value.items() if k not in hidden}
        return [plain(item) for item in value] if isinstance(value, list) else value

    return context["trail"], plain(context)


def check_ledger(tally: Tally, ledger: list[dict[str, Any]], executions: list[str]) -> None:
    """No gap in the ledger, nothing told that is not in it, and one life for each execution."""
    assert [row["seq"] for row in ledger] == list(range(1, len(ledger) + 1))
    assert tally.events == ledger
    counts: dict[str, Counter[str]] = {one: Counter() for one in executions}
    for row in ledger:
        if row["executionId"] is not None:
            counts[row["executionId"]][row["type"]] += 1
    once = ("execution.created", "execution.started", "execution.completed")
    for execution_id, count in counts.items():
        assert [count[name] for name in once] == [1, 1, 1], (execution_id, count)
        assert count["step.completed"] <= count["step.started"], (execution_id, count)
