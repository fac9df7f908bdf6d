"""What goes wrong around the writer: refusals that callers understand, and life goes on."""

import asyncio
import sqlite3

import pytest

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.errors import Unavailable
from flowmonkeyd.store import Store


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
