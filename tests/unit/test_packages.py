"""Packages: archives are refused rather than repaired, and kept whole or not at all."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowmonkeyd.documents import archive
from flowmonkeyd.documents.archive import content_digest, pack_files, read_archive
from flowmonkeyd.errors import Invalid, Unavailable
from flowmonkeyd.packages import Packages

MANIFEST = {"handler": {"type": "acme/hello", "version": "1.0.0"}}
CODE = b"def handle(input, ctx):\n    return input\n"
FILES = {"handler.json": json.dumps(MANIFEST).encode(), "handler.py": CODE, "lib/a.txt": b"a" * 99}
NESTED = {"handler.json": FILES["handler.json"], "handler.py": b"x=" + b"-" * 100_000 + b"1"}


@pytest.fixture
def packages(tmp_path):
    found = Packages(tmp_path / "packages")
    found.open()
    return found


def _zip(*entries, comment=b""):
    """A ZIP of (name, content, changes to its ZipInfo), as the standard library writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content, *changes in entries:
            info = zipfile.ZipInfo(name)
            info.filename = name
            for field, value in (changes[0] if changes else {}).items():
                setattr(info, field, value)
            out.writestr(info, content)
        out.comment = comment
    return buffer.getvalue()


def _mode(mode):
    return {"external_attr": mode << 16}


def _patched(data, old, new):
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


PLAIN = _zip(("a.txt", b"text"))
TWO = _zip(("a.txt", b"text"), ("b.txt", b"more"))
DEFLATED = {"compress_type": zipfile.ZIP_DEFLATED}
BOMB = _zip(("a.txt", bytes(9_000_000), DEFLATED))
MANY = _zip(*((f"{number}.txt", b"") for number in range(1001)))
HUGE = _zip(("a.txt", bytes(10 * 1024 * 1024 + 1)))
LYING = _patched(PLAIN, struct.pack("<2L", 4, 4), struct.pack("<2L", 4, 9))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a ZIP archive"),
        (b"PK", "not a ZIP archive"),
        (b"not a zip at all, however long it may be", "not a ZIP archive"),
        (PLAIN[:-1], "cut short"),
        (PLAIN + b"x", "bytes follow it"),
        (b"#!/bin/sh\n" + PLAIN, "end record does not describe it"),
        (_zip(("a.txt", b""), comment=b"hello"), "bytes follow it"),
        (_zip(), "1 to 1000 are allowed"),
        (MANY, "1 to 1000 are allowed"),
        (HUGE, "a file may have 10485760"),
        (BOMB, "grows more than 200 times"),
        (LYING, "size is not what its header says"),
        (_patched(PLAIN, b"text", b"TEXT"), "checksum is wrong"),
        (_patched(TWO, b"b.txt", b"a.txt"), "stands twice"),
        (_patched(TWO, b"b.txt", b"A.TXT"), "stands twice"),
        (_zip(("stra\u00dfe", b""), ("STRASSE", b"")), "stands twice"),
        (_zip(("a", b""), ("a/b", b"")), "both a file and a folder"),
        (_zip(("a/", b""), ("a", b"")), "stands twice"),
        (_zip(("../a.txt", b"")), "'..' part"),
        (_zip(("a/../b", b"")), "'..' part"),
        (_zip(("/etc/passwd", b"")), "is absolute"),
        (_zip(("a//b", b"")), "is absolute or has an empty"),
        (_zip(("./a", b"")), "'.' or '..' part"),
        (_zip(("a\\b", b"")), "characters"),
        (_zip(("C:a", b"")), "characters"),
        (_zip(("a\nb", b"")), "characters"),
        (_zip(("a\u202eb", b"")), "characters"),
        (_patched(PLAIN, b"a.txt", b"a\0txt"), "characters"),
        (_zip(("e\u0301", b"")), "composed form"),
        (_zip(("a" * 256, b"")), "a part of more than 255 bytes"),
        (_zip(("/".join("a" * 17), b"")), "deeper than 16 folders"),
        (_zip(("a", b"/etc/passwd", _mode(stat.S_IFLNK | 0o777))), "link, device or folder"),
        (_zip(("a", b"", _mode(stat.S_IFIFO | 0o644))), "link, device or folder"),
        (_zip(("a", b"", _mode(stat.S_IFCHR | 0o644))), "link, device or folder"),
        (_zip(("a", b"", _mode(stat.S_IFDIR | 0o755))), "link, device or folder"),
        (_zip(("a/", b"content")), "a folder with content"),
        (_zip(("a", b"x", {"compress_type": zipfile.ZIP_BZIP2})), "neither stored nor deflated"),
        (_zip(("a", b"x", {"compress_type": zipfile.ZIP_LZMA})), "neither stored nor deflated"),
        (_zip(("a", b"x", {"extra": struct.pack("<2H4s", 0x7075, 4, b"name")})), "extra field"),
        (_zip(("a", b"x", {"comment": b"hello"})), "comment"),
    ],
)  # fmt: skip
def test_an_odd_archive_is_refused_with_the_reason(data, why):
    with pytest.raises(Invalid) as caught:
        read_archive(data)
    assert why in caught.value.message
    assert caught.value.message.startswith("cannot read the package: ")
    assert [problem.path for problem in caught.value.problems] == ["$"]


