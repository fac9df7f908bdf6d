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


COUNTER = """
seen = []

def handle(input, ctx):
    seen.append(ctx.tenant_id)
    return seen
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "seen"),
    [
        # Only with the operator's word does anything stay, and then only for its own tenant.
        ("fresh", [["a"], ["a"], ["b"]]),
        ("reuse", [["a"], ["a", "a"], ["b"]]),
    ],
)
def test_processes_are_reused_for_the_handler_the_operator_names(
    stopped_daemon, tmp_path: Path, policy: str, seen: list[list[str]]
) -> None:
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk/handler.json").write_text(json.dumps(HANDLER))
    (tmp_path / "talk/handler.py").write_text(COUNTER)
    (tmp_path / "talk.json").write_text(json.dumps(FLOW))
    daemon = stopped_daemon
    daemon.start("--set", f"handlers.talk.policy={policy}", "--set", "sandbox.slots=1")
    assert daemon.flowctl("handler", "publish", str(tmp_path / "talk")).returncode == 0
    assert daemon.flowctl("flow", "apply", str(tmp_path / "talk.json")).returncode == 0
    found = []
    for tenant in ("a", "a", "b"):
        done = daemon.flowctl("run", "talk", "--tenant", tenant, "-o", "json")
        found.append(json.loads(done.stdout)["context"]["said"])
    assert found == seen
    (pool,) = json.loads(daemon.flowctl("pool", "-o", "json").stdout)["items"]
    assert pool["reused"] == (1 if policy == "reuse" else 0)
