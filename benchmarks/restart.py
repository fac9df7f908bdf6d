"""`kill -9` with 1 000 executions in flight against the same work left alone, in one run.

Each execution has two sandboxed steps and a built-in one between them. The daemon is killed when a
part of them has completed; the time is taken from the submit to the last end, with the start in it.

    python benchmarks/restart.py [--executions 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

from engine import Daemon, finished

from flowmonkeyd.documents.archive import pack_files

KILL_AT = 0.3  # of the executions have completed
MANIFEST = {"handler": {"type": "bench/one", "version": "1.0.0", "entrypoint": "handler.py:handle"}}
CODE = b"def handle(input, ctx):\n    return 1\n"
V = {"type": "key", "key": "v"}
YES = {"conditions": [{"path": "v", "op": "gte", "value": 0, "target": "b"}]}
FLOW = {
    "id": "restart",
    "version": "1.0.0",
    "initialStepId": "a",
    "steps": {
        "a": {
            "id": "a",
            "type": "bench/one",
            "input": V,
            "outputKey": "a",
            "transitions": {"onSuccess": "c"},
        },
        "c": {"id": "c", "type": "conditional", "config": YES},
        "b": {"id": "b", "type": "bench/one", "input": V, "outputKey": "b"},
    },
}


def prepare(daemon: Daemon) -> None:
    package = pack_files({"handler.json": json.dumps(MANIFEST).encode(), "handler.py": CODE})
    with closing(daemon.connect()) as connection:
        connection.request("PUT", "/v1/handlers", package, {"content-type": "application/zip"})
        response = connection.getresponse()
        answer = response.read()
        assert response.status == 201, answer
        connection.call("PUT", "/v1/flows", FLOW)


def run(daemon: Daemon, count: int, done: int, kill: bool) -> tuple[float, float, int]:
    """(seconds from submit to the last end, seconds of the start, how many were in flight)."""
    database, up_s, left = daemon.directory / "data/flowmonkey.db", 0.0, 0
    began = time.perf_counter()
    with closing(daemon.connect()) as connection:
        batch = [{"flow": "restart", "context": {"v": 1}}] * count
        connection.call("POST", "/v1/executions:batch?view=ids", batch)
    if kill:
        finished(daemon, done + int(count * KILL_AT), database)
        daemon.kill9()
        daemon.start()
        up_s, left = daemon.ready_s, count - int(count * KILL_AT)
    finished(daemon, done + count, database)
    return time.perf_counter() - began, up_s, left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    # So that as many are in flight at the kill as the goal says.
    count = int(args.executions / (1 - KILL_AT))
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as name, Daemon(Path(name)) as daemon:
        prepare(daemon)
        run(daemon, 100, 0, kill=False)
        done, plain, killed, ups = 100, [], [], []
        for _ in range(args.rounds):
            plain.append(run(daemon, count, done, kill=False)[0])
            seconds, up_s, left = run(daemon, count, done + count, kill=True)
            killed.append(seconds)
            ups.append(up_s)
            done += 2 * count
        ratio = statistics.median(b / a for a, b in zip(plain, killed, strict=True))
        print(f"{count} executions, left alone     {statistics.median(plain):7.2f} s")
        print(f"killed with {left} in flight     {statistics.median(killed):7.2f} s", end="")
        print(f"   {ratio:.2f} x   (goal <= 1.20)")
        print(f"up again after                  {statistics.median(ups):7.3f} s", end="")
        print(f"   longest {max(ups):.3f}   (goal <= 0.6)")


if __name__ == "__main__":
    main()
