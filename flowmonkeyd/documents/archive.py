"""Handler packages as ZIP archives: write them reproducibly, read them without trust. Pure.

The reader refuses rather than repairs: what two programs could read differently (data between
entries, names that collide, wrong sizes) is not a package. The list of entries is read by the
standard library; everything it believes is checked here against the bytes, and nothing is inflated
beyond a limit. A built package also lists its files with their SHA-256 in its handler.json, and is
exactly that list. It never touches a file.
"""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowmonkeyd.documents.text import parse_json
from flowmonkeyd.errors import Invalid, Problem

__all__ = [
    "FORMAT",
    "MANIFEST",
    "SIGNATURE",
    "content_digest",
    "listed_files",
    "pack_files",
    "read_archive",
]

MANIFEST = "handler.json"
SIGNATURE = "handler.sig"
# What `package.format` in a built package's handler.json must be.
FORMAT = 1
FILES_MAX = 1000
FILE_BYTES_MAX = 10 * 1024 * 1024
TOTAL_BYTES_MAX = 50 * 1024 * 1024
# Everything stored, and the headers of the most entries with their longest names.
ARCHIVE_BYTES_MAX = TOTAL_BYTES_MAX + 2 * 1024 * 1024
# Source text shrinks 3 to 10 times and dull tables 100 times; deflate's own limit is 1032.
RATIO_MAX = 200
RATIO_FROM_BYTES = 1024 * 1024
NAME_BYTES_MAX = 512
SEGMENT_BYTES_MAX = 255  # NAME_MAX of every Linux file system
DEPTH_MAX = 16

# APPNOTE.TXT 4.3.7 and 4.3.16: local file header, end of central directory record.
_LOCAL = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_LOCATOR_BYTES = 20  # 4.3.15: where ZIP64's end record is, just before the other one
# Bits 1 and 2 say how hard the writer tried, bit 11 that the name is UTF-8. All others mean
# encryption, patches, or sizes that come after the data.
_FLAGS_ALLOWED = 0x0806
_UTF8 = 0x0800
# Times and owners, which ordinary ZIP tools write (Info-ZIP's UT and ux, NTFS's). Not among them:
# ZIP64's sizes and a second name.
_EXTRA_ALLOWED = frozenset({0x5455, 0x7875, 0x000A})
_NOT_IN_NAMES = frozenset('\\:*?"<>|')


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """A ZIP of `files` (relative name to content); the same files make the same bytes.

    handler.json comes first, then handler.sig, then the rest by name. Raises Invalid for what
    `read_archive` would refuse.
    """
    _check_names(files)
    _check_sizes({name: len(data) for name, data in files.items()})
    order = sorted(files, key=lambda name: (name != MANIFEST, name != SIGNATURE, name))
    _check_list(files, order)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in order:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, wherever this runs
            entry.external_attr = (stat.S_IFREG | 0o644) << 16
            entry.compress_type = _method(files[name])
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def read_archive(data: bytes) -> Mapping[str, bytes]:
    """The files of a ZIP held in memory, by name; folders are not kept, files make them.

    Raises Invalid for anything but regular stored or deflated files with relative, plain, distinct
    NFC names within the limits, one after the other without gaps; and, when handler.json has
    `package`, for anything but the files listed there, in the order of `pack_files`.
    """
    if len(data) > ARCHIVE_BYTES_MAX:
        raise _refused(f"it has {len(data)} bytes, and at most {ARCHIVE_BYTES_MAX} are allowed")
    entries = _entries(data)
    for entry in entries:
        _check_kind(entry)
    _check_names(entry.orig_filename for entry in entries)
    _check_sizes({e.orig_filename: e.file_size for e in entries})
    files, at = {}, 0
    entries.sort(key=lambda e: e.header_offset)
    for entry in entries:
        content, at = _content(data, entry, at)
        if not entry.orig_filename.endswith("/"):
            files[entry.orig_filename] = content
    if at != _END.unpack_from(data, len(data) - _END.size)[6]:
        raise _refused("there are bytes between its files and its list of files")
    _check_list(files, [entry.orig_filename for entry in entries])
    return files


