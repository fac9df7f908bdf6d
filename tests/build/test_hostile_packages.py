"""Built packages are exactly their list: hostile ones are refused with the reason, and nothing
that a mutation makes is read as another package."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import warnings
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowmonkeyd.documents.archive import (
    MANIFEST,
    SIGNATURE,
    content_digest,
    listed_files,
    pack_files,
    read_archive,
)
from flowmonkeyd.errors import Invalid
from flowmonkeyd.packages import Packages

CODE = b"def handle(input, ctx):\n    return input\n"
DOCUMENT = {"handler": {"type": "acme/hello", "version": "1.0.0"}}
OWN = {"handler.py": CODE, "lib/data.txt": b"data " * 50, "sbom.cdx.json": b"{}"}


def manifest(files=None, document=None, **package):
    """handler.json of a built package; `package` replaces its fields, None takes one out."""
    whole = {"format": 1, "files": listed_files(files or OWN), "builder": "flowmonkey/1.0.0"}
    whole = {name: value for name, value in (whole | package).items() if value is not None}
    return json.dumps({**(document or DOCUMENT), "package": whole}).encode()


def says(package):
    return json.dumps({**DOCUMENT, "package": package}).encode()


def zipped(*entries, comment=b""):
    """A ZIP of (name, content, changes to its ZipInfo) in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name, content, *changes in entries:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for field, value in (changes[0] if changes else {}).items():
                setattr(info, field, value)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that stand twice
                out.writestr(info, content)
        out.comment = comment
    return buffer.getvalue()


def package(*more, files=OWN, first=None, changes=None):
    """The built package of OWN, with some entries changed, and more at its end."""
    own = [(name, data, (changes or {}).get(name, {})) for name, data in sorted(files.items())]
    return zipped((MANIFEST, manifest() if first is None else first), *own, *more)


def mode(kind):
    return {"external_attr": kind << 16}


def patched(data, old, new):
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


GOOD = package()
SIGNED = zipped((MANIFEST, manifest()), (SIGNATURE, b"{}"), *sorted(OWN.items()))
LIST = listed_files(OWN)
ZEROS = bytes(9_000_000)
BIG = {**OWN, "zeros": ZEROS}
STORED = {"compress_type": zipfile.ZIP_STORED}


def flagged(data, bits):
    """With general purpose bits set in every header (APPNOTE.TXT 4.4.4)."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(signature)
        while at >= 0:
            changed[at + offset] |= bits
            at = changed.find(signature, at + 1)
    return bytes(changed)


def zip64(data):
    """With ZIP64's end record and its locator before the other one."""
    at = len(data) - 22
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 4, 4, 0, at)
    return data[:at] + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1) + data[at:]


def between(data):
    """Bytes that no reader looks at, between the files and the list of files."""
    end = struct.unpack("<4s4H2LH", data[-22:])
    return data[: end[6]] + b"hidden" + data[end[6] : -22] + struct.pack(
        "<4s4H2LH", *end[:6], end[6] + 6, 0
    )  # fmt: skip


