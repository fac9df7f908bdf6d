"""`flowctl event …`: send one, follow them all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from flowctl.options import Noun, Session, given, json_option
from flowctl.output import cell

__all__ = ["event"]


@click.group(cls=Noun)
def event() -> None:
    """Send an event, or see all that happens.

    \b
    Example:
      flowctl event tail
    """


@event.command()
@click.argument("name")
@json_option("--data", help="What comes with it.")
@click.option("--tenant", metavar="T", help="Whose executions it may wake.")
@click.pass_obj
def send(session: Session, name: str, data: Any, tenant: str | None) -> None:
    """Send an event: executions that wait for NAME go on.

    \b
    Example:
      flowctl event send payment.settled --data '{"order": 7}'
    """
    body = {"name": name, "data": data, "tenantId": tenant}
    answer = session.client().send("POST", "/v1/events", given(body))

    def words(sent: dict[str, Any]) -> None:
        session.output.line(f"{sent.get('name')}: woke {sent.get('woken')}")
        for execution_id in sent.get("executionIds") or []:
            session.output.line(f"  {execution_id}")

    session.output.answer(answer, words)


@event.command()
@click.option("--after", metavar="SEQ", type=click.IntRange(min=0), help="Begin after this one.")
@click.pass_obj
def tail(session: Session, after: int | None) -> None:
    """Follow everything that happens, in commit order, until Ctrl-C.

    \b
    Example:
      flowctl event tail --after 1200 -o json
    """
    params = {"follow": "true", "after": after}
    for raw, item in session.client().lines("/v1/events", params):
        session.output.stream(raw, item, _event_text)


def _event_text(item: Mapping[str, Any]) -> str:
    words = [cell(item.get(name)) for name in ("seq", "at", "type", "executionId", "stepId")]
    data = item.get("data")
    return " ".join(words) + (f" {json.dumps(data, ensure_ascii=False)}" if data else "")
