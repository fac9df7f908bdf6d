"""Flow documents: read, validate, make a `Flow`. Pure; every problem at once, with its JSON path.

The shape is checked by pydantic models (camelCase lives here), the meaning by functions below:
targets, reachability, versions, the built-in types' configurations. A warning does not refuse the
document, an error does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from flowmonkeyd import jsontext
from flowmonkeyd.documents.builtins import CONFIGS, targets
from flowmonkeyd.documents.problems import json_path, problems_of
from flowmonkeyd.documents.text import parse_documents, parse_text
from flowmonkeyd.documents.versions import is_range, is_version
from flowmonkeyd.errors import Invalid, Problem
from flowmonkeyd.model import Flow, HandlerRef, RetryPolicy, Selector, Step, Transitions

__all__ = ["edges", "flow_digest", "parse_documents", "parse_flow", "parse_text"]

STEPS_MAX = 1000
DOCUMENT_BYTES_MAX = 1024 * 1024
# A day and a bit more than a week: longer steps and backoffs are a mistake in the unit.
TIMEOUT_MS_MAX = 60_000
BACKOFF_MS_MAX = 7 * 24 * 3600 * 1000

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$"
_TYPE = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?(@.+)?$"

Name = Annotated[StrictStr, Field(pattern=_NAME)]
Text = Annotated[StrictStr, Field(min_length=1, max_length=1024)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Key(_Model):
    type: Literal["key"]
    key: Text


class _Keys(_Model):
    type: Literal["keys"]
    keys: list[Text]


class _Path(_Model):
    type: Literal["path"]
    path: Text


class _Template(_Model):
    type: Literal["template"]
    template: Any


class _Full(_Model):
    type: Literal["full"]


class _Static(_Model):
    type: Literal["static"]
    value: Any


_Selector = Annotated[
    _Key | _Keys | _Path | _Template | _Full | _Static, Field(discriminator="type")
]


_OutputKey = Annotated[StrictStr, Field(pattern=r"^[^.]+(\.[^.]+)*$", max_length=256)]


class _Retry(_Model):
    maxAttempts: Annotated[StrictInt, Field(ge=0, le=1000)] = 0
    backoffMs: Annotated[StrictInt, Field(ge=0, le=BACKOFF_MS_MAX)] = 0
    backoffMultiplier: Annotated[float, Field(ge=1, le=1000)] = 2.0
    maxBackoffMs: Annotated[StrictInt, Field(ge=0, le=BACKOFF_MS_MAX)] = 60_000
    retryOn: list[Text] | None = None


class _Transitions(_Model):
    onSuccess: StrictStr | None = None
    onFailure: StrictStr | None = None
    onResume: StrictStr | None = None


class _Step(_Model):
    id: Name
    type: Annotated[StrictStr, Field(pattern=_TYPE, max_length=256)]
    name: StrictStr | None = None
    description: StrictStr | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    input: _Selector | None = None
    outputKey: Annotated[StrictStr, Field(pattern=r"^[^.]+(\.[^.]+)*$", max_length=256)] | None = (
        None
    )
    retry: _Retry | None = None
    timeoutMs: Annotated[StrictInt, Field(ge=1, le=TIMEOUT_MS_MAX)] | None = None
    transitions: _Transitions = _Transitions()


class _Flow(_Model):
    id: Name
    version: StrictStr
    initialStepId: StrictStr
    steps: Annotated[dict[str, _Step], Field(min_length=1, max_length=STEPS_MAX)]
    name: StrictStr | None = None
    description: StrictStr | None = None
    tags: list[StrictStr] | None = None
    status: Literal["draft", "published", "archived"] | None = None
    visual: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


def parse_flow(
    source: str | bytes | Mapping[str, Any],
    *,
    handlers_known: Callable[[HandlerRef], bool] | None = None,
) -> tuple[Flow, tuple[Problem, ...]]:
    """The flow and its warnings. Raises Invalid with every error, each with its JSON path."""
    document = source if isinstance(source, Mapping) else parse_text(source)
    try:
        if jsontext.size_bytes(document) > DOCUMENT_BYTES_MAX:
            message = f"cannot read the flow: it is over {DOCUMENT_BYTES_MAX} bytes"
            raise Invalid(message, problems=(Problem("$", message),))
        shape = _Flow.model_validate(document)
    except ValidationError as exc:
        found = problems_of(exc)
        raise Invalid(_refusal(document, found), problems=found) from None
    problems = [*_check(shape), *_warn(shape, handlers_known)]
    errors = tuple(problem for problem in problems if problem.severity == "error")
    if errors:
        raise Invalid(_refusal(document, errors), problems=errors)
    return _flow(shape, document), tuple(problems)


def flow_digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the document's meaning: key order and formatting do not matter."""
    return hashlib.sha256(jsontext.dumps(_ordered(document)).encode()).hexdigest()


