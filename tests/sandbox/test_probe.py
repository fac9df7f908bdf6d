"""`python -m sandbox probe` tells an operator what this host gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sandbox

_PROJECT = Path(sandbox.__file__).parent.parent


def _run(*arguments):
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=_PROJECT, timeout=30)


@pytest.mark.slow
def test_probe_prints_a_line_for_every_layer():
    done = _run("probe")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(sandbox.ALL_LAYERS)
    assert [line.split()[0] for line in lines if line.split()[1] == "missing"] == [
        "landlock",
        "cgroup",
        "network",
    ]


def test_other_words_are_refused_with_the_usage():
    done = _run("explode")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "usage: python -m sandbox probe\n",
    )


def test_importing_the_package_loads_no_machinery():
    code = "import sys, sandbox; print([m for m in ('asyncio', 'ctypes') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_PROJECT)
    assert done.stdout == "[]\n", done.stderr
