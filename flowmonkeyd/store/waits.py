"""Why executions sleep, and the tokens that wake them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.model import Wait, WaitKind
from flowmonkeyd.store.store import Tx

__all__ = [
    "Children",
    "TokenRow",
    "WaitRow",
    "add_token",
    "child_again",
    "child_ended",
    "due",
    "for_event",
    "get",
    "insert",
    "next_due_ms",
    "remove",
    "revoke_tokens",
    "token_row",
    "use_token",
]


@dataclass(frozen=True, slots=True)
class Children:
    """The children a wait is for: `count` executions made in one transaction, so their keys run on
    from `first`; other children of the same execution are none of its business."""

    first: int
    count: int
    left: int


@dataclass(frozen=True, slots=True)
class WaitRow:
    execution: int
    wait: Wait
    step_id: str
    started_at_ms: int
    timeout_at_ms: int
    children: Children | None
    queued_at_ms: int

    @property
    def due_at_ms(self) -> int:
        """The earlier of its wake-up and its time-out."""
        wake_at_ms = self.wait.wake_at_ms
        return self.timeout_at_ms if wake_at_ms is None else min(wake_at_ms, self.timeout_at_ms)


@dataclass(frozen=True, slots=True)
class TokenRow:
    token: str
    execution: int
    state: str
    expires_at_ms: int


_COLUMNS = (
    "execution, kind, step_id, reason, started_at_ms, wake_at_ms, timeout_at_ms, event, filter,"
    " children_first, children, children_left, queued_at_ms"
)


def insert(
    tx: Tx,
    execution: int,
    wait: Wait,
    step_id: str,
    tenant: str,
    timeout_at_ms: int,
    queued_at_ms: int,
    children: Children | None = None,
) -> None:
    """The execution sleeps. `children` says which must end first, for a wait on children."""
    due_at_ms = timeout_at_ms
    if wait.wake_at_ms is not None:
        due_at_ms = min(wait.wake_at_ms, timeout_at_ms)
    tx.execute(
        "INSERT INTO waits (execution, kind, step_id, reason, started_at_ms, wake_at_ms,"
        " timeout_at_ms, due_at_ms, event, filter, tenant, children_first, children,"
        " children_left, queued_at_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            execution,
            wait.kind.value,
            step_id,
            wait.reason,
            tx.now_ms,
            wait.wake_at_ms,
            timeout_at_ms,
            due_at_ms,
            wait.event,
            None if wait.event_filter is None else jsontext.dumps(wait.event_filter),
            tenant,
            children.first if children else None,
            children.count if children else None,
            children.left if children else None,
            queued_at_ms,
        ),
    )
    tx.hints.due(due_at_ms)


def get(tx: Tx, execution: int) -> WaitRow | None:
    row = tx.execute(f"SELECT {_COLUMNS} FROM waits WHERE execution = ?", (execution,)).fetchone()
    return _row(row) if row else None


def remove(tx: Tx, execution: int) -> None:
    tx.execute("DELETE FROM waits WHERE execution = ?", (execution,))


def due(tx: Tx) -> WaitRow | None:
    """The oldest wait whose time or time-out has come. One at a time, because what ends one wait
    may end others (a cancelled parent takes its children along)."""
    row = tx.execute(
        f"SELECT {_COLUMNS} FROM waits WHERE due_at_ms <= ? ORDER BY due_at_ms LIMIT 1",
        (tx.now_ms,),
    ).fetchone()
    return _row(row) if row else None


def for_event(tx: Tx, event: str, tenant: str, after: int, limit: int) -> list[WaitRow]:
    """Waits of a tenant for a named event, by key from `after`."""
    rows = tx.execute(
        f"SELECT {_COLUMNS} FROM waits WHERE event = ? AND tenant = ? AND execution > ?"
        " ORDER BY execution LIMIT ?",
        (event, tenant, after, limit),
    )
    return [_row(row) for row in rows.fetchall()]


def child_ended(tx: Tx, parent: int, child: int) -> int | None:
    """One child fewer to wait for; how many are left, None if the parent does not wait for it."""
    return _count_child(tx, parent, child, -1)


def child_again(tx: Tx, parent: int, child: int) -> None:
    """A child that had ended runs again: a parent that still waits for its sisters waits for it
    too."""
    _count_child(tx, parent, child, 1)


def _count_child(tx: Tx, parent: int, child: int, change: int) -> int | None:
    row = tx.execute(
        "UPDATE waits SET children_left = children_left + :change WHERE execution = :parent"
        " AND :child >= children_first AND :child < children_first + children"
        " RETURNING children_left",
        {"parent": parent, "child": child, "change": change},
    ).fetchone()
    return row[0] if row else None


def next_due_ms(tx: Tx) -> int | None:
    at_ms: int | None = tx.execute("SELECT min(due_at_ms) FROM waits").fetchone()[0]
    return at_ms


def add_token(tx: Tx, token: str, execution: int, step_id: str, expires_at_ms: int) -> None:
    tx.execute(
        "INSERT INTO tokens (token, execution, step_id, state, created_at_ms, expires_at_ms)"
        " VALUES (?, ?, ?, 'active', ?, ?)",
        (token, execution, step_id, tx.now_ms, expires_at_ms),
    )


def token_row(tx: Tx, token: str) -> TokenRow | None:
    row = tx.execute(
        "SELECT token, execution, state, expires_at_ms FROM tokens WHERE token = ?", (token,)
    ).fetchone()
    return TokenRow(*row) if row else None


def use_token(tx: Tx, token: str) -> None:
    tx.execute("UPDATE tokens SET state = 'used' WHERE token = ?", (token,))


def revoke_tokens(tx: Tx, execution: int) -> int:
    """Every active token of the execution stops working; how many."""
    cursor = tx.execute(
        "UPDATE tokens SET state = 'revoked' WHERE execution = ? AND state = 'active'",
        (execution,),
    )
    return cursor.rowcount


def _row(row: tuple[Any, ...]) -> WaitRow:
    (
        execution,
        kind,
        step_id,
        reason,
        started_at_ms,
        wake_at_ms,
        timeout_at_ms,
        event,
        event_filter,
        first,
        count,
        left,
        queued_at_ms,
    ) = row
    filters: Mapping[str, Any] | None = (
        None if event_filter is None else jsontext.loads(event_filter)
    )
    wait = Wait(WaitKind(kind), wake_at_ms, reason, event, filters)
    return WaitRow(
        execution,
        wait,
        step_id,
        started_at_ms,
        timeout_at_ms,
        None if first is None else Children(first, count, left),
        queued_at_ms,
    )
