"""`kill -9` at any instant loses nothing: the real daemon, killed at random under load.

Clients submit and follow while the daemon is killed and started again, dozens of times; now and
then only a process of its sandbox is. Then every execution, every history and the whole ledger are
held against the tally these clients kept, and against plain Python.
"""

import os
import random
import signal
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.daemon import Client, Daemon, Lost, descendants
from tests.crash.tally import (
    FLOWS,
    KINDS,
    PACKAGES,
    Tally,
    check_execution,
    check_ledger,
    given,
)

KILLS = 32
# Of the lives, so many end before the daemon is ready, and so many lose a sandbox process.
BEFORE_READY, IN_THE_SANDBOX = 0.15, 0.4
LIFE_S = 1.2
SUBMITTERS = 3


class Load:
    """Submits and follows through every death, and puts into the tally what was answered."""

    def __init__(self, daemon: Daemon, tally: Tally) -> None:
        self.daemon, self.tally = daemon, tally
        self.up = threading.Event()
        self.stopping = threading.Event()  # no more submits
        self.over = threading.Event()  # the daemon does not come back
        self._numbers = iter(range(10**9))

    def submit(self) -> None:
        with closing(self.daemon.client()) as client:
            while not self.stopping.is_set():
                if self.tally.open.acquire(timeout=0.1):
                    self._submit_one(client, next(self._numbers))

    def _submit_one(self, client: Client, n: int) -> None:
        key, flow = f"key-{n}", KINDS[n % len(KINDS)]
        body = {"flow": flow, "context": given(flow, n), "idempotencyKey": key}
        tries = 0
        if n % 7 == 0:  # as if the answer was lost: nobody reads it
            client.drop("POST", "/v1/executions", body)
            tries = 1
        while (answer := self._ask(client, "/v1/executions", body)) is None:
            if self.over.is_set():
                return
            tries += 1
        self.tally.repeats += tries > 0
        self.tally.accept(key, answer["id"], flow, n)

    def follow(self) -> None:
        """The stream, from where it broke off; wakes who waits for an event."""
        with closing(self.daemon.client()) as sender:
            while not self.over.is_set():
                self.up.wait()
                seen = self.tally.events[-1]["seq"] if self.tally.events else 0
                try:
                    self._follow_from(seen, sender)
                except Lost:
                    continue

    def _follow_from(self, seen: int, sender: Client) -> None:
        for event in self.daemon.client().lines(f"/v1/events?follow=true&after={seen}"):
            self.tally.heard(event)
            if event["type"] == "execution.waiting" and event["data"]["kind"] == "event":
                body = {"name": "go", "data": {"gone": True}}
                while self._ask(sender, "/v1/events", body) is None and not self.over.is_set():
                    pass

    def stop(self) -> None:
        self.stopping.set()
        self.over.set()
        self.up.set()

    def _ask(self, client: Client, path: str, body: dict) -> dict | None:
        """The answer; None when it was lost, once the daemon is back."""
        try:
            self.up.wait()
            status, answer = client.ask("POST", path, body)
        except Lost:
            return None
        assert status in (200, 201, 503), answer
        return None if status == 503 else answer


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="fm-crash-") as name:
        daemon = Daemon(Path(name), "--set", "log.level=warning")
        yield daemon
        daemon.close()


@pytest.mark.slow
def test_kill_9_at_any_instant_loses_nothing(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("FLOWMONKEY_TEST_SEED", random.randrange(2**32)))
    tally = Tally()
    load = Load(daemon, tally)
    with capsys.disabled():
        print(f"\nkill test: seed {seed} (FLOWMONKEY_TEST_SEED repeats it)")
    daemon.start()
    with closing(daemon.client()) as client:
        for one in PACKAGES:
            client.must("PUT", "/v1/handlers", one)
        for flow in FLOWS:
            client.must("PUT", "/v1/flows", flow)
    load.up.set()
    with ThreadPoolExecutor(SUBMITTERS + 1) as threads:
        running = [threads.submit(load.submit) for _ in range(SUBMITTERS)]
        following = threads.submit(load.follow)
        try:
            restarts_s, killed = kill_often(daemon, load, random.Random(seed))
            load.stopping.set()
            for one in running:
                one.result()
            wait_for_all(daemon, tally)
            executions, ledger, outcomes = read_all(daemon)
        finally:
            load.stop()
            code = daemon.stop()  # ends the stream
        following.result()
    assert code == 0
    roots = {one["id"] for one in executions if one["parentExecutionId"] is None}
    assert roots == {execution_id for execution_id, _, _ in tally.accepted.values()}
    check_ledger(tally, ledger, [one["id"] for one in executions])
    check_file(daemon.data / "flowmonkey.db")
    assert "Traceback" not in daemon.log.read_text(), daemon.log.read_text()[-4000:]
    types = Counter(event["type"] for event in ledger)
    again = types["step.started"] - types["step.completed"]
    hits = types["idempotency.hit"]
    with capsys.disabled():
        print(
            f"kill test: {KILLS} kills of the daemon, {killed} of sandbox processes; "
            f"{len(executions)} executions ({len(tally.accepted)} submitted, {tally.repeats} "
            f"submits repeated because their answer was lost, {hits} of them had been accepted) "
            f"all completed; {sum(outcomes.values())} steps applied once "
            f"({dict(outcomes)}), {again} attempts run again after a kill; "
            f"{len(ledger)} events without gap; up again after "
            f"{sum(restarts_s) / len(restarts_s):.2f} s (longest {max(restarts_s):.2f})"
        )


def kill_often(daemon: Daemon, load: Load, rng: random.Random) -> tuple[list[float], int]:
    """Kill and start KILLS times: the seconds each start took, and sandbox processes killed."""
    restarts_s, killed, kills = [], 0, 0
    while kills < KILLS:
        time.sleep(rng.uniform(0, LIFE_S))  # the instant is the test
        if rng.random() < IN_THE_SANDBOX:
            killed += kill_one(rng.choice(descendants(daemon.process.pid) or [0]))
            time.sleep(rng.uniform(0, LIFE_S / 4))
        load.up.clear()
        daemon.kill()
        kills += 1
        if rng.random() < BEFORE_READY and kills < KILLS:
            daemon.launch()
            time.sleep(rng.uniform(0, 0.5))
            daemon.kill()
            kills += 1
        restarts_s.append(daemon.start())
        load.up.set()
    return restarts_s, killed


def kill_one(pid: int) -> int:
    try:
        if pid:
            os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return 0
    return int(pid > 0)


def wait_for_all(daemon: Daemon, tally: Tally) -> None:
    until = time.monotonic() + 60
    with closing(daemon.client()) as client:
        for execution_id, _, _ in tally.accepted.values():
            shown = {"finishedAt": None}
            while shown["finishedAt"] is None:
                assert time.monotonic() < until, f"{execution_id} does not end: {shown}"
                shown = client.must("GET", f"/v1/executions/{execution_id}?waitMs=10000")


def read_all(daemon: Daemon) -> tuple[list[dict], list[dict], Counter[str]]:
    """Every execution and the ledger, each execution checked."""
    outcomes: Counter[str] = Counter()
    with closing(daemon.client()) as client:
        executions = client.pages("/v1/executions")
        for execution in executions:
            outcomes += check_execution(client, execution)
        return executions, client.pages("/v1/events"), outcomes


def check_file(path: Path) -> None:
    """The file is whole, and nothing is left in the queue."""
    conn = sqlite3.connect(path)
    try:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
        for table in ("tasks", "waits"):
            assert conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    finally:
        conn.close()
