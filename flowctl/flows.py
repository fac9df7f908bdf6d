"""`flowctl flow …` and `flowctl run`: apply, validate, list, show, graph, and start a flow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from flowctl.client import segment
from flowctl.options import Leaf, Noun, Session, given, json_option, limit_option, live_ids
from flowctl.output import Column, Output
from flowctl.problems import Refused, Rejected

__all__ = ["flow", "run"]

Fields = Mapping[str, Any]

LIST: tuple[Column, ...] = (
    ("ID", lambda row: row.get("id")),
    ("VERSION", lambda row: row.get("version")),
    ("NAME", lambda row: row.get("name")),
    ("STEPS", lambda row: row.get("stepCount")),
    ("APPLIED", lambda row: row.get("appliedAt")),
)

STEPS: tuple[Column, ...] = (
    ("STEP", lambda row: row.get("id")),
    ("TYPE", lambda row: row.get("type")),
    ("ON SUCCESS", lambda row: _target(row, "onSuccess")),
    ("ON FAILURE", lambda row: _target(row, "onFailure")),
    ("RETRIES", lambda row: (row.get("retry") or {}).get("maxAttempts")),
)

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True)
_FILES = click.argument("files", metavar="FILE…", nargs=-1, required=True, type=_FILE)


@click.group(cls=Noun)
def flow() -> None:
    """The documents that say which step follows which.

    \b
    Example:
      flowctl flow apply order.yaml
    """


@flow.command()
@_FILES
@click.pass_obj
def apply(session: Session, files: tuple[str, ...]) -> None:
    """Apply flow documents (JSON or YAML, several to a file); `-` reads stdin.

    All files are read before anything is sent; a document that is refused does not keep the
    others from being applied.

    \b
    Example:
      flowctl flow apply order.yaml refund.json
      cat flows/*.yaml | flowctl flow apply -
    """
    from flowctl.documents import read_all

    client, output = session.client(), session.output
    documents = read_all(files)
    refusals: list[Refused] = []
    for name, document in documents:
        try:
            answer = client.send("PUT", "/v1/flows", document)
        except Refused as exc:
            refusals.append(exc)
            where = f"{name}: " if len(documents) > 1 else ""
            for line in exc.message.splitlines():
                output.note(f"{where}{line}")
            continue
        output.answer(answer, lambda applied: _applied(output, applied))
        for warning in answer.fields().get("warnings") or []:
            output.note(f"warning: {warning.get('path')}: {warning.get('message')}")
    if refusals:
        raise Refused("", refusals[0].status, refusals[0].code)


@flow.command()
@_FILES
@click.pass_obj
def validate(session: Session, files: tuple[str, ...]) -> None:
    """Say everything that is wrong with flow documents, one `path: message` a line.

    Needs no daemon. Exits with 5 when a document is invalid.

    \b
    Example:
      flowctl flow validate order.yaml
    """
    from flowctl.documents import read_all

    output, failed = session.output, False
    for file in files:
        try:
            documents = read_all((file,))
        except Rejected as exc:
            output.note(exc.message)
            failed = True
            continue
        many = len(files) + len(documents) > 2
        for name, document in documents:
            failed = not _is_valid(output, name, document, f"{name}: " if many else "") or failed
    if failed:
        raise Rejected


@flow.command("list")
@limit_option
@click.pass_obj
def list_(session: Session, limit: int) -> None:
    """List the flows that were applied.

    \b
    Example:
      flowctl flow list
    """
    session.output.listing(session.client().pages("/v1/flows", {}, limit), LIST)


@flow.command()
@click.argument("reference", metavar="ID[@V]", shell_complete=live_ids("/v1/flows"))
@click.pass_obj
def show(session: Session, reference: str) -> None:
    """Show a flow: its newest version, or version V.

    \b
    Example:
      flowctl flow show order@1.0.0 -o yaml
    """
    output = session.output

    def words(found: dict[str, Any]) -> None:
        names = ("id", "version", "name", "digest", "appliedAt")
        output.pairs([(name, found.get(name)) for name in names])
        steps = _document(found).get("steps")
        if isinstance(steps, dict):
            output.table([{"id": key, **step} for key, step in steps.items()], STEPS)

    output.answer(session.client().get(_path(reference)), words)


@flow.command()
@click.argument("reference", metavar="ID[@V]", shell_complete=live_ids("/v1/flows"))
@click.option(
    "--format",
    "notation",
    type=click.Choice(["text", "dot", "mermaid"]),
    default="text",
    show_default=True,
    help="How to write the graph.",
)
@click.pass_obj
def graph(session: Session, reference: str, notation: str) -> None:
    """Show which step follows which.

    \b
    Example:
      flowctl flow graph order --format dot | dot -Tsvg > order.svg
    """
    from flowctl.documents import edges

    answer = session.client().get(_path(reference))
    found = edges(reference, _document(answer.fields()))
    items = [{"from": start, "label": label, "to": end} for start, label, end in found]

    def words() -> None:
        if notation == "text":
            for start, label, end in found:
                session.output.line(f"{start} --{label}--> {end or '(end)'}")
        else:
            session.output.lines(_drawn(notation, found))

    session.output.value({"items": items}, words)


@click.command(cls=Leaf)
@click.argument("flow", metavar="FLOW[@V]", shell_complete=live_ids("/v1/flows"))
@json_option("--context", mapping=True, help="What it starts with: a JSON object.")
@click.option("--tenant", metavar="T", help="Whose execution it is.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), help="Its place in line.")
@click.option("--key", metavar="KEY", help="Idempotency key: the same key never starts two.")
@click.option("--no-wait", is_flag=True, help="Return once it is accepted.")
@click.option("--timeout", metavar="S", type=click.FloatRange(min=0), help="Seconds to wait.")
@click.pass_obj
def run(
    session: Session,
    flow: str,
    context: Fields | None,
    tenant: str | None,
    priority: str | None,
    key: str | None,
    no_wait: bool,
    timeout: float | None,
) -> None:
    """Start a flow and print how it ended.

    On a terminal the steps are shown as they go. Exits with 1 when the execution failed or was
    cancelled, and with 6 when --timeout passed; it goes on then, and after Ctrl-C.

    \b
    Example:
      flowctl run order --context '{"n": 1}'
      flowctl run order@1.0.0 --context @order.json --key order-7 -o json
    """
    import time

    from flowctl.watch import print_execution, until_end

    deadline = None if timeout is None else time.monotonic() + timeout
    body = {
        "flow": flow,
        "context": context,
        "tenantId": tenant,
        "priority": priority,
        "idempotencyKey": key,
    }
    answer = session.client().send("POST", "/v1/executions", given(body))
    if answer.status == 200:
        session.output.note(f"the key {key} was used before: this is the execution it started")
    for warning in answer.fields().get("warnings") or []:
        session.output.note(f"warning: {warning.get('path')}: {warning.get('message')}")
    if no_wait:
        print_execution(session.output, answer)
    else:
        until_end(session, answer, deadline)


def _is_valid(output: Output, name: str, document: Fields, where: str) -> bool:
    """Check one document and say what was found, each line after `where`."""
    from flowctl.documents import check

    reference: str | None = None
    warnings: list[str] = []
    errors: tuple[str, ...] = ()
    try:
        reference, warnings = check(name, document)
    except Rejected as exc:
        errors = exc.lines or (exc.message,)
    for line in errors:
        output.note(f"{where}{line}")
    for line in warnings:
        output.note(f"{where}warning: {line}")

    def words() -> None:
        if reference is not None:
            output.line(f"{name}: {reference} is valid")

    found = {"file": name, "flow": reference, "errors": errors, "warnings": warnings}
    output.value(found, words)
    return reference is not None


def _path(reference: str) -> str:
    flow_id, at, version = reference.partition("@")
    return f"/v1/flows/{segment(flow_id)}" + (f"/{segment(version)}" if at else "")


def _applied(output: Output, applied: Fields) -> None:
    how = "applied" if applied.get("created") else "unchanged"
    output.line(f"{applied.get('id')}@{applied.get('version')}: {how}")


def _document(found: Fields) -> dict[str, Any]:
    document = found.get("document")
    return document if isinstance(document, dict) else {}


def _target(step: Fields, name: str) -> Any:
    transitions = step.get("transitions")
    return transitions.get(name) if isinstance(transitions, dict) else None


def _drawn(notation: str, found: list[tuple[str, str, str | None]]) -> str:
    """The graph in a drawing program's own language."""
    if notation == "dot":
        lines = [
            f"  {_quoted(start)} -> {_quoted(end or '(end)')} [label={_quoted(label)}];"
            for start, label, end in found
        ]
        return "\n".join(["digraph {", *lines, "}"])
    names = list(dict.fromkeys(name for start, _, end in found for name in (start, end or "(end)")))
    nodes = [f"  n{number}[{_quoted(name)}]" for number, name in enumerate(names)]
    lines = [
        f"  n{names.index(start)} -->|{_mermaid(label)}| n{names.index(end or '(end)')}"
        for start, label, end in found
    ]
    return "\n".join(["flowchart TD", *nodes, *lines])


def _mermaid(label: str) -> str:
    """Mermaid reads a word as it is, and anything else only between quotes."""
    return label if label.isalnum() else '"' + label.replace('"', "#quot;") + '"'


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
