"""The built-in step types: delay, conditional, switch, sub-flow, wait-event. Pure decisions.

They are trusted, run inside the engine's own transaction and only ever say what should follow: a
wait, a next step, children to start. Paths are paths into the context, as in a `path` selector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.context import depth
from flowmonkeyd.decide import same
from flowmonkeyd.documents.selectors import get_path
from flowmonkeyd.model import (
    NO_VALUE,
    ChildRequest,
    Outcome,
    Step,
    StepError,
    TaskResult,
    Wait,
    WaitKind,
)

__all__ = ["CHILDREN_MAX", "TYPES", "child_result", "keys_needed", "run"]

TYPES = frozenset({"delay", "conditional", "switch", "sub-flow", "wait-event"})

# One sub-flow step starts all its children in one transaction; more would hold the writer up.
CHILDREN_MAX = 1000
# Each child's error may have details as large as a handler's result: a hundred of them, and again
# at each level above, would fill the memory. The first that fit are kept. They are also wrapped
# anew at each level, and what is nested beyond 200 could be written but never read again.
_DETAILS_MAX_BYTES = 1024 * 1024
_DETAILS_DEPTH_MAX = 100


def run(step: Step, values: Mapping[str, Any], given: Any, now_ms: int) -> TaskResult:
    """Run a built-in step. `values` are the context's values, `given` the resolved input."""
    kind = step.handler.type
    if kind == "conditional":
        return _conditional(step.config, values)
    if kind == "switch":
        return _switch(step.config, values)
    if kind == "delay":
        return _delay(step.config, now_ms)
    if kind == "wait-event":
        return _wait_event(step.config, now_ms)
    return _sub_flow(step.config, values, given)


def keys_needed(step: Step) -> frozenset[str]:
    """The context keys that `run` reads besides the input."""
    config = step.config
    if step.handler.type == "conditional":
        paths = [c["path"] for c in config.get("conditions", ())]
    elif step.handler.type == "switch":
        paths = [config.get("path", "")]
    elif step.handler.type == "sub-flow" and "forEach" in config:
        paths = [config["forEach"]]
    else:
        paths = []
    return frozenset(path.split(".", 1)[0] for path in paths)


def child_result(
    children: list[tuple[str, str, str, Mapping[str, Any] | None, Mapping[str, Any] | None]],
    step: Step,
) -> TaskResult:
    """What a sub-flow step says once its children have ended.

    Each child is (execution id, flow id, status, context, error), in the order they were asked for.
    The contexts are None when all of them are too large for one value: then the output has none,
    and a step that would keep it fails.
    """
    fan_out = "forEach" in step.config
    shown: list[dict[str, Any]] = [
        {"childExecutionId": child_id, "flowId": flow_id, "status": status, "context": context}
        for child_id, flow_id, status, context, _ in children
    ]
    fits = all(child["context"] is not None for child in shown)
    failed = [
        {"childExecutionId": child_id, "status": status, "error": error}
        for child_id, _, status, _, error in children
        if status != "completed"
    ]
    if failed:
        what = f"{len(failed)} of {len(children)} child executions" if fan_out else "the child"
        message = f"{what} did not complete"
        failed = _bounded(failed[:100])
        details = {"children": failed} if fan_out else failed[0]
        return TaskResult(
            Outcome.FAILURE, error=StepError("CHILD_FAILED", message, details=details)
        )
    if not fits and step.output_key is not None:
        message = "the contexts of the children are too large together for one context value"
        return _no("CONTEXT_VALUE_TOO_LARGE", message)
    return TaskResult(Outcome.SUCCESS, output=shown if fan_out else shown[0])


