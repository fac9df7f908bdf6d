"""A folder becomes a package: the same bytes each time, with nothing in it that should not be."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path

import pytest

from flowctl.build import build
from flowctl.problems import Rejected
from flowmonkeyd.documents.archive import listed_files, read_archive
from flowmonkeyd.packages import Packages
from tests.build.conftest import CODE, MANIFEST, wheel

AWS = "AKIA" + "QYLPMN5HHHFPZAM2"
CLASS = """\
from flowmonkey import Handler, Input, env


class Hello(Handler):
    name: str = Input(minLength=1, test_value="tested-name")  # who
    key: str = Input("vault", test_value=env("HELLO_KEY"))

    def execute(self, ctx) -> dict:
        return {"hello": self.name}
"""
CLASS_MANIFEST = {"handler": {**MANIFEST["handler"], "entrypoint": "handler.py:Hello"}}


def read(built):
    return dict(read_archive(built.data))


def test_the_same_folder_makes_the_same_bytes_wherever_and_whenever(folder, monkeypatch):
    files = {"lib/data.txt": "x" * 100, "README.md": "# Hello\n"}
    first, second = folder(files, "one"), folder(files, "two")
    for path in second.rglob("*"):
        os.utime(path, (1, 1))
        if path.is_file():
            path.chmod(0o600)
    built = build(first)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    again = build(second)
    assert built.data == again.data
    assert built.digest == again.digest


def test_a_package_is_what_its_list_says_and_a_daemon_takes_it(folder, tmp_path):
    built = build(folder({"lib/data.txt": "x"}))
    names = zipfile.ZipFile(io.BytesIO(built.data)).namelist()
    assert names == ["handler.json", "handler.py", "lib/data.txt", "sbom.cdx.json"]
    files = read(built)
    document = json.loads(files["handler.json"])
    assert document["handler"] == MANIFEST["handler"]
    assert document["package"]["files"] == listed_files(files)
    assert document["package"]["files"]["lib/data.txt"] == hashlib.sha256(b"x").hexdigest()
    assert document["package"]["format"] == 1
    assert document["package"]["builder"].startswith("flowmonkey/")
    packages = Packages(tmp_path / "packages")
    packages.open()
    received = packages.receive(built.data)
    assert received.digest == built.digest
    assert received.manifest.package is not None
    assert "files" not in json.loads(received.manifest_json)["package"]


def test_what_is_for_development_stays_out(folder):
    out = [
        ".env", ".venv/x.py", ".github/a.yml", "tests/test_handler.py", "test_handler.py",
        "handler_test.py", "conftest.py", "node_modules/a/index.js", "old.afh", "pyproject.toml",
        "__pycache__/handler.cpython-311.pyc", "requirements.lock",
    ]  # fmt: skip
    built = build(folder(dict.fromkeys(out, f"KEY = '{AWS}'")))
    assert sorted(built.files) == ["handler.json", "handler.py", "sbom.cdx.json"]


def test_a_class_handler_is_built_with_its_inputs_its_schemas_and_no_test_value(folder):
    built = build(folder({"handler.json": CLASS_MANIFEST, "handler.py": CLASS}))
    files = read(built)
    document = json.loads(files["handler.json"])
    assert [one["property"] for one in document["inputs"]] == ["name", "key"]
    assert document["schemas"]["input"]["required"] == ["name"]
    assert b"tested-name" not in b"".join(files.values())
    assert b"test_value" not in files["handler.py"]
    assert files["handler.py"].count(b"\n") == CLASS.count("\n")
    assert "flowmonkey/declared.py" in files
    assert built.manifest.input_schema == document["schemas"]["input"]


def test_inputs_that_the_class_does_not_declare_are_refused(folder):
    manifest = {**CLASS_MANIFEST, "inputs": [{"property": "other"}]}
    with pytest.raises(Rejected, match="not what the class declares"):
        build(folder({"handler.json": manifest, "handler.py": CLASS}))


def test_a_test_value_that_is_elsewhere_too_stops_the_build(folder):
    files = {"handler.json": CLASS_MANIFEST, "handler.py": CLASS, "README.md": "\n\ntested-name"}
    with pytest.raises(Rejected) as caught:
        build(folder(files))
    (line,) = caught.value.lines
    assert line.startswith("README.md:3: test value of handler.py:5 (fingerprint ")
    fingerprint = line[-17:-1]
    assert build(folder(files), allow=[fingerprint]).allowed[0].fingerprint == fingerprint


def test_a_secret_stops_the_build_until_its_fingerprint_is_allowed(folder):
    place = folder({"handler.py": f"{CODE}KEY = '{AWS}'\n"})
    with pytest.raises(Rejected) as caught:
        build(place)
    (line,) = caught.value.lines
    assert line.startswith("handler.py:3: aws access key (fingerprint ")
    assert AWS not in caught.value.message
    fingerprint = line[-17:-1]
    allowed = build(place, allow=[fingerprint, "0" * 16])
    assert [one.fingerprint for one in allowed.allowed] == [fingerprint]
    assert allowed.warnings == ("--allow 0000000000000000: nothing has this fingerprint",)
    (place / "handler.py").write_text(f"{CODE}KEY = '{AWS[:-1]}3'\n")
    with pytest.raises(Rejected):
        build(place, allow=[fingerprint])


def test_a_secret_in_the_manifest_stops_the_build(folder):
    manifest = {**MANIFEST, "inputs": [{"property": "k", "source": "static", "value": AWS}]}
    with pytest.raises(Rejected) as caught:
        build(folder({"handler.json": manifest}))
    assert caught.value.lines[0].startswith("handler.json:")


def test_dependencies_are_vendored_listed_and_not_searched(folder, index):
    wheel(index, "alpha", "1.0", {"alpha/keys.py": f"EXAMPLE = '{AWS}'\n"})
    built = build(folder({"handler.json": {**MANIFEST, "dependencies": {"alpha": "==1.0"}}}))
    files = read(built)
    assert "alpha/keys.py" in files
    document = json.loads(files["sbom.cdx.json"])
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    (part,) = document["components"]
    assert part["purl"] == "pkg:pypi/alpha@1.0"
    assert part["licenses"] == [{"license": {"id": "MIT"}}]
    assert document["metadata"]["component"]["name"] == "acme/hello"


def test_a_file_that_a_dependency_would_hide_is_refused(folder, index):
    wheel(index, "alpha", "1.0")
    files = {
        "handler.json": {**MANIFEST, "dependencies": {"alpha": "==1.0"}}, "alpha/__init__.py": "",
    }  # fmt: skip
    with pytest.raises(Rejected, match="'alpha' is in the folder and comes with a dependency too"):
        build(folder(files))


def _handler(**changes):
    return {"handler": {**MANIFEST["handler"], **changes}}


def _execution(**changes):
    return {**MANIFEST, "execution": changes}


def _input(**declared):
    return {**MANIFEST, "inputs": [{"property": "a", **declared}]}


@pytest.mark.parametrize(
    ("manifest", "where"),
    [
        ("{", "$"),
        ("[]", "$"),
        ('{"handler": {}, "handler": {}}', "$"),
        ({}, "$.handler"),
        (_handler(type=None), "$.handler.type"),
        (_handler(type="a b"), "$.handler.type"),
        (_handler(type="delay"), "$.handler.type"),
        (_handler(version="1"), "$.handler.version"),
        (_handler(runtime="ruby"), "$.handler.runtime"),
        (_handler(entrypoint="handler.py"), "$.handler.entrypoint"),
        (_handler(entrypoint="../handler.py:handle"), "$.handler.entrypoint"),
        (_handler(entrypoint="other.py:handle"), "$.handler.entrypoint"),
        (_handler(runtime="node"), "$.handler.entrypoint"),
        (_handler(publisher=""), "$.handler.publisher"),
        (_handler(licence="MIT"), "$.handler.licence"),
        ({**MANIFEST, "package": {"format": 1}}, "$.package"),
        ({**MANIFEST, "schemas": {"inputs": {}}}, "$.schemas.inputs"),
        ({**MANIFEST, "dependencies": ["alpha"]}, "$.dependencies"),
        ({**MANIFEST, "dependencies": {"alpha": 1}}, "$.dependencies.alpha"),
        ({**MANIFEST, "dependencies": {"alpha": "one"}}, "$.dependencies.alpha"),
        (_execution(memory=5000), "$.execution.memory"),
        (_execution(ttl=0), "$.execution.ttl"),
        (_execution(sandbox={"network": {"allow": ["*"]}}), "$.execution.sandbox.network.allow[0]"),
        (_input(source="env"), "$.inputs[0].source"),
        (_input(type="text"), "$.inputs[0].type"),
        (_input(source="static"), "$.inputs[0]"),
        (_input(source="vault", default="x"), "$.inputs[0]"),
        (_input(type="number", min="1"), "$.inputs[0]"),
        (_input(type="string", pattern="("), "$.inputs[0]"),
        (_input(type="number", min=2, default=1), "$.inputs[0]"),
    ],
)
def test_an_invalid_manifest_is_refused_with_the_place(folder, manifest, where):
    with pytest.raises(Rejected) as caught:
        build(folder({"handler.json": manifest}))
    assert where in caught.value.message
    assert caught.value.message.count("\n") <= 2


def test_all_problems_of_all_sources_are_told_at_once(folder):
    files = {
        "handler.py": "def handle(:\n",
        "lib/a.py": "\n\nx = (\n",
        "lib/b.py": "import pytest\npytest",
    }
    with pytest.raises(Rejected) as caught:
        build(folder(files))
    assert [line.partition(": ")[0] for line in caught.value.lines] == [
        "handler.py:1", "lib/a.py:3", "lib/b.py:1",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["handler.sig", "sbom.cdx.json"])
def test_what_the_build_makes_may_not_be_there(folder, name):
    with pytest.raises(Rejected, match="is made by the build"):
        build(folder({name: "{}"}))


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(Rejected, match=r"it has no handler\.json"):
        build(Path(tmp_path))


def test_a_link_is_refused(folder):
    place = folder()
    (place / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(Rejected, match="symbolic link"):
        build(place)
