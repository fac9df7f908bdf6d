"""What stateful handlers keep: named values of a job, small ones here, large ones in files."""

from __future__ import annotations

import sqlite3

from flowmonkeyd.jobmodel import Checkpoint, NewCheckpoint
from flowmonkeyd.store.store import Tx

__all__ = [
    "besides",
    "clear",
    "expire",
    "files",
    "get",
    "newest",
    "next_expiry_ms",
    "of_job",
    "put",
]

Source = Tx | sqlite3.Connection

# Jobs whose checkpoints go in one transaction.
EXPIRED_MAX = 100

_LISTED = (
    "name, size_bytes, encoding, compression, sha256, attempt, saved_at_ms, NULL AS data, file"
)


def put(tx: Tx, job: int, attempt: int, new: NewCheckpoint) -> None:
    """Keep a value in place of what its name had."""
    _discard(tx, job, new.name)
    tx.execute(
        "INSERT INTO checkpoints (job, name, size_bytes, encoding, compression, sha256, attempt,"
        " saved_at_ms, data, file) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (job, name) DO UPDATE SET size_bytes = excluded.size_bytes,"
        " encoding = excluded.encoding, compression = excluded.compression,"
        " sha256 = excluded.sha256, attempt = excluded.attempt,"
        " saved_at_ms = excluded.saved_at_ms, data = excluded.data, file = excluded.file",
        (
            job,
            new.name,
            new.size_bytes,
            new.encoding,
            new.compression,
            new.sha256,
            attempt,
            tx.now_ms,
            new.data,
            new.file,
        ),
    )


def clear(tx: Tx, job: int, name: str | None) -> int:
    """Forget one, or with None all of them; how many."""
    _discard(tx, job, name)
    cursor = tx.execute(
        "DELETE FROM checkpoints WHERE job = :job AND (:name IS NULL OR name = :name)",
        {"job": job, "name": name},
    )
    return cursor.rowcount


def _discard(tx: Tx, job: int, name: str | None) -> None:
    """No row names these files after the commit."""
    rows = tx.execute(
        "SELECT file FROM checkpoints WHERE job = :job AND (:name IS NULL OR name = :name)"
        " AND file IS NOT NULL",
        {"job": job, "name": name},
    )
    tx.hints.discarded.update(file for (file,) in rows)


def get(source: Source, job: int, name: str) -> Checkpoint | None:
    """One with its data, unless that is in a file."""
    row = source.execute(
        "SELECT name, size_bytes, encoding, compression, sha256, attempt, saved_at_ms, data, file"
        " FROM checkpoints WHERE job = ? AND name = ?",
        (job, name),
    ).fetchone()
    return Checkpoint(*row) if row else None


def of_job(source: Source, job: int) -> list[Checkpoint]:
    """All of a job, by name, without their data."""
    rows = source.execute(
        f"SELECT {_LISTED} FROM checkpoints WHERE job = ? ORDER BY name LIMIT 1000", (job,)
    )
    return [Checkpoint(*row) for row in rows]


def newest(source: Source, job: int) -> Checkpoint | None:
    """The one that was saved last, without its data."""
    row = source.execute(
        f"SELECT {_LISTED} FROM checkpoints WHERE job = ? ORDER BY saved_at_ms DESC LIMIT 1",
        (job,),
    ).fetchone()
    return Checkpoint(*row) if row else None


def besides(tx: Tx, job: int, but: str) -> tuple[int, int]:
    """How many checkpoints a job has besides the one called `but`, and their bytes."""
    row: tuple[int, int] = tx.execute(
        "SELECT count(*), ifnull(sum(size_bytes), 0) FROM checkpoints WHERE job = ? AND name <> ?",
        (job, but),
    ).fetchone()
    return row


def expire(tx: Tx) -> bool:
    """Checkpoints whose time is over go; whether there may be more of them."""
    rows = tx.execute(
        "SELECT key FROM jobs WHERE expires_at_ms <= ? ORDER BY expires_at_ms LIMIT ?",
        (tx.now_ms, EXPIRED_MAX),
    ).fetchall()
    for (key,) in rows:
        clear(tx, key, None)
        tx.execute("UPDATE jobs SET expires_at_ms = NULL WHERE key = ?", (key,))
    return len(rows) == EXPIRED_MAX


def next_expiry_ms(tx: Tx) -> int | None:
    at_ms: int | None = tx.execute(
        "SELECT min(expires_at_ms) FROM jobs WHERE expires_at_ms IS NOT NULL"
    ).fetchone()[0]
    return at_ms


def files(conn: sqlite3.Connection) -> set[str]:
    """Every file that a checkpoint names."""
    rows = conn.execute("SELECT file FROM checkpoints WHERE file IS NOT NULL")
    return {file for (file,) in rows}
