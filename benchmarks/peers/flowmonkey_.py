"""Our driver for a bench of durable-execution peers: line-JSON ops on stdin, replies on stdout.

Five built-in steps a workflow through a real daemon, which is a child of this process so that its
CPU, memory and bytes are counted. Needs the bench's `driverlib` on the path (its README says how).
Built-in steps run no code of ours, so the cases that count effects in a ledger do not apply.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, os.environ.get("BENCH_LIB", os.getcwd()))
from driverlib import STEPS, Driver, serve, wait_until

PYTHON = os.environ.get("FLOWMONKEY_PYTHON", sys.executable)
FLOW = {
    "id": "five",
    "version": "1.0.0",
    "initialStepId": "s0",
    "steps": {
        f"s{n}": {
            "id": f"s{n}",
            "type": "conditional",
            "config": {
                "conditions": [{"path": "v", "op": "gte", "value": 0, "target": target}],
                "default": None,
            },
        }
        for n, target in ((n, f"s{n + 1}" if n + 1 < STEPS else None) for n in range(STEPS))
    },
}


class Connection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(self._path)

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body)
        self.request(method, path, data, {"content-type": "application/json"} if data else {})
        answer = self.getresponse()
        shown = json.loads(answer.read())
        assert answer.status < 400, shown
        return shown


class Ours(Driver):
    def start(self, workdir, resume):
        path = str(Path(workdir) / "fm.sock")
        flags = ["--data-dir", f"{workdir}/data", "--socket", path, "--set", "log.level=warning"]
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
            "tuning": "batches of 1000; built-in steps",
        }
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
