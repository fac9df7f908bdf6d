"""What the daemon does when it is told to: SIGTERM, SIGTERM again, SIGHUP; when a client dies.

The daemon's words to systemd (sd_notify(3), a real socket) say when each thing has happened, so
nothing here sleeps.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from subprocess import PIPE

import pytest

from tests.crash.daemon import Client, Daemon, package
from tests.flows import doc, step

pytestmark = pytest.mark.slow

SLEEP = """
import time
def handle(seconds, ctx):
    time.sleep(seconds)
    return ctx.task_id
"""
_SECONDS = {"type": "key", "key": "seconds"}
FLOW = doc(
    step("one", "sleep/one", input=_SECONDS, out="one", next="two"),
    step("two", "sleep/one", input={"type": "static", "value": 0}, out="two"),
    id="sleepy",
)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    made: list[Daemon] = []

    def make(*flags: str) -> Daemon:
        made.append(Daemon(tmp_path, *flags))
        made[-1].start()
        with closing(made[-1].client()) as client:
            client.must("PUT", "/v1/handlers", package("sleep/one", SLEEP))
            client.must("PUT", "/v1/flows", FLOW)
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


def begun(client: Client, daemon: Daemon, seconds: float) -> str:
    """An execution whose first step runs."""
    body = {"flow": "sleepy", "context": {"seconds": seconds}}
    execution_id = client.must("POST", "/v1/executions", body)["id"]
    with closing(daemon.client()) as other:
        for event in other.lines(f"/v1/executions/{execution_id}/events?follow=true"):
            if event["type"] == "step.started":
                return execution_id
    raise AssertionError("it did not start")


def told(daemon: Daemon, word: str) -> str:
    while word not in (text := daemon.told(20)):
        assert text, f"the daemon ended and did not say {word}"
    return text


def check_ended_well(daemon: Daemon, execution_id: str, starts: int) -> None:
    """It completed, its first step began so often, and each step was applied once."""
    with closing(daemon.client()) as client:
        shown = client.must("GET", f"/v1/executions/{execution_id}?waitMs=30000")
        assert shown["status"] == "completed", shown
        assert shown["context"]["one"] == f"{execution_id}.1.one"
        assert shown["context"]["two"] == f"{execution_id}.2.two"
        history = client.pages(f"/v1/executions/{execution_id}/history")
        assert [(one["stepId"], one["outcome"]) for one in history] == [
            ("one", "success"),
            ("two", "success"),
        ]
        events = client.pages(f"/v1/executions/{execution_id}/events")
        begun = [one for one in events if (one["type"], one["stepId"]) == ("step.started", "one")]
        assert len(begun) == starts


def test_sigterm_lets_a_running_step_end_and_takes_no_more_work(make) -> None:
    daemon = make("--set", "shutdown.graceMs=20000")
    with closing(daemon.client()) as client:
        execution_id = begun(client, daemon, 0.5)
        daemon.process.send_signal(signal.SIGTERM)
        assert told(daemon, "STOPPING=1")
    assert daemon.ended() == 0
    assert not daemon.socket.exists()
    daemon.start()
    check_ended_well(daemon, execution_id, starts=1)


def test_step_beyond_the_grace_goes_back_to_the_queue_and_runs_again(make) -> None:
    daemon = make("--set", "shutdown.graceMs=50")
    with closing(daemon.client()) as client:
        execution_id = begun(client, daemon, 2.5)
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 2.4
    daemon.start()
    with closing(daemon.client()) as client:
        rows = client.must("GET", "/v1/queue")["items"]
        assert sum(row["queued"] + row["leased"] for row in rows) == 1
    check_ended_well(daemon, execution_id, starts=2)


def test_second_sigterm_ends_at_once_and_loses_nothing(make) -> None:
    daemon = make("--set", "shutdown.graceMs=60000")
    with closing(daemon.client()) as client:
        execution_id = begun(client, daemon, 3)
        daemon.process.send_signal(signal.SIGTERM)
        told(daemon, "STOPPING=1")
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        daemon.ended()
        assert time.monotonic() - began < 2.5
    assert "Traceback" not in daemon.log.read_text()
    daemon.start()
    check_ended_well(daemon, execution_id, starts=2)


def test_health_is_503_and_submits_are_refused_while_draining(make) -> None:
    daemon = make("--set", "shutdown.graceMs=20000")
    with closing(daemon.client()) as client, closing(daemon.client()) as other:
        execution_id = begun(client, daemon, 1)
        other.must("GET", "/v1/health")
        daemon.process.send_signal(signal.SIGTERM)
        told(daemon, "STOPPING=1")
        status, health = other.ask("GET", "/v1/health")
        assert (status, health["status"]) == (503, "draining")
        body = {"flow": "sleepy", "context": {"seconds": 0}}
        status, late = other.ask("POST", "/v1/executions", body)
        assert (status, late["code"]) == (503, "UNAVAILABLE")
    assert daemon.ended() == 0
    daemon.start()
    check_ended_well(daemon, execution_id, starts=1)


def test_sighup_takes_the_log_level_over_and_survives_a_bad_file(make, tmp_path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[log]\nlevel = "error"\n')
    daemon = make("--config", str(file))
    assert daemon.log.read_text() == ""
    file.write_text('[log]\nlevel = "info"\n')
    daemon.process.send_signal(signal.SIGHUP)
    assert "MONOTONIC_USEC=" in told(daemon, "RELOADING=1")
    told(daemon, "READY=1")
    assert [json.loads(x)["message"] for x in daemon.log.read_text().splitlines()] == ["reloaded"]
    file.write_text('[log]\nlevel = "shout"\n')
    daemon.process.send_signal(signal.SIGHUP)
    told(daemon, "READY=1")
    last = json.loads(daemon.log.read_text().splitlines()[-1])
    assert last["level"] == "error"
    assert "cannot reload" in last["message"]
    with closing(daemon.client()) as client:
        client.must("GET", "/v1/health")


CLIENT = """
import signal, socket, sys
held = []
for line in sys.stdin:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.connect(sys.argv[1])
    one.sendall(eval(line))
    held.append(one)
