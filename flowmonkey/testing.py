"""The pytest fixture `handler_test`: a handler's folder, run in the real sandbox.

For whoever writes handlers; installed with FlowMonkey and never part of a package. Each call is one
execution under the confinement and the limits that a daemon with default settings gives. There is
no network but what the manifest asks for, and nothing is mocked: on a host without the sandbox a
test fails and says so.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

__all__ = ["HandlerTest", "Logged", "Tested", "handler_test"]

_NONE: Any = object()


@dataclass(frozen=True, slots=True)
class Logged:
    """One line of its log; `stream` is log, stdout or stderr, and only log has a level."""

    stream: str
    level: str | None
    message: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Tested:
    """How an execution ended: `outcome` is success, failure, wait, or error (it crashed, ran out
    of a limit, …), `error` is {code, message, retryable, details} or None. `refused` are the
    system calls that the sandbox refused it, by name, with how often."""

    outcome: str
    output: Any
    error: Mapping[str, Any] | None
    next: str | None
    wait: Mapping[str, Any] | None
    updates: Mapping[str, Any]
    emitted: tuple[tuple[str, Any], ...]
    logs: tuple[Logged, ...]
    duration_ms: int
    peak_memory_bytes: int
    refused: Mapping[str, int]

    @property
    def violations(self) -> list[tuple[str, str]]:
        """(property, rule) of each violation, if that is how it ended."""
        error = self.error or {}
        if error.get("code") != "INPUT_VALIDATION_FAILED":
            return []
        return [(one["property"], one["rule"]) for one in error["details"]]


HandlerTest = Callable[..., Tested]


@pytest.fixture(scope="session")
def _trials() -> Iterator[dict[Path, Any]]:
    """One for each folder: what makes its processes starts once, each execution has its own."""
    found: dict[Path, Any] = {}
    yield found
    for trial in found.values():
        trial.close()


@pytest.fixture
def handler_test(request: pytest.FixtureRequest, _trials: dict[Path, Any]) -> HandlerTest:
    """`handler_test(input, config=…, context=…, secrets=…, resumes=…, folder=…)` → `Tested`.

    The folder is the nearest one above the test that has a handler.json. Left out, the input is
    the declared test values; given, its properties go before them. `test_values=False` leaves
    them out altogether. `resumes` are what the pauses of a stateful handler end with.
    """

    def run(
        input: Any = _NONE,
        *,
        config: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        secrets: Mapping[str, str] | None = None,
        resumes: Sequence[Any] = (),
        folder: str | Path | None = None,
        test_values: bool = True,
    ) -> Tested:
        from flowctl import trial
        from flowctl.problems import NotReady, Rejected

        place = Path(folder).absolute() if folder is not None else _folder(request.path)
        given = trial.Given(
            None if input is _NONE else input,
            input is not _NONE,
            config or {},
            context or {},
            secrets or {},
            resumes,
        )
        lines: list[Logged] = []
        if place not in _trials:
            _trials[place] = trial.Trial(str(place))
        try:
            ran = _trials[place].run(given, lambda *line: lines.append(Logged(*line)), test_values)
        except (NotReady, Rejected) as exc:
            pytest.fail(f"THE HANDLER WAS NOT RUN: {exc}", pytrace=False)
        return _tested(ran, lines)

    return run


def _folder(test: Path) -> Path:
    for place in test.resolve().parents:
        if (place / "handler.json").is_file():
            return place
    raise FileNotFoundError(
        f"cannot find handler.json above {test}: put the test into the handler's folder, or give "
        "handler_test(folder=…)"
    )


def _tested(ran: Any, lines: list[Logged]) -> Tested:
    result, refused = ran.result, collections.Counter[str]()
    for call, _answer, count in ran.refused or ():
        refused[call] += count
    return Tested(
        outcome=result["outcome"],
        output=result.get("output"),
        error=result.get("error"),
        next=result.get("next"),
        wait=result.get("wait"),
        updates=result.get("updates", {}),
        emitted=tuple((name, data) for name, data in result.get("emitted", ())),
        logs=tuple(lines),
        duration_ms=ran.duration_ms,
        peak_memory_bytes=ran.usage.get("peakMemoryBytes", 0),
        refused=refused,
    )
