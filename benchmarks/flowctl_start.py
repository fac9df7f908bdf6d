"""How long `flowctl execution list` takes from exec to exit, beside `python3 -c pass`.

Both are started in turn from this process with the same interpreter, against a tiny server on a
Unix socket that answers a list of 20 executions at once. Prints the medians, their ratio, and the
goal; exits with 1 when the goal is missed.

    python benchmarks/flowctl_start.py [ROUNDS]
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

GOAL_MS = 100.0
ROUNDS = 40
ROW = {
    "id": "01k9axr3m5q7t9v1x3z5b7",
    "flowId": "order",
    "flowVersion": "1.0.0",
    "status": "completed",
    "currentStepId": "charge",
    "context": {"order": {"total": 42}},
    "stepCount": 5,
    "tenantId": "default",
    "createdAt": "2026-11-23T01:00:00.000Z",
}
BODY = json.dumps({"items": [ROW] * 20, "nextCursor": None}).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)


def serve(listener: socket.socket) -> None:
    while True:
        try:
            peer, _ = listener.accept()
        except OSError:
            return
        with peer:
            read = b""
            while b"\r\n\r\n" not in read:
                read += peer.recv(65_536)
            peer.sendall(ANSWER)


def took_ms(command: list[str], env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - start) * 1000


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS
    flowctl = os.path.join(os.path.dirname(sys.executable), "flowctl")
    commands = {
        "python3 -c pass": [sys.executable, "-c", "pass"],
        "flowctl execution list": [flowctl, "execution", "list"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = os.path.join(folder, "d.sock")
        listener.bind(path)
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        env = {**os.environ, "FLOWMONKEY_SOCKET": path}
        for number in range(rounds + 2):  # the first two warm the page cache and the .pyc files
            for name, command in commands.items():
                took = took_ms(command, env)
                if number >= 2:
                    times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, values in times.items():
        worst = sorted(values)[int(len(values) * 0.95)]
        print(f"{name:<24} p50 {medians[name]:6.1f} ms   p95 {worst:6.1f} ms   n {len(values)}")
    floor, ours = medians.values()
    print(f"ratio {ours / floor:.2f}   goal: p50 at most {GOAL_MS:g} ms")
    return 0 if ours <= GOAL_MS else 1


if __name__ == "__main__":
    sys.exit(main())
