"""Fifty kills with SIGKILL of everything that a job stands on, at moments that a seed chooses.

Jobs run, pause and begin all the time. Afterwards each has completed once, with every item done
once and in order; no checkpoint came from an attempt that had been replaced; what was billed lies
between what the handlers measured themselves and what an observer could have seen; and once a
daemon has started and ended again, nothing is left of any of it on the machine.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.stateful.conftest import Doer, package, skip_without_containers

pytestmark = pytest.mark.slow

FAULTS = 50
JOBS_AT_ONCE = 4
ITEMS = 12
# A daemon's life: as many kills of other things, each after a moment, before its own.
KILLS_A_LIFE, MOMENT_S, MOSTLY = (3, 6), 0.4, 0.8
HEARTBEAT_S = 0.5
END_S = 60.0

# Items, one after the other, each kept before the next begins. `activeS` is what the handler itself
# measures by CLOCK_BOOTTIME: all but its pauses, and but for waiting until a value is kept, as it
# waits there for a daemon that is down, which is not billed.
HANDLER = """
import os, time

def now():
    return time.clock_gettime(time.CLOCK_BOOTTIME)

def handle(input, ctx):
    state = ctx.checkpoint.load(default={"items": [], "activeS": 0, "got": []})
    items, since = state["items"], now()
    while len(items) < input["items"]:
        number = len(items)
        if number == input["pauseAt"] and not state["got"]:
            state["activeS"] += now() - since
            data = ctx.pause.wait("half way", event="go", checkpoint=state)
            state["got"].append(data)
            since = now()
        time.sleep(input["napS"])
        items.append([number, os.urandom(4).hex()])
        state["activeS"] += now() - since
        ctx.checkpoint.save(state)
        since = now()
        print("item", number, items[-1][1])
        ctx.progress(100 * len(items) / input["items"])
    return state
