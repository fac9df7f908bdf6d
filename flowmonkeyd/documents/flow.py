"""Flow documents: read, validate, make a `Flow`. Pure; every problem at once, with its JSON path.

The shape is checked by pydantic models (camelCase lives here), the meaning by functions below:
targets, reachability, versions, the built-in types' configurations. Both look at the document as
it was written, so that a wrong shape in one place hides no wrong meaning in another. A warning does
not refuse the document, an error does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from flowmonkeyd import jsontext
from flowmonkeyd.documents.builtins import CONFIGS, targets
from flowmonkeyd.documents.problems import json_path, problems_of
from flowmonkeyd.documents.text import not_json, parse_documents, parse_text
from flowmonkeyd.documents.versions import is_range, is_version
from flowmonkeyd.errors import Invalid, Problem
from flowmonkeyd.model import Flow, HandlerRef, RetryPolicy, Selector, Step, Transitions

__all__ = ["edges", "flow_digest", "parse_documents", "parse_flow", "parse_text"]

STEPS_MAX = 1000
PROBLEMS_MAX = 1000  # a wrong list of a million members would be an answer of 100 MB
DOCUMENT_BYTES_MAX = 1024 * 1024
# The hard limit of a stateless handler, and a week: longer backoffs are a mistake in the unit.
TIMEOUT_MS_MAX = 60_000
BACKOFF_MS_MAX = 7 * 24 * 3600 * 1000

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}$"
_TYPE = r"^[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?(@.+)?$"

Name = Annotated[StrictStr, Field(pattern=_NAME)]
Text = Annotated[StrictStr, Field(min_length=1, max_length=1024)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


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
    backoffMultiplier: Annotated[float, Field(ge=1, le=1000, strict=True)] = 2.0
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
    outputKey: _OutputKey | None = None
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
    document = parse_text(source) if isinstance(source, str | bytes) else source
    broken = not_json(document)
    if broken is not None:
        raise _refused(document, [broken])
    if jsontext.size_bytes(document) > DOCUMENT_BYTES_MAX:
        message = f"has more than {DOCUMENT_BYTES_MAX} bytes as JSON"
        raise _refused(document, [Problem("$", message)])
    errors: list[Problem] = []
    try:
        shape = _Flow.model_validate(document)
    except ValidationError as exc:
        errors = list(problems_of(exc))
    told = {problem.path for problem in errors}
    errors.extend(problem for problem in _check(document) if problem.path not in told)
    if errors:
        raise _refused(document, errors)
    return _flow(shape, document), tuple(_warn(shape, handlers_known))


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


def _check(document: Any) -> Iterator[Problem]:
    """What the shape cannot say. Parts of the wrong shape are passed over."""
    steps = document.get("steps") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(steps, Mapping):
        return
    version, first = document.get("version"), document.get("initialStepId")
    if isinstance(version, str) and not is_version(version):
        yield Problem("$.version", f"{version!r} is not a SemVer version such as 1.0.0")
    if isinstance(first, str) and first not in steps:
        yield _no_step("$.initialStepId", first)
    for key, step in steps.items():
        if isinstance(step, Mapping):
            yield from _check_step(json_path(("steps", key)), key, step, steps)


def _check_step(
    path: str, key: str, step: Mapping[str, Any], steps: Mapping[str, Any]
) -> Iterator[Problem]:
    own, kind = step.get("id"), step.get("type")
    if isinstance(own, str) and own != key:
        yield Problem(f"{path}.id", f"must equal its key {key!r}, not {own!r}")
    ways = step.get("transitions")
    for name, target in ways.items() if isinstance(ways, Mapping) else ():
        if name in _Transitions.model_fields and isinstance(target, str) and target not in steps:
            yield _no_step(f"{path}.transitions.{name}", target)
    if not isinstance(kind, str):
        return
    handler, at, wanted = kind.partition("@")
    if at and handler in CONFIGS:
        yield Problem(f"{path}.type", f"{handler} is built in and has no versions to pin")
    elif at and not is_range(wanted):
        yield Problem(f"{path}.type", f"{wanted!r} is not a version or range such as ^1.2")
    if handler in CONFIGS:
        yield from _check_config(f"{path}.config", handler, step.get("config", {}), steps)
    elif step.get("input") is None:
        yield Problem(f"{path}.input", "is required: say where the step's input comes from")


def _check_config(
    path: str, handler: str, config: Any, steps: Mapping[str, Any]
) -> Iterator[Problem]:
    try:
        CONFIGS[handler].model_validate(config)
    except ValidationError as exc:
        yield from problems_of(exc, path)
    for where, target in targets(handler, config) if isinstance(config, Mapping) else ():
        if target is not None and target not in steps:
            yield _no_step(f"{path}.{where}", target)


def _no_step(path: str, target: str) -> Problem:
    return Problem(path, f"there is no step {target!r}")


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


def _refused(document: Any, problems: list[Problem]) -> Invalid:
    name = document.get("id") if isinstance(document, Mapping) else None
    which = f"the flow {name[:128]!r}" if isinstance(name, str) else "the flow"
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return Invalid(f"cannot accept {which}: {count}", problems=tuple(problems[:PROBLEMS_MAX]))


def _ordered(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _ordered(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_ordered(item) for item in value]
    return value
