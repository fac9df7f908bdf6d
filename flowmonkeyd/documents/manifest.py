"""handler.json: what a handler is, may and needs (contract section 4). Pure.

Read once at publish time, with every problem named, and again from the database when a step runs.
What is valid here may still be refused by a daemon that cannot run it (`api.catalog`).
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
)

from flowmonkeyd import jsontext
from flowmonkeyd.documents.builtins import CONFIGS
from flowmonkeyd.documents.problems import problems_of
from flowmonkeyd.documents.targets import wrong_target
from flowmonkeyd.documents.text import not_json, parse_json
from flowmonkeyd.documents.versions import is_version
from flowmonkeyd.errors import Invalid, Problem

__all__ = [
    "HANDLER_TYPE",
    "Input",
    "Manifest",
    "Network",
    "Package",
    "Stateful",
    "json_schema",
    "parse_manifest",
]

# The seed's hard limits of a stateless handler.
TTL_MS_MAX = 60_000
TTL_MS_DEFAULT = 30_000
MEMORY_MIB_MAX = 1024
MEMORY_MIB_MIN = 16
PROBLEMS_MAX = 1000
# A manifest goes with every task, so it is for facts and not for data.
DOCUMENT_BYTES_MAX = 256 * 1024
TARGETS_MAX = 200
NODE_MEMORY_MIB_MIN = 64
# More than one core is for the large tier, whose handlers declare more memory than the medium's.
CORES_MAX, TWO_CORES_FROM_MIB = 2, 513
HARD_TTL_MS_MAX = 30 * 24 * 3600 * 1000
# What needs less is a stateless handler.
STATEFUL_TTL_MS_MIN = 60_000

HANDLER_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*(/[A-Za-z0-9][A-Za-z0-9_.\-]*)?")
Text = Annotated[StrictStr, Field(min_length=1, max_length=1024)]
Millis = Annotated[StrictInt, Field(ge=1, le=HARD_TTL_MS_MAX)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class _Handler(_Model):
    type: Annotated[
        StrictStr,
        Field(
            max_length=200,
            pattern=f"^{HANDLER_TYPE.pattern}$",
        ),
    ]
    version: StrictStr
    name: Text | None = None
    description: Annotated[StrictStr, Field(max_length=10_000)] | None = None
    category: Text | None = None
    publisher: Text | None = None
    license: Text | None = None
    runtime: Literal["python", "node"] = "python"
    entrypoint: Annotated[StrictStr, Field(max_length=256)] = "handler.py:handle"
    stateful: StrictBool = False
    timeout: Millis | None = None


class _Input(BaseModel):
    """One declared input; the validation rules beside these fields are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    property: Text
    type: Literal["string", "number", "integer", "boolean", "object", "array", "any", "null"] = (
        "any"
    )
    source: Literal["input", "config", "context", "vault", "static"] = "input"
    secret: StrictBool = False
    required: StrictBool = False
    default: Any = None
    description: StrictStr | None = None
    value: Any = None


Targets = Annotated[tuple[StrictStr, ...], Field(max_length=TARGETS_MAX)]


class _Network(_Model):
    allow: Targets | None = None
    deny: Targets = ()


def _network_kind(value: Any) -> str:
    return "object" if isinstance(value, Mapping | _Network) else "boolean"


class _Sandbox(_Model):
    network: Annotated[
        Annotated[StrictBool, Tag("boolean")] | Annotated[_Network, Tag("object")],
        Discriminator(_network_kind),
    ] = False
    filesystem: Literal["none", "readonly", "temp"] = "none"
    env: Literal["isolated"] = "isolated"


_Long = Annotated[StrictInt, Field(ge=STATEFUL_TTL_MS_MIN, le=HARD_TTL_MS_MAX)]


class _Ttl(_Model):
    soft: _Long = 3_600_000
    hard: _Long = 24 * 3600 * 1000
    default: _Long = 3_600_000


def _ttl_kind(value: Any) -> str:
    return "object" if isinstance(value, Mapping | _Ttl) else "number"


class _Checkpoint(_Model):
    required: Literal[True] = True
    intervalMs: Annotated[StrictInt, Field(ge=1000, le=30_000)] = 30_000
    maxSize: Annotated[StrictInt, Field(ge=1, le=1024**3)] = 10 * 1024**2


