"""What docs/handlers.md shows of classes is true: it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flowctl import trial
from flowctl.build import build

PAGE = (Path(__file__).parents[2] / "docs/handlers.md").read_text()


def section(heading: str) -> str:
    _, found, rest = PAGE.partition(f"\n## {heading}\n")
    assert found, f"docs/handlers.md has no section {heading!r}"
    return rest.partition("\n## ")[0]


def block(heading: str, language: str) -> str:
    return re.search(rf"^```{language}\n(.*?)^```$", section(heading), re.M | re.S)[1]


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
