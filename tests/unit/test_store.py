"""The writer, the readers and the file: group commit, refusals, migrations, faults."""

import asyncio
import sqlite3

import aiosqlite
import pytest

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.errors import Conflict, Invalid, Unavailable
from flowmonkeyd.store import Committed, Store, catalog
from flowmonkeyd.store.store import APPLICATION_ID, GATHER_WRITES, KNOWN_MAX, migrations


class Opened:
    """A store with its writer running."""

    def __init__(self, path):
        self.commits: list[Committed] = []
        self.store = Store(path, SystemClock(), self.commits.append)

    async def __aenter__(self):
        await self.store.open()
        self.group = asyncio.TaskGroup()
        await self.group.__aenter__()
        self.writer = self.group.create_task(self.store.run())
        return self

    async def __aexit__(self, *exc):
        await self.store.close()
        await self.group.__aexit__(None, None, None)


@pytest.fixture
async def opened(tmp_path):
    async with Opened(tmp_path / "fm.db") as opened:
        yield opened


def put(name, value=1):
    def change(tx):
        tx.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
        return value

    return change


async def names(store):
    rows = await store.read(lambda c: c.execute("SELECT name FROM meta ORDER BY name").fetchall())
    return [name for (name,) in rows if name != "boot"]


async def test_writes_that_arrive_together_share_a_commit(opened):
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(opened.store.write(put(f"n{i}", i))) for i in range(50)]
    assert [task.result() for task in tasks] == list(range(50))
    assert len(opened.commits) < 10