def _bounded(failed: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Failed children whose errors lack the details that are too large together, or too deep."""
    shown, left = [], _DETAILS_MAX_BYTES
    for child in failed:
        error = child["error"] or {}
        details = error.get("details")
        size = jsontext.size_bytes(details)
        if size > left or depth(details) > _DETAILS_DEPTH_MAX:
            child = {**child, "error": {**error, "details": None}}
        else:
            left -= size
        shown.append(child)
    return shown


def _delay(config: Mapping[str, Any], now_ms: int) -> TaskResult:
    units = {"ms": 1, "seconds": 1000, "minutes": 60_000, "hours": 3_600_000}
    total = int(sum(config.get(name, 0) * ms for name, ms in units.items()))
    wait = Wait(WaitKind.TIME, now_ms + total, f"delay of {total} ms")
    return TaskResult(Outcome.WAIT, wait=wait)


def _wait_event(config: Mapping[str, Any], now_ms: int) -> TaskResult:
    longest = config.get("maxWaitMs")
    wait = Wait(
        WaitKind.EVENT,
        None if longest is None else now_ms + longest,
        f"event {config['event']}",
        config["event"],
        config.get("filter"),
    )
    return TaskResult(Outcome.WAIT, wait=wait)


def _conditional(config: Mapping[str, Any], values: Mapping[str, Any]) -> TaskResult:
    conditions = config.get("conditions") or ()
    if not conditions:
        return _no("MISSING_CONDITIONS", "a conditional step needs at least one condition")
    for condition in conditions:
        actual = get_path(values, condition["path"])
        test = _OPERATORS.get(condition["op"])
        if test is not None and test(actual, condition.get("value")):
            target = condition.get("target")
            output = {"matched": True, "op": condition["op"], "target": target}
            return TaskResult(Outcome.SUCCESS, output=output, next_step=target)
    if "default" in config:
        target = config["default"]
        output = {"matched": False, "op": None, "target": target}
        return TaskResult(Outcome.SUCCESS, output=output, next_step=target)
    return _no("NO_MATCH", "no condition matched and the step has no default")


def _switch(config: Mapping[str, Any], values: Mapping[str, Any]) -> TaskResult:
    path = config.get("path")
    if not path:
        return _no("MISSING_PATH", "a switch step needs a path")
    actual = get_path(values, path)
    if actual is NO_VALUE:
        label = "undefined"
    elif isinstance(actual, str):
        label = actual
    else:
        label = jsontext.dumps(actual)
    cases = config.get("cases") or {}
    if label in cases:
        target = cases[label]
    elif "default" in config:
        target = config["default"]
    else:
        return _no("NO_MATCH", f"no case for {label[:100]!r} and the step has no default")
    shown = None if actual is NO_VALUE else actual
    output = {"path": path, "value": shown, "target": target}
    return TaskResult(Outcome.SUCCESS, output=output, next_step=target)


def _sub_flow(config: Mapping[str, Any], values: Mapping[str, Any], given: Any) -> TaskResult:
    def request(context: Mapping[str, Any]) -> ChildRequest:
        return ChildRequest(
            flow_ref=config["flowId"],
            context=context,
            wait_for_completion=config.get("waitForCompletion", True),
            tenant_id=config.get("tenantId"),
            metadata=config.get("metadata", {}),
        )

    given = {} if given is NO_VALUE or given is None else given
    if not isinstance(given, Mapping):
        return _no("INPUT_ERROR", "the input of a sub-flow step must be an object", fatal=True)
    if "forEach" in config:
        items = get_path(values, config["forEach"])
        if not isinstance(items, list):
            return _no("INPUT_ERROR", f"forEach {config['forEach']!r} is not a list", fatal=True)
        if len(items) > CHILDREN_MAX:
            return _no(
                "SUB_FLOW_ERROR",
                f"forEach has {len(items)} items; at most {CHILDREN_MAX} children are started",
            )
        key = config.get("itemKey", "item")
        children = tuple(
            request({**given, key: item, "index": index}) for index, item in enumerate(items)
        )
        if not children:
            return TaskResult(Outcome.SUCCESS, output=[])
    else:
        children = (request(given),)
    wait = Wait(WaitKind.CHILD, reason=f"sub-flow {config['flowId']}")
    if not config.get("waitForCompletion", True):
        return TaskResult(Outcome.SUCCESS, children=children, fan_out="forEach" in config)
    return TaskResult(Outcome.WAIT, wait=wait, children=children)


def _no(code: str, message: str, fatal: bool = False) -> TaskResult:
    error = StepError(code, message, retryable=False)
    return TaskResult(Outcome.FAILURE, error=error, fatal=fatal)


# --- the 14 operators (upstream section 4) -----------------------------------------------------


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ordered(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def check(a: Any, b: Any) -> bool:
        comparable = (_is_number(a) and _is_number(b)) or (
            isinstance(a, str) and isinstance(b, str)
        )
        return comparable and test(a, b)

    return check


def _contains(a: Any, b: Any) -> bool:
    if isinstance(a, str):
        return isinstance(b, str) and b in a
    return isinstance(a, list) and any(same(item, b) for item in a)


def _matches(a: Any, b: Any) -> bool:
    if not isinstance(a, str) or not isinstance(b, str):
        return False
    import re2  # linear time: a pattern from a flow can never hold the writer up

    return re2.search(b, a) is not None


def _exists(a: Any, _: Any) -> bool:
    return a is not NO_VALUE and a is not None


_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": same,
    "neq": lambda a, b: not same(a, b),
    "gt": _ordered(lambda a, b: a > b),
    "gte": _ordered(lambda a, b: a >= b),
    "lt": _ordered(lambda a, b: a < b),
    "lte": _ordered(lambda a, b: a <= b),
    "in": lambda a, b: isinstance(b, list) and any(same(a, item) for item in b),
    "nin": lambda a, b: isinstance(b, list) and not any(same(a, item) for item in b),
    "contains": _contains,
    "startsWith": lambda a, b: isinstance(a, str) and isinstance(b, str) and a.startswith(b),
    "endsWith": lambda a, b: isinstance(a, str) and isinstance(b, str) and a.endswith(b),
    "exists": _exists,
    "notExists": lambda a, b: not _exists(a, b),
    "matches": _matches,
}
