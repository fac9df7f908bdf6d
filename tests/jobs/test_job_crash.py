"""A job whose daemon and machine die at the n-th commit, before it and after it, for every n.

After each death the same client starts again on the same file. The film must be what it is without
a death, each frame once; the history too; the bill that of the time that was seen, and whole.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flowmonkeyd.billing import job_nanos
from flowmonkeyd.jobmodel import JobState
from flowmonkeyd.store import billing, checkpoints, jobs, segments
from tests.jobs.job_victim import FRAMES, drive, harness

ROOT = Path(__file__).parents[2]
COMMITS_MAX = 200
START_MS = 1_700_000_000_000


@pytest.fixture
def victim():
    """Asks the zygote for a death: `victim(n, when, path)` is the child's exit code."""
    command = [sys.executable, "-m", "tests.jobs.job_victim"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:

        def kill_at(n: int, when: str, path: Path) -> int:
            zygote.stdin.write(f"{n} {when} {path}\n")
            zygote.stdin.flush()
            return int(zygote.stdout.readline())

        yield kill_at
        zygote.stdin.close()


@pytest.fixture
def directory():
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="flowmonkey-test-", dir=memory) as name:
        yield Path(name)


async def to_the_end(path: Path, start_ms: int):
    """What must be the same, and how many containers it took."""
    async with harness(path, start_ms) as fm:
        fm.store.before_commit = fm.engine.run_ready  # as the daemon does
        await drive(fm)
        run = await fm.get("one")
        history = [(e.step_id, e.attempt, e.outcome.value) for e in await fm.history("one")]
        events = [e["type"] for e in await fm.events("one")]
        job = await fm.store.read(check)
        told = {name: events.count(name) for name in ("job.paused", "job.completed")}
        return (run.status, run.context["film"], history, told), job


def check(conn):
    """One job, ended; nothing open, nothing left; a bill for the time and no more."""
    (row,) = jobs.list_page(conn, jobs.Page(10))
    job = row.job
    assert (job.state, job.instance, job.resume) == (JobState.COMPLETED, None, None)
    found = segments.of_job(conn, job.key)
    assert all(one.ended for one in found)
    by_boot = {}
    for one in found:
        assert by_boot.get(one.boot, 0) <= one.started_ns
        by_boot[one.boot] = one.last_ns
    assert billing.charged_to_job(conn, job.key) == (2, job_nanos(row.active_ns, 100_000))
    assert [one.name for one in checkpoints.of_job(conn, job.key)] == ["frames"]
    for table in ("tasks", "waits"):
        assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
    return job


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_death_at_any_commit_loses_no_frame_and_cuts_none_twice(directory, victim, when):
    whole, job = await to_the_end(directory / "whole.db", START_MS)
    assert [one["frame"] for one in whole[1]] == list(range(FRAMES))
    assert whole[1][3]["upload"] == {"id": 7}
    assert whole[2] == [("film", 0, "error"), ("film", 1, "success"), ("z", 0, "success")]
    assert (job.attempt, whole[3]) == (3, {"job.paused": 1, "job.completed": 1})
    more = 0
    for n in range(1, COMMITS_MAX):
        path = directory / f"{n}.db"
        code = victim(n, when, path)
        again, job = await to_the_end(path, START_MS + 3600_000)
        assert again == whole, f"killed {when} commit {n}"
        assert job.attempt in (3, 4), f"killed {when} commit {n}"
        more += job.attempt == 4
        for left in directory.glob(f"{n}.*"):
            left.unlink()
        if code == 0:
            break
        assert code == -9
    assert 20 < n < COMMITS_MAX - 1
    assert more > 10
