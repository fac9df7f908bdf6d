"""What jobs survive: the daemon's end in every way, a stuck agent, a lost container, no Podman."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.stateful.conftest import Doer, package, skip_without_containers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("end", ["kill9", "stop"])
def test_a_restart_adopts_what_runs(own_doer, end):
    begun = own_doer.run("save", "nap 3", "print after", wait=False)
    own_doer.until(begun, lambda job: job["checkpoint"] is not None)
    getattr(own_doer, end)()
    assert own_doer.agents(), "its container runs on"
    own_doer.start()
    ended = own_doer.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["starts"] == 1
    assert own_doer.job(begun)["attempt"] == 1
    (entry,) = own_doer.history(ended)
    assert entry["billing"]["tier"] == "light"


@pytest.mark.parametrize("end", ["kill9", "stop"])
def test_a_restart_keeps_what_is_paused(own_doer, end):
    begun = own_doer.run("pause upload", wait=False)
    own_doer.until(begun, lambda job: job["status"] == "paused")
    getattr(own_doer, end)()
    own_doer.start()
    own_doer.client.must("POST", "/v1/events", {"name": "upload", "data": "late"})
    ended = own_doer.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["got"] == ["late"]
    assert ended["context"]["out"]["starts"] == 1


def test_what_was_cancelled_does_not_outlive_the_daemon(own_doer):
    begun = own_doer.run("save", "hang", wait=False)
    own_doer.until(begun, lambda job: job["checkpoint"] is not None)
    own_doer.client.must("POST", f"/v1/executions/{begun['id']}/cancel", {})
    own_doer.stop()
    assert own_doer.agents() == []
    assert not Path(f"/run/{own_doer.install()}").exists()


def test_a_machine_that_went_down_costs_an_attempt_and_no_step(own_doer):
    begun = own_doer.run("save", "print once", "save", "nap 2", wait=False)
    own_doer.until(begun, lambda _: "once" in own_doer.logs(begun))
    own_doer.kill9()
    for pid in own_doer.agents():
        os.kill(pid, signal.SIGKILL)
    own_doer.start()
    ended = own_doer.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert own_doer.logs(ended).count("once") == 1
    assert own_doer.job(begun)["attempt"] == 2


@pytest.fixture
def quick_doer(tmp_path_factory):
    """One whose handlers must speak every 100 ms and save every second."""
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(folder, "--set", "jobs.heartbeatMs=200", "--set", "jobs.maxAttempts=2")
    made.start()
    try:
        execution = {"checkpoint": {"required": True, "intervalMs": 1000}}
        made.publish(package(folder / "doer", execution=execution))
        yield made
    finally:
        made.clear()


def test_an_agent_that_is_not_heard_is_given_up(quick_doer):
    begun = quick_doer.run("save", "nap 5", wait=False)
    quick_doer.until(begun, lambda job: job["checkpoint"] is not None)
    pool = quick_doer.client.must("GET", "/v1/pools")["warm"][0]["size"]
    for pid in quick_doer.agents():
        os.kill(pid, signal.SIGSTOP)
    ended = quick_doer.ended(begun)
    assert pool <= 1
    failed = [e["data"] for e in quick_doer.events(begun) if e["type"] == "job.failed"]
    assert failed[0]["code"] == "HEARTBEAT_MISSED"
    assert ended["status"] == "failed"  # it naps without a checkpoint, too
    assert ended["error"]["code"] == "CHECKPOINT_MISSED"


def test_a_checkpoint_that_does_not_come_is_warned_of_and_then_missed(quick_doer):
    ended = quick_doer.run("save", "nap 20")
    assert ended["error"]["code"] == "CHECKPOINT_MISSED"
    assert any("no checkpoint for" in line for line in quick_doer.logs(ended))
    assert quick_doer.job(ended)["attempt"] == 2


def test_without_podman_stateful_handlers_are_refused_and_the_rest_works(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(folder, "--set", "containers.podman=/nonexistent/podman")
    made.start()
    try:
        done = made.daemon.flowctl("handler", "publish", str(package(folder / "doer")))
        assert done.returncode != 0
        assert "containers cannot be run on this host" in done.stderr
        assert "podman" in done.stderr
        stateless = folder / "plain"
        stateless.mkdir()
        (stateless / "handler.json").write_text(
            '{"handler": {"type": "plain", "version": "1.0.0"}}'
        )
        (stateless / "handler.py").write_text("def handle(input, ctx):\n    return 1\n")
        made.publish(stateless)
        assert made.run(type="plain")["context"]["out"] == 1
        checks = made.client.must("GET", "/v1/health")["checks"]
        assert checks["containers"]["status"] == "failed"
    finally:
        made.stop()
