"""`flowctl billing`: what executions have cost."""

from __future__ import annotations

from typing import Any

import click

from flowctl.options import Leaf, Session, moment
from flowctl.output import Column

__all__ = ["billing"]


@click.command(cls=Leaf)
@click.option("--since", metavar="TIME", help="From then on: RFC 3339, a date, or 30m, 2h, 7d ago.")
@click.option("--until", metavar="TIME", help="Before then, likewise.")
@click.option(
    "--group-by",
    type=click.Choice(["handler", "flow", "tenant", "day"]),
    default="handler",
    show_default=True,
)
@click.option("--tenant", help="Of this tenant only.")
@click.pass_obj
def billing(
    session: Session, since: str | None, until: str | None, group_by: str, tenant: str | None
) -> None:
    """Say what executions of handlers have cost, the dearest first.

    \b
    Example:
      flowctl billing --group-by day --since 2026-01-01
    """
    query = {
        "groupBy": group_by,
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
        "tenant": tenant,
    }
    asked = {name: value for name, value in query.items() if value is not None}
    answer = session.client().get("/v1/billing", asked)
    columns: tuple[Column, ...] = (
        (group_by.upper(), lambda row: row.get("key")),
        ("EXECUTIONS", lambda row: row.get("executions")),
        ("AMOUNT", lambda row: f"{row.get('amount')} $"),
    )

    def words(found: dict[str, Any]) -> None:
        session.output.table([*found["items"], {"key": "all", **found["total"]}], columns)

    session.output.answer(answer, words)
