"""`flowctl sandbox …` without a daemon: a folder run, explained; the host's layers tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

CODE = """
import os
from pathlib import Path

def handle(input, ctx):
    print("starting")
    ctx.log.warning("steer\\x1b[2J", n=1)
    if input == "raise":
        raise LookupError("not found")
    if input == "wait":
        return ctx.wait(duration_ms=5)
    if input == "exit":
        os._exit(3)
    ctx.update("seen", True)
    reads = Path("/etc/shadow").exists()
    return {"given": input, "has": ctx.has_input, "config": dict(ctx.config),
            "context": dict(ctx.context), "reads": reads, "network": None}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "try"
    place.mkdir()
    (place / "handler.json").write_text(
        json.dumps({"handler": {"type": "acme/try", "version": "1.0.0"}})
    )
    (place / "handler.py").write_text(CODE)
    return place


def flowctl(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "FLOWMONKEY_SOCKET": "/nowhere/fm.sock"}
    return subprocess.run(
        [BIN / "flowctl", "sandbox", *args], env=env, capture_output=True, text=True, timeout=60
    )


@pytest.mark.slow
def test_a_folder_is_run_in_the_sandbox_with_its_log_and_what_it_took(folder: Path) -> None:
    config, context = '{"size": 2}', '{"order": {"id": 7}}'
    done = flowctl(
        "run", str(folder), "--input", "[1, 2]", "--config", config, "--context", context
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "outcome": "success",
        "output": {
            "given": [1, 2],
            "has": True,
            "config": {"size": 2},
            "context": {"order": {"id": 7}},
            "reads": False,
            "network": None,
        },
        "updates": {"seen": True},
    }
    lines = done.stderr.splitlines()
    assert lines[:2] == ["stdout   starting", 'warning  steer\\e[2J {"n": 1}']
    assert lines[2].startswith("took ")
    assert "of memory" in lines[2]
    assert sorted(path.name for path in folder.iterdir()) == ["handler.json", "handler.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "code", "outcome", "said"),
    [
        ('"raise"', 1, "failure", "the handler failed: HANDLER_ERROR: LookupError: not found"),
        ('"exit"', 1, "error", "the handler failed: HANDLER_CRASHED: "),
        ('"wait"', 0, "wait", ""),
    ],
)
def test_the_exit_code_says_whether_the_handler_failed(folder, given, code, outcome, said) -> None:
    done = flowctl("run", str(folder), "--input", given)
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (code, outcome)
    assert said in done.stderr
    assert ("Traceback" in done.stderr) == (given == '"raise"')


@pytest.mark.slow
def test_no_input_is_not_null(folder: Path) -> None:
    outputs = [
        json.loads(flowctl("run", str(folder), *args).stdout)["output"]
        for args in ((), ("--input", "null"))
    ]
    assert [(one["given"], one["has"]) for one in outputs] == [(None, False), (None, True)]


def test_a_folder_is_refused_as_by_publishing(folder: Path) -> None:
    (folder / "handler.py").write_text("def handle(:\n")
    done = flowctl("run", str(folder))
    assert done.returncode == 5
    assert "handler.py:1: is not Python" in done.stderr
    done = flowctl("run", str(folder.parent))
    assert (done.returncode, "it has no handler.json" in done.stderr) == (5, True)


def test_a_private_network_must_be_one(folder: Path) -> None:
    done = flowctl("run", str(folder), "--allow-private", "localhost")
    assert done.returncode == 5
    assert "cannot allow private networks: 'localhost' should be a network" in done.stderr


@pytest.mark.slow
def test_a_folder_is_explained_with_what_this_host_gives(folder: Path) -> None:
    shown = json.loads(flowctl("explain", str(folder), "-o", "json").stdout)
    assert shown["terms"]["type"] == "acme/try"
    assert shown["terms"]["network"] is None
    assert {"name", "available", "required", "detail", "instead"} == set(shown["layers"][0])
    words = flowctl("explain", str(folder)).stdout
    assert words.startswith("acme/try@1.0.0, python\nwall time")
    held = sum(layer["available"] for layer in shown["layers"])
    assert f"{held} of {len(shown['layers'])} hold" in words


@pytest.mark.slow
def test_probe_tries_every_layer_in_words_and_as_json() -> None:
    done = flowctl("probe")
    assert done.returncode == 0, done.stdout
    assert ": handlers run\n" in done.stdout
    found = json.loads(flowctl("probe", "-o", "json").stdout)
    assert found["views"][0]["runsHandlers"] is True
    assert {layer["name"] for layer in found["views"][0]["layers"]} >= {"seccomp", "private-root"}


@pytest.mark.slow
def test_a_daemon_explains_what_it_would_let_a_handler_do(stopped_daemon, folder: Path) -> None:
    daemon = stopped_daemon
    daemon.start("--set", 'handlers."acme/try".policy=reuse', "--set", "sandbox.logRate=9")
    assert daemon.flowctl("handler", "publish", str(folder)).returncode == 0
    words = daemon.flowctl("sandbox", "explain", "acme/try").stdout
    assert "9 lines a second" in words
    assert "one for up to 100 executions" in words
    pools = json.loads(daemon.flowctl("pool", "-o", "json").stdout)
    assert pools["items"][0]["name"] == "sandbox"
    assert daemon.flowctl("sandbox", "explain", "acme/none").returncode == 4