def test_two_entries_over_the_same_bytes_are_refused():
    first = PLAIN.index(b"PK\x01\x02")
    local, entry = PLAIN[:first], PLAIN[first:-22]
    other = entry.replace(b"a.txt", b"b.txt")
    size = len(entry) * 2
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, size, len(local), 0)
    with pytest.raises(Invalid, match="does not follow the file before it"):
        read_archive(local + entry + other + end)


def test_bytes_hidden_between_files_and_list_are_refused():
    first = PLAIN.index(b"PK\x01\x02")
    entries = PLAIN[first:-22]
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entries), first + 4, 0)
    with pytest.raises(Invalid, match="bytes between"):
        read_archive(PLAIN[:first] + b"evil" + entries + end)


def test_a_second_end_record_which_readers_may_believe_instead_is_refused():
    first = PLAIN.index(b"PK\x01\x02")
    entry, end = PLAIN[first:-22], PLAIN[-22:]
    bigger = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(entry), first)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, first + len(entry), 1)
    size = len(entry) + len(bigger) + len(locator)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, first, 0)
    data = PLAIN[:first] + entry + bigger + locator + end
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.namelist() == ["a.txt"], "the library reads it"
    with pytest.raises(Invalid, match="two end records"):
        read_archive(data)


def test_a_streamed_archive_is_refused_with_what_to_do():
    class Pipe(io.RawIOBase):
        def __init__(self):
            self.data = b""

        def writable(self):
            return True

        def write(self, data):
            self.data += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as out:
        out.writestr("a", b"x")
    with pytest.raises(Invalid, match="pack it without encryption, to a file"):
        read_archive(pipe.data)


def test_more_than_fifty_mebibytes_together_are_refused_before_inflating():
    content = b"".join(os.urandom(64) + bytes(4000) for _ in range(2200))
    files = [(f"{number}.bin", content) for number in range(6)]
    with pytest.raises(Invalid, match="more than 52428800 bytes"):
        read_archive(_zip(*((*file, DEFLATED) for file in files)))
    with pytest.raises(Invalid, match="more than 52428800 bytes"):
        pack_files(dict(files))


def test_folders_and_times_of_ordinary_tools_are_accepted():
    times = {"extra": struct.pack("<2HBl", 0x5455, 5, 1, 1_700_000_000)}
    data = _zip(("lib/", b"", _mode(stat.S_IFDIR | 0o755)), ("lib/a", b"x", times), ("b", b"y"))
    assert read_archive(data) == {"lib/a": b"x", "b": b"y"}


