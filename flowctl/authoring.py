"""`flowctl handler new`, `test` and `library`: what somebody who writes a handler uses.

None of them needs a daemon. What is printed of a handler never steers the terminal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from flowctl.options import NULL, Leaf, Session, json_option
from flowctl.output import neutral
from flowctl.problems import NotCompleted, Rejected
from flowctl.sandboxes import took_in_words

__all__ = ["COMMANDS"]

_GIVEN = {"input", "config", "context", "secrets"}


@click.command(cls=Leaf)
@click.argument("handler_type", metavar="TYPE")
@click.option(
    "--runtime",
    type=click.Choice(("python", "node", "typescript")),
    default="python",
    show_default=True,
    help="The language to write it in.",
)
@click.option("--stateful", is_flag=True, help="One that runs for long, with checkpoints.")
@click.option("--to", "folder", metavar="DIR", type=click.Path(), help="Where (its name).")
@click.pass_obj
def new(session: Session, handler_type: str, runtime: str, stateful: bool, folder: str) -> None:
    """Make a folder with a handler that works, its test and its README.

    The folder is called like the type's last part, so acme/resize is made in resize.

    \b
    Example:
      flowctl handler new acme/resize
      flowctl handler new acme/resize --runtime typescript --to handlers/resize
    """
    from flowctl.projects import create

    place = Path(folder or handler_type.rpartition("/")[2] or handler_type)
    names = create(handler_type, runtime, stateful, place)
    output = session.output

    def words() -> None:
        for name in names:
            output.line(str(place / name))
        output.note(f"next: flowctl handler test {place}")
        if stateful:
            output.note("this version of the daemon does not run stateful handlers yet")

    output.value({"folder": str(place), "files": names}, words)


@click.command(cls=Leaf)
@click.argument("folder", metavar="[DIR]", default=".", type=click.Path(exists=True))
@click.pass_obj
def library(session: Session, folder: str) -> None:
    """Put the library for JavaScript into DIR/node_modules, for editors and tests.

    `handler new` has done that; a fresh clone needs it again. A package brings its own.

    \b
    Example:
      flowctl handler library ./resize
    """
    from flowctl.vendor import install

    try:
        install(Path(folder))
    except OSError as exc:
        why = (exc.strerror or str(exc)).lower()
        raise Rejected(f"cannot write {folder}/node_modules/flowmonkey: {why}") from exc
    session.output.note(f"{folder}/node_modules/flowmonkey: written")


@click.command(cls=Leaf)
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@json_option("--input", "input_", help="The handler's input.")
@json_option("--config", mapping=True, help="What the step's config would be.")
@json_option("--context", mapping=True, help="What the execution's context would be.")
@json_option("--secrets", mapping=True, help="The secrets it is given, by name.")
@json_option("--given", mapping=True, help="All of these in one object.")
@click.option("--no-test-values", "bare", is_flag=True, help="Only what is given here.")
@click.pass_obj
def test(
    session: Session,
    folder: str,
    input_: Any,
    config: Any,
    context: Any,
    secrets: Any,
    given: Any,
    bare: bool,
) -> None:  # fmt: skip
    """Run the handler in DIR once, in the real sandbox, with its test values.

    What is given takes the place of test values, property by property. The result goes to stdout
    as JSON, the log to stderr (with -o json both to stdout, as one object). Exits with 1 if the
    handler failed.

    \b
    Example:
      flowctl handler test ./resize
      flowctl handler test ./resize --input '{"width": 80}'
    """
    from flowctl import trial

    output, is_json = session.output, session.output.form == "json"
    told: dict[str, Any] = {"config": config, "context": context, "secrets": secrets}
    if input_ is not None:
        told["input"] = None if input_ is NULL else input_
    told = {name: one for name, one in told.items() if one is not None or name == "input"}
    gift = _gift({**_given(given), **told})
    if not bare:
        gift = trial.with_test_values(folder, gift)
    lines: list[dict[str, Any]] = []

    def on_line(stream: str, level: str | None, message: str, fields: Mapping[str, Any]) -> None:
        if is_json:
            line = {"stream": stream, "level": level, "message": message, "fields": dict(fields)}
            lines.append(line)
            return
        more = f" {json.dumps(dict(fields), ensure_ascii=False)}" if fields else ""
        output.note(neutral(f"{level or stream:<7}  {message}{more}"))

    ran = trial.run(folder, gift, on_line)
    if is_json:
        whole = {
            **ran.result,
            "updates": ran.result.get("updates", {}),
            "emitted": ran.result.get("emitted", []),
            "logs": lines,
            "durationMs": ran.duration_ms,
            "peakMemoryBytes": ran.usage.get("peakMemoryBytes", 0),
        }
        output.value(whole, lambda: None)
    else:
        output.line(json.dumps(ran.result, ensure_ascii=False))
        for line in took_in_words(ran.duration_ms, ran.usage):
            output.note(line)
    if ran.is_failure:
        error = ran.result["error"]
        details = error["details"]
        if isinstance(details, dict) and isinstance(details.get("traceback"), str):
            output.note(neutral(details["traceback"].rstrip()))
        raise NotCompleted(f"the handler failed: {error['code']}: {error['message']}")


COMMANDS: tuple[click.Command, ...] = (new, test, library)


def _given(given: Any) -> dict[str, Any]:
    found = dict(given or {})
    if unknown := sorted(set(found) - _GIVEN):
        known = ", ".join(sorted(_GIVEN))
        raise click.BadParameter(f"unknown: {', '.join(unknown)}; it takes {known}")
    for name in ("config", "context", "secrets"):
        if not isinstance(found.get(name, {}), dict):
            raise click.BadParameter(f"{name} must be an object")
    return found


def _gift(told: Mapping[str, Any]) -> Any:
    from flowctl.trial import Given

    secrets = told.get("secrets", {})
    if wrong := [name for name, value in secrets.items() if not isinstance(value, str)]:
        raise click.BadParameter(f"the secret {wrong[0]} must be a text")
    return Given(
        told.get("input"),
        "input" in told,
        told.get("config", {}),
        told.get("context", {}),
        secrets,
    )
