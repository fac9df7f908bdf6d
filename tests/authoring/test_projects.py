"""`flowctl handler new`: what it makes passes its own test and builds, at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

BOTH = [
    (runtime, more) for runtime in ("python", "node", "typescript") for more in ("", "stateful")
]


def own_test(place, runtime):
    """Its own test, run as its README says; how many passed."""
    env = {**os.environ, "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    env.pop("PYTEST_ADDOPTS", None)
    command = ["node", "--test"]
    if runtime == "python":
        command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore"]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    if runtime == "python":
        return int(lines[-1].split()[0])
    return int(next(line for line in lines if line.startswith("# pass")).split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "more"), BOTH)
def test_a_new_project_passes_its_test_and_builds(flowctl, tmp_path, request, runtime, more):
    if runtime != "python" and shutil.which("node") is None:
        pytest.skip("NO node here: projects in JavaScript are not tested")
    if runtime != "python":
        request.getfixturevalue("tools")
    options = ["--runtime", runtime, *([f"--{more}"] if more else [])]
    made = flowctl("handler", "new", "acme/my-first.one", *options, "-o", "json", cwd=tmp_path)
    place = tmp_path / "my-first.one"
    said = json.loads(made.stdout)
    assert said["folder"] == "my-first.one"
    ours = sorted(p.name for p in place.iterdir() if p.name != "node_modules")
    assert said["files"] == ours
    assert {"README.md", ".gitignore", "handler.json"} <= set(ours)
    for name in ours:
        assert "__" not in (place / name).read_text().replace("__future__", "").replace(
            "__pycache__", ""
        )
    manifest = json.loads((place / "handler.json").read_text())["handler"]
    assert manifest["entrypoint"].endswith(":MyFirstOne")
    assert manifest.get("stateful", False) == (more == "stateful")
    assert own_test(place, runtime) == 3
    flowctl("handler", "build", str(place), "-o", str(tmp_path / "it.afh"))
    with zipfile.ZipFile(tmp_path / "it.afh") as package:
        built = json.loads(package.read("handler.json"))
        names = package.namelist()
        code = package.read(
            next(name for name in names if name.startswith("handler.") and "json" not in name)
        )
    assert not [name for name in names if "test" in name]
    assert b"Ada" not in code
    assert built["inputs"][0]["property"] in ("name", "numbers")
    assert set(built["schemas"]) == {"input", "output"}


def test_nothing_is_overwritten_and_a_bad_name_is_refused(flowctl, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "handler.py").write_text("x = 1\n")
    done = flowctl("handler", "new", "acme/mine", cwd=tmp_path, check=False)
    assert done.returncode == 5
    assert "it is there already" in done.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["handler.py"]
    for name in ("", "a/b/c", "../x", "a b", "/x", "a/", "-x/y", "a/..", "ä"):
        done = flowctl("handler", "new", "--to", "out", "--", name, cwd=tmp_path, check=False)
        assert done.returncode == 5, name
        assert "a type is letters, digits" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["handler", "input", "9lives", "class", "None", "any", "x"])
def test_names_that_are_words_of_the_language_make_classes(flowctl, tmp_path, name):
    flowctl("handler", "new", name, cwd=tmp_path)
    done = flowctl("handler", "test", name, "-o", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["output"]["greeting"] == "Hello, Ada!"


@pytest.mark.slow
def test_a_trial_says_all_of_it_as_json_and_fails_with_the_handler(flowctl, folder, tmp_path):
    code = """
def handle(input, ctx):
    print("out")
    ctx.log.warning("careful", n=input["n"])
    ctx.update("k", [1]); ctx.emit("done", {"x": 1})
    return {"n": input["n"], "c": ctx.config, "x": dict(ctx.context), "s": ctx.secrets["key"]}
"""
    place = str(folder("handler.py:handle", {"handler.py": code}))
    given = {"input": {"n": 1}, "config": {"a": 2}, "context": {"b": 3}, "secrets": {"key": "k"}}
    (tmp_path / "given.json").write_text(json.dumps(given))
    file = f"@{tmp_path / 'given.json'}"
    options = ["--given", file, "--config", '{"a": 5}', "-o", "json"]
    said = json.loads(flowctl("handler", "test", place, *options).stdout)
    assert said["output"] == {"n": 1, "c": {"a": 5}, "x": {"b": 3}, "s": "k"}
    assert (said["updates"], said["emitted"]) == ({"k": [1]}, [["done", {"x": 1}]])
    assert [(one["stream"], one["message"]) for one in said["logs"]] == [
        ("log", "careful"),
        ("stdout", "out"),
    ] or [one["message"] for one in said["logs"]] == ["out", "careful"]
    assert said["peakMemoryBytes"] > 0
    failed = flowctl("handler", "test", place, "--input", "{}", "-o", "json", check=False)
    assert failed.returncode == 1
    assert json.loads(failed.stdout)["error"]["code"] == "HANDLER_ERROR"
    for wrong in ('{"inputs": 1}', '{"config": 1}', '{"secrets": {"a": 1}}', "[]", "nonsense"):
        (tmp_path / "given.json").write_text(wrong)
        done = flowctl("handler", "test", place, "--given", file, check=False)
        assert done.returncode == 2, wrong


@pytest.mark.slow
def test_typescript_that_does_not_compile_is_told_by_line(flowctl, folder, tools):
    code = "export class A {\n  async exe cute() {}\n}\n"
    place = str(folder("handler.js:A", {"handler.ts": code}))
    done = flowctl("handler", "test", place, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    said = 'flowctl: cannot compile handler.ts\nhandler.ts:2: Expected "(" but found "cute"\n'
    assert done.stderr == said


def test_a_folder_of_typescript_is_to_be_built_before_it_is_published(flowctl, folder):
    place = str(folder("handler.js:A", {"handler.ts": "export class A {}\n"}))
    done = flowctl("handler", "publish", place, check=False)
    assert done.returncode == 5
    assert f"run flowctl handler build {place} -o FILE.afh and publish that" in done.stderr
