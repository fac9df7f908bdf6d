"""The engine's hot path against bare SQLite, in one run on one file system.

Floor: one commit a step (WAL, synchronous=FULL), the least that is durable. Ours: a real daemon,
`--executions` of 5 trivial built-in steps submitted over its socket, through queue and store, until
the last one has finished. Prints ratios; the absolute figures drift with the machine.

    python benchmarks/engine.py [--executions 1000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import selectors
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from flowmonkeyd.documents.archive import pack_files

STEPS = 5
FLOW = {
    "id": "five",
    "version": "1.0.0",
    "initialStepId": "s0",
    "steps": {
        f"s{n}": {
            "id": f"s{n}",
            "type": "conditional",
            "config": {
                "conditions": [
                    {
                        "path": "v",
                        "op": "gte",
                        "value": 0,
                        "target": f"s{n + 1}" if n + 1 < STEPS else None,
                    }
                ]
            },
        }
        for n in range(STEPS)
    },
}


class Daemon:
    """A real flowmonkeyd on a directory, measured from outside."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        self.socket = directory / "s.sock"
        self.flags = flags
        self.ready_s = 0.0

    def __enter__(self):
        self.start()
        return self

    def start(self):
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "flowmonkeyd",
                "--data-dir",
                str(self.directory / "data"),
                "--socket",
                str(self.socket),
                "--set",
                "log.level=warning",
                *self.flags,
            ]
        )
        while True:
            try:
                if self.get("/v1/health")["status"] in ("ok", "degraded"):
                    break
            except (OSError, http.client.HTTPException):
                pass
            if self.process.poll() is not None:
                raise SystemExit("the daemon did not start")
            time.sleep(0.002)
        self.ready_s = time.perf_counter() - began

    def __exit__(self, *exc):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def kill9(self):
        self.process.kill()
        self.process.wait()

    def connect(self):
        return Connection(str(self.socket))

    def get(self, path):
        connection = self.connect()
        try:
            return connection.call("GET", path)
        finally:
            connection.close()

    def pids(self):
        """The daemon and everything it started."""
        found, line = [], [self.process.pid]
        while line:
            pid = line.pop()
            found.append(pid)
            try:
                for task in Path(f"/proc/{pid}/task").iterdir():
                    line.extend(map(int, (task / "children").read_text().split()))
            except OSError:
                pass
        return found

    def cpu_s(self):
        ticks = 0
        for pid in self.pids():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += sum(int(fields[n]) for n in (11, 12, 13, 14))
        return ticks / os.sysconf("SC_CLK_TCK")

    def written_bytes(self):
        text = Path(f"/proc/{self.process.pid}/io").read_text()
        return int(text.partition("write_bytes: ")[2].split()[0])

    def pss_mib(self):
        total = 0
        for pid in self.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError:
                continue
            total += int(text.partition("Pss:")[2].split()[0])
        return total / 1024


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=120)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self.path)

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body)
        self.request(method, path, data, {"content-type": "application/json"} if data else {})
        response = self.getresponse()
        answer = json.loads(response.read())
        if response.status >= 400 and response.status != 503:
            raise RuntimeError(answer)
        return answer


def floor(directory: Path, executions: int) -> float:
    """Steps a second of bare SQLite, a commit each."""
    conn = sqlite3.connect(directory / "floor.db", isolation_level=None)
    conn.executescript(
        "pragma journal_mode=wal; pragma synchronous=full;"
        "create table wf(id integer primary key, state int, input text, output text);"
        "create table step(wf int, i int, out text, primary key(wf,i)) without rowid"
    )
    began = time.perf_counter()
    for wf in range(executions):
        conn.execute("insert into wf(id,state,input) values(?,0,'{\"v\":1}')", (wf,))
        for step in range(STEPS):
            conn.execute("insert into step values(?,?,?)", (wf, step, "1"))
        conn.execute("update wf set state=2, output='1' where id=?", (wf,))
    elapsed = time.perf_counter() - began
    conn.close()
    return executions * STEPS / elapsed


def floor_latency_ms(directory: Path, count: int = 200) -> float:
    conn = sqlite3.connect(directory / "floor-one.db", isolation_level=None)
    conn.executescript(
        "pragma journal_mode=wal; pragma synchronous=full;"
        "create table step(wf int, i int, out text, primary key(wf,i)) without rowid"
    )
    times = []
    for wf in range(count):
        began = time.perf_counter()
        for step in range(STEPS + 2):
            conn.execute("insert into step values(?,?,?)", (wf, step, "1"))
        times.append((time.perf_counter() - began) * 1000)
    conn.close()
    return statistics.median(times)


def finished(daemon: Daemon, count: int, path: Path) -> None:
    """Wait until `count` executions have completed, by reading the file beside the daemon."""
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    while True:
        (done,) = conn.execute(
            "select count(*) from executions where status='completed'"
        ).fetchone()
        if done >= count:
            break
        time.sleep(0.005)
    conn.close()


def burst(daemon: Daemon, executions: int, done: int) -> tuple[float, float, float]:
    """(seconds, CPU seconds, bytes written) for one batch from submit to the last end."""
    database = daemon.directory / "data/flowmonkey.db"
    cpu, written, began = daemon.cpu_s(), daemon.written_bytes(), time.perf_counter()
    connection = daemon.connect()
    batch = [{"flow": "five", "context": {"v": 1}} for _ in range(executions)]
    connection.call("POST", "/v1/executions:batch?view=ids", batch)
    connection.close()
    finished(daemon, done + executions, database)
    seconds = time.perf_counter() - began
    return seconds, daemon.cpu_s() - cpu, daemon.written_bytes() - written


