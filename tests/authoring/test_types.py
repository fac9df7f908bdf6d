"""The published types: tsc takes what is right and refuses what is wrong, and so does mypy."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import flowmonkey
from flowctl.vendor import install

TYPES = Path(__file__).with_name("types")
STRICT = "--strict --noEmit --exactOptionalPropertyTypes --noUncheckedIndexedAccess".split()
STRICT += "--target es2022 --isolatedModules --verbatimModuleSyntax".split()
MODULES = {
    "nodenext": ["--module", "nodenext"],
    "bundler": ["--module", "esnext", "--moduleResolution", "bundler"],
    "legacy": ["--module", "nodenext", "--experimentalDecorators"],
}


def tsc(tools: Path, folder: Path, *args: str) -> str:
    install(folder)
    (folder / "package.json").write_text('{"type": "module"}')
    command = ["node", tools / "node_modules/typescript/bin/tsc", *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stdout == "")
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", MODULES)
def test_tsc_takes_handlers_as_they_are_meant(tools, tmp_path, how):
    shutil.copy(TYPES / "right.ts", tmp_path)
    assert tsc(tools, tmp_path, *STRICT, *MODULES[how], "right.ts") == ""


@pytest.mark.slow
def test_tsc_refuses_what_contradicts_itself(tools, tmp_path):
    """Without the directives, there is an error below each of them and nowhere else."""
    text = (TYPES / "wrong.ts").read_text()
    lines = [n for n, line in enumerate(text.splitlines(), 1) if "@ts-expect-error" in line]
    assert len(lines) == 12
    (tmp_path / "wrong.ts").write_text(text.replace("@ts-expect-error", ""))
    found = tsc(tools, tmp_path, *STRICT, *MODULES["nodenext"], "wrong.ts")
    told = re.findall(r"^wrong\.ts\((\d+),\d+\): error TS", found, re.MULTILINE)
    assert {int(line) for line in told} == {line + 1 for line in lines}
    assert "the field must have this type" in found


HANDLER = """
from __future__ import annotations
from typing import TypedDict
from flowmonkey import Answer, Context, Handler, Input, env

class Out(TypedDict):
    size: int

class Resize(Handler, output={"type": "object"}):
    width: int = Input(min=1, test_value=3)
    key: str = Input("vault", test_value=env("KEY"))

    async def execute(self, ctx: Context) -> Out | Answer:
        ctx.log.info("x", size=1)
        if ctx.attempt > 3:
            return ctx.failure("NO", self.key, retryable=False)
        return {"size": self.width}

def handle(input: dict[str, int], ctx: Context) -> Answer:
    return ctx.wait(duration_ms=5)
"""
WRONG = """
from flowmonkey import Context, Handler, Input

class Resize(Handler):
    width: int = Input("env")
    height: int = Input(minimum=1)

    def execute(self, ctx: Context) -> str:
        ctx.attempt = 3
        return self.width
"""


@pytest.mark.slow
def test_mypy_checks_handlers_strictly(tmp_path):
    for name, text in (("right.py", HANDLER), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir=cache"]
    command += ["--config-file=", "right.py", "wrong.py"]
    # mypy does not follow an editable installation
    env = {**os.environ, "MYPYPATH": str(Path(flowmonkey.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    found = [line.split(":")[:2] for line in done.stdout.splitlines() if ": error:" in line]
    assert found == [["wrong.py", line] for line in ("5", "6", "9", "10")], (
        done.stdout + done.stderr
    )