HOSTILE = [
    # what the list says
    (package(("more.py", b"import os")), "'more.py' is not in the list"),
    (package(files={**OWN, "handler.py": b"evil"}, first=manifest()), "its SHA-256 differs"),
    (package(files={"handler.py": CODE}, first=manifest()), "'lib/data.txt' is in the list"),
    (package(first=manifest(files={**OWN, "x": b""})), "'x' is in the list"),
    (package(first=manifest(files={"handler.py": CODE})), "'lib/data.txt' is not in the list"),
    (package(first=manifest(format=2)), "its format is not 1"),
    (package(first=manifest(format=None)), "its format is not 1"),
    (package(first=manifest(format="1")), "its format is not 1"),
    (package(first=says({"format": 1})), "no package.files"),
    (package(first=says({"format": 1, "files": []})), "no package.files"),
    (package(first=says({"format": 1, "files": {}})), "is not in the list"),
    (package(first=says([])), "is not an object"),
    (package(first=manifest().replace(LIST["handler.py"].encode(), b"A" * 64)), "SHA-256 differs"),
    (package(first=manifest().replace(LIST["handler.py"].encode(),
                                      LIST["handler.py"].upper().encode())), "SHA-256 differs"),
    (package(first=manifest().replace(f'"{LIST["handler.py"]}"'.encode(), b"null")),
     "SHA-256 differs"),
    # the order
    (zipped(("handler.py", CODE), (MANIFEST, manifest()), *sorted(OWN.items())[1:]),
     "its entries are not"),
    (zipped((MANIFEST, manifest()), *sorted(OWN.items(), reverse=True)), "its entries are not"),
    (zipped((MANIFEST, manifest()), *sorted(OWN.items()), (SIGNATURE, b"{}")),
     "its entries are not"),
    (zipped((SIGNATURE, b"{}"), (MANIFEST, manifest()), *sorted(OWN.items())),
     "its entries are not"),
    (zipped((MANIFEST, manifest()), ("lib/", b"", STORED), *sorted(OWN.items())),
     "its entries are not"),
    (zipped((MANIFEST, json.dumps(DOCUMENT).encode()), (SIGNATURE, b"{}"), ("handler.py", CODE)),
     "signed and was not built"),
    # two files that are one somewhere
    (package(("Handler.py", b"evil")), "stands twice"),
    (package(("handler.py", b"evil")), "stands twice"),
    (package(("HANDLER.JSON", b"{}")), "stands twice"),
    (package(("Handler.SIG", b"{}"), ("handler.sig", b"{}")), "stands twice"),
    (package(("handler.py/x", b"")), "both a file and a folder"),
    (package(("cafe\u0301.txt", b"")), "composed form"),
    (package(("caf\u00e9.txt", b""), ("CAF\u00c9.txt", b"")), "stands twice"),
    # names that lead elsewhere
    (package(("../handler.py", b"evil")), "'..' part"),
    (package(("lib/../../x", b"")), "'..' part"),
    (package(("/etc/cron.d/x", b"")), "is absolute"),
    (package(("lib\\x", b"")), "characters"),
    (package(("C:x", b"")), "characters"),
    (patched(package(("abc.txt", b"")), b"abc.txt", b"ab\0.txt"), "characters"),
    (package(("x\n", b"")), "characters"),
    (package(("a" * 300, b"")), "more than 255 bytes"),
    (package(("a/" * 20 + "b", b"")), "deeper than 16"),
    # what is no regular file
    (package(("x", b"/etc/passwd", mode(stat.S_IFLNK | 0o777))), "link, device or folder"),
    (package(("x", b"", mode(stat.S_IFBLK | 0o600))), "link, device or folder"),
    (package(("x", b"", mode(stat.S_IFSOCK | 0o600))), "link, device or folder"),
    (package(changes={"handler.py": mode(stat.S_IFLNK | 0o777)}), "link, device or folder"),
    # ways of packing
    (flagged(GOOD, 0x0001), "encrypted or was written as a stream"),
    (flagged(GOOD, 0x0008), "encrypted or was written as a stream"),
    (flagged(GOOD, 0x0040), "encrypted or was written as a stream"),
    (package(("x", b"x", {"compress_type": zipfile.ZIP_BZIP2})), "neither stored nor deflated"),
    (package(("x", b"x", {"compress_type": zipfile.ZIP_LZMA})), "neither stored nor deflated"),
    (package(("x", b"x", {"extra": struct.pack("<2HQ", 1, 8, 1)})), "extra field"),
    (package(("x", b"x", {"comment": b"c"})), "comment"),
    (zip64(GOOD), "end record"),
    # bytes around and between
    (GOOD + b"\0", "bytes follow it"),
    (b"MZ" + GOOD, "end record does not describe it"),
    (GOOD[:-30], "not a ZIP archive"),
    (between(GOOD), "bytes between"),
    (GOOD + GOOD, "end record does not describe it"),
    (zipped((MANIFEST, manifest()), *sorted(OWN.items()), comment=b"PK"), "bytes follow it"),
    # too much
    (package(files=BIG, first=manifest(files=BIG)), "grows more than 200 times"),
    (package(*((f"{n}", b"") for n in range(1000))), "1 to 1000 are allowed"),
    (package(("x", bytes(10 * 1024 * 1024 + 1), STORED)),
     "a file may have"),
    # sizes and sums that are not true
    (patched(GOOD, struct.pack("<L", zlib.crc32(CODE)), b"\0\0\0\0"), "checksum is wrong"),
    (patched(GOOD, struct.pack("<L", len(OWN["lib/data.txt"])), struct.pack("<L", 251)),
     "damaged"),
]  # fmt: skip


def test_the_good_ones_are_read():
    assert read_archive(GOOD) == {MANIFEST: manifest(), **OWN}
    assert read_archive(SIGNED) == {MANIFEST: manifest(), SIGNATURE: b"{}", **OWN}
    assert len(HOSTILE) >= 40


@pytest.mark.parametrize(("data", "why"), HOSTILE)
def test_a_hostile_package_is_refused_with_the_reason_and_leaves_nothing(tmp_path, data, why):
    packages = Packages(tmp_path / "packages")
    packages.open()
    with pytest.raises(Invalid) as caught:
        packages.receive(data)
    assert why in caught.value.message
    assert caught.value.message.startswith("cannot read the package: ")
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_signature_does_not_make_another_package():
    assert content_digest(read_archive(GOOD)) == content_digest(read_archive(SIGNED))


def test_what_is_packed_is_a_list_that_is_kept():
    files = {MANIFEST: manifest(), **OWN}
    assert read_archive(pack_files(files)) == files
    with pytest.raises(Invalid, match="SHA-256 differs"):
        pack_files({**files, "handler.py": b"other"})
    with pytest.raises(Invalid, match="is not in the list"):
        pack_files({**files, "more": b""})
    with pytest.raises(Invalid, match="signed and was not built"):
        pack_files({MANIFEST: json.dumps(DOCUMENT).encode(), SIGNATURE: b"{}"})


PACKED = pack_files({MANIFEST: manifest(), SIGNATURE: b'{"signature": ""}', **OWN})
DIGEST = hashlib.sha256(manifest()).hexdigest()
MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), st.integers(0, len(PACKED) - 1), st.integers(1, 255)),
        st.tuples(st.just("cut"), st.integers(0, len(PACKED)), st.integers(1, 64)),
        st.tuples(st.just("insert"), st.integers(0, len(PACKED)), st.binary(max_size=32)),
        st.tuples(st.just("copy"), st.integers(0, len(PACKED)), st.integers(0, len(PACKED))),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=1000, deadline=None)
@given(MUTATIONS)
def test_a_mutated_package_is_the_same_one_or_refused(mutations):
    """An altered byte of a file is refused by the list; of the manifest, by its signature, which
    is why the manifest is compared here."""
    data = bytearray(PACKED)
    for kind, at, what in mutations:
        if kind == "flip" and at < len(data):
            data[at] ^= what
        elif kind == "cut":
            del data[at : at + what]
        elif kind == "insert":
            data[at:at] = what
        elif kind == "copy":
            data[at:at] = PACKED[what : what + 40]
    try:
        files = read_archive(bytes(data))
    except Invalid:
        return
    if hashlib.sha256(files[MANIFEST]).hexdigest() == DIGEST:
        assert {n: d for n, d in files.items() if n not in (MANIFEST, SIGNATURE)} == OWN
