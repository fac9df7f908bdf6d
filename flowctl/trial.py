"""A handler's folder, tried here without a daemon: the one door to the sandbox and its terms.

Reads the folder as publishing does, with the same refusals, and runs it in the real sandbox under
a daemon's default settings. Everything that costs time to import is imported inside the functions.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowctl.documents import bare_manifest, files_of, pack, refusals
from flowctl.problems import NotReady, Rejected

__all__ = [
    "Described",
    "Given",
    "Ran",
    "describe",
    "hold_here",
    "probe",
    "run",
    "terms",
    "with_test_values",
]

# (stream, level, message, fields)
OnLine = Callable[[str, str | None, str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Given:
    """What an execution is given; `has_input` false: the selector found nothing."""

    input: Any = None
    has_input: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Ran:
    """How it ended: `result` as JSON, whether that is a failure, and what it took."""

    result: dict[str, Any]
    is_failure: bool
    duration_ms: int
    usage: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Described:
    """What a handler's class declares; of any other handler `is_class` is false and the rest is
    empty. `inputs` and `schemas` are as in handler.json; a test value has a property, a source,
    and a value or the name of an environment variable (`env`) with a `fallback`."""

    is_class: bool = False
    inputs: Sequence[Mapping[str, Any]] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)
    test_values: Sequence[Mapping[str, Any]] = ()


def terms(folder: str, private: Sequence[str] = ()) -> dict[str, Any]:
    """What the handler in a folder may do, as `GET /v1/terms` answers. Raises Rejected."""
    from flowmonkeyd.terms import terms_json

    with _unpacked(folder) as (_, manifest):
        return terms_json(manifest, _settings(manifest.type, private))


def hold_here() -> list[dict[str, Any]]:
    """The layers as `GET /v1/health` shows them, found by trying. Raises NotReady."""
    from sandbox.probe import view_here
    from sandbox.standins import described

    with _unavailable():
        return [described(layer) for layer in view_here()]


def probe() -> tuple[dict[str, Any], str, bool]:
    """What `python -m sandbox probe` finds: as JSON, as text, whether handlers run here."""
    from sandbox.probe import probe as try_all

    with _unavailable():
        report = try_all()
    return report.as_dict(), report.as_text(), report.views[0].runs_handlers


def run(
    folder: str,
    given: Given,
    on_line: OnLine,
    private: Sequence[str] = (),
    ports: Sequence[int] = (),
    node: str | None = None,
) -> Ran:
    """Run the handler in a folder once. Raises Rejected as publishing does, NotReady on a host
    that cannot run it."""
    from flowmonkeyd.replies import denial_text, result_of
    from flowmonkeyd.terms import terms_of
    from sandbox import Call, Ending, LogLine, PoolSettings
    from sandbox.once import run as run_once

    def on_log(line: LogLine) -> None:
        on_line(line.stream, line.level, line.message, line.fields)

    with _unpacked(folder) as (place, manifest):
        settings = _settings(manifest.type, private)
        granted = terms_of(manifest, settings)
        call = Call(
            str(place),
            manifest.entrypoint,
            manifest.runtime,
            input=given.input,
            has_input=given.has_input,
            config=given.config,
            context=given.context,
            secrets=given.secrets,
            execution_id="trial",
            flow_id="trial",
            step_id="trial",
            task_id="trial.1.trial",
            limits=granted.limits,
            policy=granted.policy,
        )
        served = (*settings.sandbox.network.ports, *ports)
        pool = PoolSettings(slots=1, spares=1, spares_node=1, node=node, ports=served)
        with _unavailable():
            reply = run_once(call, pool, on_log)
    if reply.ending is Ending.UNAVAILABLE:
        raise NotReady(f"cannot run it here: {reply.message}")
    for denial in reply.traffic.denials if reply.traffic else ():
        on_line("log", "warning", denial_text(denial), {})
    result = result_of(reply, time.time_ns() // 1_000_000)
    shown = _result_json(result, reply.result or {})
    failed = result.error is not None
    return Ran(shown, failed, result.duration_ms, result.usage)


def describe(folder: str) -> Described:
    """What the class of a handler's folder declares; it is run for that, in the sandbox.

    Raises Rejected if it cannot be loaded, NotReady on a host that cannot run it.
    """
    from flowctl.vendor import DESCRIBE, imports_library
    from sandbox import Call, Ending, PoolSettings
    from sandbox.once import run as run_once

    if imports_library(dict(files_of(folder))) is None:
        return Described()
    with _unpacked(folder, to_describe=True) as (place, manifest):
        entrypoint = DESCRIBE[manifest.runtime]
        if not (place / entrypoint.partition(":")[0]).exists():
            return Described()  # only a test of it imports the library
        call = Call(
            str(place), entrypoint, manifest.runtime, input={"entrypoint": manifest.entrypoint}
        )
        with _unavailable():
            reply = run_once(call, PoolSettings(slots=1, spares=1, spares_node=1), lambda _: None)
    if reply.ending is Ending.UNAVAILABLE:
        raise NotReady(f"cannot run it here: {reply.message}")
    answer = reply.result or {}
    if answer.get("outcome") != "success":
        why = answer.get("error", {}).get("message") or reply.message
        raise Rejected(f"cannot load {manifest.entrypoint} of {folder}: {why}")
    return _described(answer.get("output"), folder)


def with_test_values(folder: str, given: Given) -> Given:
    """What is given, on top of the handler's declared test values."""
    from flowctl.vendor import LIBRARY_PLACES

    own = [data for name, data in files_of(folder) if not name.startswith(LIBRARY_PLACES)]
    if not any(b"test_value" in data or b"estValue" in data for data in own):
        return given
    tests: dict[str, dict[str, Any]] = {"input": {}, "config": {}, "context": {}, "vault": {}}
    for one in describe(folder).test_values:
        value = one["value"] if "value" in one else os.environ.get(one["env"], one["fallback"])
        if one["source"] in tests and (value is not None or "value" in one):
            tests[one["source"]][one["property"]] = value
    given_input, has_input = given.input, given.has_input
    if tests["input"] and (not has_input or isinstance(given_input, Mapping)):
        given_input, has_input = {**tests["input"], **(given_input or {})}, True
    return Given(
        given_input,
        has_input,
        {**tests["config"], **given.config},
        {**tests["context"], **given.context},
        {**tests["vault"], **given.secrets},
    )


