"""Our driver for a bench of durable-execution peers: line-JSON ops on stdin, replies on stdout.

Five steps a workflow through a real daemon, a child of this process so that its CPU, memory
and bytes are counted. FLOWMONKEY_STEPS says which: "builtin" (the default), or a handler in the
sandbox with all its layers, "fresh" (a new process for every step) or "reuse" (kept processes).
Needs the bench's `driverlib` on the path (its README says how). The steps have no effects outside,
so the cases that count effects in a ledger do not apply.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, os.environ.get("BENCH_LIB", os.getcwd()))
from driverlib import STEPS, Driver, serve, wait_until

PYTHON = os.environ.get("FLOWMONKEY_PYTHON", sys.executable)
KIND = os.environ.get("FLOWMONKEY_STEPS", "builtin")
MANIFEST = {"handler": {"type": "bench/add", "version": "1.0.0", "runtime": "python"}}
HANDLER = "def handle(input, ctx):\n    return input + 1\n"
CONFIG = '[handlers."bench/add"]\npolicy = "reuse"\nreuseUses = 100000\n'


def step(number):
    following = f"s{number + 1}" if number + 1 < STEPS else None
    if KIND == "builtin":
        condition = {"path": "v", "op": "gte", "value": 0, "target": following}
        config = {"conditions": [condition], "default": None}
        return {"id": f"s{number}", "type": "conditional", "config": config}
    return {
        "id": f"s{number}",
        "type": "bench/add",
        "input": {"type": "key", "key": "v"},
        "outputKey": "v",
        "transitions": {"onSuccess": following},
    }


FLOW = {
    "id": "five",
    "version": "1.0.0",
    "initialStepId": "s0",
    "steps": {f"s{n}": step(n) for n in range(STEPS)},
}


def package():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("handler.json", json.dumps(MANIFEST))
        archive.writestr("handler.py", HANDLER)
    return data.getvalue()


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)

    def call(self, method, path, body=None):
        kind = "application/zip" if isinstance(body, bytes) else "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        self.request(method, path, data, {"content-type": kind} if data else {})
        answer = self.getresponse()
        shown = json.loads(answer.read())
        assert answer.status < 400, shown
        return shown


class Ours(Driver):
    def start(self, workdir, resume):
        path = str(Path(workdir) / "fm.sock")
        flags = ["--data-dir", f"{workdir}/data", "--socket", path, "--set", "log.level=warning"]
        if KIND == "reuse":
            Path(workdir, "fm.toml").write_text(CONFIG)
            flags += ["--config", f"{workdir}/fm.toml"]
        self.daemon = subprocess.Popen([PYTHON, "-m", "flowmonkeyd", *flags])

        def is_up():
            try:
                self.api = Connection(path)
                return self.api.call("GET", "/v1/version")
            except OSError:
                return None

        wait_until(is_up)
        self.about = {
            "version": is_up()["version"],
            "where": "daemon over a Unix socket",
            "durability": "WAL, synchronous=FULL",
            "tuning": f"batches of 1000; steps: {KIND}",
        }
        if KIND != "builtin":
            self.api.call("PUT", "/v1/handlers", package())
        self.api.call("PUT", "/v1/flows", FLOW)

    def burst(self, n):
        before = self.finished()
        for first in range(0, n, 1000):
            batch = [{"flow": "five", "context": {"v": 1}}] * min(1000, n - first)
            made = self.api.call("POST", "/v1/executions:batch?view=ids", batch)["items"]
        # The queue is first in, first out: the last to be made is among the last to end, and is
        # waited for without asking again and again.
        self.api.call("GET", f"/v1/executions/{made[-1]['id']}?waitMs=60000")
        wait_until(lambda: self.finished() >= before + n)

    def one(self):
        body = {"flow": "five", "context": {"v": 1}}
        answer = self.api.call("POST", "/v1/executions?waitMs=60000", body)
        assert answer["status"] == "completed", answer

    def finished(self):
        self.api.request("GET", "/metrics")
        text = self.api.getresponse().read().decode()
        line = text.partition('flowmonkey_executions{status="completed"} ')[2]
        return int(float(line.partition("\n")[0] or 0))

    def stop(self):
        self.daemon.terminate()
        self.daemon.wait()


serve(Ours())
