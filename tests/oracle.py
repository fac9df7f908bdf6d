"""A naive, slow, obviously right model of executions, for property and crash tests.

It works on the flow documents themselves and on plain dictionaries, one execution after another,
with none of the engine's tables, keys, leases or transactions. It knows what the contract says
happens; that the engine keeps saying the same, whatever is restarted, late or delivered twice, is
what the tests compare.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

__all__ = ["BUILTINS", "Oracle", "Run", "comparable"]

BUILTINS = {"delay", "conditional", "sub-flow", "wait-event"}
DAY_MS = 24 * 3600 * 1000
FINAL = {"completed", "failed", "cancelled"}


def comparable(value: Any) -> Any:
    """A context without what the model does not foretell: ids of children, words of errors."""
    if isinstance(value, dict):
        kept = {k: comparable(v) for k, v in value.items()}
        if "childExecutionId" in kept:
            kept["childExecutionId"] = None
        if "_error" in kept:
            kept["_error"] = {name: kept["_error"][name] for name in ("code", "stepId")}
        return kept
    if isinstance(value, list):
        return [comparable(item) for item in value]
    return value


@dataclass
class Run:
    """An execution. `task` is None, "queued", "leased" or "delayed"; `wait` is a dictionary."""

    id: str | None  # a child's is not known before the engine has told it
    document: dict[str, Any]
    context: dict[str, Any]
    deadline_ms: int
    execution_ms: int
    wait_ms: int
    parent: Run | None = None
    step_id: str = ""
    status: str = "pending"
    attempt: int = 0
    error: str | None = None
    cancelled_by: str | None = None
    task: str | None = "queued"
    due_ms: int = 0  # of a leased or delayed task
    wait: dict[str, Any] | None = None
    children: list[Run] = field(default_factory=list)
    history: list[tuple[str, int, str, str | None]] = field(default_factory=list)

    @property
    def step(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document["steps"][self.step_id]
        return found

    @property
    def ended(self) -> bool:
        return self.status in FINAL

    @property
    def is_builtin(self) -> bool:
        return self.step["type"] in BUILTINS


class Oracle:
    """All executions. `now_ms` is set by whoever drives it."""

    def __init__(self, documents: list[dict[str, Any]], steps_max: int, lease_ms: int) -> None:
        self.documents = {document["id"]: document for document in documents}
        self.steps_max = steps_max
        self.lease_ms = lease_ms
        self.now_ms = 0
        self.runs: list[Run] = []
        self.keys: dict[tuple[str, str], tuple[Run, int]] = {}

    # --- what a user does ----------------------------------------------------------------------

    def create(
        self,
        flow_id: str,
        context: dict[str, Any],
        key: str | None = None,
        execution_ms: int = DAY_MS,
        wait_ms: int = 7 * DAY_MS,
        parent: Run | None = None,
    ) -> tuple[Run, bool]:
        if key is not None and (flow_id, key) in self.keys:
            known, expires_ms = self.keys[flow_id, key]
            if self.now_ms < expires_ms:
                return known, False
        document = self.documents[flow_id]
        deadline = self.now_ms + execution_ms
        run = Run(None, document, copy.deepcopy(context), deadline, execution_ms, wait_ms, parent)
        run.step_id = document["initialStepId"]
        self.runs.append(run)
        if key is not None:
            self.keys[flow_id, key] = (run, self.now_ms + DAY_MS)
        return run, True

    def cancel(self, run: Run, source: str = "user", code: str = "CANCELLED") -> None:
        if run.ended:
            return
        children = [r for r in self.runs if r.parent is run]
        run.wait = None
        run.cancelled_by = source
        self._end(run, "cancelled", code)
        for child in children:
            self.cancel(child, "parent")

    def retry(self, run: Run, step_id: str) -> None:
        run.status, run.error, run.cancelled_by = "running", None, None
        run.step_id, run.attempt, run.task = step_id, 0, "queued"
        run.deadline_ms = self.now_ms + run.execution_ms

    def resume(self, run: Run, data: Any) -> None:
        """By hand, by token or by an event; `data` is a mapping."""
        assert run.wait is not None
        run.context.update(copy.deepcopy(data))
        run.context["resumeData"] = copy.deepcopy(data)
        self._woken(run)

    def send_event(self, name: str, data: dict[str, Any]) -> list[Run]:
        woken = []
        for run in list(self.runs):
            wait = run.wait
            if wait and wait["kind"] == "event" and wait["event"] == name:
                wanted = wait["filter"] or {}
                if all(k in data and data[k] == v for k, v in wanted.items()):
                    self.resume(run, data)
                    woken.append(run)
        return woken

    # --- what happens --------------------------------------------------------------------------

    def claimed(self, run: Run) -> None:
        if run.status == "pending":
            run.status = "running"
        run.task, run.due_ms = "leased", self.now_ms + self.lease_ms

    def released(self, run: Run, delay_ms: int) -> None:
        run.task, run.due_ms = ("delayed" if delay_ms else "queued"), self.now_ms + delay_ms

    def restarted(self) -> None:
        for run in self.runs:
            if run.task == "leased":
                run.task = "queued"

    def due(self) -> None:
        """Leases, delays, wake-ups, time-outs and deadlines, in the order of their times."""
        for run in self.runs:
            if run.task in ("leased", "delayed") and run.due_ms <= self.now_ms:
                run.task = "queued"
        while True:
            due = []
            for number, run in enumerate(self.runs):
                if run.wait is not None:
                    wake = run.wait["wake"]
                    if wake is not None:
                        due.append((wake, 0, number, "wake"))
                    due.append((run.wait["timeout"], 0, number, "timeout"))
                if not run.ended:
                    due.append((run.deadline_ms, 1, number, "deadline"))
            first = min(due, default=None, key=lambda d: (d[0], d[1], d[2], d[3] != "wake"))
            if first is None or first[0] > self.now_ms:
                return
            run = self.runs[first[2]]
            if first[3] == "wake":
                if run.wait is not None and run.wait["kind"] == "event":
                    run.context["resumeData"] = None
                self._woken(run)
            elif first[3] == "timeout":
                self.cancel(run, "timeout", "WAIT_TIMEOUT")
            else:
                self.cancel(run, "timeout", "EXECUTION_TIMEOUT")

    def run_builtins(self) -> None:
        while queued := [r for r in self.runs if r.task == "queued" and r.is_builtin]:
            for run in queued:
                if run.task == "queued" and run.is_builtin:
                    self._run_builtin(run)

    def finish(self, run: Run, result: dict[str, Any]) -> None:
        """`result` has `outcome`, and `output`, `code`, `wait`, `next` as they apply."""
        step, outcome = run.step, result["outcome"]
        run.task = None
        code = result.get("code")
        run.history.append((run.step_id, run.attempt, outcome, code))
        if outcome == "wait":
            self._sleep(run, **result["wait"])
        elif outcome == "success":
            if "output" in result and step.get("outputKey"):
                *way, last = step["outputKey"].split(".")
                place = run.context
                for segment in way:
                    place = place.setdefault(segment, {})
                place[last] = copy.deepcopy(result["output"])
            self._go(run, result.get("next", step["transitions"]["onSuccess"]))
        else:
            self._failed(run, code, result)

    # --- how -----------------------------------------------------------------------------------

    def _failed(self, run: Run, code: str | None, result: dict[str, Any]) -> None:
        policy = run.step.get("retry") or {}
        if run.attempt < policy.get("maxAttempts", 0) and result.get("retryable", True):
            if len(run.history) >= self.steps_max:
                self._end(run, "failed", "MAX_STEPS")
                return
            multiplier, longest = policy.get("backoffMultiplier", 2), 60_000
            wait_ms = min(policy.get("backoffMs", 0) * multiplier**run.attempt, longest)
            run.attempt += 1
            if wait_ms:
                self._sleep(run, "retry", self.now_ms + wait_ms)
            else:
                run.task = "queued"
            return
        target = run.step["transitions"]["onFailure"]
        if target is None:
            self._end(run, "failed", code)
            return
        run.context["_error"] = {"code": code, "stepId": run.step_id}
        self._go(run, target)

    def _go(self, run: Run, target: str | None) -> None:
        run.attempt = 0
        if target is None:
            self._end(run, "completed", None)
            return
        run.step_id = target
        if len(run.history) >= self.steps_max:
            self._end(run, "failed", "MAX_STEPS")
        else:
            run.task = "queued"

    def _end(self, run: Run, status: str, code: str | None) -> None:
        run.status, run.error, run.task, run.attempt = status, code, None, 0
        if status != "cancelled":
            run.context.pop("_error", None)
        parent = run.parent
        if parent is not None and parent.wait is not None and run in parent.children:
            if all(child.ended for child in parent.children):
                self._children_ended(parent)

    def _sleep(
        self, run: Run, kind: str, wake: int | None = None, event: str | None = None,
        filter: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        run.status = "waiting"
        timeout = self.now_ms + run.wait_ms
        run.wait = {"kind": kind, "wake": wake, "timeout": timeout, "event": event}
        run.wait["filter"] = filter

    def _woken(self, run: Run) -> None:
        assert run.wait is not None
        kind, run.wait, run.status = run.wait["kind"], None, "running"
        if kind == "retry":
            run.task = "queued"
            return
        ways = run.step["transitions"]
        self._go(run, ways["onResume"] or ways["onSuccess"])

    def _run_builtin(self, run: Run) -> None:
        run.status = "running"
        kind, config = run.step["type"], run.step["config"]
        if kind == "delay":
            wait = {"kind": "time", "wake": self.now_ms + config["ms"]}
            self.finish(run, {"outcome": "wait", "wait": wait})
        elif kind == "wait-event":
            longest = config.get("maxWaitMs")
            wake = None if longest is None else self.now_ms + longest
            wait = {"kind": "event", "wake": wake, "event": config["event"]}
            wait["filter"] = config.get("filter")
            self.finish(run, {"outcome": "wait", "wait": wait})
        elif kind == "conditional":  # the tests' conditions are all `n > value`
            for condition in config["conditions"]:
                actual = run.context.get(condition["path"])
                if isinstance(actual, int) and actual > condition["value"]:
                    self.finish(run, {"outcome": "success", "next": condition["target"]})
                    return
            self.finish(run, {"outcome": "success", "next": config["default"]})
        else:
            self._sub_flow(run, config)

    def _sub_flow(self, run: Run, config: dict[str, Any]) -> None:
        contexts = [run.context]
        if "forEach" in config:
            items = run.context[config["forEach"]]
            contexts = [{**run.context, "item": it, "index": n} for n, it in enumerate(items)]
            if not items:
                self.finish(run, {"outcome": "success", "output": []})
                return
        run.task = None
        made = [self.create(config["flowId"], c, parent=run)[0] for c in contexts]
        run.children = made
        self._sleep(run, "child")

    def _children_ended(self, run: Run) -> None:
        run.wait, run.status = None, "running"
        shown = [
            {
                "childExecutionId": None,  # the engine's to choose
                "flowId": child.document["id"],
                "status": child.status,
                "context": copy.deepcopy(child.context),
            }
            for child in run.children
        ]
        if all(child.status == "completed" for child in run.children):
            output = shown if "forEach" in run.step["config"] else shown[0]
            self.finish(run, {"outcome": "success", "output": output})
        else:
            self.finish(run, {"outcome": "failure", "code": "CHILD_FAILED"})
