"""What it costs to change one small key of a context that has large neighbours.

Three ways to keep a context, in one run and on one file system: small values in one JSON object
and large ones in rows of their own (ours, for several values of SPILL_BYTES), the whole context in
one JSON text, and one row for each key. A change is what a finished step does: read what it needs,
write one key, commit. Prints CPU microseconds and kB written to the WAL for a change, and each
ratio to the single JSON text. The flush of a commit costs each way the same and is left out
(synchronous=OFF), as it would hide the rest.

    python benchmarks/context.py [--changes 500]
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flowmonkeyd import context as contexts
from flowmonkeyd import jsontext
from flowmonkeyd.context import Change, Context
from flowmonkeyd.model import Limits

# Neighbours of the small key: how many, of how many bytes each.
SHAPES = [
    (0, 0), (8, 10), (32, 10), (8, 100), (32, 100), (8, 500), (8, 1000), (32, 1000), (8, 4000),
    (8, 16_000), (8, 64_000), (1, 1_000_000), (8, 1_000_000),
]  # fmt: skip
SPILLS = (128, 512, 1024, 2048, 4096)
SCHEMA = """
CREATE TABLE whole (key INTEGER PRIMARY KEY, context TEXT NOT NULL) STRICT;
CREATE TABLE rows (execution INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (execution, name)) STRICT, WITHOUT ROWID;
CREATE TABLE executions (key INTEGER PRIMARY KEY, context TEXT NOT NULL, spilled TEXT,
    context_bytes INTEGER NOT NULL) STRICT;
