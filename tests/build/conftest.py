"""Folders of handlers for the tests of the build, and an index of packages on this disk."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest

MANIFEST = {"handler": {"type": "acme/hello", "version": "1.0.0"}}
CODE = "def handle(input, ctx):\n    return {'hello': input['name']}\n"


@pytest.fixture
def folder(tmp_path):
    """Makes a handler's folder of files by name; handler.json may be a dict."""

    def make(files=None, name="hello"):
        whole = {"handler.json": MANIFEST, "handler.py": CODE} | (files or {})
        for file, content in whole.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                content = json.dumps(content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path / name

    return make


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels and sources that pip uses instead of the network."""
    place = tmp_path / "index"
    place.mkdir()
    for name in ("PIP_NO_BINARY", "PIP_ONLY_BINARY", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def wheel(place: Path, name: str, version: str, files=None, requires=(), tag="py3-none-any"):
    info = f"{name}-{version}.dist-info"
    whole = {f"{name}/__init__.py": f"VERSION = {version!r}\n", **(files or {})}
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    whole[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nLicense: MIT\n{needs}"
    )
    whole[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: {tag}\n"
    )
    whole[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in [*whole, f"{info}/RECORD"])
    with zipfile.ZipFile(place / f"{name}-{version}-{tag}.whl", "w") as out:
        for file, text in whole.items():
            out.writestr(file, text)


def sdist(place: Path, name: str, version: str, setup: str, project: str | None = None) -> Path:
    path = place / f"{name}-{version}.tar.gz"
    files = {"setup.py": setup, "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\n"}
    if project is not None:
        files["pyproject.toml"] = project
    with tarfile.open(path, "w:gz") as out:
        for file, text in files.items():
            entry = tarfile.TarInfo(f"{name}-{version}/{file}")
            entry.size = len(text.encode())
            out.addfile(entry, io.BytesIO(text.encode()))
    return path
