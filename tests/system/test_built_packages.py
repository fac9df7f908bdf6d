"""From a folder to a run: new, build, publish, and what the daemon refuses, with the real parts."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FLOW = """\
id: greet
version: 1.0.0
initialStepId: a
steps:
  a: {id: a, type: acme/hello, input: {type: key, key: who}, outputKey: greeting}
"""
INPUT = {"name": "Ada"}


@pytest.mark.parametrize(
    "runtime",
    [
        "python",
        pytest.param(
            "typescript",
            marks=pytest.mark.skipif(shutil.which("npm") is None, reason="NO npm: nothing built"),
        ),
    ],
)
def test_a_new_handler_is_built_published_and_run(daemon, tmp_path, runtime):
    folder, package, flow = tmp_path / "hello", tmp_path / "hello.afh", tmp_path / "greet.yaml"
    flow.write_text(FLOW)
    for command in (
        ("handler", "new", "acme/hello", "--to", str(folder), "--runtime", runtime),
        ("handler", "build", str(folder), "-o", str(package)),
        ("handler", "publish", str(package)),
        ("flow", "apply", str(flow)),
    ):
        done = daemon.flowctl(*command)
        assert done.returncode == 0, done.stderr
    again = daemon.flowctl("handler", "publish", str(package))
    assert again.stdout == "acme/hello@0.1.0: unchanged\n"
    done = daemon.flowctl("run", "greet", "--context", json.dumps({"who": INPUT}), "-o", "json")
    assert done.returncode == 0, done.stderr
    assert "Ada" in json.dumps(json.loads(done.stdout)["context"]["greeting"])


def test_a_tampered_package_is_refused_and_nothing_of_it_is_published(daemon, tmp_path):
    folder, package = tmp_path / "hello", tmp_path / "hello.afh"
    daemon.flowctl("handler", "new", "acme/hello", "--to", str(folder), "--runtime", "python")
    assert daemon.flowctl("handler", "build", str(folder), "-o", str(package)).returncode == 0
    tampered = _with(package, "handler.py", b"\nimport os\n")
    done = daemon.flowctl("handler", "publish", str(tampered))
    assert done.returncode == 5
    assert "'handler.py' is not the file that was built: its SHA-256 differs" in done.stderr
    assert (
        daemon.flowctl("handler", "list", "-o", "json").stdout == '{"items":[],"nextCursor":null}\n'
    )
    assert list((daemon.data_dir / "packages").iterdir()) == []


def _with(package: Path, name: str, more: bytes) -> Path:
    """The same package with something appended to a file, as any ZIP tool would write it."""
    changed = package.with_suffix(".changed.afh")
    with zipfile.ZipFile(package) as before, zipfile.ZipFile(changed, "w") as after:
        for entry in before.infolist():
            content = before.read(entry) + (more if entry.filename == name else b"")
            after.writestr(entry, content)
    return changed