def test_what_the_zip_program_writes_is_accepted(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    try:
        subprocess.run(["zip", "-qr", "p.zip", "."], cwd=tmp_path, check=True)
    except FileNotFoundError:
        pytest.skip("there is no zip program on this machine")
    assert read_archive((tmp_path / "p.zip").read_bytes()) == FILES


_NAME = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(_NAME, st.binary(max_size=200), min_size=1, max_size=5))
def test_what_is_packed_is_read_back_and_packed_the_same_whatever_the_order(files):
    try:
        data = pack_files(files)
    except Invalid:
        return  # a name that the reader would refuse
    assert read_archive(data) == files
    backwards = dict(reversed(files.items()))
    assert pack_files(backwards) == data
    assert content_digest(backwards) == content_digest(files)


def test_a_file_that_deflates_like_a_bomb_is_packed_stored():
    files = {"zeros.bin": bytes(2_000_000)}
    assert read_archive(pack_files(files)) == files


def test_the_digest_depends_on_names_and_contents_and_not_on_packing():
    assert content_digest(read_archive(_zip(("a", b"x"), ("b", b"y")))) == content_digest(
        read_archive(pack_files({"b": b"y", "a": b"x"}))
    )
    different = [
        {"a": b"x"},
        {"a": b"y"},
        {"b": b"x"},
        {"a": b"", "b": b"x"},
        {"a": b"x", "b": b""},
    ]
    assert len({content_digest(files) for files in different}) == len(different)


_PACKED = pack_files(FILES)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(_PACKED) - 1), st.binary(max_size=4)), max_size=4),
    st.integers(0, len(_PACKED)),
)
@example([(len(_PACKED) - 1, b"\xff\xff")], len(_PACKED))
def test_a_mutated_archive_is_read_or_refused_and_never_anything_else(changes, length):
    data = bytearray(_PACKED)
    for at, new in changes:
        data[at : at + len(new)] = new
    try:
        files = read_archive(bytes(data[:length] if length % 5 == 0 else data))
    except Invalid:
        return
    assert [*map(bytes, files.values())] == [*FILES.values()]  # names or dates may differ


def test_a_package_is_kept_read_only_under_its_digest(packages):
    received = packages.receive(pack_files(FILES))
    assert received.manifest.type == "acme/hello"
    assert json.loads(received.manifest_json) == MANIFEST
    assert received.size_bytes == sum(map(len, FILES.values()))
    assert received.files == ("handler.json", "handler.py", "lib/a.txt")
    assert received.digest == content_digest(FILES)
    place = packages.path(received.digest)
    for name, content in FILES.items():
        assert (place / name).read_bytes() == content
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o444
    assert {stat.S_IMODE(p.stat().st_mode) for p in (place, place / "lib")} == {0o755}


def test_the_same_content_again_is_the_same_package_whatever_the_packing(packages):
    first = packages.receive(pack_files(FILES))
    inode = packages.path(first.digest).stat().st_ino
    again = packages.receive(_zip(*FILES.items()))
    assert again == first
    assert packages.path(again.digest).stat().st_ino == inode


def test_a_byte_order_mark_is_no_part_of_the_manifest(packages):
    marked = {**FILES, "handler.json": b"\xef\xbb\xbf" + FILES["handler.json"]}
    received = packages.receive(pack_files(marked))
    assert json.loads(received.manifest_json) == MANIFEST
    assert (packages.path(received.digest) / "handler.json").read_bytes() == marked["handler.json"]


def check_refused(packages, files, *problems):
    with pytest.raises(Invalid) as caught:
        packages.receive(pack_files(files))
    found = {(problem.path, problem.message) for problem in caught.value.problems}
    for path, message in problems:
        assert any(p == path and message in m for p, m in found), found
    assert len(found) == len(problems)
    assert list(packages.path("0" * 64).parent.iterdir()) == [], "nothing is left behind"


def _with_manifest(**handler):
    document = {"handler": {**MANIFEST["handler"], **handler}}
    return {**FILES, "handler.json": json.dumps(document).encode()}