"""


@dataclass
class Tally:
    """What was done to whom, and when."""

    kinds: Counter[str] = field(default_factory=Counter)
    # By instance: the moment (time.time()) at which its agent or its first process was killed.
    killed: dict[str, float] = field(default_factory=dict)
    deaths: list[float] = field(default_factory=list)  # of daemons
    executions: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def doer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doer]:
    """One whose jobs may lose as many containers as it takes."""
    skip_without_containers()
    folder = tmp_path_factory.mktemp("fm")
    made = Doer(
        folder,
        *("--set", "jobs.maxAttempts=100", "--set", f"jobs.heartbeatMs={HEARTBEAT_S * 1000:.0f}"),
        *("--set", "jobs.maxBackoffMs=100", "--set", "containers.slots=16"),
    )
    made.start()
    try:
        handler = {"type": "acme/items"}
        made.publish(package(folder / "items", HANDLER, handler=handler))
        yield made
    finally:
        made.clear()
        made.sweep()  # what a test that failed has left


def test_fifty_kills_lose_nothing_and_leave_nothing(
    doer: Doer, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("FLOWMONKEY_TEST_SEED", random.randrange(2**32)))
    with capsys.disabled():
        print(f"\nfault test: seed {seed} (FLOWMONKEY_TEST_SEED repeats it)")
    rng, tally = random.Random(seed), Tally()
    began_s = time.monotonic()
    while tally.kinds.total() < FAULTS:
        live(doer, rng, tally)
    finish(doer, tally)
    checked = [check(doer, one, tally) for one in tally.executions]
    text = doer.daemon.log.read_text()
    assert "Traceback" not in text, text[-6000:]
    doer.crash()
    doer.start()  # and what it finds is put in order before it runs anything
    last = doer.run(type="acme/items", items=1, napS=0, pauseAt=-1)
    assert last["status"] == "completed", last["error"]
    doer.stop()
    assert left_of(doer) == []
    attempts, adoptions = sum(one[0] for one in checked), text.count("containers were adopted")
    share = sum(one[1] for one in checked) / sum(one[2] for one in checked)
    assert share >= 0.8
    with capsys.disabled():
        print(
            f"fault test: {tally.kinds.total()} kills in {time.monotonic() - began_s:.0f} s "
            f"({', '.join(f'{n} {kind}' for kind, n in sorted(tally.kinds.items()))}); "
            f"{len(checked)} jobs all completed once in {attempts} attempts, {adoptions} daemons "
            f"adopted containers; 0 steps lost, 0 applied twice, 0 stale checkpoints, 0 leftovers; "
            f"billed {share:.3f} of what the handlers measured"
        )


def live(doer: Doer, rng: random.Random, tally: Tally) -> None:
    """One life of a daemon."""
    for _ in range(rng.randint(*KILLS_A_LIFE)):
        top_up(doer, rng, tally)
        if rng.random() < MOSTLY:
            wait_for_work(doer)
        time.sleep(rng.uniform(0, MOMENT_S))  # the instant is the test
        kill(doer, ["podman", "conmon", "agent", "init"], rng, tally)
    doer.crash()
    tally.kinds["daemon"] += 1
    tally.deaths.append(time.time())
    if rng.random() < 0.5:  # something dies while nobody looks
        kill(doer, ["conmon", "agent", "init"], rng, tally)
    doer.start()


def top_up(doer: Doer, rng: random.Random, tally: Tally) -> None:
    """Some jobs have not ended, and those that have paused mostly go on."""
    living = [one for one in doer.client.pages("/v1/jobs?") if one["finishedAt"] is None]
    for _ in range(JOBS_AT_ONCE - len(living)):
        more = {
            "items": ITEMS,
            "napS": rng.choice([0.02, 0.1, 0.2]),
            "pauseAt": rng.choice([-1, 3, 6]),
        }
        tally.executions.append(doer.run(type="acme/items", wait=False, **more))
    if rng.random() < 0.7:
        doer.client.must("POST", "/v1/events", {"name": "go", "data": "on"})


def wait_for_work(doer: Doer) -> None:
    """Until containers are had and some job runs in one: a daemon that just starts has none."""
    until_s = time.monotonic() + END_S
    while (
        not doer.client.must("GET", "/v1/jobs?status=running")["items"]
        or not (doer.client.must("GET", "/v1/pools")["warm"])
    ):
        assert time.monotonic() < until_s, "no job runs"
        doer.client.must("POST", "/v1/events", {"name": "go", "data": "on"})
        time.sleep(0.02)


def kill(doer: Doer, kinds: list[str], rng: random.Random, tally: Tally) -> None:
    """SIGKILL to one of some kind that there is."""
    there = {kind: those for kind, those in processes(doer).items() if kind in kinds and those}
    if not there:
        return
    kind = rng.choice(sorted(there))
    pid, instance = rng.choice(sorted(there[kind].items()))
    with suppress(ProcessLookupError):
        at = time.time()
        os.kill(pid, signal.SIGKILL)
        tally.kinds[kind] += 1
        if kind in ("agent", "init"):
            tally.killed.setdefault(instance, at)


def processes(doer: Doer) -> dict[str, dict[int, str]]:
    """By kind, the pids of this daemon's with the instance that each is of."""
    found: dict[str, dict[int, str]] = {"podman": {}, "conmon": {}, "agent": {}, "init": {}}
    install = doer.install()
    inside = re.compile(rf"/{install}/c/([0-9a-f]{{32}}) ")
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with suppress(OSError):
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            pid, text = int(folder.name), " ".join(command)
            if f"unix:///run/{install}/podman.sock" in command and "service" in command:
                found["podman"][pid] = ""
            elif command[0].endswith("conmon") and install.partition("-")[2] in text:
                found["conmon"][pid] = command[command.index("-n") + 1].rpartition("-")[2]
            elif "/usr/lib/flowmonkey/agent" in text or "podman-init" in text:
                if here := inside.search((folder / "mountinfo").read_text()):
                    kind = "init" if "podman-init" in command[0] else "agent"
                    found[kind][pid] = here[1]
    return found


def finish(doer: Doer, tally: Tally) -> None:
    """Wait until all have ended."""
    until_s = time.monotonic() + END_S
    while True:
        living = [one for one in doer.client.pages("/v1/jobs?") if one["finishedAt"] is None]
        ended = [doer.show(one) for one in tally.executions]
        if not living and all(one["finishedAt"] is not None for one in ended):
            return
        assert time.monotonic() < until_s, f"these do not end: {living}"
        doer.client.must("POST", "/v1/events", {"name": "go", "data": "on"})
        time.sleep(0.2)