class _Pause(_Model):
    enabled: StrictBool = True
    maxPauseDuration: Millis = 7 * 24 * 3600 * 1000


class _Execution(_Model):
    ttl: Annotated[
        Annotated[StrictInt, Field(ge=1, le=TTL_MS_MAX), Tag("number")]
        | Annotated[_Ttl, Tag("object")],
        Discriminator(_ttl_kind),
    ] = TTL_MS_DEFAULT
    memory: Annotated[StrictInt, Field(ge=MEMORY_MIB_MIN, le=MEMORY_MIB_MAX)] = 512
    cpu: Annotated[float, Field(gt=0, le=CORES_MAX, strict=True)] = 1
    sandbox: _Sandbox = _Sandbox()
    checkpoint: _Checkpoint | None = None
    pause: _Pause | None = None
    resources: Literal["light", "medium", "heavy", "gpu"] | None = None
    # What the container's image must have beside the language.
    tools: tuple[Literal["ffmpeg", "puppeteer", "sharp"], ...] | None = None


class _Schemas(_Model):
    input: dict[str, Any] | None = None
    output: dict[str, Any] | None = None


class _Package(_Model):
    format: Literal[1]
    # Long, and only the archive's reader needs it: what is kept of a manifest is without.
    files: dict[str, Annotated[StrictStr, Field(pattern="^[0-9a-f]{64}$")]] | None = None
    builder: Text
    sbom: Text | None = None


class _Document(_Model):
    schema_: Any = Field(default=None, alias="$schema")
    handler: _Handler
    inputs: list[_Input] = Field(default_factory=list)
    execution: _Execution = _Execution()
    dependencies: dict[str, StrictStr] = Field(default_factory=dict)
    schemas: _Schemas | None = None
    package: _Package | None = None


