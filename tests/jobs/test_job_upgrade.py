"""A database from before there were jobs: what was there is as it was, and stateful steps move."""

import sqlite3

from flowmonkeyd.model import Lane
from flowmonkeyd.store.store import APPLICATION_ID, migrations
from flowmonkeyd.testing import FlowHarness

BEFORE = 4


def older(path):
    """A file of version 4: two published handlers, a task of each, two waits."""
    conn = sqlite3.connect(path, isolation_level=None)
    for number, _, sql in migrations():
        if number <= BEFORE:
            conn.executescript(sql)
    conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    conn.execute(f"PRAGMA user_version = {BEFORE}")
    flow = '{"id":"f","version":"1","initialStepId":"s","steps":{}}'
    conn.execute("INSERT INTO flows VALUES (1, 'f', '1', NULL, 'd', ?, 1, 0)", (flow,))
    for key, (type_, manifest) in enumerate(
        [("film", '{"handler":{"stateful":true}}'), ("small", '{"handler":{"stateful":false}}')], 1
    ):
        conn.execute(
            "INSERT INTO handlers (key, type, version, digest, manifest, size_bytes,"
            " published_at_ms, publisher) VALUES (?, ?, '1.0.0', 'd', ?, 1, 0, 'acme')",
            (key, type_, manifest),
        )
    for key in (1, 2, 3, 4):
        conn.execute(
            "INSERT INTO executions (key, id, flow, status, step_id, step_count, attempt, tenant,"
            " priority, context, context_bytes, depth, execution_ms, wait_ms, created_at_ms,"
            " updated_at_ms, deadline_ms)"
            " VALUES (?, ?, 1, 'running', 's', 0, 0, 't', 1, '{}', 2, 0, 1, 1, 0, 0, 9)",
            (key, f"e{key}"),
        )
    for key, type_ in ((1, "film"), (2, "small")):
        conn.execute(
            "INSERT INTO tasks (execution, step_id, attempt, lane, type, version, priority, state,"
            " rank_ms, queued_at_ms) VALUES (?, 's', 0, 'sandbox', ?, '1.0.0', 1, 'queued', 5, 5)",
            (key, type_),
        )
    for key, kind, event in ((3, "event", "go"), (4, "time", None)):
        conn.execute(
            "INSERT INTO waits (execution, kind, step_id, started_at_ms, timeout_at_ms, due_at_ms,"
            " event, tenant, queued_at_ms) VALUES (?, ?, 's', 1, 9, 9, ?, 't', 1)",
            (key, kind, event),
        )
    kept = {
        name: [dict(row) for row in _rows(conn, name)] for name in ("handlers", "tasks", "waits")
    }
    conn.close()
    return kept


def _rows(conn, table):
    conn.row_factory = sqlite3.Row
    rows = conn.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
    conn.row_factory = None
    return rows


async def test_what_was_there_is_as_it_was_and_stateful_steps_are_jobs(tmp_path):
    path = tmp_path / "fm.db"
    before = older(path)
    async with FlowHarness(path=path):
        pass
    conn = sqlite3.connect(path)
    after = {name: [dict(row) for row in _rows(conn, name)] for name in before}
    conn.close()
    stateful = [row.pop("stateful") for row in after["handlers"]]
    assert stateful == [1, 0]
    assert [row.pop("lane") for row in after["tasks"]] == [Lane.CONTAINER, Lane.SANDBOX]
    for row in before["tasks"]:
        del row["lane"]
    assert after == before
