"""Which shared libraries the standard library's extension modules need, read from the ELF files.

The private root carries those files and no other: not the host's whole library folder. Reads only
the dynamic section (elf(5), System V gABI chapter 5); loads and runs nothing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator

__all__ = ["library_closure", "mapped_libraries"]

_PT_LOAD, _PT_DYNAMIC = 1, 2
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
    loaded = mapped_libraries()
    folders = list(dict.fromkeys(os.path.dirname(path) for path in sorted(loaded)))
    folders = [f for f in folders if "lib-dynload" not in f] + ["/lib64", "/usr/lib64", "/usr/lib"]
    present = {os.path.basename(path) for path in loaded}
    found: dict[str, str] = {}
    queue = [name for module in modules for name in _needed(module)] + list(_WHEEL_LIBRARIES)
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


def _needed(path: str) -> Iterator[str]:
    with open(path, "rb") as file:
        data = file.read()
    if data[:6] != b"\x7fELF\x02\x01":  # 64 bits, little endian: all that we run on
        return
    (offset,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = []
    dynamic = None
    for number in range(count):
        at = offset + number * size
        kind, _flags, start, address, _physical, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == _PT_LOAD:
            segments.append((address, start, length))
        elif kind == _PT_DYNAMIC:
            dynamic = (start, length)
    if dynamic is None:
        return
    entries = list(struct.iter_unpack("<QQ", data[dynamic[0] : dynamic[0] + dynamic[1] // 16 * 16]))
    table = next((value for tag, value in entries if tag == _DT_STRTAB), 0)
    base = next((table - a + s for a, s, n in segments if a <= table < a + n), None)
    if base is None:
        return
    for tag, value in entries:
        if tag == 0:
            return
        if tag == _DT_NEEDED:
            yield data[base + value : data.index(b"\0", base + value)].decode()
