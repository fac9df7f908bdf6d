"""What docs/handlers.md shows of classes and of the first five minutes is true: it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from flowctl import trial
from flowctl.build import build
from tests.authoring.conftest import BIN

PAGE = (Path(__file__).parents[2] / "docs/handlers.md").read_text()


def section(heading: str) -> str:
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, f"docs/handlers.md has no section {heading!r}"
    return rest.partition("\n## ")[0]


def block(heading: str, language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```$", section(heading), re.M | re.S)[1]


@pytest.mark.slow
def test_the_first_five_minutes_are_as_shown(tmp_path, tools):
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    script = block("Five minutes", "sh")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert '"greeting": "Hello, Ada!"' in done.stdout
    assert '"greeting": "Hello, Bob! Hello, Bob!"' in done.stdout
    assert (tmp_path / "hello.afh").read_bytes()[:2] == b"PK"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("language", "file", "entrypoint"),
    [
        ("python", "handler.py", "handler.py:Resize"),
        ("typescript", "handler.ts", "handler.js:Resize"),
        ("javascript", "handler.js", "handler.js:Resize"),
    ],
)
def test_the_classes_shown_build_and_run(folder, tools, language, file, entrypoint):
    place = folder(entrypoint, {file: block("Classes with declared inputs", language)})
    document = build(place).manifest
    width = next(one for one in document.inputs if one.property == "width")
    assert (width.type, width.rules["max"]) == ("integer", 4000)
    given = trial.with_test_values(str(place), trial.Given(context={"cartId": None}))
    assert given.input == {"width": 800}
    given = trial.Given(given.input, True, {}, given.context, {"apiKey": "k"})
    result = trial.run(str(place), given, lambda *_: None).result
    assert "800" in json.dumps(result["output"])
