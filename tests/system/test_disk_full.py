"""A full disk refuses changes clearly, changes nothing by halves, and is forgotten once freed.

The data directory is a small tmpfs of its own, really filled; needs root and mount(8).
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.daemon import Client, Daemon, DidNotStart, package
from tests.flows import doc, step

SIZE = 6 * 1024 * 1024
SLOW = package("slow/one", "import time\ndef handle(n, ctx):\n    time.sleep(0.5)\n    return n\n")
FLOWS = (
    doc(step("ask", "delay", config={"ms": 0}), id="plain"),
    doc(step("one", "slow/one", input={"type": "key", "key": "n"}, out="got"), id="slow"),
    doc(step("a", "delay", config={"ms": 400}, next="b"), step("b", "slow/one"), id="late"),
)
PADDING = "x" * 40_000

pytestmark = [pytest.mark.slow, pytest.mark.root]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose data directory has 6 MiB."""
    daemon = Daemon(tmp_path)
    daemon.data.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=0700", "none", str(daemon.data)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs root and mount(8): a full disk was NOT tested")
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.close()
        subprocess.run(["umount", str(daemon.data)], check=True)


class Disk:
    """Fills the rest of the data directory, and frees it again."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "filler"

    def fill(self) -> None:
        with self._file.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        self._file.unlink()


def submit(client: Client, flow: str, n: int) -> tuple[int, dict]:
    body = {"flow": flow, "context": {"n": n, "padding": PADDING}, "id": f"{flow}-{n}"}
    return client.ask("POST", "/v1/executions", body)


def fill_until_refused(client: Client, disk: Disk) -> tuple[list[str], dict]:
    """The ids accepted into the last free pages, and the first refusal."""
    disk.fill()
    accepted = []
    for n in range(1000):
        status, answer = submit(client, "plain", n)
        if status != 201:
            assert status == 507, answer
            return accepted, answer
        accepted.append(answer["id"])
    raise AssertionError("a full disk was never met")


def end_of(client: Client, execution_id: str) -> dict:
    return client.must("GET", f"/v1/executions/{execution_id}?waitMs=30000")


def prepare(client: Client) -> None:
    client.must("PUT", "/v1/handlers", SLOW)
    for flow in FLOWS:
        client.must("PUT", "/v1/flows", flow)


def test_full_disk_refuses_keeps_what_it_promised_and_recovers(daemon: Daemon) -> None:
    disk = Disk(daemon.data)
    with closing(daemon.client()) as client:
        prepare(client)
        running = [submit(client, "slow", n)[1]["id"] for n in range(3)]
        timed = [submit(client, "late", n)[1]["id"] for n in range(3)]
        accepted, refusal = fill_until_refused(client, disk)
        assert refusal["code"] == "DISK_FULL"
        assert "the disk is full; free some space and try again" in refusal["detail"]
        # The steps end and the timers are due while nothing can be written.
        until, refused = time.monotonic() + 1.5, 0
        while time.monotonic() < until:
            status, answer = submit(client, "plain", 2000)
            assert (status, answer["code"]) == (507, "DISK_FULL")
            refused += 1
        assert refused > 0
        changed = {**FLOWS[0], "version": "2.0.0", "name": PADDING}
        assert client.ask("PUT", "/v1/flows", changed)[0] == 507
        assert client.must("GET", "/v1/health")["status"] in ("ok", "degraded")
        assert client.ask("GET", "/v1/executions/plain-2000")[0] == 404
        assert client.ask("GET", "/v1/flows/plain/2.0.0")[0] == 404
        disk.free()
        for execution_id in [*running, *timed, *accepted]:
            shown = end_of(client, execution_id)
            assert shown["status"] == "completed", shown
        assert submit(client, "plain", 2000)[0] == 201
        listed = {one["id"] for one in client.pages("/v1/executions")}
        assert listed == {*running, *timed, *accepted, "plain-2000"}
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text()


def test_full_disk_across_kill_9_loses_nothing_acknowledged(daemon: Daemon) -> None:
    disk = Disk(daemon.data)
    with closing(daemon.client()) as client:
        prepare(client)
        running = [submit(client, "slow", n)[1]["id"] for n in range(3)]
        accepted, _ = fill_until_refused(client, disk)
    daemon.kill()
    disk.free()
    daemon.start()
    with closing(daemon.client()) as client:
        for execution_id in [*running, *accepted]:
            assert end_of(client, execution_id)["status"] == "completed"


def test_package_on_a_full_disk_is_refused_and_can_be_published_later(daemon: Daemon) -> None:
    disk = Disk(daemon.data)
    late = package("late/one", f"PADDING = {os.urandom(40_000).hex()!r}\ndef handle(i, c): pass\n")
    with closing(daemon.client()) as client:
        prepare(client)
        fill_until_refused(client, disk)
        status, answer = client.ask("PUT", "/v1/handlers", late)
        assert (status, answer["code"]) == (507, "DISK_FULL"), answer
        disk.free()
        assert client.ask("PUT", "/v1/handlers", late)[0] == 201
    assert "Traceback" not in daemon.log.read_text()


def test_flowctl_says_that_the_disk_is_full(daemon: Daemon) -> None:
    with closing(daemon.client()) as client:
        prepare(client)
        fill_until_refused(client, Disk(daemon.data))
    flowctl = [sys.executable, "-m", "flowctl", "--socket", str(daemon.socket), "run", "plain"]
    given = json.dumps({"padding": PADDING})
    done = subprocess.run([*flowctl, "--context", given], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, ""), done  # it answers, but cannot serve now
    assert "the disk is full; free some space and try again" in done.stderr


def test_daemon_that_cannot_write_at_its_start_says_so(daemon: Daemon) -> None:
    disk = Disk(daemon.data)
    assert daemon.stop() == 0
    disk.fill()
    with pytest.raises(DidNotStart, match="the disk is full; free some space") as refusal:
        daemon.start()
    assert refusal.value.code == 1
    assert len(refusal.value.stderr.splitlines()) == 1, refusal.value.stderr
    disk.free()
    daemon.start()
