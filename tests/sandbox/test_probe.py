"""`python -m sandbox probe` tells an operator what this host gives, and to whom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from sandbox import Layer, landlock
from sandbox.probe import Report, View, probe

_PROJECT = Path(sandbox.__file__).parent.parent


def _run(*arguments):
    command = [sys.executable, "-m", "sandbox", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=_PROJECT, timeout=60)


@pytest.fixture(scope="module")
def report() -> Report:
    return probe()


def layers_of(view: View) -> dict[str, Layer]:
    return {layer.name: layer for layer in view.layers}


@pytest.mark.slow
def test_every_view_has_every_layer(report):
    names = [view.name for view in report.views]
    if os.getuid() == 0:
        off = ", user namespaces refused"
        assert names == ["root", "root" + off, "user 65534", "user 65534" + off]
    for view in report.views:
        assert view.problem == ""
        assert list(layers_of(view)) == list(sandbox.ALL_LAYERS)
        required = {layer.name for layer in view.layers if layer.required}
        assert required == sandbox.DEFAULT_REQUIRED


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_an_ordinary_user_runs_handlers_and_nobody_does_without_user_namespaces(report):
    ours, ours_poor, users, users_poor = report.views
    assert ours.runs_handlers
    assert users.runs_handlers
    for poor in (ours_poor, users_poor):
        assert not poor.runs_handlers
        found = layers_of(poor)["user-namespace"]
        assert not found.available
        assert "unshare: Operation not permitted" in found.detail
    assert not layers_of(users)["cgroup"].available
    assert "; " in layers_of(users)["cgroup"].detail  # what to do about it


@pytest.mark.slow
def test_text_has_a_line_for_every_layer_and_a_reason_for_what_is_missing(report):
    text = report.as_text()
    lines = text.splitlines()
    table = [line.split() for line in lines if line and line.split()[0] in sandbox.ALL_LAYERS]
    table = [words for words in table if not words[0].endswith(":")]
    assert [words[0] for words in table] == list(sandbox.ALL_LAYERS)
    count = len(report.views)
    for words in table:
        for state, view in zip(words[1 : 1 + count], report.views, strict=True):
            assert (state == "holds") is layers_of(view)[words[0]].available
    for view in report.views:
        for layer in view.layers:
            if not layer.available:
                assert layer.detail[:40] in text, layer


@pytest.mark.slow
def test_the_command_prints_json_and_exits_with_the_verdict():
    done = _run("probe", "--json")
    said = json.loads(done.stdout)
    assert said["landlockAbi"] == landlock.abi()
    assert done.returncode == (0 if said["views"][0]["runsHandlers"] else 1)
    for view in said["views"]:
        assert [layer["name"] for layer in view["layers"]] == list(sandbox.ALL_LAYERS)


def test_a_missing_required_layer_means_that_no_handler_runs():
    there, absent = Layer("seccomp", True, True, ""), Layer("cgroup", False, False, "none")
    needed = Layer("private-root", False, True, "no mounts")
    assert View("x", (there, absent)).runs_handlers
    assert not View("x", (there, needed)).runs_handlers
    assert not View("x").runs_handlers
    text = Report("6.1", "x86_64", 3, (View("x", (there, needed)),)).as_text()
    assert "x: NO handler runs" in text
    assert "private-root: no mounts" in text
    assert "TCP is not refused" in text  # what that Landlock lacks


def test_a_view_that_could_not_be_tried_says_why():
    text = Report("6.1", "x86_64", 0, (View("user 1", (), "not tried: why"),)).as_text()
    assert "user 1: not tried: why" in text
    assert "Landlock ABI none" in text


@pytest.mark.parametrize("words", [("explode",), (), ("probe", "--yaml"), ("view", "x")])
def test_other_words_are_refused_with_the_usage(words):
    done = _run(*words)
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "usage: python -m sandbox probe [--json]\n",
    )


def test_importing_the_package_loads_no_machinery():
    code = "import sys, sandbox; print([m for m in ('asyncio', 'ctypes') if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_PROJECT)
    assert done.stdout == "[]\n", done.stderr
