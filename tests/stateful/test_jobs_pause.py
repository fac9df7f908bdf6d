"""Pauses of jobs: what ends them; a frozen container and a new one give the same result."""

from __future__ import annotations

import pytest

from tests.stateful.conftest import Doer, package

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["frozen", "evicted"])
def doer(request, tmp_path_factory):
    """Two daemons for each test: one keeps paused containers, one never does."""
    from tests.stateful.conftest import skip_without_containers

    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    frozen_ms = 3_600_000 if request.param == "frozen" else 0
    made = Doer(folder, "--set", f"jobs.frozenMs={frozen_ms}")
    made.start()
    made.keeps = request.param == "frozen"
    try:
        made.publish(package(folder / "doer"))
        yield made
    finally:
        made.clear()


def paused(doer, *words, **more):
    begun = doer.run(*words, wait=False, **more)
    job = doer.until(begun, lambda job: job["status"] == "paused")
    if not doer.keeps:
        doer.until(begun, lambda job: job["instance"] is None)
    return begun, job


def starts(doer):
    """How often the handler begins in a run with one pause."""
    return 1 if doer.keeps else 2


def test_an_event_ends_the_pause_with_its_data(doer):
    begun, job = paused(doer, "print before", "pause upload", "print after")
    shown = doer.show(begun)
    assert (shown["status"], shown["waitReason"]) == ("waiting", "waiting")
    assert job["pause"]["event"] == "upload"
    assert "before" in doer.logs(begun)
    doer.client.must("POST", "/v1/events", {"name": "other", "data": {"frame": 0}})
    doer.client.must("POST", "/v1/events", {"name": "upload", "data": {"frame": 7}})
    ended = doer.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    out = ended["context"]["out"]
    assert (out["got"], out["starts"]) == ([{"frame": 7}], starts(doer))
    assert doer.logs(ended).count("after") == 1
    assert {"job.paused", "job.resumed"} <= set(doer.types(begun))


def test_a_hand_ends_the_pause(doer):
    begun, job = paused(doer, "pause upload")
    doer.client.must("POST", f"/v1/jobs/{job['id']}/resume", {"data": [1, 2]})
    assert doer.ended(begun)["context"]["out"]["got"] == [[1, 2]]


def test_the_time_ends_the_pause(doer):
    begun, _ = paused(doer, "pause upload", maxWaitMs=400)
    assert doer.ended(begun)["context"]["out"]["got"] == [None]


def test_a_cancel_ends_it_for_good(doer):
    begun, _ = paused(doer, "pause upload")
    doer.client.must("POST", f"/v1/executions/{begun['id']}/cancel", {})
    assert doer.job(begun)["status"] == "cancelled"
    answer = doer.client.must("POST", "/v1/events", {"name": "upload", "data": {}})
    assert answer["woken"] == 0


def test_two_pauses_each_have_their_own_data(doer):
    begun, _ = paused(doer, "pause upload", "save", "pause upload", "save")
    doer.client.must("POST", "/v1/events", {"name": "upload", "data": 1})
    doer.until(
        begun,
        lambda job: (
            job["status"] == "paused"
            and job["checkpoint"] is not None
            and doer.types(begun).count("job.paused") == 2
        ),
    )
    doer.client.must("POST", "/v1/events", {"name": "upload", "data": 2})
    assert doer.ended(begun)["context"]["out"]["got"] == [1, 2]


def test_paused_time_costs_nothing(doer):
    begun, _ = paused(doer, "nap 0.2", "pause upload", "nap 0.2", maxWaitMs=1500)
    ended = doer.ended(begun)
    (entry,) = doer.history(ended)
    job = doer.job(begun)
    assert job["pausedMs"] >= 1400
    assert 400 <= entry["durationMs"] < 1400
    billed_ms = float(entry["billing"]["amount"]) / 1e-8
    assert 400 <= billed_ms < 1400


def test_an_operator_pauses_a_job_where_it_is(doer):
    begun = doer.run("save", "nap 0.5", "print after", wait=False)
    job = doer.until(begun, lambda job: job["status"] == "running" and job["checkpoint"])
    doer.client.must("POST", f"/v1/jobs/{job['id']}/pause", {"reason": "lunch"})
    assert doer.show(begun)["status"] == "waiting"
    doer.until(begun, lambda job: job["status"] == "paused")
    assert "after" not in doer.logs(begun)
    if not doer.keeps:
        doer.until(begun, lambda job: job["instance"] is None)
    doer.client.must("POST", f"/v1/jobs/{job['id']}/resume", {})
    ended = doer.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert doer.logs(ended).count("after") == 1
    assert ended["context"]["out"]["starts"] == starts(doer)