@pytest.mark.parametrize(
    ("files", "problems"),
    [
        ({"handler.py": CODE}, [("$", "no handler.json at its top")]),
        ({"hello/handler.json": b"{}"}, [("$", "pack the folder's content, not the folder")]),
        ({**FILES, "handler.json": b"{"}, [("$", "not JSON")]),
        ({**FILES, "handler.json": b"\xff"}, [("$", "UTF-8")]),
        ({**FILES, "handler.json": b"handler: {type: a, version: 1.0.0}"}, [("$", "not JSON")]),
        (_with_manifest(versoin="1"), [("$.handler.versoin", "unknown field")]),
        (_with_manifest(entrypoint="main.py:run"), [("$.handler.entrypoint", "no file 'main.py'")]),
        (
            {**FILES, "handler.py": b"def handle(:\n", "lib/b.py": b"x = 1\ny = (\n"},
            [("handler.py:1", "invalid syntax"), ("lib/b.py:2", "'(' was never closed")],
        ),
        ({**FILES, "handler.py": b"return 1"}, [("handler.py:1", "outside function")]),
        ({**FILES, "handler.py": b"a = 1\0"}, [("handler.py:1", "null bytes")]),
        ({**FILES, "handler.py": b"# coding: nope"}, [("handler.py:1", "unknown encoding")]),
        (NESTED, [("handler.py:1", "nested too deeply")]),
        (
            {**_with_manifest(stateful=True), "x.cpython-313-x86_64-linux-gnu.so": b""},
            [("$", "another Python or machine; here it is .cpython-311-")],
        ),
        (
            {
                **FILES,
                "n/x.cpython-39-x86_64-linux-gnu.so": b"",
                "n/y.abi3.so": b"",
                "z.so": b"",
            },
            [("$", "'n/x.cpython-39-x86_64-linux-gnu.so' is made for another Python or machine")],
        ),
        ({**FILES, "x.cp311-win_amd64.pyd": b""}, [("$", "is made for another Python")]),
        (
            {**FILES, "__pycache__/handler.cpython-311.pyc": b"x", "lib/B.PYC": b"", "c.pyo": b""},
            [
                ("__pycache__/handler.cpython-311.pyc", "leave it out"),
                ("lib/B.PYC", "is compiled code"),
                ("c.pyo", "is compiled code"),
            ],
        ),
    ],
)
def test_a_bad_package_is_refused_with_every_problem_and_leaves_nothing(packages, files, problems):
    check_refused(packages, files, *problems)


def test_python_files_are_compiled_beside_the_sources_under_the_same_digest(packages):
    """PEP 552: unchecked, so that the interpreter looks at no source and no time of it."""
    sources = {**FILES, "lib/__init__.py": b"", "lib/b.py": b"def f():\n    return 17\n"}
    received = packages.receive(pack_files(sources))
    assert received.digest == content_digest(sources)
    assert received.files == tuple(sorted(sources))
    assert received.size_bytes == sum(map(len, sources.values()))
    place = packages.path(received.digest)
    for name in ("handler", "lib/__init__", "lib/b"):
        compiled = Path(importlib.util.cache_from_source(str(place / f"{name}.py")))
        content = compiled.read_bytes()
        assert content[:8] == importlib.util.MAGIC_NUMBER + b"\1\0\0\0"
        assert content[8:16] == importlib.util.source_hash(sources[f"{name}.py"])
        assert stat.S_IMODE(compiled.stat().st_mode) == 0o444
    # It is really used: the source may be anything by now.
    os.chmod(place / "lib/b.py", 0o644)
    (place / "lib/b.py").write_text("this is not python")
    program = f"import sys; sys.path[:0] = [{str(place)!r}]; import lib.b; print(lib.b.f())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "17\n", done.stderr
    compiled.unlink()
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 1


def test_code_that_grows_much_when_compiled_is_not_kept_compiled(packages):
    """A line of source can be a megabyte of code; the disk is not the uploader's."""
    grown = b"(" + b"a," * 90_000 + b")\n"
    received = packages.receive(pack_files({**FILES, "grown.py": grown * 3}))
    place = packages.path(received.digest)
    kept = {path.name for path in place.rglob("*.pyc")}
    assert not any(name.startswith("grown.") for name in kept)
    assert any(name.startswith("handler.") for name in kept)


