"""What goes wrong around the writer: refusals that callers understand, and life goes on."""

import asyncio
import json
import sqlite3
import threading
import time

import pytest

from flowmonkeyd import jsontext
from flowmonkeyd.clock import SystemClock
from flowmonkeyd.errors import Unavailable
from flowmonkeyd.store import Store
from flowmonkeyd.store.store import BATCH_MS


@pytest.fixture
async def store(tmp_path):
    store = Store(tmp_path / "fm.db", SystemClock())
    await store.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(store.run())
        yield store
        await store.close()


def put(name, value=1):
    def change(tx):
        tx.execute("INSERT INTO meta (name, value) VALUES (?, ?)", (name, value))
        tx.hints.ready.add("sandbox")
        return value

    return change


async def test_a_database_locked_by_another_program_refuses_for_now(store):
    await store.write(lambda tx: tx.execute("PRAGMA busy_timeout = 1").fetchone())
    other = sqlite3.connect(store.path, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable, match="another program keeps the database locked"):
            await store.write(put("now"))
        other.execute("ROLLBACK")
        assert await store.write(put("later")) == 1
    finally:
        other.close()


@pytest.mark.parametrize("text", ["1e400", "-1e999", '{"a": [1e309]}', "1" + "0" * 400 + ".0"])
def test_a_number_that_could_be_written_and_not_be_read_is_refused(text):
    """One request with 1e400 was kept as Infinity, and no start got past that row any more."""
    with pytest.raises(ValueError, match="range"):
        jsontext.loads(text)
    with pytest.raises(ValueError, match="infinity"):
        jsontext.dumps(json.loads(text))


@pytest.mark.parametrize("value", ["Infinity", {"NaN": ["-Infinity"]}, 1e308, 10**400, 5e-324])
def test_what_only_looks_like_infinity_is_kept(value):
    assert jsontext.loads(jsontext.dumps(value)) == value


async def test_a_disk_that_fills_up_just_before_the_commit_refuses_the_batch(store):
    """SQLite has rolled back everything by then: "no such savepoint" hid why, and who asked (the
    dispatcher, the timers) took it for a bug of ours."""

    def fill(tx):
        (pages,) = tx.execute("PRAGMA page_count").fetchone()
        tx.execute(f"PRAGMA max_page_count = {pages}").fetchone()
        big = "INSERT INTO flows (id, version, digest, document, step_count, applied_at_ms)"
        tx.execute(f"{big} VALUES ('f', '1.0.0', 'd', ?, 1, 1)", ("x" * 3_000_000,))

    store.before_commit = fill
    with pytest.raises(Unavailable) as refused:
        await store.write(put("a"))
    assert refused.value.code == "DISK_FULL"
    store.before_commit = None
    await store.write(lambda tx: tx.execute("PRAGMA max_page_count = 100000").fetchone())
    assert await store.write(put("a")) == 1


async def test_a_bug_just_before_the_commit_undoes_only_itself(store):
    told = []
    store.on_commit = told.append

    def fail(tx):
        put("theirs", 1)(tx)
        tx.hints.ready.clear()
        raise ZeroDivisionError

    store.before_commit = fail
    assert await store.write(put("ours")) == 1
    assert [hints.ready for hints in told] == [{"sandbox"}]
    rows = await store.read(lambda conn: conn.execute("SELECT name FROM meta").fetchall())
    assert sorted(rows) == [("boot",), ("ours",)]


async def test_who_still_waits_when_the_store_closes_is_refused(store):
    """Writes left over by the batch that ran while it closed had no answer, ever."""
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def long(tx):
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        time.sleep(BATCH_MS / 1000)

    async with asyncio.TaskGroup() as group:
        first = group.create_task(store.write(long))
        rest = [group.create_task(refused(store.write(put(f"n{n}")))) for n in range(3)]
        await begun.wait()
        closing = group.create_task(store.close())
        await asyncio.sleep(0)
        may_end.set()
    assert (first.result(), closing.result()) == (None, None)
    assert [str(one.result()) for one in rest] == ["cannot write: the daemon is stopping"] * 3


async def refused(writing):
    with pytest.raises(Unavailable) as refused:
        await writing
    return refused.value
