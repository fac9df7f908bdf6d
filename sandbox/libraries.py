"""Which shared libraries the standard library's extension modules need, read from the ELF files.

The private root carries those files and no other: not the host's whole library folder. Reads only
the dynamic section (elf(5), System V gABI chapter 5); loads and runs nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator

__all__ = ["library_closure", "mapped_libraries", "program_closure"]

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB = 1, 5
# Binary wheels (manylinux, PEP 600) may count on these of the system besides libc.
_WHEEL_LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1")


def mapped_libraries() -> set[str]:
    """Paths of the shared libraries that this process has loaded."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        paths = {line.split(maxsplit=5)[5].strip() for line in file if "/" in line}
    return {path for path in paths if ".so" in os.path.basename(path)}


def library_closure(modules: Iterable[str]) -> list[str]:
    """Paths of the libraries that the given ELF files need, and that are not loaded yet."""
    queue = [name for module in modules for name in _needed(module)] + list(_WHEEL_LIBRARIES)
    present = {os.path.basename(path) for path in mapped_libraries()}
    return _closure(queue, present, _folders())


def program_closure(program: str) -> list[str]:
    """Paths of the loader and of every library that a program starts with, where it looks for
    them; none for a static one."""
    data = _mapped(program)
    places = [(start, n) for kind, start, _a, n in _segments(data) if kind == _PT_INTERP]
    loader = [data[start : start + n].rstrip(b"\0").decode() for start, n in places]
    folders = [os.path.join(os.path.dirname(os.path.dirname(program)), "lib"), *_folders()]
    paths = _closure(list(_needed(program)), {os.path.basename(path) for path in loader}, folders)
    return loader + paths


def _folders() -> list[str]:
    folders = dict.fromkeys(os.path.dirname(path) for path in sorted(mapped_libraries()))
    return [f for f in folders if "lib-dynload" not in f] + ["/lib64", "/usr/lib64", "/usr/lib"]


def _closure(queue: list[str], present: set[str], folders: list[str]) -> list[str]:
    found: dict[str, str] = {}
    while queue:
        name = queue.pop()
        if name in found or name in present:
            continue
        candidates = (os.path.join(folder, name) for folder in folders)
        path = next((p for p in candidates if os.path.isfile(p)), None)
        if path is not None:
            found[name] = path
            queue.extend(_needed(path))
    return sorted(found.values())


def _mapped(path: str) -> mmap.mmap | bytes:
    """A file's bytes, of which only those are read that are looked at: Node has 100 MB."""
    with open(path, "rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        except ValueError:
            return b""  # it is empty


def _segments(data: mmap.mmap | bytes) -> list[tuple[int, int, int, int]]:
    """Kind, place in the file, address and length of each; none for what is no such ELF file."""
    if data[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian: all that we run on
        return []
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    found = []
    for number in range(count):
        at = offset + number * size
        kind, _flags, start, address, _physical, length = struct.unpack_from("<IIQQQQ", data, at)
        found.append((kind, start, address, length))
    return found


def _needed(path: str) -> Iterator[str]:
    data = _mapped(path)
    segments = _segments(data)
    dynamic = next((s for s in segments if s[0] == _PT_DYNAMIC), None)
    if dynamic is None:
        return
    _kind, start, _address, length = dynamic
    entries = list(struct.iter_unpack("<QQ", data[start : start + length // 16 * 16]))
    table = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    loaded = [(a, s, n) for kind, s, a, n in segments if kind == _PT_LOAD]
    base = next((table - a + s for a, s, n in loaded if a <= table < a + n), None)
    if base is None:
        return
    for tag, value in entries:
        if tag == 0:
            return
        if tag == _DT_NEEDED:
            at = base + value
            yield data[at : data.find(b"\0", at)].decode()
