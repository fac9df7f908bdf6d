"""Handlers' folders for the tests, and the two tools that a machine may lack."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.fixture
def folder(tmp_path: Path):
    """Makes a handler's folder: `folder("handler.py:Echo", {"handler.py": …})`."""

    def make(entrypoint: str, files: dict[str, str], **handler) -> Path:
        place = tmp_path / f"handler-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        runtime = "python" if ".py:" in entrypoint else "node"
        if runtime == "node" and shutil.which("node") is None:
            pytest.skip("NO node here: handlers in JavaScript are not tested")
        said = {"type": "acme/tried", "version": "1.0.0", "runtime": runtime}
        said |= {"entrypoint": entrypoint, **handler}
        (place / "handler.json").write_text(json.dumps({"handler": said}))
        for name, text in files.items():
            (place / name).write_text(text)
        return place

    return make


@pytest.fixture(scope="session")
def tools() -> Path:
    """The folder with tsc and esbuild, at the versions that a build uses."""
    from flowctl.build import tools as build_tools

    if shutil.which("npm") is None:
        pytest.skip("NO npm here: TypeScript is not tested")
    return build_tools.install()


@pytest.fixture
def flowctl():
    """Runs flowctl: `flowctl("handler", "new", …, cwd=…)`."""

    def run(*args: str, cwd: Path | None = None, check: bool = True, **env: str):
        done = subprocess.run(
            [BIN / "flowctl", *args],
            cwd=cwd,
            env={**os.environ, "FLOWMONKEY_SOCKET": "/nowhere/fm.sock", **env},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    return run
