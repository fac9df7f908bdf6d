"""Idempotency keys: which execution a key of a tenant and flow names, and for how long."""

from __future__ import annotations

from flowmonkeyd.store.store import Tx

__all__ = ["execution_of", "forget_expired", "remember"]

# Expired keys are swept this many at a time, so that no write takes long.
SWEEP_MAX = 500


def execution_of(tx: Tx, tenant: str, flow_id: str, name: str) -> int | None:
    """The execution that holds this idempotency key now; free again at the expiry instant."""
    row = tx.execute(
        "SELECT execution FROM idempotency WHERE tenant = ? AND flow_id = ? AND name = ?"
        " AND expires_at_ms > ?",
        (tenant, flow_id, name, tx.now_ms),
    ).fetchone()
    return row[0] if row else None


def remember(tx: Tx, tenant: str, flow_id: str, name: str, execution: int, window_ms: int) -> None:
    """From now on the key names this execution."""
    tx.execute(
        "INSERT INTO idempotency (tenant, flow_id, name, execution, expires_at_ms)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, flow_id, name) DO UPDATE"
        " SET execution = excluded.execution, expires_at_ms = excluded.expires_at_ms",
        (tenant, flow_id, name, execution, tx.now_ms + window_ms),
    )


def forget_expired(tx: Tx) -> bool:
    """Sweep keys whose time is over; whether there may be more of them."""
    cursor = tx.execute(
        "DELETE FROM idempotency WHERE (tenant, flow_id, name) IN (SELECT tenant, flow_id, name"
        " FROM idempotency WHERE expires_at_ms <= ? ORDER BY expires_at_ms LIMIT ?)",
        (tx.now_ms, SWEEP_MAX),
    )
    return cursor.rowcount == SWEEP_MAX