def check(doer: Doer, begun: dict[str, Any], tally: Tally) -> tuple[int, float, float]:
    """One execution: (attempts, seconds billed, seconds that its handler has measured)."""
    ended, job, events = doer.show(begun), doer.job(begun), doer.events(begun)
    shown = "\n".join(f"{one['at']} {one['type']} {one['data']}" for one in events)
    assert ended["status"] == "completed", f"{ended['error']}\n{shown}"
    assert job is not None
    out = ended["context"]["out"]
    assert [number for number, _ in out["items"]] == list(range(ITEMS)), out
    assert len({nonce for _, nonce in out["items"]}) == ITEMS
    assert out["got"] == ["on"] * (ended["context"]["pauseAt"] >= 0)
    (entry,) = doer.history(begun)
    assert entry["outcome"] == "success"
    types = Counter(one["type"] for one in events)
    assert (types["job.completed"], types["step.completed"]) == (1, 1)
    assert types["job.claimed"] == job["attempt"]
    present = 0
    for one in events:
        if one["type"] == "job.claimed":
            present = one["data"]["attempt"]
        elif one["type"] == "job.checkpoint":
            assert one["data"]["attempt"] == present, shown
    billed_s = float(entry["billing"]["amount"]) / 1e-5
    measured_s, seen_s = out["activeS"], seen(events, tally)
    # A daemon that dies takes with it what it had not told the disk: a heartbeat's time.
    at_most_lost_s = HEARTBEAT_S * 1.5 * sum(at < ended_at(events) for at in tally.deaths)
    assert measured_s - at_most_lost_s <= billed_s <= seen_s, (
        f"{billed_s} {measured_s} {seen_s}\n{shown}"
    )
    return job["attempt"], billed_s, measured_s


def ended_at(events: list[dict[str, Any]]) -> float:
    (ended,) = (one["at"] for one in events if one["type"] == "job.completed")
    return datetime.fromisoformat(ended).timestamp()


def seen(events: list[dict[str, Any]], tally: Tally) -> float:
    """The seconds in which some instance can have been active at all: from its claim until it was
    killed, or was known to have ended, without its pauses."""
    total, since, until = 0.0, None, float("inf")
    for one in events:
        at = datetime.fromisoformat(one["at"]).timestamp()
        kind = one["type"]
        if kind in ("job.claimed", "job.paused", "job.failed", "job.completed"):
            if since is not None:
                total += max(0.0, min(at, until) - since) + 0.001
            since = None
        if kind == "job.claimed":
            until = tally.killed.get(one["data"]["instance"], float("inf"))
        if kind in ("job.claimed", "job.resumed"):
            since = at
    return total


def left_of(doer: Doer) -> list[str]:
    """All that is still on the machine of this daemon's containers, wherever it would be."""
    install, root = doer.install(), str(doer.daemon.data_dir / "containers")
    marks = (install, root, install.partition("-")[2])
    left = []
    for kind, those in processes(doer).items():
        left += [f"{kind} {pid}" for pid in those]
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if any(mark in line for mark in marks):
            left.append(f"mount {line}")
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        left += [f"cgroup {folder}/{name}" for name in names if marks[2] in name]
    for runtime in ("/run/runc", "/run/crun"):
        for state in Path(runtime).glob("*/state.json"):
            if root in state.read_text():
                left.append(f"runtime {state}")
    run = Path("/run", install)
    for below in ("c", "state/overlay-containers", "tmp/exits", "tmp/socket"):
        if (run / below).is_dir():
            left += [f"/run {one}" for one in (run / below).iterdir()]
    kept = Path(root, "storage", "overlay-containers")
    left += [f"folder {one}" for one in kept.iterdir() if one.is_dir()]
    incoming = doer.daemon.data_dir / "checkpoints" / "incoming"
    return left + [f"file {one}" for one in incoming.iterdir()]
