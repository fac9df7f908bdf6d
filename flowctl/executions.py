"""`flowctl execution …`: list, show, history, logs, watch, cancel, resume, retry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from flowctl.client import segment
from flowctl.options import Noun, Session, given, json_option, limit_option, live_ids, moment
from flowctl.output import Column, Output, cell, duration

__all__ = ["execution"]

Fields = Mapping[str, Any]

STATUSES = ("pending", "running", "waiting", "cancelling", "cancelled", "completed", "failed")

LIST: tuple[Column, ...] = (
    ("ID", lambda row: row.get("id")),
    ("FLOW", lambda row: f"{row.get('flowId')}@{row.get('flowVersion')}"),
    ("STATUS", lambda row: row.get("status")),
    ("STEP", lambda row: row.get("currentStepId")),
    ("STEPS", lambda row: row.get("stepCount")),
    ("TENANT", lambda row: row.get("tenantId")),
    ("CREATED", lambda row: row.get("createdAt")),
)

HISTORY: tuple[Column, ...] = (
    ("SEQ", lambda row: row.get("seq")),
    ("STEP", lambda row: row.get("stepId")),
    ("HANDLER", lambda row: _handler(row.get("handler"))),
    ("TRY", lambda row: _try(row.get("attempt"))),
    ("OUTCOME", lambda row: row.get("outcome")),
    ("TOOK", lambda row: duration(row.get("durationMs"))),
    ("QUEUED", lambda row: duration(row.get("queuedMs"))),
    ("ERROR", lambda row: _error(row.get("error"))),
)

_ID = click.argument("id_", metavar="ID", shell_complete=live_ids("/v1/executions"))


@click.group(cls=Noun)
def execution() -> None:
    """What runs and what ran.

    \b
    Example:
      flowctl execution list --status running
    """


@execution.command("list")
@click.option("--status", type=click.Choice(STATUSES), help="Only those in this state.")
@click.option(
    "--flow", metavar="FLOW[@V]", help="Only those of a flow.", shell_complete=live_ids("/v1/flows")
)
@click.option("--tenant", metavar="T", help="Only those of a tenant.")
@click.option(
    "--since",
    metavar="TIME",
    help="Only those since: RFC 3339, a date, or 30m, 2h, 7d ago.",
)
@limit_option
@click.pass_obj
def list_(
    session: Session,
    status: str | None,
    flow: str | None,
    tenant: str | None,
    since: str | None,
    limit: int,
) -> None:
    """List executions, newest first.

    \b
    Example:
      flowctl execution list --flow order --status failed --since 2h
    """
    params = {"status": status, "flow": flow, "tenant": tenant, "since": moment(since, "--since")}
    listing = session.client().pages("/v1/executions", params, limit)
    session.output.listing(listing, LIST)
    if listing.next_cursor and session.output.form == "table":
        session.output.note(f"there are more than {limit}: see them with --limit")


@execution.command()
@_ID
@click.pass_obj
def show(session: Session, id_: str) -> None:
    """Show one execution and its context.

    \b
    Example:
      flowctl execution show 01k9ax -o json
    """
    from flowctl.watch import print_execution

    print_execution(session.output, session.client().get(_path(id_)))


@execution.command()
@_ID
@click.pass_obj
def history(session: Session, id_: str) -> None:
    """Show each step that was executed, in order.

    \b
    Example:
      flowctl execution history 01k9ax
    """
    session.output.listing(session.client().pages(f"{_path(id_)}/history", {}), HISTORY)


@execution.command()
@_ID
@click.option("-f", "--follow", is_flag=True, help="Go on until the execution has ended.")
@click.option("--after", metavar="SEQ", type=click.IntRange(min=0), help="Only lines after this.")
@click.pass_obj
def logs(session: Session, id_: str, follow: bool, after: int | None) -> None:
    """Show what the handlers logged and wrote to stdout and stderr.

    \b
    Example:
      flowctl execution logs 01k9ax -f
    """
    client, output = session.client(), session.output
    path = f"{_path(id_)}/logs"
    if follow:
        for raw, line in client.lines(path, {"follow": "true", "after": after}):
            output.stream(raw, line, _log_text)
        return
    listing = client.pages(path, {"after": after})
    if output.form == "table":
        for row in listing.items:
            output.line(_log_text(row))
    else:
        output.listing(listing, ())


@execution.command()
@_ID
@click.option(
    "--timeout", metavar="S", type=click.FloatRange(min=0), help="Seconds to wait at most."
)
@click.pass_obj
def watch(session: Session, id_: str, timeout: float | None) -> None:
    """Follow an execution until it ends, then print it.

    Exits with 1 when it failed or was cancelled, 6 when --timeout passed first.

    \b
    Example:
      flowctl execution watch 01k9ax --timeout 60
    """
    import time

    from flowctl.watch import until_end

    deadline = None if timeout is None else time.monotonic() + timeout
    until_end(session, session.client().get(_path(id_)), deadline)


@execution.command()
@_ID
@click.option("--reason", metavar="TEXT", help="Why; kept with the execution.")
@click.pass_obj
def cancel(session: Session, id_: str, reason: str | None) -> None:
    """Cancel an execution that has not ended, and its children.

    \b
    Example:
      flowctl execution cancel 01k9ax --reason "wrong order"
    """
    _act(session, id_, "cancel", {"reason": reason})


@execution.command()
@_ID
@click.option("--token", metavar="T", help="The resume token, where the wait has one.")
@json_option("--data", help="What the flow gets.")
@click.pass_obj
def resume(session: Session, id_: str, token: str | None, data: Any) -> None:
    """Let a waiting execution go on.

    \b
    Example:
      flowctl execution resume 01k9ax --data '{"approved": true}'
    """
    _act(session, id_, "resume", {"token": token, "data": data})


@execution.command()
@_ID
@click.option("--from", "from_", metavar="STEP", help="Start again at this step.")
@click.pass_obj
def retry(session: Session, id_: str, from_: str | None) -> None:
    """Run a failed or cancelled execution again, from the step where it ended or from STEP.

    \b
    Example:
      flowctl execution retry 01k9ax --from charge
    """
    _act(session, id_, "retry", {"fromStepId": from_})


def _act(session: Session, id_: str, verb: str, body: Fields) -> None:
    answer = session.client().send("POST", f"{_path(id_)}/{verb}", given(body))
    output: Output = session.output
    output.answer(answer, lambda now: output.line(f"{now.get('id')}: {now.get('status')}"))


def _path(id_: str) -> str:
    return f"/v1/executions/{segment(id_)}"


def _try(attempt: Any) -> Any:
    """People count tries from 1, as the steps shown by `run` do; the API counts retries."""
    return attempt + 1 if isinstance(attempt, int) else attempt


def _handler(handler: Any) -> Any:
    if not isinstance(handler, dict):
        return handler
    version = handler.get("version")
    return f"{handler.get('type')}@{version}" if version else handler.get("type")


def _error(error: Any) -> Any:
    if not isinstance(error, dict):
        return error
    return f"{error.get('code')}: {error.get('message')}"


def _log_text(row: Fields) -> str:
    fields = row.get("fields")
    extra = (
        "".join(f" {k}={cell(v)}" for k, v in fields.items()) if isinstance(fields, dict) else ""
    )
    kind = row.get("level") or row.get("stream")
    place = f"{row.get('stepId')}[{_try(row.get('attempt'))}]"
    return f"{row.get('at')} {place} {kind}: {row.get('message')}{extra}"
