"""Images of runtimes and handlers: which are wanted, which are there, what uses them."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

from flowmonkeyd.store.store import Tx

__all__ = [
    "ImageRow",
    "absent",
    "every",
    "failed",
    "find",
    "in_use",
    "names_of",
    "of_handlers",
    "ready",
    "recover",
    "take",
    "used",
    "want",
]

Source = Tx | sqlite3.Connection
Kind = Literal["runtime", "handler"]
# Each is some megabytes on disk at least.
ROWS_MAX = 10_000
USED_EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class ImageRow:
    """`name` is a runtime's name or a package's digest; `image_id` is set while it is ready."""

    key: int
    kind: Kind
    name: str
    runtime: str
    state: Literal["wanted", "building", "ready", "failed", "absent"]
    image_id: str | None
    size_bytes: int
    own_bytes: int
    built_at_ms: int | None
    used_at_ms: int | None
    log: str | None
    since_ms: int = 0


_ROW = (
    "key, kind, name, runtime, state, image_id, size_bytes, own_bytes, built_at_ms, used_at_ms,"
    " log, since_ms"
)


def find(source: Source, name: str) -> ImageRow | None:
    row = source.execute(f"SELECT {_ROW} FROM images WHERE name = ?", (name,)).fetchone()
    return ImageRow(*row) if row else None


def every(source: Source) -> list[ImageRow]:
    """All images, runtimes first, then by name."""
    rows = source.execute(f"SELECT {_ROW} FROM images ORDER BY kind DESC, name LIMIT {ROWS_MAX}")
    return [ImageRow(*row) for row in rows]


def want(tx: Tx, kind: Kind, name: str, runtime: str, again: bool = False) -> ImageRow:
    """The image is to be there: one that is not, or whose build failed, is built next. With `again`
    it is made anew, from what the archives have now."""
    row = tx.execute(
        "INSERT INTO images (kind, name, runtime, state, size_bytes, own_bytes, wanted_at_ms,"
        " since_ms) VALUES (:kind, :name, :runtime, 'wanted', 0, 0, :now, iif(:again, :now, 0))"
        " ON CONFLICT (name) DO UPDATE SET state = 'wanted', image_id = NULL, runtime = :runtime,"
        " wanted_at_ms = :now, since_ms = excluded.since_ms"
        f" WHERE state IN ('failed', 'absent') OR (:again AND state = 'ready') RETURNING {_ROW}",
        {"kind": kind, "name": name, "runtime": runtime, "now": tx.now_ms, "again": again},
    ).fetchone()
    if row is not None:
        tx.hints.images = True
        return ImageRow(*row)
    there = find(tx, name)
    assert there is not None
    return there


def take(tx: Tx) -> ImageRow | None:
    """The image that has been wanted for longest, which is being built from now on."""
    row = tx.execute(
        "UPDATE images SET state = 'building' WHERE key = (SELECT key FROM images"
        " WHERE state = 'wanted' AND state IN ('wanted', 'building')"
        f" ORDER BY wanted_at_ms, key LIMIT 1) RETURNING {_ROW}"
    ).fetchone()
    return ImageRow(*row) if row else None


def recover(tx: Tx) -> None:
    """What an earlier daemon was building is wanted again."""
    tx.execute("UPDATE images SET state = 'wanted' WHERE state = 'building'")


def ready(
    tx: Tx,
    kind: Kind,
    name: str,
    runtime: str,
    image_id: str,
    size_bytes: int,
    own_bytes: int,
    log: str | None = None,
) -> None:
    """The image is there; `own_bytes` are those of its uppermost layer."""
    tx.hints.images = True
    tx.execute(
        "INSERT INTO images (kind, name, runtime, state, image_id, size_bytes, own_bytes,"
        " wanted_at_ms, since_ms, built_at_ms, log) VALUES (:kind, :name, :runtime, 'ready', :id,"
        " :size, :own, :now, 0, :now, :log) ON CONFLICT (name) DO UPDATE SET runtime = :runtime,"
        " state = 'ready', image_id = :id, size_bytes = :size, own_bytes = :own,"
        " built_at_ms = :now, log = :log",
        {
            "kind": kind,
            "name": name,
            "runtime": runtime,
            "id": image_id,
            "size": size_bytes,
            "own": own_bytes,
            "now": tx.now_ms,
            "log": log,
        },
    )


def of_handlers(conn: sqlite3.Connection) -> list[tuple[str, str, str, str]]:
    """(type, version, manifest, image id) of stateful handler versions that are not yanked and
    whose image is there."""
    return conn.execute(
        "SELECT handlers.type, handlers.version, handlers.manifest, images.image_id FROM handlers"
        " JOIN images ON images.name = handlers.digest AND images.state = 'ready'"
        f" WHERE handlers.stateful = 1 AND handlers.yanked_at_ms IS NULL LIMIT {ROWS_MAX}"
    ).fetchall()


def failed(tx: Tx, key: int, log: str) -> None:
    """Its build has failed; it is not tried again until somebody wants it."""
    tx.execute(
        "UPDATE images SET state = 'failed', image_id = NULL, built_at_ms = ?, log = ?"
        " WHERE key = ? AND state = 'building'",
        (tx.now_ms, log, key),
    )


def absent(tx: Tx, key: int, image_id: str | None) -> None:
    """The image with this id is not there any more; nothing changes if it is another by now."""
    tx.execute(
        "UPDATE images SET state = 'absent', image_id = NULL WHERE key = ? AND state = 'ready'"
        " AND image_id IS ?",
        (key, image_id),
    )


def used(tx: Tx, key: int) -> None:
    """A container is started from it. Written once a minute at most."""
    tx.execute(
        "UPDATE images SET used_at_ms = :now WHERE key = :key AND (used_at_ms IS NULL"
        f" OR used_at_ms <= :now - {USED_EVERY_MS})",
        {"now": tx.now_ms, "key": key},
    )


def in_use(source: Source) -> dict[str, int]:
    """Package digests that jobs which have not ended need, or queued steps: how many of them."""
    rows = source.execute(
        "SELECT h.digest, count(*) FROM (SELECT type, version FROM jobs"
        " WHERE finished_at_ms IS NULL UNION ALL SELECT type, version FROM tasks"
        " WHERE lane = 'container' AND state <> 'leased') AS used"
        " JOIN handlers h ON h.type = used.type AND h.version = used.version GROUP BY h.digest"
    )
    return dict(rows.fetchall())


def names_of(source: Source) -> dict[str, list[tuple[str, str, bool]]]:
    """By package digest, the stateful handler versions that have it: (type, version, yanked)."""
    names: dict[str, list[tuple[str, str, bool]]] = {}
    for digest, handler_type, version, yanked in source.execute(
        "SELECT digest, type, version, yanked_at_ms IS NOT NULL FROM handlers"
        f" WHERE stateful = 1 ORDER BY type, key LIMIT {ROWS_MAX}"
    ):
        names.setdefault(digest, []).append((handler_type, version, bool(yanked)))
    return names