def edges(flow: Flow) -> list[tuple[str, str, str | None]]:
    """Every way through the flow as (step, label, target); None is the end."""
    found: list[tuple[str, str, str | None]] = []
    for step in flow.steps.values():
        named = list(targets(step.handler.type, step.config))
        found.extend((step.id, label, target) for label, target in named)
        ways = step.transitions
        if not named:
            found.append((step.id, "success", ways.on_success))
        if ways.on_resume is not None:
            found.append((step.id, "resume", ways.on_resume))
        if ways.on_failure is not None:
            found.append((step.id, "failure", ways.on_failure))
    return found


def _check(shape: _Flow) -> Iterator[Problem]:
    if not is_version(shape.version):
        yield Problem("$.version", f"{shape.version!r} is not a SemVer version such as 1.0.0")
    if shape.initialStepId not in shape.steps:
        yield Problem("$.initialStepId", f"there is no step {shape.initialStepId!r}")
    for key, step in shape.steps.items():
        path = json_path(("steps", key))
        if step.id != key:
            yield Problem(f"{path}.id", f"must equal its key {key!r}, not {step.id!r}")
        for name, target in step.transitions:
            if target is not None and target not in shape.steps:
                yield Problem(f"{path}.transitions.{name}", f"there is no step {target!r}")
        handler, at, wanted = step.type.partition("@")
        if at and not is_range(wanted):
            yield Problem(f"{path}.type", f"{wanted!r} is not a version or range such as ^1.2")
        if handler in CONFIGS:
            yield from _check_builtin(shape, step, path, handler, bool(at))
        elif step.input is None:
            yield Problem(f"{path}.input", "is required: say where the step's input comes from")


def _check_builtin(
    shape: _Flow, step: _Step, path: str, handler: str, pinned: bool
) -> Iterator[Problem]:
    if pinned:
        yield Problem(f"{path}.type", f"{handler} is built in and has no versions to pin")
    try:
        CONFIGS[handler].model_validate(step.config)
    except ValidationError as exc:
        yield from problems_of(exc, f"{path}.config")
        return
    for label, target in targets(handler, step.config):
        if target is not None and target not in shape.steps:
            yield Problem(f"{path}.config.{label}", f"there is no step {target!r}")


def _warn(shape: _Flow, handlers_known: Callable[[HandlerRef], bool] | None) -> Iterator[Problem]:
    reached, line = set[str](), [shape.initialStepId]
    while line:
        key = line.pop()
        if key in reached or key not in shape.steps:
            continue
        reached.add(key)
        step = shape.steps[key]
        line.extend(target for _, target in step.transitions if target is not None)
        named = targets(step.type.partition("@")[0], step.config)
        line.extend(target for _, target in named if target is not None)
    for key, step in shape.steps.items():
        if key not in reached:
            message = "no transition leads here; only a handler that names it can"
            yield Problem(json_path(("steps", key)), message, "warning")
        ref = _ref(step.type)
        if handlers_known is not None and not handlers_known(ref):
            message = f"no handler {step.type!r} is published"
            yield Problem(f"{json_path(('steps', key))}.type", message, "warning")


def _flow(shape: _Flow, document: Mapping[str, Any]) -> Flow:
    return Flow(
        id=shape.id,
        version=shape.version,
        initial_step_id=shape.initialStepId,
        steps={key: _step(step) for key, step in shape.steps.items()},
        document=document,
        name=shape.name,
        description=shape.description,
    )


def _step(shape: _Step) -> Step:
    retry = RetryPolicy()
    if shape.retry is not None:
        codes = shape.retry.retryOn
        retry = RetryPolicy(
            max_attempts=shape.retry.maxAttempts,
            backoff_ms=shape.retry.backoffMs,
            backoff_multiplier=shape.retry.backoffMultiplier,
            max_backoff_ms=shape.retry.maxBackoffMs,
            retry_on=None if codes is None else frozenset(codes),
        )
    ways = shape.transitions
    return Step(
        id=shape.id,
        handler=_ref(shape.type),
        input=_selector(shape.input),
        config=shape.config,
        output_key=shape.outputKey,
        retry=retry,
        timeout_ms=shape.timeoutMs,
        transitions=Transitions(ways.onSuccess, ways.onFailure, ways.onResume),
        name=shape.name,
    )


def _selector(shape: Any) -> Selector:
    if shape is None or isinstance(shape, _Full):
        return Selector("full")
    field = {"static": "value"}.get(shape.type, shape.type)
    return Selector(shape.type, getattr(shape, field))


def _ref(text: str) -> HandlerRef:
    handler, at, wanted = text.partition("@")
    return HandlerRef(handler, wanted if at else None)


def _refusal(document: Any, problems: tuple[Problem, ...]) -> str:
    name = document.get("id") if isinstance(document, Mapping) else None
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return f"cannot accept the flow {name!r}: {count}"


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    return value