@dataclass(frozen=True, slots=True)
class Input:
    """One declared input. `rules` are the validation rules as written."""

    property: str
    type: str
    source: str
    secret: bool
    required: bool
    default: Any
    description: str | None
    value: Any
    rules: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stateful:
    """What only a stateful handler declares; `ttl_soft_ms` warns, `ttl_hard_ms` kills."""

    ttl_soft_ms: int
    ttl_hard_ms: int
    ttl_default_ms: int
    checkpoint_interval_ms: int
    checkpoint_bytes_max: int
    pause_enabled: bool
    pause_ms_max: int
    resources: Literal["light", "medium", "heavy", "gpu"]
    tools: tuple[Literal["ffmpeg", "puppeteer", "sharp"], ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """That a handler asks for network: `allow` is all it may reach (None: every global address),
    `deny` what it may not although allowed."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Package:
    """That a package was built, and by what (`flowmonkey/1.0.0`); `sbom` is the name of the file
    that lists what is in it."""

    builder: str
    sbom: str | None


@dataclass(frozen=True, slots=True)
class Manifest:
    """A handler's manifest. `timeout_ms` is the lower of `handler.timeout` and `execution.ttl`
    (its default for a stateful handler); `stateful` is None for a stateless handler, `network`
    for one without. `input_schema` and `output_schema` are JSON Schemas (2020-12) or None;
    `package` is None for a folder that was published as it is."""

    type: str
    version: str
    name: str | None
    description: str | None
    category: str | None
    publisher: str | None
    license: str | None
    runtime: Literal["python", "node"]
    entrypoint: str
    stateful: Stateful | None
    timeout_ms: int
    memory_mib: int
    cpu: float
    network: Network | None
    filesystem: Literal["none", "readonly", "temp"]
    inputs: tuple[Input, ...]
    dependencies: Mapping[str, str]
    input_schema: Mapping[str, Any] | None
    output_schema: Mapping[str, Any] | None
    package: Package | None


def parse_manifest(source: str | bytes | Mapping[str, Any]) -> Manifest:
    """The manifest from JSON text or an object.

    Raises Invalid with every problem, each with its JSON path.
    """
    document = parse_json(source) if isinstance(source, str | bytes) else source
    broken = not_json(document)
    if broken is None and jsontext.size_bytes(document) > DOCUMENT_BYTES_MAX:
        broken = Problem("$", f"has more than {DOCUMENT_BYTES_MAX} bytes as JSON")
    if broken is not None:
        raise _refused([broken])
    problems: list[Problem] = []
    try:
        shape = _Document.model_validate(document)
    except ValidationError as exc:
        problems = list(problems_of(exc))
    told = {problem.path for problem in problems}
    problems.extend(problem for problem in _check(document) if problem.path not in told)
    if problems:
        raise _refused(problems)
    return _manifest(shape)


def json_schema() -> dict[str, Any]:
    """JSON Schema of handler.json, for editors."""
    return _Document.model_json_schema(by_alias=True)


def _check(document: Any) -> Iterator[Problem]:
    """What the shape cannot say. Parts of the wrong shape are passed over."""
    handler, execution = _object(document, "handler"), _object(document, "execution")
    version, entrypoint = handler.get("version"), handler.get("entrypoint")
    if handler.get("type") in tuple(CONFIGS):  # a tuple, for a wrong type may have no hash
        yield Problem("$.handler.type", "is a built-in step type; choose another name")
    if isinstance(version, str) and not is_version(version):
        yield Problem("$.handler.version", f"{version[:64]!r} is not SemVer such as 1.0.0")
    runtime = handler.get("runtime", "python")
    if not isinstance(runtime, str) or runtime not in _FILES:
        pass  # told already
    elif isinstance(entrypoint, str) and not _is_entry(entrypoint, runtime):
        files = " or ".join(f"file{end}:name" for end in _FILES[runtime])
        yield Problem("$.handler.entrypoint", f"should be {files}, a file of the package")
    elif entrypoint is None and runtime == "node":
        yield Problem("$.handler.entrypoint", "is required for node: handler.js:handle")
    if handler.get("stateful") is True:
        yield from _check_stateful(execution)
    else:
        yield from _check_stateless(handler, execution)
    yield from _check_network(_object(execution, "sandbox").get("network"))
    memory, cpu = execution.get("memory", 512), execution.get("cpu")
    small = not isinstance(memory, int) or memory < TWO_CORES_FROM_MIB
    if isinstance(cpu, float | int) and 1 < cpu <= CORES_MAX and small:
        message = f"more than one core needs memory of at least {TWO_CORES_FROM_MIB} MiB"
        yield Problem("$.execution.cpu", message)
    if runtime == "node" and isinstance(memory, int) and memory < NODE_MEMORY_MIB_MIN:
        yield Problem("$.execution.memory", f"should be at least {NODE_MEMORY_MIB_MIN} for node")
    yield from _check_inputs(document.get("inputs") if isinstance(document, Mapping) else None)


def _object(document: Any, name: str) -> Mapping[str, Any]:
    value = document.get(name) if isinstance(document, Mapping) else None
    return value if isinstance(value, Mapping) else {}


_FILES = {"python": (".py",), "node": (".js", ".cjs", ".mjs")}
_JS_NAME = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


def _is_entry(text: str, runtime: str) -> bool:
    file, colon, name = text.rpartition(":")
    plain = all(part not in ("", ".", "..") for part in file.split("/")) and file.isprintable()
    if not colon or not plain or set(file) & set(":\\") or not file.endswith(_FILES[runtime]):
        return False
    if runtime == "python":
        return name.isidentifier() and not keyword.iskeyword(name)
    return _JS_NAME.fullmatch(name) is not None


def _check_stateful(execution: Mapping[str, Any]) -> Iterator[Problem]:
    ttl = execution.get("ttl")
    if isinstance(ttl, int):
        yield Problem("$.execution.ttl", "should be {soft, hard, default} for a stateful handler")
    elif isinstance(ttl, Mapping):
        whole = {name: field.default for name, field in _Ttl.model_fields.items()} | dict(ttl)
        for name in ("soft", "default"):
            low, high = whole[name], whole["hard"]
            if isinstance(low, int) and isinstance(high, int) and low > high:
                yield Problem(f"$.execution.ttl.{name}", f"must not be longer than hard ({high})")


def _check_stateless(handler: Mapping[str, Any], execution: Mapping[str, Any]) -> Iterator[Problem]:
    if isinstance(execution.get("ttl"), Mapping):
        message = f"should be one number, at most {TTL_MS_MAX}, unless the handler is stateful"
        yield Problem("$.execution.ttl", message)
    timeout = handler.get("timeout")
    if isinstance(timeout, int) and timeout > TTL_MS_MAX:
        message = f"should be at most {TTL_MS_MAX} unless the handler is stateful"
        yield Problem("$.handler.timeout", message)
    for name in ("checkpoint", "pause", "resources", "tools"):
        if execution.get(name) is not None:
            yield Problem(f"$.execution.{name}", "is for stateful handlers; set handler.stateful")


def _check_network(network: Any) -> Iterator[Problem]:
    for name in ("allow", "deny"):
        targets = network.get(name) if isinstance(network, Mapping) else None
        for index, target in enumerate(targets if isinstance(targets, list) else ()):
            wrong = wrong_target(target) if isinstance(target, str) else None
            if wrong is not None:
                yield Problem(f"$.execution.sandbox.network.{name}[{index}]", wrong)


def _check_inputs(inputs: Any) -> Iterator[Problem]:
    seen = set[str]()
    for index, one in enumerate(inputs if isinstance(inputs, list) else ()):
        name, source = (
            (one.get("property"), one.get("source")) if isinstance(one, Mapping) else ("", "")
        )
        path = f"$.inputs[{index}]"
        if isinstance(name, str) and name in seen:
            yield Problem(f"{path}.property", f"{name!r} is declared twice")
        if isinstance(name, str) and name:
            seen.add(name)
        if source == "static" and "value" not in one:
            yield Problem(f"{path}.value", "is required for the source static")
        if source == "vault" and ("value" in one or "default" in one):
            message = "comes from the vault; take value and default out of the manifest"
            yield Problem(path, message)


def _manifest(shape: _Document) -> Manifest:
    handler, execution = shape.handler, shape.execution
    stateful = _stateful(execution) if handler.stateful else None
    limits = [] if handler.timeout is None else [handler.timeout]
    if stateful is not None:
        limits.append(stateful.ttl_default_ms)
    elif isinstance(execution.ttl, int) and ("ttl" in execution.model_fields_set or not limits):
        limits.append(execution.ttl)
    return Manifest(
        type=handler.type,
        version=handler.version,
        name=handler.name,
        description=handler.description,
        category=handler.category,
        publisher=handler.publisher,
        license=handler.license,
        runtime=handler.runtime,
        entrypoint=handler.entrypoint,
        stateful=stateful,
        timeout_ms=min(limits),
        memory_mib=execution.memory,
        cpu=execution.cpu,
        network=_network(execution.sandbox.network),
        filesystem=execution.sandbox.filesystem,
        inputs=tuple(map(_input, shape.inputs)),
        dependencies=shape.dependencies,
        input_schema=shape.schemas.input if shape.schemas else None,
        output_schema=shape.schemas.output if shape.schemas else None,
        package=Package(shape.package.builder, shape.package.sbom) if shape.package else None,
    )


def _network(shape: bool | _Network) -> Network | None:
    if isinstance(shape, _Network):
        return Network(shape.allow, shape.deny)
    return Network() if shape else None


def _input(shape: _Input) -> Input:
    return Input(
        property=shape.property,
        type=shape.type,
        source=shape.source,
        secret=shape.secret,
        required=shape.required,
        default=shape.default,
        description=shape.description,
        value=shape.value,
        rules=dict(shape.model_extra or {}),
    )


def _stateful(shape: _Execution) -> Stateful:
    ttl = _Ttl() if isinstance(shape.ttl, int) else shape.ttl
    checkpoint, pause = shape.checkpoint or _Checkpoint(), shape.pause or _Pause()
    return Stateful(
        ttl_soft_ms=ttl.soft,
        ttl_hard_ms=ttl.hard,
        ttl_default_ms=ttl.default,
        checkpoint_interval_ms=checkpoint.intervalMs,
        checkpoint_bytes_max=checkpoint.maxSize,
        pause_enabled=pause.enabled,
        pause_ms_max=pause.maxPauseDuration,
        resources=shape.resources or "light",
        tools=shape.tools or (),
    )


def _refused(problems: list[Problem]) -> Invalid:
    count = f"{len(problems)} problem" + ("s" if len(problems) > 1 else "")
    return Invalid(f"cannot accept the manifest: {count}", problems=tuple(problems[:PROBLEMS_MAX]))
