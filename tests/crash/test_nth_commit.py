"""Killed at the n-th commit, before it and after it, for n = 1, 2, 3 … until a scenario completes.

The scenario has retries, waits, tokens, events, a delay, sub-flows, a fan-out, a routed failure and
a cancelled tree. After each death the same client starts again on the same file; the end must be
that of a run without a death, the history too, and the tally that the handlers keep outside the
database must show each attempt of that run, at most one of them delivered twice.
"""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from flowmonkeyd.store import ledger
from flowmonkeyd.testing import FlowHarness
from tests.crash.victim import ROOTS, drive, harness
from tests.oracle import comparable

ROOT = Path(__file__).parents[2]
# More than any run of the scenario commits; reaching it means the scenario never ends.
COMMITS_MAX = 300


@pytest.fixture
def victim():
    """Asks the zygote for a death: `victim(n, when, path)` is the child's exit code."""
    command = [sys.executable, "-m", "tests.crash.victim"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:

        def kill_at(n: int, when: str, path: Path) -> int:
            zygote.stdin.write(f"{n} {when} {path}\n")
            zygote.stdin.flush()
            return int(zygote.stdout.readline())

        yield kill_at
        zygote.stdin.close()


async def told(fm: FlowHarness, path: Path) -> tuple[Any, Any, Counter[Any]]:
    """(the end of every execution, the calls applied, the calls made), by place in the trees."""
    ends: dict[str, Any] = {}
    applied: Counter[Any] = Counter()
    places: dict[str, str] = {}

    async def walk(execution_id: str, place: str) -> None:
        run = await fm.get(execution_id)
        entries = await fm.history(execution_id)
        assert [e.seq for e in entries] == list(range(1, run.step_count + 1))
        shown = [
            (e.step_id, e.attempt, e.outcome, comparable(e.output), (e.error or {}).get("code"))
            for e in entries
        ]
        error = (run.error or {}).get("code")
        ends[place] = (run.status, comparable(run.context), error, run.current_step_id, shown)
        places[execution_id] = place
        for entry in entries:
            if entry.worker_id == "harness":
                applied[place, entry.seq, entry.step_id, entry.attempt] += 1
        for number, child in enumerate(await fm.children(execution_id)):
            await walk(child.id, f"{place}/{number}")

    for root in ROOTS:
        await walk(root, root)
    calls: Counter[Any] = Counter()
    for line in path.with_suffix(".tally").read_text().splitlines():
        task_id, step_id, attempt = line.split(" ")
        execution_id, seq, _ = task_id.split(".", 2)
        calls[places[execution_id], int(seq), step_id, int(attempt)] += 1
    return ends, applied, calls


async def to_the_end(path: Path, start_ms: int) -> Any:
    fm = harness(path, start_ms)
    try:
        async with fm:
            fm.store.before_commit = fm.engine.run_ready  # as the daemon does
            await drive(fm)
            rows = await fm.store.read(lambda c: ledger.read(c, 0, 100_000))
            assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
            check = await fm.store.read(
                lambda c: (
                    c.execute("PRAGMA integrity_check").fetchall(),
                    c.execute("PRAGMA foreign_key_check").fetchall(),
                    c.execute("SELECT count(*) FROM tasks").fetchone(),
                    c.execute("SELECT count(*) FROM waits").fetchone(),
                    c.execute("SELECT count(*) FROM tokens WHERE state = 'active'").fetchone(),
                )
            )
            assert check == ([("ok",)], [], (0,), (0,), (0,))
            return await told(fm, path)
    finally:
        fm.close_tally()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_death_at_any_commit_changes_nothing(memory_path, victim, when):
    start_ms = 1_700_000_000_000
    ends, applied, calls = await to_the_end(memory_path / "whole.db", start_ms)
    assert calls == applied
    assert {end[0] for end in ends.values()} == {"completed", "cancelled"}
    assert len(ends) == 8
    for n in range(1, COMMITS_MAX):
        path = memory_path / f"{n}.db"
        code = victim(n, when, path)
        again = await to_the_end(path, start_ms + 3600_000)
        assert again[:2] == (ends, applied), f"killed {when} commit {n}"
        twice = again[2] - applied
        assert again[2].keys() == applied.keys(), f"killed {when} commit {n}"
        assert sum(twice.values()) <= 1, f"killed {when} commit {n}"
        for left in memory_path.glob(f"{n}.*"):
            left.unlink()
        if code == 0:
            break
        assert code == -9
    assert 20 < n < COMMITS_MAX - 1
