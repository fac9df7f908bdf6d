"""`flowctl handler build` and `publish FILE.afh`: what is written, said and sent."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "api"))
from flowctl_server import flowctl, serving

AWS = "AKIA" + "QYLPMN5HHHFPZAM2"


@pytest.fixture
def built(folder, tmp_path, monkeypatch):
    folder()
    monkeypatch.chdir(tmp_path)
    result = flowctl("handler", "build", "hello", "-o", "hello.afh")
    assert result.code == 0, result.err
    return result


def test_build_writes_the_file_and_says_what_it_is(built, tmp_path):
    data = (tmp_path / "hello.afh").read_bytes()
    name, rest = built.out.split(": ")
    assert name == "hello.afh"
    assert rest.startswith(f"acme/hello@1.0.0, 3 files, {len(data)} bytes, ")
    assert [path.name for path in tmp_path.glob("*.incoming")] == []


def test_without_a_name_the_file_is_called_after_the_handler(built, tmp_path):
    result = flowctl("handler", "build", "hello", "-o", "json")
    said = json.loads(result.out)
    assert said["file"] == "acme-hello-1.0.0.afh"
    assert said["sizeBytes"] == len((tmp_path / said["file"]).read_bytes())
    assert (tmp_path / said["file"]).read_bytes() == (tmp_path / "hello.afh").read_bytes()


def test_a_finding_stops_it_and_leaves_no_file(folder, tmp_path, monkeypatch):
    folder({"keys.py": f"KEY = '{AWS}'\n"})
    monkeypatch.chdir(tmp_path)
    result = flowctl("handler", "build", "hello", "-o", "hello.afh")
    first, line = result.err.splitlines()
    assert (result.code, result.out) == (5, "")
    assert first.startswith("flowctl: cannot build hello: it may contain secrets; take them out")
    assert line.startswith("keys.py:1: aws access key (fingerprint ")
    assert AWS not in result.err
    assert not (tmp_path / "hello.afh").exists()
    allowed = flowctl("handler", "build", "hello", "-o", "hello.afh", "--allow", line[-17:-1])
    assert (allowed.code, allowed.err) == (0, "allowed: keys.py:1: aws access key\n")


def test_a_place_that_cannot_be_written_is_told(built, tmp_path):
    result = flowctl("handler", "build", "hello", "-o", "nowhere/hello.afh")
    assert (result.code, result.err) == (
        5, "flowctl: cannot write nowhere/hello.afh: no such file or directory\n",
    )  # fmt: skip


def test_publish_sends_a_built_file_as_it_is(built, tmp_path, monkeypatch):
    published = {"type": "acme/hello", "version": "1.0.0", "created": True, "warnings": []}
    with serving(str(tmp_path / "d.sock")) as daemon:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", daemon.path)
        daemon.on("PUT", "/v1/handlers", published, status=201)
        result = flowctl("handler", "publish", "hello.afh")
        assert (result.code, result.out) == (0, "acme/hello@1.0.0: published\n")
        assert daemon.requests[0].body == (tmp_path / "hello.afh").read_bytes()


def test_a_file_that_is_no_package_is_not_sent(built, tmp_path):
    result = flowctl("handler", "publish", "hello/handler.py")
    assert result.code == 5
    assert "it is no package; build one with handler build" in result.err
