"""handler.json: what a handler is, may and needs (contract section 4). Pure.

Read once at publish time, with every problem named, and again from the database when a step runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    model_validator,
)

from flowmonkeyd.documents.problems import problems_of
from flowmonkeyd.documents.text import parse_text
from flowmonkeyd.documents.versions import is_version
from flowmonkeyd.errors import Invalid, Problem

__all__ = ["Input", "Manifest", "json_schema", "parse_manifest"]

# The seed's hard limits of a stateless handler.
TTL_MS_MAX = 60_000
TTL_MS_DEFAULT = 30_000
MEMORY_MIB_MAX = 1024
MEMORY_MIB_MIN = 16
HARD_TTL_MS_MAX = 30 * 24 * 3600 * 1000

Text = Annotated[StrictStr, Field(min_length=1, max_length=1024)]
Millis = Annotated[StrictInt, Field(ge=1, le=HARD_TTL_MS_MAX)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_PART = r"[A-Za-z0-9_\-][\w.\-]*"
_Entrypoint = Annotated[
    StrictStr, Field(max_length=256, pattern=rf"^({_PART}/)*{_PART}:[A-Za-z_]\w*$")
]


class _Handler(_Model):
    type: Annotated[
        StrictStr,
        Field(
            max_length=200,
            pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?$",
        ),
    ]
    version: StrictStr
    name: Text | None = None
    description: Annotated[StrictStr, Field(max_length=10_000)] | None = None
    category: Text | None = None
    runtime: Literal["python", "node"] = "python"
    entrypoint: _Entrypoint = "handler.py:handle"
    stateful: StrictBool = False
    timeout: Millis | None = None

    @model_validator(mode="after")
    def _semver(self) -> _Handler:
        if not is_version(self.version):
            raise ValueError(f"version {self.version!r} is not SemVer such as 1.0.0")
        return self


class _Input(BaseModel):
    """One declared input; the validation rules beside these fields are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    property: Text
    type: Literal["string", "number", "boolean", "object", "array", "any", "null"] = "any"
    source: Literal["input", "config", "context", "vault", "static"] = "input"
    secret: StrictBool = False
    required: StrictBool = False
    default: Any = None
    description: StrictStr | None = None
    value: Any = None


class _Sandbox(_Model):
    network: StrictBool = False
    filesystem: Literal["none", "readonly", "temp"] = "none"
    env: Literal["isolated"] = "isolated"


class _Ttl(_Model):
    soft: Annotated[StrictInt, Field(ge=60_000, le=HARD_TTL_MS_MAX)] = 3_600_000
    hard: Annotated[StrictInt, Field(ge=60_000, le=HARD_TTL_MS_MAX)] = 24 * 3600 * 1000
    default: Annotated[StrictInt, Field(ge=60_000, le=HARD_TTL_MS_MAX)] = 3_600_000


class _Checkpoint(_Model):
    required: Literal[True] = True
    intervalMs: Annotated[StrictInt, Field(ge=1000, le=30_000)] = 30_000
    maxSize: Annotated[StrictInt, Field(ge=1, le=1024**3)] = 10 * 1024**2


class _Pause(_Model):
    enabled: StrictBool = True
    maxPauseDuration: Millis = 7 * 24 * 3600 * 1000


class _Execution(_Model):
    ttl: Annotated[StrictInt, Field(ge=1, le=TTL_MS_MAX)] | _Ttl | None = None
    memory: Annotated[StrictInt, Field(ge=MEMORY_MIB_MIN, le=MEMORY_MIB_MAX)] = 512
    cpu: Annotated[float, Field(gt=0, le=1, strict=True)] = 1
    sandbox: _Sandbox = _Sandbox()
    checkpoint: _Checkpoint | None = None
    pause: _Pause | None = None
    resources: Literal["light", "medium", "heavy", "gpu"] | None = None


