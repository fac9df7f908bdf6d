"""Whose signatures count, and which publisher a namespace of handler types belongs to.

Keys are added and revoked, never removed: a revoked key stays known, so that it cannot come back.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from flowmonkeyd.store.store import Tx

__all__ = [
    "KeyRow",
    "NamespaceRow",
    "bind",
    "insert_key",
    "key_row",
    "keys",
    "namespaces",
    "owner",
    "release",
    "revoke_key",
]

Source = Tx | sqlite3.Connection
# Far more publishers than one machine has; what is beyond is not trusted.
KEYS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class KeyRow:
    """`trusted_at_ms` is None for a key of the configuration that was revoked here."""

    id: str
    public: str
    publisher: str
    trusted_at_ms: int | None
    revoked_at_ms: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class NamespaceRow:
    name: str
    publisher: str
    bound_at_ms: int


_KEY = "id, public, publisher, trusted_at_ms, revoked_at_ms, reason"


def keys(source: Source) -> list[KeyRow]:
    """Every key that was ever trusted or revoked here, by id."""
    rows = source.execute(f"SELECT {_KEY} FROM publisher_keys ORDER BY id LIMIT {KEYS_MAX}")
    return [KeyRow(*row) for row in rows]


def key_row(source: Source, key_id: str) -> KeyRow | None:
    row = source.execute(f"SELECT {_KEY} FROM publisher_keys WHERE id = ?", (key_id,)).fetchone()
    return KeyRow(*row) if row else None


def insert_key(tx: Tx, key_id: str, public: str, publisher: str) -> None:
    tx.execute(
        "INSERT INTO publisher_keys (id, public, publisher, trusted_at_ms) VALUES (?, ?, ?, ?)",
        (key_id, public, publisher, tx.now_ms),
    )


def revoke_key(tx: Tx, key_id: str, public: str, publisher: str, reason: str | None) -> None:
    """Also a key that is only in the configuration; the first revocation stays."""
    tx.execute(
        "INSERT INTO publisher_keys (id, public, publisher, revoked_at_ms, reason)"
        " VALUES (:id, :public, :publisher, :now, :reason) ON CONFLICT (id) DO UPDATE"
        " SET revoked_at_ms = :now, reason = :reason WHERE revoked_at_ms IS NULL",
        {
            "id": key_id,
            "public": public,
            "publisher": publisher,
            "now": tx.now_ms,
            "reason": reason,
        },
    )


def owner(source: Source, namespace: str) -> str | None:
    """The publisher a namespace belongs to; None while nobody has published there signed."""
    row = source.execute("SELECT publisher FROM namespaces WHERE name = ?", (namespace,)).fetchone()
    return row[0] if row else None


def bind(tx: Tx, namespace: str, publisher: str) -> None:
    tx.execute(
        "INSERT INTO namespaces (name, publisher, bound_at_ms) VALUES (:name, :publisher, :now)"
        " ON CONFLICT (name) DO UPDATE SET publisher = :publisher, bound_at_ms = :now",
        {"name": namespace, "publisher": publisher, "now": tx.now_ms},
    )


def release(tx: Tx, namespace: str) -> None:
    tx.execute("DELETE FROM namespaces WHERE name = ?", (namespace,))


def namespaces(source: Source, start: int, limit: int) -> list[NamespaceRow]:
    """Bound namespaces by name, from the place `start`."""
    rows = source.execute(
        "SELECT name, publisher, bound_at_ms FROM namespaces ORDER BY name LIMIT ? OFFSET ?",
        (limit, start),
    )
    return [NamespaceRow(*row) for row in rows]