def content_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of names and contents in hexadecimal: how they were packed makes no difference.

    handler.sig does not count: signing does not make another package.
    """
    whole = hashlib.sha256()
    for name in sorted(files.keys() - {SIGNATURE}):
        whole.update(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n".encode())
    return whole.hexdigest()


def listed_files(files: Mapping[str, bytes]) -> dict[str, str]:
    """What `package.files` of a built package must be: the SHA-256 of each file by its name, of
    all but handler.json, which holds the list, and handler.sig, which signs it."""
    names = sorted(files.keys() - {MANIFEST, SIGNATURE})
    return {name: hashlib.sha256(files[name]).hexdigest() for name in names}


def _check_list(files: Mapping[str, bytes], order: Sequence[str]) -> None:
    """`order` is the archive's own, with folders."""
    package = _package(files.get(MANIFEST))
    if package is None:
        if SIGNATURE in files:
            raise _refused("it is signed and was not built; build it, then sign it")
        return
    if package.get("format") != FORMAT:
        raise _refused(f"its format is not {FORMAT}; it needs a newer version, or another build")
    listed = package.get("files")
    if not isinstance(listed, dict):
        raise _refused("its handler.json has no package.files")
    found = listed_files(files)
    for name in sorted(found.keys() | listed.keys()):
        if name not in listed:
            raise _refused(f"{name!r} is not in the list of files of its handler.json")
        if name not in found:
            raise _refused(f"{name!r} is in the list of files of its handler.json and not there")
        if found[name] != listed[name]:
            raise _refused(f"{name!r} is not the file that was built: its SHA-256 differs")
    signed = [SIGNATURE] if SIGNATURE in files else []
    if list(order) != [MANIFEST, *signed, *sorted(found)]:
        raise _refused(f"its entries are not {MANIFEST}, {SIGNATURE} and then its files by name")


def _package(manifest: bytes | None) -> dict[str, Any] | None:
    """`package` of a handler.json that can be read; one that cannot is its reader's to refuse."""
    try:
        package = parse_json(manifest).get("package") if manifest is not None else None
    except Invalid:
        return None
    if package is not None and not isinstance(package, dict):
        raise _refused("package in its handler.json is not an object")
    return package


def _entries(data: bytes) -> list[zipfile.ZipInfo]:
    if len(data) < _END.size:
        raise _refused("it is not a ZIP archive")
    end = _END.unpack_from(data, len(data) - _END.size)
    signature, disk, first_disk, here, count, size, offset, comment = end
    if signature != b"PK\x05\x06":
        raise _refused("it is not a ZIP archive, or is cut short, or bytes follow it")
    if disk or first_disk or here != count or comment or offset + size + _END.size != len(data):
        raise _refused("its end record does not describe it (ZIP64 is not supported)")
    # The library would believe ZIP64's end record instead of the one checked here.
    if data[-_END.size - _LOCATOR_BYTES :].startswith(b"PK\x06\x07"):
        raise _refused("it has two end records (ZIP64 is not supported)")
    if not 0 < count <= FILES_MAX:
        raise _refused(f"it has {count} entries; 1 to {FILES_MAX} are allowed")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, OSError) as exc:
        raise _refused(f"its list of files cannot be read ({exc})") from None
    if len(entries) != count:
        raise _refused(f"its end record counts {count} entries and its list has {len(entries)}")
    return entries


def _check_kind(entry: zipfile.ZipInfo) -> None:
    name, folder = entry.orig_filename, entry.orig_filename.endswith("/")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if folder else stat.S_IFREG):
        raise _refused(f"{name!r} is a link, device or folder and not a regular file")
    if entry.flag_bits & ~_FLAGS_ALLOWED:
        raise _refused(
            f"{name!r} is encrypted or was written as a stream; pack it without encryption, to a "
            "file"
        )
    if entry.comment or not _plain_extra(entry.extra):
        raise _refused(f"{name!r} has a comment or an extra field that is not a time or owner")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(f"{name!r} is neither stored nor deflated (method {entry.compress_type})")
    if folder and (entry.file_size or entry.compress_size):
        raise _refused(f"{name!r} is a folder with content")
    if entry.file_size > RATIO_FROM_BYTES and entry.file_size > RATIO_MAX * entry.compress_size:
        raise _refused(f"{name!r} grows more than {RATIO_MAX} times when inflated")


