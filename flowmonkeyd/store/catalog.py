"""Flows and handler versions: immutable rows, found by name and version."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from flowmonkeyd.model import Signed
from flowmonkeyd.store.store import Tx

__all__ = [
    "FlowRow",
    "HandlerRow",
    "Package",
    "deprecate_handler",
    "digests",
    "flow_document",
    "flow_key",
    "flow_row",
    "flow_versions",
    "handler_row",
    "handler_versions",
    "has_stateful",
    "insert_flow",
    "insert_handler",
    "list_flows",
    "list_handlers",
    "package_of",
    "sign_handler",
    "yank_handler",
]

Source = Tx | sqlite3.Connection


@dataclass(frozen=True, slots=True)
class FlowRow:
    key: int
    id: str
    version: str
    name: str | None
    digest: str
    document: str
    step_count: int
    applied_at_ms: int


@dataclass(frozen=True, slots=True)
class HandlerRow:
    key: int
    type: str
    version: str
    digest: str
    manifest: str
    size_bytes: int
    published_at_ms: int
    yanked_at_ms: int | None
    publisher: str | None
    key_id: str | None
    signature: str | None
    deprecation: str | None


@dataclass(frozen=True, slots=True)
class Package:
    """The part of a handler version that is fixed when it is published."""

    digest: str
    manifest: str
    is_stateful: bool  # its steps are jobs


_FLOW = "key, id, version, name, digest, document, step_count, applied_at_ms"
_HANDLER = (
    "key, type, version, digest, manifest, size_bytes, published_at_ms, yanked_at_ms,"
    " publisher, key_id, signature, deprecation"
)


def insert_flow(
    tx: Tx, flow_id: str, version: str, name: str | None, digest: str, document: str, steps: int
) -> FlowRow:
    row = tx.execute(
        "INSERT INTO flows (id, version, name, digest, document, step_count, applied_at_ms)"
        f" VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING {_FLOW}",
        (flow_id, version, name, digest, document, steps, tx.now_ms),
    ).fetchone()
    return FlowRow(*row)


def flow_row(source: Source, flow_id: str, version: str) -> FlowRow | None:
    row = source.execute(
        f"SELECT {_FLOW} FROM flows WHERE id = ? AND version = ?", (flow_id, version)
    ).fetchone()
    return FlowRow(*row) if row else None


def flow_key(source: Source, flow_id: str, version: str) -> tuple[int, str] | None:
    """(key, digest) of a flow version, without its document."""
    row: tuple[int, str] | None = source.execute(
        "SELECT key, digest FROM flows WHERE id = ? AND version = ?", (flow_id, version)
    ).fetchone()
    return row


def flow_document(source: Source, key: int) -> str:
    text: str = source.execute("SELECT document FROM flows WHERE key = ?", (key,)).fetchone()[0]
    return text


def flow_versions(source: Source, flow_id: str) -> list[str]:
    """Every version of a flow, in no order (SemVer order is not the database's to know)."""
    rows = source.execute("SELECT version FROM flows WHERE id = ? LIMIT 10000", (flow_id,))
    return [version for (version,) in rows]


def list_flows(conn: sqlite3.Connection, after_key: int, limit: int) -> list[FlowRow]:
    """Flows in the order they were applied."""
    rows = conn.execute(
        f"SELECT {_FLOW} FROM flows WHERE key > ? ORDER BY key LIMIT ?", (after_key, limit)
    )
    return [FlowRow(*row) for row in rows]


def insert_handler(
    tx: Tx, handler_type: str, version: str, digest: str, manifest: str, size_bytes: int
) -> HandlerRow:
    row = tx.execute(
        "INSERT INTO handlers (type, version, digest, manifest, size_bytes, published_at_ms,"
        " stateful) VALUES (?, ?, ?, ?, ?, ?,"
        f" ifnull(json_extract(?, '$.handler.stateful') = 1, 0)) RETURNING {_HANDLER}",
        (handler_type, version, digest, manifest, size_bytes, tx.now_ms, manifest),
    ).fetchone()
    return HandlerRow(*row)


def handler_row(source: Source, handler_type: str, version: str) -> HandlerRow | None:
    row = source.execute(
        f"SELECT {_HANDLER} FROM handlers WHERE type = ? AND version = ?", (handler_type, version)
    ).fetchone()
    return HandlerRow(*row) if row else None


def package_of(tx: Tx, handler_type: str, version: str) -> Package | None:
    """What a step of this handler version runs; it never changes once published."""
    name = (handler_type, version)
    known: Package | None = tx.known.get(name)
    if known is None:
        row = tx.execute(
            "SELECT digest, manifest, stateful FROM handlers WHERE type = ? AND version = ?", name
        ).fetchone()
        if row is not None:
            known = tx.known[name] = Package(row[0], row[1], row[2] == 1)
    return known


def handler_versions(source: Source, handler_type: str) -> list[HandlerRow]:
    """Every version of a handler, yanked ones included, in no order."""
    rows = source.execute(
        f"SELECT {_HANDLER} FROM handlers WHERE type = ? LIMIT 10000", (handler_type,)
    )
    return [HandlerRow(*row) for row in rows]


def list_handlers(conn: sqlite3.Connection, after_key: int, limit: int) -> list[HandlerRow]:
    """Handler versions in the order they were published."""
    rows = conn.execute(
        f"SELECT {_HANDLER} FROM handlers WHERE key > ? ORDER BY key LIMIT ?", (after_key, limit)
    )
    return [HandlerRow(*row) for row in rows]


def has_stateful(conn: sqlite3.Connection) -> bool:
    """Whether any handler version is stateful."""
    row = conn.execute("SELECT 1 FROM handlers WHERE stateful = 1 LIMIT 1").fetchone()
    return row is not None


def digests(conn: sqlite3.Connection) -> set[str]:
    """The digest of every package that a handler version names."""
    return {digest for (digest,) in conn.execute("SELECT DISTINCT digest FROM handlers")}


def yank_handler(tx: Tx, key: int) -> HandlerRow:
    return _changed(tx, key, "yanked_at_ms = :now", {"now": tx.now_ms})


def deprecate_handler(tx: Tx, key: int, message: str | None) -> HandlerRow:
    """With None it is deprecated no more."""
    return _changed(tx, key, "deprecation = :message", {"message": message})


def sign_handler(tx: Tx, key: int, signed: Signed) -> HandlerRow:
    """Who signed it; only once."""
    values = {"publisher": signed.publisher, "id": signed.key_id, "signature": signed.signature}
    return _changed(tx, key, "publisher = :publisher, key_id = :id, signature = :signature", values)


def _changed(
    tx: Tx, key: int, assignments: str, values: Mapping[str, str | int | None]
) -> HandlerRow:
    row = tx.execute(
        f"UPDATE handlers SET {assignments} WHERE key = :key RETURNING {_HANDLER}",
        {**values, "key": key},
    ).fetchone()
    return HandlerRow(*row)