CREATE TABLE context_values (execution INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    UNIQUE (execution, name)) STRICT;
"""


def value(number: int) -> str:
    """Never as long as the one before, so that what comes after it in a text moves."""
    return "y" * (number % 7)


def neighbours(count: int, size: int) -> dict[str, Any]:
    return {"small": ""} | {f"k{n}": "x" * (size - 2) for n in range(count)}


def whole(conn: sqlite3.Connection, start: dict[str, Any]) -> Callable[[int], None]:
    conn.execute("INSERT OR REPLACE INTO whole VALUES (1, ?)", (jsontext.dumps(start),))

    def change(number: int) -> None:
        (text,) = conn.execute("SELECT context FROM whole WHERE key = 1").fetchone()
        values = jsontext.loads(text)
        values["small"] = value(number)
        conn.execute("UPDATE whole SET context = ? WHERE key = 1", (jsontext.dumps(values),))

    return change


def rows(conn: sqlite3.Connection, start: dict[str, Any]) -> Callable[[int], None]:
    """One row a key; a step that needs a value reads that row, the limits need every size."""
    conn.executemany(
        "INSERT OR REPLACE INTO rows VALUES (1, ?, ?)",
        [(name, jsontext.dumps(value)) for name, value in start.items()],
    )

    def change(number: int) -> None:
        conn.execute("SELECT name, length(value) FROM rows WHERE execution = 1").fetchall()
        conn.execute(
            "UPDATE rows SET value = ? WHERE execution = 1 AND name = 'small'",
            (jsontext.dumps(value(number)),),
        )

    return change


def ours(conn: sqlite3.Connection, start: dict[str, Any]) -> Callable[..., None]:
    """As store/executions.py does it: load, `Context.change`, save."""
    limits = Limits(context_bytes_max=2**30)

    def save(made: Change) -> None:
        context = made.context
        conn.execute(
            "INSERT INTO executions VALUES (1, ?, ?, ?) ON CONFLICT DO UPDATE SET"
            " context = excluded.context, spilled = excluded.spilled,"
            " context_bytes = excluded.context_bytes",
            (
                jsontext.dumps(context.inline),
                jsontext.dumps(context.spilled) if context.spilled else None,
                context.total_bytes,
            ),
        )
        conn.executemany(
            "INSERT INTO context_values VALUES (1, ?, ?) ON CONFLICT (execution, name)"
            " DO UPDATE SET value = excluded.value",
            list(made.rows.items()),
        )

    first = Context().change(start, limits)
    assert isinstance(first, Change)
    save(first)

    def change(number: int, key: str = "small", text_of_key: str | None = None) -> None:
        text, spilled, total = conn.execute(
            "SELECT context, spilled, context_bytes FROM executions WHERE key = 1"
        ).fetchone()
        kept = Context(jsontext.loads(text), jsontext.loads(spilled) if spilled else {}, {}, total)
        made = kept.change({key: value(number) if text_of_key is None else text_of_key}, limits)
        assert isinstance(made, Change)
        save(made)

    return change


def replacing(size: int) -> Callable[[sqlite3.Connection, dict[str, Any]], Callable[[int], None]]:
    """The other side: a step that reads the one large value and puts a new one in its place."""

    def way(conn: sqlite3.Connection, start: dict[str, Any]) -> Callable[[int], None]:
        beside = ours(conn, {**start, "v": "x" * size})

        def change(number: int) -> None:
            row = conn.execute(
                "SELECT value FROM context_values WHERE execution = 1 AND name = 'v'"
            ).fetchone()
            if row is not None:
                jsontext.loads(row[0])
            beside(number, "v", "z" * (size + number % 7))

        return change

    return way


def measured(
    path: Path,
    way: Callable[[sqlite3.Connection, dict[str, Any]], Callable[[int], None]],
    start: dict[str, Any],
    changes: int,
) -> tuple[float, float]:
    """(median CPU microseconds, kB written to the WAL) of a change."""
    path.unlink(missing_ok=True)
    conn = sqlite3.connect(path, isolation_level=None)
    conn.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; {SCHEMA}")
    conn.execute("PRAGMA wal_autocheckpoint = 0")
    conn.execute("BEGIN")
    change = way(conn, start)
    conn.execute("COMMIT")
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    took = []
    for number in range(changes):
        began = time.thread_time_ns()
        conn.execute("BEGIN IMMEDIATE")
        change(number)
        conn.execute("COMMIT")
        took.append(time.thread_time_ns() - began)
    written = path.with_name(path.name + "-wal").stat().st_size
    conn.close()
    return statistics.median(took) / 1000, written / 1000 / changes


def ways() -> Iterator[tuple[str, Any, int]]:
    yield "one JSON", whole, 0
    yield "row a key", rows, 0
    for spill in SPILLS:
        yield f"spill {spill}", ours, spill


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--changes", type=int, default=500)
    wanted = parser.parse_args().changes
    names = [name for name, _, _ in ways()]
    print(f"{'neighbours':>15}  " + "  ".join(f"{name:>23}" for name in names))
    present = contexts.SPILL_BYTES
    try:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "context.db"
            for count, size in SHAPES:
                changes = max(20, min(wanted, wanted * 2_000_000 // (count * size + 20_000)))
                changes = min(changes, wanted)
                cells, base = [], (0.0, 0.0)
                for name, way, spill in ways():
                    contexts.SPILL_BYTES = spill
                    cpu_us, written = measured(path, way, neighbours(count, size), changes)
                    base = (cpu_us, written) if name == "one JSON" else base
                    ratios = f"{cpu_us / base[0]:.2f} {written / base[1]:.2f}"
                    cells.append(f"{cpu_us:6.0f} {written:6.1f} {ratios:>9}")
                print(f"{count:>5} x {size:>7}  " + "  ".join(f"{cell:>23}" for cell in cells))
            print("\none value read and replaced beside 8 x 50: a row of its own against inline")
            for size in (64, 128, 256, 512, 1024, 2048, 4096, 16_000):
                contexts.SPILL_BYTES = 60
                row_us, row_kb = measured(path, replacing(size), neighbours(8, 50), wanted)
                contexts.SPILL_BYTES = 10**9
                us, kb = measured(path, replacing(size), neighbours(8, 50), wanted)
                print(
                    f"{size:>7}  row {row_us:4.0f} us {row_kb:5.1f} kB  inline {us:4.0f} us"
                    f" {kb:5.1f} kB  ratio {row_us / us:.2f} {row_kb / kb:.2f}"
                )
    finally:
        contexts.SPILL_BYTES = present
    print("each cell: CPU us and WAL kB of a change, then both as ratios to one JSON")


if __name__ == "__main__":
    main()
