"""`flowctl execution logs -f`: lines of a step while it runs, in order, tracebacks too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

CODE = """
import sys, time

def handle(input, ctx):
    print("first")
    ctx.log.info("second", n=2)
    print("third", file=sys.stderr)
    if ctx.attempt == 0:
        time.sleep(50)  # nobody waits for it: it is cancelled once its lines were seen
"""
RAISES = """
def handle(input, ctx):
    print("before")
    inner()

def inner():
    raise LookupError("gone")
"""


def publish(daemon, folder: Path, code: str) -> None:
    folder.mkdir()
    manifest = {"handler": {"type": folder.name, "version": "1.0.0"}, "execution": {"ttl": 60000}}
    (folder / "handler.json").write_text(json.dumps(manifest))
    (folder / "handler.py").write_text(code)
    step = {"id": "a", "type": folder.name, "input": {"type": "full"}, "transitions": {}}
    flow = {"id": folder.name, "version": "1.0.0", "initialStepId": "a", "steps": {"a": step}}
    (folder.parent / "flow.json").write_text(json.dumps(flow))
    for command in (("handler", "publish", folder), ("flow", "apply", folder.parent / "flow.json")):
        done = daemon.flowctl(*map(str, command))
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_lines_are_shown_while_the_step_runs(daemon, tmp_path: Path) -> None:
    publish(daemon, tmp_path / "slow", CODE)
    started = json.loads(daemon.flowctl("run", "slow", "--no-wait", "-o", "json").stdout)["id"]
    with subprocess.Popen(
        ["flowctl", "execution", "logs", "-f", started, "-o", "json"],
        env=daemon.env,
        stdout=subprocess.PIPE,
        text=True,
    ) as follower:
        assert follower.stdout is not None
        # The handler sleeps: whatever comes was handed over while it ran.
        lines = [json.loads(follower.stdout.readline()) for _ in range(3)]
        now = json.loads(daemon.flowctl("execution", "show", started, "-o", "json").stdout)
        assert now["status"] == "running"
        said = [(line["stream"], line["level"], line["message"]) for line in lines]
        assert said == [
            ("stdout", None, "first"),
            ("log", "info", "second"),
            ("stderr", None, "third"),
        ]
        assert daemon.flowctl("execution", "cancel", started).returncode == 0
        assert follower.stdout.read() == ""  # the stream ends with the execution
        assert follower.wait() == 0


@pytest.mark.slow
def test_a_traceback_is_in_the_log_after_what_was_printed(daemon, tmp_path: Path) -> None:
    publish(daemon, tmp_path / "raises", RAISES)
    ended = json.loads(daemon.flowctl("run", "raises", "-o", "json").stdout)
    done = daemon.flowctl("execution", "logs", ended["id"], "-o", "json")
    lines = json.loads(done.stdout)["items"]
    assert lines[0]["message"] == "before"
    assert lines[1]["message"] == "Traceback (most recent call last):"
    assert (lines[-1]["level"], lines[-1]["message"]) == ("error", "LookupError: gone")
    assert any("in inner" in line["message"] for line in lines)
