"""What 100 000 finished executions cost those that come after them; what an idle daemon costs.

Two real daemons, one with few and one with many finished executions, all of them really run (in
batches of 5 built-in steps), are then measured in turns, so that the machine's drift is the same
for both. Then the file, the start after `kill -9`, and the idle daemon of the large one.

    python benchmarks/growth.py [--finished 100000] [--base 1000] [--rounds 9]
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from engine import FLOW, STEPS, Daemon

BATCH = 2000  # executions in one request while filling
BURST, SINGLES = 400, 150  # executions in one measured round
IDLE_S = 10


def submit(daemon: Daemon, count: int) -> None:
    """Run `count` executions to their end."""
    with closing(daemon.connect()) as connection:
        batch = [{"flow": "five", "context": {"v": 1}}] * count
        made = connection.call("POST", "/v1/executions:batch?view=ids", batch)["items"]
        for one in made:
            if one["status"] != "completed":
                path = f"/v1/executions/{one['id']}?waitMs=60000"
                assert connection.call("GET", path)["status"] == "completed"


def measure(daemon: Daemon) -> tuple[float, float, float]:
    """(CPU ms a step in a burst, CPU ms a step one by one, p50 ms of one execution)."""
    before = daemon.cpu_s()
    submit(daemon, BURST)
    burst = (daemon.cpu_s() - before) * 1000 / (BURST * STEPS)
    times, before = [], daemon.cpu_s()
    with closing(daemon.connect()) as connection:
        for _ in range(SINGLES):
            began = time.perf_counter()
            body = {"flow": "five", "context": {"v": 1}}
            answer = connection.call("POST", "/v1/executions?waitMs=10000", body)
            times.append((time.perf_counter() - began) * 1000)
            assert answer["status"] == "completed", answer
    single = (daemon.cpu_s() - before) * 1000 / (SINGLES * STEPS)
    return burst, single, statistics.median(times)


def compare(small: Daemon, large: Daemon, rounds: int) -> None:
    names = ("CPU a step, burst", "CPU a step, one by one", "p50 of one execution")
    found: list[list[tuple[float, float, float]]] = [[], []]
    for number in range(rounds + 1):
        for which, daemon in enumerate((small, large)):
            figures = measure(daemon)
            if number:  # the first round warms both up
                found[which].append(figures)
    for index, name in enumerate(names):
        base, grown = (statistics.median(f[index] for f in side) for side in found)
        ratio = statistics.median(
            b[index] / a[index] for a, b in zip(found[0], found[1], strict=True)
        )
        print(f"{name:28} {base:8.3f} -> {grown:8.3f} ms   {ratio:.2f} x   (goal <= 1.10)")


def file_bytes(database: Path, finished: int) -> None:
    """Of a database at rest: bytes an execution, and without what users put in it."""
    with closing(sqlite3.connect(database)) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, size = (
            conn.execute(f"PRAGMA {n}").fetchone()[0] for n in ("page_count", "page_size")
        )
        count = conn.execute("SELECT count(*) FROM executions").fetchone()[0]
        assert count >= finished
        own = conn.execute("SELECT sum(length(context)) FROM executions").fetchone()[0]
        own += conn.execute("SELECT sum(length(output)) FROM history").fetchone()[0] or 0
    net = (pages * size - own) / count
    print(f"file, one finished execution {pages * size / count:8.0f} bytes", end="")
    print(f"   {net:.0f} beyond its own data   (goal <= 2000)")


def at_rest(daemon: Daemon, finished: int) -> None:
    starts = []
    for _ in range(3):
        daemon.kill9()
        daemon.start()
        starts.append(daemon.ready_s)
    print(f"start with {finished} finished  {statistics.median(starts):8.3f} s", end="")
    print("   after kill -9   (goal <= 0.6)")
    text = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    alone = int(text.partition("Pss:")[2].split()[0]) / 1024
    print(f"idle memory, daemon alone    {alone:8.1f} MiB PSS   (goal <= 60)")
    print(f"  with its sandbox children  {daemon.pss_mib():8.1f} MiB PSS")
    before = daemon.cpu_s()
    time.sleep(IDLE_S)
    print(f"idle CPU over {IDLE_S} s           ", end="")
    print(f"{(daemon.cpu_s() - before) / IDLE_S:8.2%} of a core   (goal <= 0.5 %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--base", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as name:
        places = [Path(name) / one for one in ("small", "large")]
        for place in places:
            place.mkdir()
        with Daemon(places[0]) as small, Daemon(places[1]) as large:
            for daemon, count in ((small, args.base), (large, args.finished)):
                daemon.connect().call("PUT", "/v1/flows", FLOW)
                began = time.perf_counter()
                while count > 0:
                    submit(daemon, min(BATCH, count))
                    count -= BATCH
                filled_s = time.perf_counter() - began
            print(f"filling: {args.finished * STEPS / filled_s:.0f} steps/s over {filled_s:.0f} s")
            print(f"after {args.base} -> after {args.finished} finished executions:")
            compare(small, large, args.rounds)
            at_rest(large, args.finished)
            large.kill9()
            file_bytes(places[1] / "data/flowmonkey.db", args.finished)
            large.start()


if __name__ == "__main__":
    main()
