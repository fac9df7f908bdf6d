"""Charges, one for each billed attempt, of jobs too; and what quotas count."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

from flowmonkeyd.model import Charge
from flowmonkeyd.store.store import Tx

__all__ = [
    "GROUPS",
    "Group",
    "GroupBy",
    "charge",
    "charge_job",
    "charged_to_job",
    "count",
    "grouped",
    "recount",
    "used",
]

GroupBy = Literal["handler", "flow", "tenant", "day"]
GROUPS_MAX = 10_000

# By what to group, of attempts and of jobs.
GROUPS: dict[str, tuple[str, str]] = {
    "handler": ("h.type || '@' || h.version", "j.type || '@' || j.version"),
    "flow": ("f.id", "f.id"),
    "tenant": ("e.tenant", "e.tenant"),
    "day": ("strftime('%Y-%m-%d', c.at_ms / 1000, 'unixepoch')",) * 2,
}


@dataclass(frozen=True, slots=True)
class Group:
    key: str
    count: int
    nanos: int


def charge(tx: Tx, execution: int, seq: int, billed: Charge) -> None:
    """Bill one attempt of the history. A second line for it cannot be written."""
    tx.execute(
        "INSERT INTO charges (execution, seq, at_ms, tier, nanos) VALUES (?, ?, ?, ?, ?)",
        (execution, seq, tx.now_ms, billed.tier, billed.nanos),
    )


def charge_job(
    tx: Tx, job: int, execution: int, seq: int | None, number: int, billed: Charge
) -> None:
    """Bill a job's next line. One that is there already cannot be written again."""
    tx.execute(
        "INSERT INTO job_charges (job, number, execution, seq, at_ms, tier, nanos)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (job, number, execution, seq, tx.now_ms, billed.tier, billed.nanos),
    )


def charged_to_job(source: Tx | sqlite3.Connection, job: int) -> tuple[int, int]:
    """How many lines a job has been billed, and their sum."""
    row: tuple[int, int] = source.execute(
        "SELECT count(*), ifnull(sum(nanos), 0) FROM job_charges WHERE job = ?", (job,)
    ).fetchone()
    return row


def grouped(
    conn: sqlite3.Connection,
    by: GroupBy,
    tenant: str | None,
    since_ms: int | None,
    until_ms: int | None,
) -> list[Group]:
    """Charges from `since_ms` and before `until_ms`, by group, the dearest first."""
    of_attempt, of_job = GROUPS[by]
    narrowed = (
        " JOIN executions e ON e.key = c.execution JOIN flows f ON f.key = e.flow"
        " WHERE c.at_ms >= :since AND c.at_ms < :until"
        " AND (:tenant IS NULL OR e.tenant = :tenant)"
    )
    rows = conn.execute(
        f"SELECT name, count(*), sum(nanos) FROM (SELECT {of_attempt} AS name, c.nanos AS nanos"
        " FROM charges c JOIN history h ON h.execution = c.execution AND h.seq = c.seq"
        f"{narrowed} UNION ALL SELECT {of_job}, c.nanos FROM job_charges c"
        f" JOIN jobs j ON j.key = c.job{narrowed})"
        " GROUP BY 1 ORDER BY 3 DESC, 1 LIMIT :limit",
        {
            "since": since_ms if since_ms is not None else 0,
            "until": until_ms if until_ms is not None else 2**62,
            "tenant": tenant,
            "limit": GROUPS_MAX,
        },
    )
    return [Group(*row) for row in rows]


def count(tx: Tx, tenant: str, period: str, executions: int, nanos: int) -> None:
    """Add to what a tenant has used of a period."""
    tx.execute(
        "INSERT INTO quota_use (tenant, period, executions, nanos) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (tenant, period) DO UPDATE SET"
        " executions = executions + excluded.executions, nanos = nanos + excluded.nanos",
        (tenant, period, executions, nanos),
    )


def used(tx: Tx, tenant: str, period: str) -> tuple[int, int]:
    """How many executions, and how much was spent."""
    row = tx.execute(
        "SELECT executions, nanos FROM quota_use WHERE tenant = ? AND period = ?",
        (tenant, period),
    ).fetchone()
    return (row[0], row[1]) if row else (0, 0)


def recount(tx: Tx, day: str, day_from_ms: int, month: str, month_from_ms: int) -> None:
    """Count the present day and month from what there is, for the quotas may be new."""
    tx.execute("DELETE FROM quota_use")
    tx.execute(
        "INSERT INTO quota_use SELECT tenant, ?, count(*), 0 FROM executions"
        " WHERE created_at_ms >= ? GROUP BY tenant",
        (day, day_from_ms),
    )
    tx.execute(
        "INSERT INTO quota_use SELECT e.tenant, :month, 0, sum(c.nanos) FROM (SELECT execution,"
        " nanos FROM charges WHERE at_ms >= :since UNION ALL SELECT execution, nanos"
        " FROM job_charges WHERE at_ms >= :since) c JOIN executions e ON e.key = c.execution"
        " GROUP BY e.tenant",
        {"month": month, "since": month_from_ms},
    )
