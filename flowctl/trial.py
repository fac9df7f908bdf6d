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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from flowctl import makeshift
from flowctl.documents import bare_manifest, files_of, pack, refusals
from flowctl.problems import NotReady, Rejected

if TYPE_CHECKING:
    from flowmonkeyd.masking import Log, LogMask, Masks
    from sandbox import Call, Limits, LogLine, OnLog, Policy, PoolSettings, Reply
    from sandbox.once import Bench

__all__ = [
    "Described",
    "Given",
    "Ran",
    "Trial",
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
    # What the pauses of a stateful handler end with, one after the other.
    resumes: Sequence[Any] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """How it ended: `result` as JSON, whether that is a failure, and what it took. `refused` are
    the system calls that the sandbox refused, as (call, answer, count); None: not counted here."""

    result: dict[str, Any]
    is_failure: bool
    duration_ms: int
    usage: Mapping[str, Any]
    refused: tuple[tuple[str, str, int], ...] | None = None


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

    with _unpacked(folder, makeshift.scripts_of(folder)) as (_, manifest):
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
    with Trial(folder, private, ports, node) as trial:
        return trial.run(given, on_line)


def describe(folder: str) -> Described:
    """What the class of a handler's folder declares; it is run for that, in the sandbox.

    Raises Rejected if it cannot be loaded, NotReady on a host that cannot run it.
    """
    from flowctl.vendor import imports_library

    if imports_library(dict(files_of(folder))) is None:
        return Described()
    with Trial(folder) as trial, _unpacked(folder, _to_describe(folder)) as (place, manifest):
        return trial.describe(place, manifest)


def with_test_values(folder: str, given: Given) -> Given:
    """What is given, on top of the handler's declared test values."""
    with Trial(folder) as trial, _unpacked(folder, _to_describe(folder)) as (place, manifest):
        return trial.with_test_values(place, manifest, given)


class Trial:
    """A handler's folder, run as often as wanted: each time as it is by then, in a new process.

    Between runs one process waits, which makes the others; nothing is left after the end.
    """

    def __init__(
        self,
        folder: str,
        private: Sequence[str] = (),
        ports: Sequence[int] = (),
        node: str | None = None,
        timeout_ms: int | None = None,
    ) -> None:
        """`timeout_ms` stands for the manifest's; `private`, `ports` as for `sandbox run`."""
        self.folder = folder
        self._private, self._ports, self._node = private, ports, node
        self._timeout_ms = timeout_ms
        self._bench: Bench | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything and wait until it is gone; a later run starts it again."""
        if self._bench is not None:
            self._bench.close()
            self._bench = None

    def run(self, given: Given, on_line: OnLine, test_values: bool = False) -> Ran:
        """Run it once, with its declared test values where nothing is given if that is asked for.

        Raises Rejected as publishing does, NotReady on a host that cannot run it.
        """
        self._ready()  # its process starts while this one imports what judges the folder
        from flowmonkeyd.replies import denial_text, masked, result_of
        from flowmonkeyd.terms import terms_of

        with _unpacked(self.folder, makeshift.made_of(self.folder)) as (place, manifest):
            granted = terms_of(_tried(manifest), _settings(manifest.type, self._private))
            if test_values:
                given = self.with_test_values(place, manifest, given)
            limits = granted.limits
            if self._timeout_ms is not None:
                limits = replace(limits, wall_ms=self._timeout_ms, cpu_ms=None)
            call = _call(place, manifest, given, limits, granted.policy)
            if manifest.stateful is not None:
                call = _stateful(call, manifest.stateful, given)
            lines = _Lines(given.secrets, on_line)
            reply = self._asked(call, lines.add)
        lines.end()
        if lines.masks is not None:
            reply = masked(reply, lines.masks)
        for denial in reply.traffic.denials if reply.traffic else ():
            on_line("log", "warning", denial_text(denial), {})
        result = result_of(reply, time.time_ns() // 1_000_000)
        shown = _result_json(result, reply.result or {})
        failed = result.error is not None
        refused = None
        if reply.refused is not None:
            refused = tuple((one.call, one.answer, one.count) for one in reply.refused)
        return Ran(shown, failed, result.duration_ms, result.usage, refused)

    def describe(self, place: Path, manifest: Any) -> Described:
        """What the class in an unpacked package declares. Raises as `describe`."""
        from flowctl.vendor import DESCRIBE
        from sandbox import Call

        entrypoint = DESCRIBE[manifest.runtime]
        if not (place / entrypoint.partition(":")[0]).exists():
            return Described()  # only a test of it imports the library
        asked = {"entrypoint": manifest.entrypoint}
        call = Call(str(place), entrypoint, manifest.runtime, input=asked)
        reply = self._asked(call, lambda _line: None)
        answer = reply.result or {}
        if answer.get("outcome") != "success":
            why = answer.get("error", {}).get("message") or reply.message
            raise Rejected(f"cannot load {manifest.entrypoint} of {self.folder}: {why}")
        return _described(answer.get("output"), self.folder)

    def with_test_values(self, place: Path, manifest: Any, given: Given) -> Given:
        """What is given, on top of what the class in an unpacked package declares for tests."""
        from flowctl.vendor import LIBRARY_PLACES

        own = (data for name, data in files_of(self.folder) if not name.startswith(LIBRARY_PLACES))
        if not any(b"test_value" in data or b"estValue" in data for data in own):
            return given
        return _on_top(self.describe(place, manifest).test_values, given)

    def _ready(self) -> Bench:
        """The bench for what the folder holds now."""
        settings = _pool_settings(self.folder, self._ports, self._node)
        if self._bench is not None and self._bench.settings != settings:
            self._bench.close()
            self._bench = None
        if self._bench is None:
            from sandbox.once import Bench

            bench = Bench(settings)
            self._bench = bench
            with _unavailable():
                bench.start()
        return self._bench

    def _asked(self, call: Call, on_log: OnLog) -> Reply:
        from sandbox import Ending

        with _unavailable():
            reply = self._ready().run(call, on_log)
        if reply.ending is Ending.UNAVAILABLE:
            raise NotReady(f"cannot run it here: {reply.message}")
        return reply


class _Lines:
    """Log lines on their way out, without the secrets that the handler was given."""

    def __init__(self, secrets: Mapping[str, str], on_line: OnLine) -> None:
        self.masks: Masks | None = None
        self._mask: LogMask | None = None
        self._on_line = on_line
        if secrets:
            from flowmonkeyd.masking import LogMask, Masks
            from flowmonkeyd.vault import VALUE_CHARS_MIN, Value

            # a daemon keeps none that are shorter: they are in other texts by chance
            long = {name: text for name, text in secrets.items() if len(text) >= VALUE_CHARS_MIN}
            self.masks = Masks({name: Value(text) for name, text in long.items()})
            self._mask = LogMask(self.masks)

    def add(self, line: LogLine) -> None:
        row = (line.at_ms, str(line.stream), line.level, line.message, line.fields)
        if self._mask is None:
            self._keep(row)
        else:
            self._mask.add(row, self._keep)

    def end(self) -> None:
        if self._mask is not None:
            self._mask.end(self._keep)

    def _keep(self, line: Log) -> None:
        _at_ms, stream, level, message, fields = line
        self._on_line(stream, level, message, fields or {})


def _pool_settings(folder: str, ports: Sequence[int], node: str | None) -> PoolSettings:
    """The smallest pool that runs the folder; what is wrong with the folder is told elsewhere."""
    from sandbox import PoolSettings

    try:
        manifest = json.loads(Path(folder, "handler.json").read_bytes())
        runtime = manifest["handler"]["runtime"]
        has_network = '"network"' in json.dumps(manifest)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        runtime, has_network = "python", True
    is_node = runtime == "node"
    kind = "node" if is_node else "python"
    return PoolSettings(
        slots=1,
        spares=0,
        spares_node=0,
        ports=(*PoolSettings().ports, *ports) if has_network else (),
        node=node if is_node else "",
        kinds=(kind, f"{kind}+network") if has_network else (kind,),
        try_layers=False,
        report_refused=True,
    )


def _call(place: Path, manifest: Any, given: Given, limits: Limits, policy: Policy) -> Call:
    from sandbox import Call

    return Call(
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
        limits=limits,
        policy=policy,
    )


def _tried(manifest: Any) -> Any:
    """As the sandbox runs it: a stateful handler, which may run for hours, for a minute."""
    from sandbox.model import WALL_MAX_MS

    return replace(manifest, timeout_ms=min(manifest.timeout_ms, WALL_MAX_MS))


def _stateful(call: Call, terms: Any, given: Given) -> Call:
    """The call with the agent's `ctx` around the handler, and a folder for temporary files, as in
    a container."""
    task = {
        "hasInput": given.has_input,
        "input": given.input,
        "entrypoint": call.entrypoint,
        "checkpoint": {
            "intervalMs": terms.checkpoint_interval_ms,
            "maxSize": terms.checkpoint_bytes_max,
            "names": {},
        },
        "ttl": {"ttlMs": terms.ttl_default_ms, "activeMs": 0},
        "pauseMaxMs": terms.pause_ms_max if terms.pause_enabled else 0,
    }
    return replace(
        call,
        entrypoint=makeshift.AGENT_TRIAL[call.runtime],
        has_input=True,
        input={"task": task, "resumes": list(given.resumes)},
        policy=replace(call.policy, filesystem="temp"),
    )


def _on_top(test_values: Sequence[Mapping[str, Any]], given: Given) -> Given:
    tests: dict[str, dict[str, Any]] = {"input": {}, "config": {}, "context": {}, "vault": {}}
    for one in test_values:
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
        given.resumes,
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


def _to_describe(folder: str) -> dict[str, bytes]:
    """What is made of a folder, with a manifest that says what to load and nothing else, so that
    nothing of it is refused."""
    return {**makeshift.made_of(folder), "handler.json": bare_manifest(folder)}


@contextmanager
def _unpacked(folder: str, made: Mapping[str, bytes]) -> Iterator[tuple[Path, Any]]:
    """The package of a folder and of what was made of it, on disk as a daemon keeps it, with its
    manifest."""
    from flowmonkeyd.packages import Packages

    bundled = makeshift.NPM_PLACE if makeshift.packages_of(folder) else None
    data = pack(folder, made, lambda name: name == bundled)
    place = tempfile.mkdtemp(prefix="flowctl-")
    try:
        packages = Packages(Path(place))
        with refusals(folder):
            received = packages.receive(data)
        yield packages.path(received.digest), received.manifest
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise NotReady(f"cannot run handlers here: {(exc.strerror or str(exc)).lower()}") from exc
