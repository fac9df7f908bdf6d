"""Too little memory, a Podman that hangs, a full disk, and hands that come at the wrong moment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.daemon import Lost
from tests.stateful.conftest import PATIENCE_S, PYTHON, Doer, package, skip_without_containers
from tests.system.test_disk_full import Disk

pytestmark = pytest.mark.slow

# Saves all the time, until its end or for the first time after it was refused.
SAVER = """
import time

def handle(input, ctx):
    state = ctx.checkpoint.load(default={"starts": 0, "done": 0, "refused": []})
    state["starts"] += 1
    if "bytes" in input:
        ctx.checkpoint.save(0)
        while True:
            try:
                ctx.checkpoint.save(bytes(input["bytes"]), name=f"blob {state['done'] % 50}")
                state["done"] += 1
                if state["refused"]:
                    return state
            except Exception as exc:
                state["refused"].append(exc.code)
                time.sleep(0.05)
            time.sleep(0.01)
    while state["done"] < input["saves"]:
        state["done"] += 1
        ctx.checkpoint.save(state)
    return state
"""


def until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < until_s, "it never came to that"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    """One with memory for a single light container, which is patient with jobs at its end."""
    yield from _tight(tmp_path_factory)


@pytest.fixture
def own_tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    """The same, for one test that ends it."""
    yield from _tight(tmp_path_factory)


def _tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(
        folder,
        *("--set", f"containers.memoryBytes={2**29}", "--set", "containers.slots=4"),
        *("--set", "shutdown.graceMs=80000", "--set", "containers.callMs=2000"),
    )
    made.start()
    try:
        made.publish(package(folder / "doer"))
        made.publish(package(folder / "saver", SAVER, handler={"type": "acme/saver"}))
        heavy = {"handler": {"type": "acme/heavy"}, "execution": {"resources": "heavy"}}
        made.publish(package(folder / "heavy", PYTHON, **heavy))
        yield made
    finally:
        made.clear()
        made.sweep()  # a Podman that was killed may have left something behind


def test_who_does_not_fit_waits_and_frozen_ones_make_room(tight: Doer) -> None:
    paused = tight.run("pause sun", "print on", wait=False)
    tight.until(paused, lambda job: job["status"] == "paused")
    begun = [
        tight.run("nap 0.2", wait=False),
        tight.run("nap 0.1", wait=False, type="acme/heavy"),  # more than there is, so alone
        tight.run("nap 0.1", wait=False),
    ]
    for one in begun:
        assert tight.ended(one)["status"] == "completed"
    tight.client.must("POST", "/v1/events", {"name": "sun", "data": 1})
    ended = tight.ended(paused)
    assert (ended["context"]["out"]["got"], ended["context"]["out"]["starts"]) == ([1], 2)


def test_jobs_that_pause_and_go_on_in_no_memory_at_all_end_all_the_same(tight: Doer) -> None:
    begun = [tight.run("pause rain", "nap 0.05", "pause rain", wait=False) for _ in range(6)]
    until_s = time.monotonic() + 2 * PATIENCE_S
    while any(tight.show(one)["finishedAt"] is None for one in begun):
        assert time.monotonic() < until_s, [tight.job(one) for one in begun]
        tight.client.must("POST", "/v1/events", {"name": "rain", "data": "it"})
        time.sleep(0.05)
    for one in begun:
        ended = tight.show(one)
        assert ended["status"] == "completed", ended["error"]
        assert ended["context"]["out"]["got"] == ["it", "it"]


def test_a_daemon_ends_while_jobs_wait_for_memory(own_tight: Doer) -> None:
    runs = own_tight.run("save", "nap 3", wait=False)
    own_tight.until(runs, lambda job: job["checkpoint"] is not None)
    waits = own_tight.run("print mine", wait=False)
    own_tight.until(waits, lambda job: job["status"] == "queued")
    own_tight.stop()  # at once, although steps may take 80 seconds
    own_tight.start()
    ended = own_tight.ended(runs)
    assert (ended["status"], ended["context"]["out"]["starts"]) == ("completed", 1)
    assert own_tight.ended(waits)["status"] == "completed"


def test_a_podman_that_hangs_is_replaced_and_jobs_go_on(tight: Doer) -> None:
    socket = f"unix:///run/{tight.install()}/podman.sock".encode()
    stopped = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                if socket in (folder / "cmdline").read_bytes().split(b"\0"):
                    os.kill(stopped := int(folder.name), signal.SIGSTOP)
    assert stopped
    # The first takes what is warm, the others need Podman.
    begun = [tight.run("nap 0.1", wait=False) for _ in range(3)]
    for one in begun:
        ended = tight.ended(one)
        assert ended["status"] == "completed", ended["error"]
    until(lambda: not Path(f"/proc/{stopped}").exists())


def test_a_hand_that_pauses_while_it_saves_loses_nothing(tight: Doer) -> None:
    begun = tight.run(type="acme/saver", saves=400, wait=False)
    tight.until(begun, lambda job: job["checkpoint"] is not None)
    job: dict[str, Any] = tight.job(begun) or {}
    pauses = 0
    while tight.show(begun)["finishedAt"] is None and pauses < 20:
        time.sleep(0.02 * (pauses % 3))
        status, _ = tight.client.ask("POST", f"/v1/jobs/{job['id']}/pause", {})
        if status < 300:
            pauses += 1
            tight.client.must("POST", f"/v1/jobs/{job['id']}/resume", {})
    ended = tight.ended(begun)
    assert pauses
    assert ended["status"] == "completed", ended["error"]
    assert (ended["context"]["out"]["done"], ended["context"]["out"]["starts"]) == (400, 1)
    assert "Traceback" not in tight.daemon.log.read_text()


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    """One whose data directory has 48 MiB, images being elsewhere."""
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(folder, "--set", "jobs.heartbeatMs=200", "--set", "jobs.frozenMs=100")
    made.daemon.data_dir.mkdir()
    place = str(made.daemon.data_dir)
    command = ["mount", "-t", "tmpfs", "-o", f"size={48 * 2**20},mode=0700", "none", place]
    subprocess.run(command, check=True)
    try:
        made.start()
        made.publish(package(folder / "saver", SAVER, handler={"type": "acme/saver"}))
        made.publish(package(folder / "doer"))
        yield made
        made.clear()
        made.sweep()
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_on_a_full_disk_a_checkpoint_is_refused_and_nothing_is_lost(small: Doer) -> None:
    paused = small.run("pause sun", wait=False)
    small.until(paused, lambda job: job["status"] == "paused")
    sizes = (300_000, 3_000)  # a file, and a row
    begun = [small.run(type="acme/saver", bytes=size, wait=False) for size in sizes]
    for one in begun:
        small.until(one, lambda job: job["checkpoint"] is not None)
    disk = Disk(small.daemon.data_dir)
    for _ in range(20):  # what was freed meanwhile is filled too
        disk.fill()
        time.sleep(0.1)
    until(lambda: "cannot be kept" in small.daemon.log.read_text())
    with suppress(Lost):
        assert small.client.ask("POST", "/v1/executions", {"flow": "f1"})[0] >= 400
    disk.free()
    for one in begun:
        ended = small.ended(one)
        assert ended["status"] == "completed", ended["error"]
        assert set(ended["context"]["out"]["refused"]) == {"DISK_FULL"}
        assert ended["context"]["out"]["starts"] == 1
    small.client.must("POST", "/v1/events", {"name": "sun", "data": 1})
    assert small.ended(paused)["status"] == "completed"
    assert "Traceback" not in small.daemon.log.read_text()
