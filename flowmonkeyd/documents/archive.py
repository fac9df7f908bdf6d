"""Handler packages as ZIP bytes: packed the same every time, read by rejecting, never repairing.

Pure: bytes in, files out. A package is a ZIP of regular files with plain names, stored or deflated,
its central directory and its local headers saying the same, nothing before, between or after. The
standard library inflates; what a stranger's archive may look like is decided here.
"""

from __future__ import annotations

import io
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Mapping

from flowmonkeyd.errors import Invalid, Problem

__all__ = ["MANIFEST", "pack_files", "read_archive"]

MANIFEST = "handler.json"
ENTRIES_MAX = 1000
FILE_BYTES_MAX = 10 * 1024 * 1024
TOTAL_BYTES_MAX = 50 * 1024 * 1024
# Text deflates 3 to 10 times; beyond this an entry of any size is a bomb.
RATIO_MAX = 100
RATIO_FROM_BYTES = 1024 * 1024
NAME_BYTES_MAX = 255

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_DATE = (1980, 1, 1, 0, 0, 0)


def pack_files(files: Mapping[str, bytes]) -> bytes:
    """The ZIP of these files: the manifest first, the rest by name, no dates, so that the same
    files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files, key=lambda name: (name != MANIFEST, name)):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def read_archive(data: bytes) -> dict[str, bytes]:
    """The files of a package. Raises Invalid, with the entry and the reason, for anything odd."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_list(archive, entries, data)
            files, total = {}, 0
            for entry in entries:
                content = _inflate(data, entry)
                total += len(content)
                if total > TOTAL_BYTES_MAX:
                    raise _refused(entry.filename, f"the package is over {TOTAL_BYTES_MAX} bytes")
                files[entry.filename] = content
            return files
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, EOFError) as exc:
        raise _refused(None, f"it is not a ZIP archive that can be read: {exc}") from None
    except (NotImplementedError, RuntimeError, OverflowError, UnicodeError) as exc:
        raise _refused(None, f"it uses what packages may not use: {exc}") from None


def _check_list(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], data: bytes) -> None:
    if not entries:
        raise _refused(None, "it is empty")
    if len(entries) > ENTRIES_MAX:
        raise _refused(None, f"it has more than {ENTRIES_MAX} entries")
    if archive.comment:
        raise _refused(None, "it has a comment")
    folded: dict[str, str] = {}
    folders: set[str] = set()
    at = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        _check_entry(entry)
        key = unicodedata.normalize("NFC", entry.filename).casefold()
        if key in folded:
            raise _refused(entry.filename, f"stands twice (as {folded[key]!r})")
        folded[key] = entry.filename
        parts = key.split("/")
        folders.update("/".join(parts[:n]) for n in range(1, len(parts)))
        if entry.header_offset != at:
            raise _refused(entry.filename, "there is data between the entries")
        at = _check_local(entry, data)
    if clash := folders & folded.keys():
        raise _refused(folded[min(clash)], "is a file and a folder at once")
    if at != archive.start_dir:
        raise _refused(None, "there is data between the entries and their list")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = name.split("/")
    if (
        name != entry.orig_filename
        or not name
        or len(name.encode()) > NAME_BYTES_MAX
        or name != unicodedata.normalize("NFC", name)
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or ":" in parts[0][1:2]
        or any(ord(char) < 32 or ord(char) == 127 for char in name)
    ):
        raise _refused(name, "is not a plain relative path")
    kind = (entry.external_attr >> 16) & 0o170000
    if kind not in (0, 0o100000) or entry.is_dir():
        raise _refused(name, "is not a regular file")
    if entry.flag_bits & ~0x0806:  # deflate's level and UTF-8 names only
        raise _refused(name, "is encrypted or streamed")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(name, "is compressed in a way that is not stored or deflated")
    if entry.extra or entry.comment:
        raise _refused(name, "has an extra field or a comment")
    if entry.file_size > FILE_BYTES_MAX:
        raise _refused(name, f"is over {FILE_BYTES_MAX} bytes")


def _check_local(entry: zipfile.ZipInfo, data: bytes) -> int:
    """The local header says what the list says; where the entry's data ends."""
    start = entry.header_offset
    header = _LOCAL.unpack_from(data, start)
    magic, _, flags, method, _, _, crc, packed, size, name_length, extra_length = header
    name_at = start + _LOCAL.size
    name = data[name_at : name_at + name_length]
    encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    if (
        magic != b"PK\x03\x04"
        or flags != entry.flag_bits
        or method != entry.compress_type
        or (crc, packed, size) != (entry.CRC, entry.compress_size, entry.file_size)
        or extra_length
        or name.decode(encoding) != entry.filename
    ):
        raise _refused(entry.filename, "has a header that differs from the list's entry")
    return name_at + len(name) + int(packed)


def _inflate(data: bytes, entry: zipfile.ZipInfo) -> bytes:
    start = entry.header_offset
    name_length = _LOCAL.unpack_from(data, start)[9]
    begin = start + _LOCAL.size + name_length
    packed = data[begin : begin + entry.compress_size]
    if entry.compress_type == zipfile.ZIP_STORED:
        content = packed
    else:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        # One byte more than promised tells a lie about the size before it costs memory.
        content = inflater.decompress(packed, entry.file_size + 1)
        if not inflater.eof or inflater.unused_data or inflater.unconsumed_tail:
            raise _refused(entry.filename, "does not end where its header says")
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise _refused(entry.filename, "is not what its size and checksum say")
    if len(content) > RATIO_FROM_BYTES and len(content) > RATIO_MAX * max(1, len(packed)):
        raise _refused(entry.filename, f"is compressed more than {RATIO_MAX} times")
    return content


def _refused(name: str | None, why: str) -> Invalid:
    what = f"{name!r} {why}" if name is not None else why
    return Invalid(f"cannot accept the package: {what}", problems=(Problem(name or "$", why),))