def latency(daemon: Daemon, count: int) -> list[float]:
    connection, times = daemon.connect(), []
    body = {"flow": "five", "context": {"v": 1}}
    for _ in range(count):
        began = time.perf_counter()
        answer = connection.call("POST", "/v1/executions?waitMs=10000", body)
        times.append((time.perf_counter() - began) * 1000)
        assert answer["status"] == "completed", answer
    connection.close()
    return sorted(times)


# The only slot of the daemon that takes submits is held by the first of these; the rest queue, so
# that accepting is measured and nothing else.
HELD = {
    "id": "held",
    "version": "1.0.0",
    "initialStepId": "a",
    "steps": {"a": {"id": "a", "type": "hold", "input": {"type": "full"}}},
}
HOLD = {
    "handler.json": b'{"handler": {"type": "hold", "version": "1.0.0", "timeout": 60000}}',
    "handler.py": b"import time\ndef handle(input, ctx):\n    time.sleep(59)\n",
}


def hold_the_slot(daemon: Daemon) -> None:
    connection = daemon.connect()
    headers = {"content-type": "application/zip"}
    connection.request("PUT", "/v1/handlers", pack_files(HOLD), headers)
    assert connection.getresponse().read()
    connection.call("PUT", "/v1/flows", HELD)
    connection.call("POST", "/v1/executions", {"flow": "held"})
    while not connection.call("GET", "/v1/queue")["totals"]["leased"]:
        pass


def submits(daemon: Daemon, clients: int, each: int) -> float:
    """Accepted executions a second.

    One process of `clients` connections that each have one request in flight, with as little of its
    own work as can be: bytes out, bytes in, one selector.
    """
    body = json.dumps({"flow": "held", "context": {"v": 1}})
    head = "POST /v1/executions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
    selector = selectors.DefaultSelector()
    left = {}
    for _ in range(clients):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(daemon.socket))
        selector.register(sock, selectors.EVENT_READ, bytearray())
        left[sock] = each
    began = time.perf_counter()
    for sock in left:
        sock.sendall(request)
    while left:
        for key, _ in selector.select():
            key.data.extend(key.fileobj.recv(65536))
            if not _whole(key.data):
                continue
            assert key.data.startswith(b"HTTP/1.1 201"), bytes(key.data)
            key.data.clear()
            left[key.fileobj] -= 1
            if left[key.fileobj]:
                key.fileobj.sendall(request)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                del left[key.fileobj]
    return clients * each / (time.perf_counter() - began)


def _whole(answer: bytearray) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return len(body) >= length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executions", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as name:
        directory = Path(name)
        with Daemon(directory) as daemon:
            daemon.connect().call("PUT", "/v1/flows", FLOW)
            floors, ours, cpus, writes, done = [], [], [], [], 0
            steps = args.executions * STEPS
            for number in range(args.rounds):
                (directory / f"f{number}").mkdir()
                floors.append(floor(directory / f"f{number}", args.executions))
                seconds, cpu, written = burst(daemon, args.executions, done)
                done += args.executions
                ours.append(steps / seconds)
                cpus.append(cpu / steps * 1000)
                writes.append(written / steps)
            base, rate = statistics.median(floors), statistics.median(ours)
            print(f"floor, one commit a step     {base:10.0f} steps/s")
            print(f"daemon, {args.executions} x {STEPS} steps     {rate:10.0f} steps/s", end="")
            print(f"   {rate / base:.2f} x floor (goal >= 1.0)")
            print(
                f"CPU of the daemon            {statistics.median(cpus):10.3f} s / 1000 steps",
                end="",
            )
            print("   (goal <= 0.25)")
            print(
                f"written by the daemon        {statistics.median(writes):10.0f} bytes / step",
                end="",
            )
            print("   (goal <= 8000)")
            one = floor_latency_ms(directory)
            times = latency(daemon, 300)
            p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
            print(f"one execution, idle daemon   p50 {p50:.2f} ms, p99 {p99:.2f} ms", end="")
            print(f"   p50 {p50 / one:.2f} x floor's {one:.2f} ms (goal <= 4; p99 <= 20 ms)")
        (directory / "submits").mkdir()
        flags = ("--set", "sandbox.slots=1", "--set", "shutdown.graceMs=0")
        with Daemon(directory / "submits", *flags) as daemon:
            hold_the_slot(daemon)
            one_commit = 1000 / (floor_latency_ms(directory / "submits") / (STEPS + 2))
            for clients, each, goal in ((1, 1000, 1200), (16, 200, 3000)):
                rate = submits(daemon, clients, each)
                print(f"submits, {clients:2} clients          {rate:10.0f} /s", end="")
                print(f"   {rate / one_commit:.2f} x one row a commit (goal >= {goal}/s)")
            connection = daemon.connect()
            body = [{"flow": "held", "context": {"v": 1}} for _ in range(5000)]
            began = time.perf_counter()
            connection.call("POST", "/v1/executions:batch?view=ids", body)
            rate = 5000 / (time.perf_counter() - began)
            print(f"submits, one batch of 5000   {rate:10.0f} /s (goal >= 15000/s)")


if __name__ == "__main__":
    main()