def _content(data: bytes, entry: zipfile.ZipInfo, at: int) -> tuple[bytes, int]:
    """The inflated content of the entry that must start at `at`, and where it ends."""
    name = entry.orig_filename
    if entry.header_offset != at or at + _LOCAL.size > len(data):
        raise _refused(f"{name!r} does not follow the file before it")
    header = _LOCAL.unpack_from(data, at)
    signature, _, flags, method, _, _, crc, packed_size, size, name_size, extra_size = header
    listed = (entry.flag_bits, entry.compress_type, entry.CRC, entry.compress_size, entry.file_size)
    at += _LOCAL.size
    own_name = data[at : at + name_size]
    encoded = name.encode("utf-8" if flags & _UTF8 else "cp437", "replace")
    found = (flags, method, crc, packed_size, size)
    if signature != b"PK\x03\x04" or found != listed or own_name != encoded:
        raise _refused(f"{name!r} differs from what the list of files says of it")
    if not _plain_extra(data[at + name_size : at + name_size + extra_size]):
        raise _refused(f"{name!r} has an extra field that is not a time or owner")
    at += name_size + extra_size
    end = at + packed_size
    packed = data[at:end]
    content = packed if method == zipfile.ZIP_STORED else _inflated(packed, size)
    if len(packed) != packed_size or content is None or len(content) != size:
        raise _refused(f"{name!r} is damaged: its size is not what its header says")
    if zlib.crc32(content) != crc:
        raise _refused(f"{name!r} is damaged: its checksum is wrong")
    return content, end


def _plain_extra(extra: bytes) -> bool:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if kind not in _EXTRA_ALLOWED:
            return False
        at += 4 + size
    return at == len(extra)


def _inflated(packed: bytes, size: int) -> bytes | None:
    """At most one byte more than `size`; None when it is no whole deflate stream."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = stream.decompress(packed, size + 1)
    except zlib.error:
        return None
    return content if stream.eof and not stream.unused_data else None


def _check_sizes(sizes: Mapping[str, int]) -> None:
    if len(sizes) > FILES_MAX:
        raise _refused(f"it has {len(sizes)} files; at most {FILES_MAX} are allowed")
    for name, size in sizes.items():
        if size > FILE_BYTES_MAX:
            raise _refused(f"{name!r} has {size} bytes; a file may have {FILE_BYTES_MAX}")
    if sum(sizes.values()) > TOTAL_BYTES_MAX:
        raise _refused(f"its files have more than {TOTAL_BYTES_MAX} bytes together")


def _check_names(names: Iterable[str]) -> None:
    """Plain relative names, no two of which could be one file on any file system."""
    files, folders, seen = set[str](), set[str](), set[str]()
    for name in names:
        wrong = _wrong_name(name)
        if wrong:
            raise _refused(f"the name {name!r} {wrong}")
        key = unicodedata.normalize("NFC", name.removesuffix("/").casefold())
        if key in seen:
            raise _refused(f"the name {name!r} stands twice (upper and lower case are the same)")
        seen.add(key)
        (folders if name.endswith("/") else files).add(key)
        parts = key.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
    both = sorted(files & folders)
    if both:
        raise _refused(f"{both[0]!r} is both a file and a folder")


def _wrong_name(name: str) -> str | None:
    segments = name.removesuffix("/").split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        return "is absolute or has an empty, '.' or '..' part; use names below the handler's folder"
    if not name.isprintable() or _NOT_IN_NAMES & set(name) or not _encodable(name):
        return "has characters that names in a package may not have"
    if name != unicodedata.normalize("NFC", name):
        return "is not in Unicode's composed form (NFC)"
    if len(segments) > DEPTH_MAX or len(name.encode()) > NAME_BYTES_MAX:
        return f"is longer than {NAME_BYTES_MAX} bytes or deeper than {DEPTH_MAX} folders"
    if any(len(segment.encode()) > SEGMENT_BYTES_MAX for segment in segments):
        return f"has a part of more than {SEGMENT_BYTES_MAX} bytes"
    return None


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _method(content: bytes) -> int:
    """Deflate, unless the reader would take the result for a bomb."""
    big = len(content) > RATIO_FROM_BYTES
    bomb = big and len(content) > RATIO_MAX * len(zlib.compress(content))
    return zipfile.ZIP_STORED if bomb else zipfile.ZIP_DEFLATED


def _refused(why: str) -> Invalid:
    return Invalid(f"cannot read the package: {why}", problems=(Problem("$", why),))
