"""A database from before there were signatures opens, and its handlers are unsigned ones."""

from __future__ import annotations

import sqlite3

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.store import Store, catalog, publishers
from flowmonkeyd.store.store import APPLICATION_ID, migrations


async def test_a_database_of_the_first_version_is_upgraded_with_what_is_in_it(tmp_path):
    path = tmp_path / "fm.db"
    _, name, sql = migrations()[0]
    assert name == "0001_initial.sql"
    old = sqlite3.connect(path)
    old.executescript(
        f"{sql}; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;"
        "INSERT INTO handlers (type, version, digest, manifest, size_bytes, published_at_ms,"
        " yanked_at_ms) VALUES ('acme/old', '1.0.0', 'd', '{}', 7, 5, 6)"
    )
    old.close()
    store = Store(path, SystemClock())
    await store.open()
    try:
        row = await store.read(lambda c: catalog.handler_row(c, "acme/old", "1.0.0"))
        assert row == catalog.HandlerRow(
            *(1, "acme/old", "1.0.0", "d", "{}", 7, 5, 6), None, None, None, None
        )
        assert await store.read(publishers.keys) == []
        assert await store.read(lambda c: publishers.namespaces(c, 0, 10)) == []
        version = await store.read(lambda c: c.execute("PRAGMA user_version").fetchone()[0])
        assert version == migrations()[-1][0]
    finally:
        await store.close()
