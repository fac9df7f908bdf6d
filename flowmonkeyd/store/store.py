"""The database file: opening, migrating, the one writer with group commit, the readers.

`await store.write(fn)` runs the plain function `fn(tx)` on the writer thread; writes that arrive
together share one commit (WAL, synchronous=FULL), each in a savepoint of its own, so one refusal
undoes only itself. The caller is answered, and `on_commit` is told, only after the commit. A full
disk refuses the whole batch and changes nothing. This file never knows what the rows mean.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from flowmonkeyd.clock import Clock
from flowmonkeyd.errors import Invalid, Unavailable

__all__ = ["APPLICATION_ID", "Committed", "Store", "Tx", "migrations"]

T = TypeVar("T")

# "FMky" in the file's header, so that `file` and we can tell our database from another.
APPLICATION_ID = 0x464D6B79
# More would make the first writer of a batch wait for the last one's work (architecture 5.5).
BATCH_MAX = 256
BATCH_MS = 10
# A batch of fewer writes than this waits so long for those that are about to come. Each commit
# costs as much as some writes do, and a flush; beyond a few there is little left to share.
GATHER_WRITES = 4
GATHER_MS = 10
# Writes waiting for the writer; beyond it callers are told to come back.
QUEUE_MAX = 20_000
READERS = 2
# Rows that the writer keeps in memory, of some 5 KB at the most.
KNOWN_MAX = 2048


@dataclass(slots=True)
class Committed:
    """What a batch of committed writes may have made possible. Hints: the tables are the truth."""

    ready: set[str] = field(default_factory=set)  # lanes with a task to claim
    due_at_ms: int | None = None  # something new may be due then
    events: bool = False  # the ledger grew
    images: bool = False  # one is wanted, or is there now
    ended: set[str] = field(default_factory=set)  # executions that ended
    dropped: set[tuple[int, int]] = field(default_factory=set)  # (task key, lease) to kill
    evicted: set[str] = field(default_factory=set)  # instances whose container is not wanted
    discarded: set[str] = field(default_factory=set)  # checkpoint files that no row names
    # By lane that was looked at: what this commit leased for who runs it.
    claimed: dict[str, list[Any]] = field(default_factory=dict)

    def merge(self, other: Committed) -> None:
        self.ready |= other.ready
        self.events |= other.events
        self.images |= other.images
        self.ended |= other.ended
        self.dropped |= other.dropped
        self.evicted |= other.evicted
        self.discarded |= other.discarded
        for lane, tasks in other.claimed.items():
            self.claimed.setdefault(lane, []).extend(tasks)
        if other.due_at_ms is not None:
            self.due(other.due_at_ms)

    def due(self, at_ms: int) -> None:
        if self.due_at_ms is None or at_ms < self.due_at_ms:
            self.due_at_ms = at_ms


class Tx:
    """One open transaction with its fixed time. `hints` is told to the world after the commit."""

    __slots__ = ("boot", "execute", "executemany", "hints", "known", "memo", "now_ms")

    def __init__(
        self, conn: sqlite3.Connection, now_ms: int, boot: int, known: dict[Any, Any]
    ) -> None:
        self.execute = conn.execute
        self.executemany = conn.executemany
        self.now_ms = now_ms
        self.boot = boot
        self.hints = Committed()
        # What this one transaction has looked up already and cannot change under its feet.
        self.memo: dict[Any, Any] = {}
        # Rows the one writer knows without looking again, kept from transaction to transaction.
        self.known = known

    def undo(self, savepoint: str) -> None:
        """Go back to a savepoint. What is known is forgotten: a row may be one that is undone."""
        self.execute(f"ROLLBACK TO {savepoint}")
        self.known.clear()


@dataclass(slots=True)
class _Write:
    fn: Callable[[Tx], Any]
    future: asyncio.Future[Any]


class Store:
    """The open database. `run()` must be running for writes to happen; `close()` ends it."""

    def __init__(
        self, path: Path, clock: Clock, on_commit: Callable[[Committed], None] = lambda _: None
    ) -> None:
        self.path = path
        self.on_commit = on_commit
        # Runs in each batch's transaction before its commit: what became ready there and is the
        # engine's own to do need not wait for a commit of its own. It sees the batch's hints and
        # may change them; if it raises, all it did is undone and the batch goes on without it.
        self.before_commit: Callable[[Tx], None] | None = None
        # How many more writes are as good as on their way, so that a small batch waits for them.
        self.expected: Callable[[], int] = lambda: 0
        self.boot = 0
        # Why the last batch could not be committed; None when it was.
        self.refusal: str | None = None
        self.commits = 0
        self.writes = 0
        self._clock = clock
        self._known: dict[Any, Any] = {}
        self._queue: deque[_Write] = deque()
        self._wake = asyncio.Event()
        self._enough = 1  # writes in the queue that wake the writer
        self._idle = asyncio.Event()
        self._writer: aiosqlite.Connection | None = None
        self._readers: list[aiosqlite.Connection] = []
        self._next_reader = 0
        self._closed = False

    async def open(self) -> None:
        """Open and migrate the file; counts the boot. Raises Invalid for a file not ours or of a
        newer version, Unavailable when it cannot be read or written."""
        try:
            self._writer = await aiosqlite.connect(
                self.path, isolation_level=None, cached_statements=512
            )
            self.boot = await _on_thread(self._writer, _prepare)
            for _ in range(READERS):
                uri = f"{self.path.absolute().as_uri()}?mode=ro"
                reader = await aiosqlite.connect(uri, uri=True, isolation_level=None)
                self._readers.append(reader)
                await _on_thread(reader, lambda conn: conn.execute("PRAGMA query_only = ON"))
        except sqlite3.Error as exc:
            await self.close()
            full = _out_of_space(self.path.parent)
            why = "the disk is full; free some space and try again" if full else str(exc)
            raise Unavailable(
                f"cannot open the database {self.path}: {why}", code="DISK_FULL" if full else None
            ) from exc
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close every connection; writes still queued are refused."""
        self._closed = True
        self._wake.set()
        self._refuse_queued()
        for conn in (*self._readers, *filter(None, [self._writer])):
            await conn.close()
        self._readers, self._writer = [], None

    async def write(self, fn: Callable[[Tx], T]) -> T:
        """Run `fn(tx)` in a transaction and return its result once that is committed.

        An exception from `fn` undoes its changes and is raised here. A caller that is cancelled
        must expect that its write happened.
        """
        if self._closed:
            raise Unavailable("cannot write: the daemon is stopping")
        if len(self._queue) >= QUEUE_MAX:
            raise Unavailable(f"cannot write: {QUEUE_MAX} writes are waiting already; try later")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append(_Write(fn, future))
        if len(self._queue) >= self._enough:
            self._wake.set()
        return await future

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn(conn)` on a read-only connection and return its result."""
        if not self._readers:
            raise Unavailable("cannot read: the database is not open")
        reader = self._readers[self._next_reader]
        self._next_reader = (self._next_reader + 1) % len(self._readers)
        return await _on_thread(reader, _consistently(fn))

    async def run(self) -> None:
        """The writer's loop: take what is there, commit it together, tell, again."""
        while not self._closed:
            if not self._queue:
                self._wake.clear()
                await self._wake.wait()
                continue
            await self._gather()
            batch = [self._queue.popleft() for _ in range(min(BATCH_MAX, len(self._queue)))]
            writer = self._writer
            if writer is None:
                return
            run = partial(
                _commit,
                batch=batch,
                now_ms=self._clock.now_ms(),
                boot=self.boot,
                known=self._known,
                before_commit=self.before_commit,
            )
            done = await _on_thread(writer, run)
            for write in reversed(batch[len(done.results) :]):
                self._queue.appendleft(write)
            self.refusal = done.refusal
            self.commits += 1
            self.writes += len(done.results)
            self.on_commit(done.hints)
            for write, result in zip(batch, done.results, strict=False):
                _answer(write.future, result)
        self._refuse_queued()  # closed meanwhile, with no time left for the rest of the batch

    async def _gather(self) -> None:
        """Wait a little for the writes that are expected, so that they share this commit."""
        coming = self.expected()
        if not coming:
            return
        self._enough = min(1 + coming, GATHER_WRITES)
        try:
            async with asyncio.timeout(GATHER_MS / 1000):
                while len(self._queue) < self._enough and not self._closed:
                    self._wake.clear()
                    await self._wake.wait()
        except TimeoutError:
            pass
        finally:
            self._enough = 1

    def _refuse_queued(self) -> None:
        refusal = _Raised(Unavailable("cannot write: the daemon is stopping"))
        while self._queue:
            _answer(self._queue.popleft().future, refusal)


async def _on_thread(conn: aiosqlite.Connection, fn: Callable[[sqlite3.Connection], T]) -> T:
    """Run `fn` on the connection's thread in one hop. aiosqlite has no public way to (a call for
    each statement costs a hop each, 3 times slower); tests/unit/test_store.py pins this one."""
    result: T = await conn._execute(fn, conn._conn)  # type: ignore[no-untyped-call]
    return result


def _answer(future: asyncio.Future[Any], result: Any) -> None:
    if future.done():
        return  # its caller was cancelled
    if isinstance(result, _Raised):
        future.set_exception(result.error)
    else:
        future.set_result(result)


# --- on the connection's thread ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


@dataclass(slots=True)
class _Done:
    results: list[Any]
    hints: Committed
    refusal: str | None = None


def _commit(
    conn: sqlite3.Connection,
    batch: list[_Write],
    now_ms: int,
    boot: int,
    known: dict[Any, Any],
    before_commit: Callable[[Tx], None] | None,
) -> _Done:
    """Run a batch in one transaction. Fewer results than writes: the time was up."""
    done = _Done([], Committed())
    until = time.monotonic() + BATCH_MS / 1000
    try:
        conn.execute("BEGIN IMMEDIATE")
        for write in batch:
            tx = Tx(conn, now_ms, boot, known)
            result = _run_one(conn, write.fn, tx)
            done.results.append(result)
            if not isinstance(result, _Raised):
                done.hints.merge(tx.hints)
            if time.monotonic() >= until:
                break
        if before_commit is not None and done.hints.ready:
            tx = Tx(conn, now_ms, boot, known)
            tx.hints.merge(done.hints)
            if not isinstance(_run_one(conn, before_commit, tx), _Raised):
                done.hints = tx.hints
        conn.execute("COMMIT")
        for oldest in list(islice(known, max(0, len(known) - KNOWN_MAX))):
            del known[oldest]
    except sqlite3.Error as exc:
        known.clear()
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        refusal = _refusal(exc, conn)
        return _Done([_Raised(refusal)] * len(batch), Committed(), str(refusal))
    return done


def _run_one(conn: sqlite3.Connection, fn: Callable[[Tx], Any], tx: Tx) -> Any:
    conn.execute("SAVEPOINT write")
    try:
        result = fn(tx)
    except Exception as exc:
        if isinstance(exc, sqlite3.OperationalError) or (
            isinstance(exc, sqlite3.Error) and not conn.in_transaction
        ):
            raise  # the disk or the file: nobody in this batch can be sure
        tx.undo("write")
        result = _Raised(exc)
    conn.execute("RELEASE write")
    return result


def _refusal(exc: sqlite3.Error, conn: sqlite3.Connection) -> Exception:
    code = getattr(exc, "sqlite_errorname", "")
    if code.startswith("SQLITE_FULL"):
        return Unavailable(
            "cannot write: the disk is full; free some space and try again", code="DISK_FULL"
        )
    if code.startswith(("SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN")):
        full = _out_of_space(Path(conn.execute("PRAGMA database_list").fetchone()[2]).parent)
        return Unavailable(
            f"cannot write to the database: {exc} ({code})", code="DISK_FULL" if full else None
        )
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Unavailable("cannot write: another program keeps the database locked; end it")
    return exc


def _out_of_space(directory: Path) -> bool:
    """SQLite's errors have no errno, and growing the WAL's index fails as an I/O error."""
    return os.statvfs(directory).f_bavail == 0


def _consistently(fn: Callable[[sqlite3.Connection], T]) -> Callable[[sqlite3.Connection], T]:
    def run(conn: sqlite3.Connection) -> T:
        conn.execute("BEGIN")
        try:
            return fn(conn)
        finally:
            conn.execute("ROLLBACK")

    return run


def migrations() -> list[tuple[int, str, str]]:
    """The migrations as (number, file name, SQL), in order."""
    found = []
    for entry in resources.files("flowmonkeyd.store").joinpath("migrations").iterdir():
        if match := re.fullmatch(r"(\d{4})_\w+\.sql", entry.name):
            found.append((int(match[1]), entry.name, entry.read_text()))
    return sorted(found)


def _prepare(conn: sqlite3.Connection) -> int:
    steps = migrations()
    application = conn.execute("PRAGMA application_id").fetchone()[0]
    version = conn.execute("PRAGMA user_version").fetchone()[0]
    tables = conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if application != APPLICATION_ID and (tables or application):
        raise Invalid("cannot open the database: the file is not FlowMonkey's")
    if version > steps[-1][0]:
        raise Invalid(
            f"cannot open the database: it has version {version} and this flowmonkeyd knows "
            f"versions up to {steps[-1][0]}; run the newer flowmonkeyd"
        )
    # Before there is a WAL: SQLite gives the files beside the database its mode.
    os.chmod(conn.execute("PRAGMA database_list").fetchone()[2], 0o600)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = FULL")  # NORMAL forgets commits at a power cut
    conn.execute("PRAGMA foreign_keys = ON")
    conn.execute("PRAGMA busy_timeout = 5000")
    for number, _, sql in steps:
        if number > version:
            conn.executescript(
                f"BEGIN IMMEDIATE; {sql}; PRAGMA application_id = {APPLICATION_ID};"
                f"PRAGMA user_version = {number}; COMMIT"
            )
    boot: int = conn.execute(
        "UPDATE meta SET value = value + 1 WHERE name = 'boot' RETURNING value"
    ).fetchone()[0]
    return boot