LARGE = {f"lib/m{n}.py": b"def f():\n    return 'text'\n\n" * 1000 for n in range(5)}


def test_every_file_of_a_large_package_is_compiled(packages):
    """By two processes."""
    received = packages.receive(pack_files({**FILES, **LARGE, "folder.py/data.txt": b"x"}))
    place = packages.path(received.digest)
    sources = sum(name.endswith(".py") for name in {**FILES, **LARGE})
    assert len(list(place.rglob("__pycache__/*.pyc"))) == sources
    wrong = {name: LARGE[name] + b"y = (\n" for name in LARGE if name != "lib/m2.py"}
    said = [(f"{name}:3001", "'(' was never closed") for name in wrong]
    others = packages.path("0" * 64).parent
    with pytest.raises(Invalid) as caught:
        packages.receive(pack_files({**FILES, **LARGE, **wrong}))
    found = [(one.path, one.message) for one in caught.value.problems]
    assert found == [(path, f"is not Python: {message}") for path, message in said]
    assert os.listdir(others) == [received.digest]


def test_python_that_only_warns_is_accepted(packages):
    packages.receive(pack_files({**FILES, "handler.py": CODE + b"x = '\\d' is 'a'\n"}))


def test_a_crash_leaves_only_what_the_next_start_removes(tmp_path):
    """Kill a process while it unpacks: half a package is never under a digest."""
    program = (
        "import os, signal, sys, pathlib\n"
        "import flowmonkeyd.packages as packages\n"
        "packages._not_python = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "there = packages.Packages(pathlib.Path(sys.argv[1]))\n"
        "there.open()\n"
        "there.receive(sys.stdin.buffer.read())\n"
    )
    root = tmp_path / "packages"
    done = subprocess.run([sys.executable, "-c", program, str(root)], input=_PACKED, check=False)
    assert done.returncode == -9
    assert [name.startswith("incoming-") for name in os.listdir(root)] == [True]
    packages = Packages(root)
    packages.open()
    until = time.monotonic() + 10
    while os.listdir(root) and time.monotonic() < until:
        time.sleep(0.05)  # the compiler it had started writes its last file, and ends
        packages.open()
    assert os.listdir(root) == []
    digest = packages.receive(_PACKED).digest
    assert os.listdir(root) == [digest]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "DISK_FULL"), (errno.EACCES, "UNAVAILABLE")]
)
def test_what_cannot_be_written_is_told_and_leaves_nothing(packages, monkeypatch, number, code):
    def failing(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(Unavailable) as caught:
        packages.receive(_PACKED)
    assert caught.value.code == code
    assert caught.value.message == f"cannot keep the package: {os.strerror(number).lower()}"
    assert os.listdir(packages.path("0" * 64).parent) == []


def test_unused_packages_are_removed_and_incoming_ones_are_not(packages):
    kept = packages.receive(_PACKED).digest
    other = packages.receive(pack_files({**FILES, "lib/a.txt": b"b"})).digest
    root = packages.path(kept).parent
    (root / "incoming-now").mkdir()
    assert packages.remove_unused({kept}) == [other]
    assert sorted(os.listdir(root)) == sorted([kept, "incoming-now"])
    assert packages.remove_unused({kept}) == []


@pytest.mark.parametrize("digest", ["", "..", "../../etc", "0" * 63, "0" * 64 + "\n", "A" * 64])
def test_a_path_is_only_made_of_a_digest(packages, digest):
    with pytest.raises(ValueError, match="is not a package's digest"):
        packages.path(digest)


def test_limits_are_those_of_the_contract():
    assert (archive.FILES_MAX, archive.FILE_BYTES_MAX, archive.TOTAL_BYTES_MAX) == (
        1000,
        10 * 1024 * 1024,
        50 * 1024 * 1024,
    )
