"""`flowctl handler publish`: what goes into the package, and what is refused before it is sent."""

from __future__ import annotations

import io
import os
import zipfile

import pytest
from flowctl_server import flowctl, serving


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


def _handler(folder):
    files = {
        "handler.json": '{"handler": {}}',
        "handler.py": "def handle(input, ctx): ...",
        "lib/data.txt": "x",
        "lib/.hidden": "kept",
        "__pycache__/handler.cpython-311.pyc": "no",
        "lib/__pycache__/x.pyc": "no",
        "old.pyc": "no",
        ".git/config": "no",
        ".gitignore": "no",
    }
    for name, text in files.items():
        path = folder / "resize" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "resize"


PUBLISHED = {"type": "acme/resize", "version": "1.2.0", "created": True, "warnings": []}


def test_publish_sends_the_files_of_the_folder_and_no_leftovers(daemon, tmp_path):
    folder = _handler(tmp_path)
    raw = daemon.on("PUT", "/v1/handlers", PUBLISHED, status=201)
    result = flowctl("handler", "publish", str(folder))
    assert (result.code, result.out, result.err) == (0, "acme/resize@1.2.0: published\n", "")
    assert flowctl("handler", "publish", str(folder), "-o", "json").out == raw.decode() + "\n"
    first, second = daemon.requests
    assert first.content_type == "application/zip"
    assert first.body == second.body, "the same folder makes the same package"
    with zipfile.ZipFile(io.BytesIO(first.body)) as package:
        assert sorted(package.namelist()) == [
            "handler.json",
            "handler.py",
            "lib/.hidden",
            "lib/data.txt",
        ]
        assert package.read("lib/data.txt") == b"x"


def test_publish_again_says_unchanged(daemon, tmp_path):
    daemon.on("PUT", "/v1/handlers", {**PUBLISHED, "created": False})
    result = flowctl("handler", "publish", str(_handler(tmp_path)))
    assert result.out == "acme/resize@1.2.0: unchanged\n"


@pytest.mark.parametrize("name", ["link.py", "lib/link", "folder"])
def test_publish_refuses_links_whatever_they_point_to(daemon, tmp_path, name):
    folder = _handler(tmp_path)
    (folder / name).symlink_to("/etc/passwd" if name != "folder" else "lib")
    result = flowctl("handler", "publish", str(folder))
    assert (result.code, daemon.requests) == (5, [])
    assert f"cannot pack {folder / name}: it is a symbolic link" in result.err


def test_publish_refuses_what_is_no_file(daemon, tmp_path):
    folder = _handler(tmp_path)
    os.mkfifo(folder / "pipe")
    result = flowctl("handler", "publish", str(folder))
    assert (result.code, daemon.requests) == (5, [])
    assert "it is not a regular file" in result.err


def test_publish_of_a_folder_without_a_manifest_says_so(daemon, tmp_path):
    (tmp_path / "empty").mkdir()
    result = flowctl("handler", "publish", "empty")
    assert (result.code, result.out, daemon.requests) == (5, "", [])
    assert result.err == (
        "flowctl: cannot pack empty: it has no handler.json; name a handler's folder\n"
    )