class _Document(_Model):
    schema_: Any = Field(default=None, alias="$schema")
    handler: _Handler
    inputs: list[_Input] = Field(default_factory=list)
    execution: _Execution = _Execution()
    dependencies: dict[str, StrictStr] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input. `rules` are the validation rules as written."""

    property: str
    type: str
    source: str
    secret: bool
    required: bool
    default: Any
    value: Any
    rules: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A handler's manifest. `timeout_ms` is the lower of `handler.timeout` and `execution.ttl`;
    `stateful_*` are the raw sections of a stateful handler, None for a stateless one."""

    type: str
    version: str
    name: str | None
    description: str | None
    category: str | None
    runtime: str
    entrypoint: str
    stateful: bool
    timeout_ms: int
    memory_mib: int
    cpu: float
    network: bool
    filesystem: Literal["none", "readonly", "temp"]
    inputs: tuple[Input, ...]
    dependencies: Mapping[str, str]
    stateful_execution: Mapping[str, Any] | None = None


def parse_manifest(source: str | bytes | Mapping[str, Any]) -> Manifest:
    """The manifest. Raises Invalid with every problem, each with its JSON path."""
    document = source if isinstance(source, Mapping) else parse_text(source)
    try:
        shape = _Document.model_validate(document)
    except ValidationError as exc:
        raise _refused(problems_of(exc)) from None
    problems = tuple(_check(shape))
    if problems:
        raise _refused(problems)
    return _manifest(shape)


def json_schema() -> dict[str, Any]:
    """JSON Schema of handler.json, for editors."""
    return _Document.model_json_schema(by_alias=True)


def _check(shape: _Document) -> list[Problem]:
    handler, execution, found = shape.handler, shape.execution, []
    if handler.stateful:
        if isinstance(execution.ttl, int):
            found.append(Problem("$.execution.ttl", "a stateful handler has {soft, hard, default}"))
        elif execution.ttl is not None and execution.ttl.soft > execution.ttl.hard:
            found.append(Problem("$.execution.ttl.soft", "must not be longer than hard"))
    else:
        if isinstance(execution.ttl, _Ttl):
            message = f"a stateless handler has one number, at most {TTL_MS_MAX}"
            found.append(Problem("$.execution.ttl", message))
        if handler.timeout is not None and handler.timeout > TTL_MS_MAX:
            message = f"a stateless handler runs at most {TTL_MS_MAX} ms"
            found.append(Problem("$.handler.timeout", message))
        for name in ("checkpoint", "pause", "resources"):
            if getattr(execution, name) is not None:
                message = "is for stateful handlers; set handler.stateful"
                found.append(Problem(f"$.execution.{name}", message))
    seen = set()
    for index, one in enumerate(shape.inputs):
        if one.property in seen:
            message = f"{one.property!r} is declared twice"
            found.append(Problem(f"$.inputs[{index}].property", message))
        seen.add(one.property)
    return found


def _manifest(shape: _Document) -> Manifest:
    handler, execution = shape.handler, shape.execution
    ttl = execution.ttl if isinstance(execution.ttl, int) else None
    limits = [ms for ms in (handler.timeout, ttl) if ms is not None]
    stateful = None
    if handler.stateful:
        stateful = execution.model_dump(include={"ttl", "checkpoint", "pause", "resources"})
    return Manifest(
        type=handler.type,
        version=handler.version,
        name=handler.name,
        description=handler.description,
        category=handler.category,
        runtime=handler.runtime,
        entrypoint=handler.entrypoint,
        stateful=handler.stateful,
        timeout_ms=min(limits, default=TTL_MS_DEFAULT),
        memory_mib=execution.memory,
        cpu=execution.cpu,
        network=execution.sandbox.network,
        filesystem=execution.sandbox.filesystem,
        inputs=tuple(
            Input(
                one.property,
                one.type,
                one.source,
                one.secret,
                one.required,
                one.default,
                one.value,
                dict(one.model_extra or {}),
            )
            for one in shape.inputs
        ),
        dependencies=shape.dependencies,
        stateful_execution=stateful,
    )


def _refused(problems: tuple[Problem, ...]) -> Invalid:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return Invalid(f"cannot accept the manifest: {count}", problems=problems)
