"""`flowctl handler test`: a handler's folder run in the real sandbox, once or at every change.

Needs no daemon. Says how it ended, what it logged and took, and which system calls the sandbox
refused. A secret's value is never an argument: who lists processes, or a shell's history, would
have it. What is printed of a handler never steers the terminal. Nothing is left after the end.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flowctl.options import NULL, Leaf, Session, json_option, json_value
from flowctl.output import Output, neutral
from flowctl.problems import FlowctlError, NotCompleted
from flowctl.sandboxes import took_in_words

if TYPE_CHECKING:
    from flowctl.trial import Given, Ran, Trial

__all__ = ["test"]

_GIVEN = {"input", "config", "context", "secrets", "resumes"}
TIMEOUT_MAX_S = 60.0  # of a stateless handler
# Looking at a folder of some hundred files takes a millisecond. What an editor writes in several
# steps is one change: it is over when nothing has changed for one look.
LOOK_EVERY_S = 0.15
_NOT_WATCHED = frozenset({"__pycache__", "node_modules"})
_ANSWERS = {"killed": "killed the process"}


def _secrets(
    ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Each NAME, NAME=env:VARIABLE or NAME=@FILE with its value; a usage error for what has none,
    which never quotes what was given."""
    return {} if ctx.resilient_parsing else dict(map(_secret, values))


def _secret(told: str) -> tuple[str, str]:
    name, given, place = told.partition("=")
    if not name:
        raise click.BadParameter("it needs a name: NAME, NAME=env:VARIABLE or NAME=@FILE")
    if not given:
        return name, _asked(name)
    if place.startswith("env:"):
        if place[4:] not in os.environ:
            raise click.BadParameter(f"{name}: there is no such environment variable")
        return name, os.environ[place[4:]]
    if place.startswith("@"):
        return name, _read(name, place[1:])
    raise click.BadParameter(
        f"{name}: a value does not belong on the command line, where others can read it; "
        f"give {name} to be asked, {name}=env:VARIABLE or {name}=@FILE"
    )


def _asked(name: str) -> str:
    if not sys.stdin.isatty():
        raise click.BadParameter(
            f"{name}: nobody can be asked here; use {name}=env:VARIABLE or {name}=@FILE"
        )
    return str(click.prompt(f"secret {name}", hide_input=True, err=True))


