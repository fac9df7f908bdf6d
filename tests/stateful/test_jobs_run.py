"""Stateful handlers in real containers: results, failures, limits, what is kept and said."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.slow


def test_a_stateful_step_runs_and_is_billed_by_the_second(doer):
    ended = doer.run("print hello", "progress 50", "nap 0.3", "save")
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["starts"] == 1
    assert "hello" in doer.logs(ended)
    (entry,) = doer.history(ended)
    assert entry["workerId"] == "container"
    assert entry["durationMs"] >= 300
    assert entry["usage"]["peakMemoryBytes"] > 1_000_000
    job = doer.job(ended)
    assert (job["status"], job["attempt"]) == ("completed", 1)
    assert entry["billing"]["tier"] == "light"
    # 0.00001 $ a second of what it was active.
    assert float(entry["billing"]["amount"]) == pytest.approx(
        entry["durationMs"] * 1e-8, rel=0.2, abs=2e-7
    )
    assert {"job.claimed", "job.checkpoint", "job.completed"} <= set(doer.types(ended))


def test_a_crash_goes_on_from_the_last_checkpoint(doer):
    ended = doer.run("save", "print once", "save", "die-once", "print after")
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["starts"] == 2
    assert doer.logs(ended).count("once") == 1
    assert doer.job(ended)["attempt"] == 2
    failed = [e for e in doer.events(ended) if e["type"] == "job.failed"]
    assert [(e["data"]["code"], e["data"]["retry"]) for e in failed] == [("HANDLER_CRASHED", True)]


def test_attempts_end_and_the_step_has_the_last_reason(doer):
    ended = doer.run("die 3")
    assert ended["status"] == "failed"
    assert ended["error"]["code"] == "HANDLER_CRASHED"
    assert doer.job(ended)["attempt"] == 3
    assert doer.job(ended)["status"] == "failed"


def test_memory_is_bounded_and_named(doer):
    ended = doer.run("hog")
    assert ended["error"]["code"] == "MEMORY_LIMIT"
    assert doer.job(ended)["attempt"] == 3


def test_an_exception_is_a_failure_and_no_attempt(doer):
    ended = doer.run("raise oh")
    assert (ended["error"]["code"], doer.job(ended)["attempt"]) == ("HANDLER_ERROR", 1)
    assert any("ValueError: oh" in line for line in doer.logs(ended))


def test_the_steps_own_retry_goes_on_from_the_checkpoint(doer):
    ended = doer.run("save", "fail-once", step={"retry": {"maxAttempts": 1}})
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["starts"] == 2
    assert [entry["outcome"] for entry in doer.history(ended)] == ["failure", "success"]


def test_the_time_to_live_ends_it(doer):
    ended = doer.run("nap 30", step={"timeoutMs": 700})
    assert ended["error"]["code"] == "TIMEOUT"
    assert any("time to live" in line for line in doer.logs(ended))
    assert doer.job(ended)["attempt"] == 1


def test_the_time_to_live_can_be_extended(doer):
    ended = doer.run("extend 20000", "nap 1.2", step={"timeoutMs": 700})
    assert ended["status"] == "completed", ended["error"]


def test_large_checkpoints_come_back_whole(doer):
    ended = doer.run("keep 3000000", "save", "die-once", "blob")
    assert ended["context"]["out"]["blob"] == 3_000_000
    files = [p for p in (doer.daemon.data_dir / "checkpoints").rglob("*") if p.is_file()]
    assert any(path.stat().st_size == 3_000_000 for path in files)


def test_a_checkpoint_over_its_limit_is_an_exception_in_the_handler(doer):
    ended = doer.run("keep 20000000")
    assert ended["error"]["code"] == "CHECKPOINT_TOO_LARGE"
    assert not list((doer.daemon.data_dir / "checkpoints" / "incoming").iterdir())


def test_a_cancelled_job_is_told_and_ended(doer):
    begun = doer.run("hang", wait=False)
    job = doer.until(begun, lambda job: job["status"] == "running")
    doer.client.must("POST", f"/v1/executions/{begun['id']}/cancel", {"reason": "enough"})
    assert doer.show(begun)["status"] == "cancelled"
    assert doer.job(begun)["status"] == "cancelled"
    doer.until(begun, lambda _: not doer.agents(job["instance"]))
    assert "job.cancelled" in doer.types(begun)


def test_progress_is_shown(doer):
    begun = doer.run("progress 150", "nap 1.5", wait=False)
    job = doer.until(begun, lambda job: job["progress"] is not None)
    assert (job["progress"]["percent"], job["progress"]["message"]) == (100, "at 150")
    assert doer.ended(begun)["status"] == "completed"


def test_warm_containers_are_taken_and_replaced(doer):
    doer.run("print one")
    before = doer.client.must("GET", "/v1/pools")["warm"][0]
    doer.until(doer.run("print x"), lambda _: _warm(doer)["size"] >= 1)
    ended = doer.run("print two")
    assert ended["status"] == "completed"
    assert _warm(doer)["hits"] > before["hits"]
    assert doer.client.must("GET", "/v1/pools")["starts"]["warm"]


def _warm(doer):
    return doer.client.must("GET", "/v1/pools")["warm"][0]
