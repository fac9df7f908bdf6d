"""`flowctl status`, `version`, `completion`, `queue`: how the daemon is, what it has to do."""

from __future__ import annotations

from typing import Any

import click

from flowctl.options import Leaf, Session
from flowctl.output import Column, duration
from flowctl.problems import FlowctlError, NotReady
from flowctl.sandboxes import layers_in_words

__all__ = ["completion", "queue", "status", "version"]

QUEUE: tuple[Column, ...] = (
    ("HANDLER", lambda row: row.get("handlerType")),
    ("PRIORITY", lambda row: row.get("priority")),
    ("QUEUED", lambda row: row.get("queued")),
    ("LEASED", lambda row: row.get("leased")),
    ("OLDEST", lambda row: duration(row.get("oldestQueuedMs"))),
)

CHECKS: tuple[Column, ...] = (
    ("CHECK", lambda row: row.get("name")),
    ("STATUS", lambda row: row.get("status")),
    ("DETAIL", lambda row: row.get("detail")),
)


@click.command(cls=Leaf)
@click.pass_obj
def status(session: Session) -> None:
    """Say how the daemon is.

    Exits with 3 while it is not ready.

    \b
    Example:
      flowctl status -o json
    """
    answer = session.client().request("GET", "/v1/health", accept=(503,))

    def words(health: dict[str, Any]) -> None:
        session.output.pairs(
            [
                ("status", health.get("status")),
                ("version", health.get("version")),
                ("up", _uptime(health.get("uptimeS"))),
            ]
        )
        checks = health.get("checks")
        if isinstance(checks, dict) and checks:
            rows = [{"name": name, **_check(check)} for name, check in checks.items()]
            session.output.table(rows, CHECKS)
            layers_in_words(session.output, _check(checks.get("sandbox")).get("layers") or ())

    session.output.answer(answer, words)
    if answer.status != 200:
        raise NotReady("the daemon is not ready: it answers, but does not take work")


@click.command(cls=Leaf)
@click.pass_obj
def version(session: Session) -> None:
    """Say flowctl's and the daemon's version.

    \b
    Example:
      flowctl version
    """
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    known: dict[str, Any] = {"flowctl": None, "flowmonkeyd": None}
    try:
        known["flowctl"] = installed("flowmonkey")
    except PackageNotFoundError:  # run from a source tree that was never installed
        known["flowctl"] = "unknown"
    note = ""
    try:
        answer = session.client().request("GET", "/v1/health", accept=(503,))
        known["flowmonkeyd"] = answer.fields().get("version")
    except FlowctlError as exc:
        note = exc.message
    shown = {name: found or "no answer" for name, found in known.items()}
    session.output.value(known, lambda: session.output.pairs(shown.items()))
    if note:
        session.output.note(note)


@click.command(cls=Leaf)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of SHELL.

    \b
    Example:
      eval "$(flowctl completion bash)"
      flowctl completion fish > ~/.config/fish/completions/flowctl.fish
    """
    from click.shell_completion import get_completion_class

    from flowctl.main import cli

    kind = get_completion_class(shell)
    if kind is None:  # click knows all three since 8.0
        raise click.UsageError(f"no completion for {shell}")
    made = kind(cli, {}, "flowctl", "_FLOWCTL_COMPLETE")
    # not made.source(): for bash that starts a bash to ask for its version
    click.echo(made.source_template % made.source_vars())


@click.command(cls=Leaf)
@click.pass_obj
def queue(session: Session) -> None:
    """Show what is queued and leased.

    \b
    Example:
      flowctl queue
    """
    answer = session.client().get("/v1/queue")

    def words(depth: dict[str, Any]) -> None:
        items = depth.get("items") or []
        totals = depth.get("totals") or {}
        rows = [*items, {"handlerType": "(all)", **totals}]
        session.output.table(rows, QUEUE)

    session.output.answer(answer, words)


def _uptime(seconds: Any) -> str | None:
    return duration(seconds * 1000) if isinstance(seconds, int | float) else None


def _check(check: Any) -> dict[str, Any]:
    return check if isinstance(check, dict) else {"status": check}
