"""Settings that bound handlers reach them, in the daemon as a person starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

HANDLER = {
    "handler": {
        "type": "talk",
        "version": "1.0.0",
        "name": "Talk",
        "runtime": "python",
        "entrypoint": "handler.py:handle",
        "stateful": False,
    }
}
CODE = """
def handle(input, ctx):
    for number in range(100):
        ctx.log.info(f"line {number} " + "x" * 100)
    return "y" * input["bytes"]
"""
FLOW = {
    "id": "talk",
    "version": "1.0.0",
    "name": "Talk",
    "initialStepId": "talk",
    "steps": {
        "talk": {
            "id": "talk",
            "type": "talk",
            "input": {"type": "full"},
            "outputKey": "said",
            "transitions": {"onSuccess": None},
        }
    },
}


@pytest.mark.slow
def test_limits_on_output_and_log_hold_for_handlers(stopped_daemon, tmp_path: Path) -> None:
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk/handler.json").write_text(json.dumps(HANDLER))
    (tmp_path / "talk/handler.py").write_text(CODE)
    (tmp_path / "talk.json").write_text(json.dumps(FLOW))
    daemon = stopped_daemon
    daemon.start("--set", "sandbox.outputBytesMax=3000", "--set", "sandbox.logBytesMax=2000")
    assert daemon.flowctl("handler", "publish", str(tmp_path / "talk")).returncode == 0
    assert daemon.flowctl("flow", "apply", str(tmp_path / "talk.json")).returncode == 0

    def run(size: int) -> dict:
        context = json.dumps({"bytes": size})
        return json.loads(daemon.flowctl("run", "talk", "--context", context, "-o", "json").stdout)

    fits = run(2000)
    assert fits["status"] == "completed"
    said = daemon.flowctl("execution", "logs", fits["id"], "-o", "json").stdout
    assert 5 < said.count("line ") < 20
    assert run(4000)["error"]["code"] == "OUTPUT_TOO_LARGE"
