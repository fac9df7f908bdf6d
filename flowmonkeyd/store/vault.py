"""Secrets as they are kept here: sealed, each row with the id of the key that opens it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from flowmonkeyd.store.store import Tx

__all__ = [
    "SecretRow",
    "count",
    "delete",
    "find",
    "key_ids",
    "page",
    "reseal",
    "sealed_otherwise",
    "upsert",
]

Source = Tx | sqlite3.Connection


@dataclass(frozen=True, slots=True)
class SecretRow:
    tenant: str
    name: str
    version: int
    is_binary: bool
    created_at_ms: int
    updated_at_ms: int
    key_id: str
    nonce: bytes
    sealed: bytes


_ROW = "tenant, name, version, is_binary, created_at_ms, updated_at_ms, key_id, nonce, sealed"


def find(source: Source, tenant: str, name: str) -> SecretRow | None:
    row = source.execute(
        f"SELECT {_ROW} FROM secrets WHERE tenant = ? AND name = ?", (tenant, name)
    ).fetchone()
    return None if row is None else _row(row)


def page(source: Source, tenant: str | None, start: int, limit: int) -> list[SecretRow]:
    """By tenant and name, from the place `start`, of one tenant when it is named."""
    rows = source.execute(
        f"SELECT {_ROW} FROM secrets WHERE :tenant IS NULL OR tenant = :tenant"
        " ORDER BY tenant, name LIMIT :limit OFFSET :start",
        {"tenant": tenant, "start": start, "limit": limit},
    )
    return [_row(row) for row in rows]


def upsert(tx: Tx, row: SecretRow) -> None:
    tx.execute(
        f"INSERT INTO secrets ({_ROW}) VALUES (:tenant, :name, :version, :is_binary, :created_at,"
        " :updated_at, :key_id, :nonce, :sealed) ON CONFLICT (tenant, name) DO UPDATE SET"
        " version = excluded.version, is_binary = excluded.is_binary,"
        " updated_at_ms = excluded.updated_at_ms, key_id = excluded.key_id,"
        " nonce = excluded.nonce, sealed = excluded.sealed",
        {
            "tenant": row.tenant,
            "name": row.name,
            "version": row.version,
            "is_binary": row.is_binary,
            "created_at": row.created_at_ms,
            "updated_at": row.updated_at_ms,
            "key_id": row.key_id,
            "nonce": row.nonce,
            "sealed": row.sealed,
        },
    )


def reseal(tx: Tx, rows: Sequence[SecretRow]) -> None:
    """The same secrets under another key."""
    tx.executemany(
        "UPDATE secrets SET key_id = ?, nonce = ?, sealed = ? WHERE tenant = ? AND name = ?",
        [(row.key_id, row.nonce, row.sealed, row.tenant, row.name) for row in rows],
    )


def sealed_otherwise(source: Source, key_id: str) -> list[SecretRow]:
    """All that another key than this one opens."""
    rows = source.execute(f"SELECT {_ROW} FROM secrets WHERE key_id <> ?", (key_id,))
    return [_row(row) for row in rows]


def key_ids(source: Source) -> dict[str, int]:
    """How many secrets each key opens."""
    return dict(
        source.execute("SELECT key_id, count(*) FROM secrets GROUP BY key_id LIMIT 1000").fetchall()
    )


def count(source: Source) -> int:
    found: int = source.execute("SELECT count(*) FROM secrets").fetchone()[0]
    return found


def delete(tx: Tx, tenant: str, name: str) -> bool:
    """Whether there was one."""
    found = tx.execute(
        "DELETE FROM secrets WHERE tenant = ? AND name = ? RETURNING 1", (tenant, name)
    ).fetchone()
    return found is not None


def _row(row: tuple[str, str, int, int, int, int, str, bytes, bytes]) -> SecretRow:
    return SecretRow(row[0], row[1], row[2], bool(row[3]), *row[4:])