def _described(output: Any, folder: str) -> Described:
    """A description as the sandbox gave it: a stranger's data, so it is looked at first."""
    shape = {"isClass": bool, "schemas": dict, "testValues": list}
    if not isinstance(output, dict) or not all(
        isinstance(output.get(name), kind) for name, kind in shape.items()
    ):
        raise Rejected(
            f"cannot read what the handler in {folder} declares: it is not the library's"
        )
    tests = output["testValues"]
    for one in tests:
        named = isinstance(one, dict) and all(
            isinstance(one.get(name), str) for name in ("property", "source")
        )
        if not named or not ("value" in one or isinstance(one.get("env"), str)):
            raise Rejected(f"cannot read the test values of the handler in {folder}")
    inputs = [one for one in output.get("inputs") or [] if isinstance(one, dict)]
    return Described(output["isClass"], inputs, output["schemas"], tests)


def _result_json(result: Any, answer: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"outcome": result.outcome.value}
    if result.error is not None:
        error = result.error
        shown["error"] = {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "details": error.details,
        }
        return shown
    for name in ("output", "next", "wait"):
        if name in answer:
            shown[name] = answer[name]
    for name in ("updates", "emitted"):
        if answer.get(name):
            shown[name] = answer[name]
    return shown


def _settings(handler_type: str, private: Sequence[str]) -> Any:
    """A daemon's settings where nobody set anything but this handler's private networks."""
    from flowmonkeyd.config import ConfigError, load

    flags = {f'handlers."{handler_type}".privateNetworks': ",".join(private)} if private else {}
    try:
        return load(flags, {"FLOWMONKEY_CONFIG": os.devnull}, False, Path.home()).settings
    except ConfigError as exc:
        why = exc.lines[0].rpartition(": ")[2]
        raise Rejected(f"cannot allow private networks: {why}") from None


@contextmanager
def _unpacked(folder: str, to_describe: bool = False) -> Iterator[tuple[Path, Any]]:
    """The package of a folder on disk as a daemon keeps it, with its manifest; one that is only
    to be described has a manifest that says what to load and nothing that could be refused."""
    from flowmonkeyd.packages import Packages

    made = _compiled(folder)
    if to_describe:
        made["handler.json"] = bare_manifest(folder)
    data = pack(folder, made)
    place = tempfile.mkdtemp(prefix="flowctl-")
    try:
        packages = Packages(Path(place))
        with refusals(folder):
            received = packages.receive(data)
        yield packages.path(received.digest), received.manifest
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _compiled(folder: str) -> dict[str, bytes]:
    """The file that a handler in TypeScript is run from, test values and all; types are checked
    by a build only."""
    try:
        entrypoint = json.loads(Path(folder, "handler.json").read_bytes())["handler"]["entrypoint"]
        file = entrypoint.rpartition(":")[0]
        start = Path(folder, file).with_suffix(".ts")
        if Path(folder, file).exists() or not start.exists():
            return {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # publishing's own checks tell
    from flowctl.build.script_source import transpiled

    return {file: transpiled(folder, start.relative_to(folder).as_posix(), file)}


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise NotReady(f"cannot run handlers here: {(exc.strerror or str(exc)).lower()}") from exc