async def test_a_small_batch_waits_for_the_writes_that_are_expected(opened):
    opened.store.expected = lambda: GATHER_WRITES * 2
    async with asyncio.TaskGroup() as group:
        for number in range(GATHER_WRITES):
            group.create_task(opened.store.write(put(f"n{number}")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # the writer has seen it
    assert len(opened.commits) == 1


async def test_a_batch_does_not_wait_for_ever(opened):
    opened.store.expected = lambda: 1
    await asyncio.wait_for(opened.store.write(put("a")), 5)
    assert len(opened.commits) == 1


async def test_what_is_undone_is_not_known(opened):
    def publish(tx):
        catalog.insert_handler(tx, "a/b", "1.0.0", "digest", "{}", 1)
        assert catalog.package_of(tx, "a/b", "1.0.0").digest == "digest"
        assert tx.known

    def refused(tx):
        publish(tx)
        raise Invalid("no")

    def of_no_row(tx):
        publish(tx)
        tx.execute("INSERT INTO charges VALUES (1, 1, 1, 'x', 1)")

    for change in (refused, of_no_row):
        with pytest.raises((Invalid, sqlite3.IntegrityError)):
            await opened.store.write(change)
        assert await opened.store.write(lambda tx: dict(tx.known)) == {}
        assert await opened.store.write(lambda tx: catalog.package_of(tx, "a/b", "1.0.0")) is None
    await opened.store.write(publish)
    assert await opened.store.write(lambda tx: list(tx.known)) == [("a/b", "1.0.0")]


async def test_no_more_than_so_many_rows_are_known(opened):
    await opened.store.write(lambda tx: tx.known.update(dict.fromkeys(range(KNOWN_MAX + 5))))
    assert await opened.store.write(lambda tx: next(iter(tx.known))) == 5
    assert await opened.store.write(lambda tx: len(tx.known)) == KNOWN_MAX


async def test_a_refused_write_undoes_only_itself(opened):
    def refuse(tx):
        put("half")(tx)
        raise Conflict("no")

    async with asyncio.TaskGroup() as group:
        first = group.create_task(opened.store.write(put("first")))
        refused = group.create_task(swallowed(opened.store.write(refuse)))
        last = group.create_task(opened.store.write(put("last")))
    assert isinstance(refused.result(), Conflict)
    assert (first.result(), last.result()) == (1, 1)
    assert await names(opened.store) == ["first", "last"]


async def test_a_bug_in_a_write_reaches_its_caller_and_nobody_else(opened):
    with pytest.raises(ZeroDivisionError):
        await opened.store.write(lambda tx: 1 // 0)
    with pytest.raises(sqlite3.IntegrityError):
        await opened.store.write(put("boot"))
    assert await opened.store.write(put("after")) == 1


async def test_nobody_is_told_before_the_commit(opened):
    seen = []

    def look(hints):
        with sqlite3.connect(opened.store.path) as other:
            seen.append(other.execute("SELECT count(*) FROM meta").fetchone()[0])
        other.close()

    opened.store.on_commit = look
    await opened.store.write(put("x"))
    assert seen == [2]


async def test_a_reader_cannot_write(opened):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await opened.store.read(lambda conn: conn.execute("DELETE FROM meta"))


async def test_a_full_disk_refuses_and_changes_nothing(opened):
    await opened.store.write(put("before"))

    def limit(tx):
        (pages,) = tx.execute("PRAGMA page_count").fetchone()
        tx.execute(f"PRAGMA max_page_count = {pages}")

    await opened.store.write(limit)
    big = "INSERT INTO flows (id, version, digest, document, step_count, applied_at_ms)"

    def fill(tx):
        tx.execute(f"{big} VALUES ('f', '1.0.0', 'd', ?, 1, 1)", ("x" * 100_000,))

    with pytest.raises(Unavailable, match="disk is full") as refused:
        await opened.store.write(fill)
    assert refused.value.code == "DISK_FULL"
    assert await names(opened.store) == ["before"]
    await opened.store.write(lambda tx: tx.execute("PRAGMA max_page_count = 100000").fetchone())
    await opened.store.write(fill)


async def test_each_start_counts_as_a_boot(tmp_path):
    boots = []
    for _ in range(3):
        async with Opened(tmp_path / "fm.db") as opened:
            boots.append(opened.store.boot)
    assert boots == [1, 2, 3]


async def test_the_file_is_safe_from_power_cuts_and_from_others(opened):
    def pragmas(tx):
        return [tx.execute(f"PRAGMA {n}").fetchone()[0] for n in ("journal_mode", "synchronous")]

    assert await opened.store.write(pragmas) == ["wal", 2]
    assert opened.store.path.stat().st_mode & 0o777 == 0o600


async def test_a_newer_database_is_refused(tmp_path):
    path = tmp_path / "fm.db"
    async with Opened(path):
        pass
    newer = migrations()[-1][0] + 1
    with sqlite3.connect(path) as conn:
        conn.execute(f"PRAGMA user_version = {newer}")
    conn.close()
    before = path.read_bytes()
    with pytest.raises(Invalid, match=f"version {newer}"):
        await Store(path, SystemClock()).open()
    assert path.read_bytes() == before


async def test_somebody_elses_database_is_refused(tmp_path):
    path = tmp_path / "fm.db"
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE theirs (x)")
    conn.close()
    with pytest.raises(Invalid, match="not FlowMonkey's"):
        await Store(path, SystemClock()).open()
    path.write_bytes(b"not a database, but long enough to be looked at" * 30)
    with pytest.raises(Unavailable, match="not a database"):
        await Store(path, SystemClock()).open()


async def test_a_write_after_the_end_is_refused(tmp_path):
    async with Opened(tmp_path / "fm.db") as opened:
        pass
    with pytest.raises(Unavailable, match="stopping"):
        await opened.store.write(put("late"))


def test_the_one_private_call_of_aiosqlite_is_still_there():
    assert callable(aiosqlite.Connection._execute)
    assert isinstance(aiosqlite.Connection._conn, property)


def test_the_application_id_is_readable():
    assert APPLICATION_ID.to_bytes(4) == b"FMky"


async def swallowed(awaitable):
    try:
        return await awaitable
    except Conflict as exc:
        return exc