def _read(name: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            text = file.read()
    except UnicodeDecodeError as exc:
        raise click.BadParameter(f"{name}: {path} is not UTF-8") from exc
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        raise click.BadParameter(f"{name}: cannot read {path}: {why}") from exc
    return text.removesuffix("\n")  # which `echo` and editors put there


def _given_elsewhere(
    ctx: click.Context, _param: click.Parameter, value: str | None
) -> dict[str, Any] | None:
    """All of it in one object, for programs: from a file or stdin, since it may have secrets."""
    if value is None or ctx.resilient_parsing:
        return None
    if value != "-" and not value.startswith("@"):
        raise click.BadParameter("give it as @FILE, or - for stdin: it may have secrets")
    try:
        found: dict[str, Any] = json_value(value, mapping=True)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc
    if unknown := sorted(set(found) - _GIVEN):
        known = ", ".join(sorted(_GIVEN))
        raise click.BadParameter(f"unknown: {', '.join(unknown)}; it takes {known}")
    for name in ("config", "context", "secrets"):
        if not isinstance(found.get(name, {}), dict):
            raise click.BadParameter(f"{name} must be an object")
    if not isinstance(found.get("resumes", []), list):
        raise click.BadParameter("resumes must be a list")
    for name, secret in found.get("secrets", {}).items():
        if not isinstance(secret, str):
            raise click.BadParameter(f"the secret {name} must be a text")
    return found


def _resumes(ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[Any]:
    if ctx.resilient_parsing:
        return []
    try:
        return [json_value(one, mapping=False) for one in values]
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


@click.command(cls=Leaf)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@json_option("--input", "input_", help="The handler's input.")
@json_option("--config", mapping=True, help="What the step's config would be.")
@json_option("--context", mapping=True, help="What the execution's context would be.")
@click.option(
    "--secret",
    "secrets",
    callback=_secrets,
    multiple=True,
    metavar="NAME[=env:VARIABLE|=@FILE]",
    help="A secret it is given; a NAME alone is asked for, unseen.",
)
@click.option(
    "--given",
    metavar="@FILE|-",
    callback=_given_elsewhere,
    help="All of these in one object.",
)
@click.option(
    "--resume",
    "resumes",
    callback=_resumes,
    multiple=True,
    metavar="JSON|@FILE",
    help="The data that a stateful handler's next pause ends with.",
)
@click.option("--no-test-values", "bare", is_flag=True, help="Only what is given here.")
@click.option(
    "--timeout",
    "timeout_s",
    metavar="S",
    type=click.FloatRange(min=0.001, max=TIMEOUT_MAX_S),
    help="Seconds that it may take, instead of what its manifest says.",
)
@click.option(
    "--watch", "watched", is_flag=True, help="Run it again at every change, until Ctrl-C."
)
@click.pass_obj
def test(
    session: Session,
    folder: str,
    input_: Any,
    config: Any,
    context: Any,
    secrets: Mapping[str, str],
    given: Any,
    resumes: Sequence[Any],
    bare: bool,
    timeout_s: float | None,
    watched: bool,
) -> None:  # fmt: skip
    """Run the handler in DIR in the real sandbox, with its test values.

    What is given takes the place of test values, property by property. A stateful handler's
    checkpoints are kept in memory, and its pauses end at once with what --resume says. The
    result goes to stdout as JSON, the log to stderr with what it took and the system calls that
    the sandbox refused (with -o json all of it to stdout, as one object). Exits with 1 if the
    handler failed, with 5 if DIR has no valid handler, with 3 if this host cannot run it.

    \b
    Example:
      flowctl handler test ./resize
      flowctl handler test ./resize --input '{"width": 80}' --secret apiKey=env:KEY
      flowctl handler test ./resize --watch
    """
    from flowctl.trial import Given, Trial

    told = dict(given or {})
    if input_ is not None:
        told["input"] = None if input_ is NULL else input_
    gift = Given(
        told.get("input"),
        "input" in told,
        told.get("config", {}) if config is None else config,
        told.get("context", {}) if context is None else context,
        {**told.get("secrets", {}), **secrets},
        resumes or told.get("resumes", ()),
    )
    # so that a plain kill takes the way of Ctrl-C, which leaves nothing behind
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    timeout_ms = None if timeout_s is None else max(1, round(timeout_s * 1000))
    with Trial(folder, timeout_ms=timeout_ms) as trial:
        if watched:
            _at_every_change(folder, lambda: _once(session.output, trial, gift, not bare), session)
        else:
            _once(session.output, trial, gift, not bare)


def _once(output: Output, trial: Trial, gift: Given, test_values: bool) -> None:
    is_json = output.form == "json"
    lines: list[dict[str, Any]] = []

    def on_line(stream: str, level: str | None, message: str, fields: Mapping[str, Any]) -> None:
        if is_json:
            line = {"stream": stream, "level": level, "message": message, "fields": dict(fields)}
            lines.append(line)
            return
        more = f" {json.dumps(dict(fields), ensure_ascii=False)}" if fields else ""
        output.note(neutral(f"{level or stream:<7}  {message}{more}"))

    ran = trial.run(gift, on_line, test_values)
    if is_json:
        output.value(_as_json(ran, lines), lambda: None)
    else:
        output.line(json.dumps(ran.result, ensure_ascii=False))
        for line in (*took_in_words(ran.duration_ms, ran.usage), *_refused_in_words(ran)):
            output.note(line)
    if ran.is_failure:
        error = ran.result["error"]
        details = error["details"]
        if isinstance(details, dict) and isinstance(details.get("traceback"), str):
            output.note(neutral(details["traceback"].rstrip()))
        raise NotCompleted(f"the handler failed: {error['code']}: {error['message']}")


def _as_json(ran: Ran, lines: list[dict[str, Any]]) -> dict[str, Any]:
    refused = None
    if ran.refused is not None:
        refused = [dict(zip(("call", "answer", "count"), one, strict=True)) for one in ran.refused]
    return {
        **ran.result,
        "updates": ran.result.get("updates", {}),
        "emitted": ran.result.get("emitted", []),
        "logs": lines,
        "durationMs": ran.duration_ms,
        "cpuMs": ran.usage.get("cpuMs", 0),
        "peakMemoryBytes": ran.usage.get("peakMemoryBytes", 0),
        "refusedCalls": refused,
    }


def _refused_in_words(ran: Ran) -> Iterator[str]:
    if ran.refused is None:
        yield "refused system calls were not counted: this host does not tell (Linux 5.5 or newer)"
        return
    for call, answer, count in ran.refused:
        times = f", {count} times" if count > 1 else ""
        yield f"refused: the system call {neutral(call)}: {_ANSWERS.get(answer, answer)}{times}"


# --- at every change ---------------------------------------------------------------------------


def _at_every_change(folder: str, run: Callable[[], None], session: Session) -> None:
    """Run now and whenever something in the folder has changed, until Ctrl-C, which is its end."""
    note = session.output.note
    try:
        while True:
            seen = _state(folder)
            try:
                run()
            except FlowctlError as exc:
                note(f"flowctl: {exc.message}")
            note(f"-- waiting for a change in {neutral(folder)}; Ctrl-C ends")
            _wait_for_change(folder, seen)
    except KeyboardInterrupt:
        note("")


def _wait_for_change(folder: str, seen: Mapping[str, tuple[int, ...]]) -> None:
    while (now := _state(folder)) == seen:
        time.sleep(LOOK_EVERY_S)
    while True:
        time.sleep(LOOK_EVERY_S)
        before, now = now, _state(folder)
        if before == now:
            return


def _state(folder: str) -> dict[str, tuple[int, ...]]:
    """What tells that a file was written or replaced; what is gone meanwhile is left out."""
    found: dict[str, tuple[int, ...]] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if name not in _NOT_WATCHED and not name.startswith(".")
        ]
        for name in names:
            path = os.path.join(place, name)
            try:
                status = os.lstat(path)
            except OSError:
                continue
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
    return found