for one in held[: int(sys.argv[2])]:
    one.recv(1)  # the stream has begun
print("on", flush=True)
signal.pause()
"""
GET = b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n"


def test_killed_client_leaves_no_connection_behind(make) -> None:
    daemon = make()
    with closing(daemon.client()) as client:
        execution_id = begun(client, daemon, 20)
        turns_until(client, lambda: connections(daemon) == 1)
        streams = [GET % b"/v1/events?follow=true&after=0"] * 20
        waits = [GET % f"/v1/executions/{execution_id}?waitMs=60000".encode()] * 5
        half = [b"POST /v1/executions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{"] * 5
        asked = "".join(f"{one!r}\n" for one in [*streams, *waits, *half])
        command = [sys.executable, "-c", CLIENT, str(daemon.socket), str(len(streams))]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as process:
            try:
                process.stdin.write(asked)
                process.stdin.close()
                assert process.stdout.readline() == "on\n"
                turns_until(client, lambda: connections(daemon) == 31)
            finally:
                process.kill()
        turns_until(client, lambda: connections(daemon) == 1)
        client.must("POST", f"/v1/executions/{execution_id}/cancel", {})
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()


def connections(daemon: Daemon) -> int:
    """Connected sockets at the daemon's end, as the kernel lists them (proc(5), net/unix)."""
    rows = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return sum(row[-1] == str(daemon.socket) and row[5] == "03" for row in rows)


def turns_until(client: Client, is_so: Callable[[], bool]) -> None:
    """Each answer is a turn of the daemon's loop, in which it hears of what came and went."""
    until = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < until
        client.must("GET", "/v1/health")
