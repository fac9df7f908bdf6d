"""A program: compiles the Python files below the folder it is given, and says which are none.

`packages` runs it in a process of its own, because compiling a stranger's text can take a third of
a gigabyte and most of a second for each megabyte and holds the interpreter's lock all the while;
and with the interpreter of the handlers, which then need not compile. It prints a JSON list of
[name, line, message]; it never runs what it compiles and imports nothing of ours.
"""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main"]

MEMORY_BYTES_MAX = 1024 * 1024 * 1024
CPU_S_MAX = 10
# Beyond that a file is compiled when it is used: code that grows is not worth the disk.
GROWTH_MAX = 4
SMALL_BYTES = 64 * 1024
# Up to here a second process costs more than it saves.
ALONE_BYTES_MAX = 64 * 1024
# As the sandbox shows it to the handler, for tracebacks.
PACKAGE = "/package"


def main() -> None:
    """Compile the folder named by the first argument."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    files = sorted(
        (path for path in folder.rglob("*.py") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    if sum(path.stat().st_size for path in files) < ALONE_BYTES_MAX:
        found = list(_wrong(folder, files))
    else:
        found = _shared(folder, files)
    json.dump(sorted(found), sys.stdout)


def _shared(folder: Path, files: list[Path]) -> list[tuple[str, int, str]]:
    """`_wrong`, with half of the files looked at by a second process, for a second processor."""
    ours, theirs = os.pipe()
    if not os.fork():
        sys.stdout.close()  # whoever reads that waits for the first one only
        with open(theirs, "w") as told:
            json.dump(list(_wrong(folder, files[1::2])), told)
        os._exit(0)
    os.close(theirs)
    found = list(_wrong(folder, files[::2]))
    with open(ours) as told:
        return [*found, *map(tuple, json.load(told))]  # which is no JSON if it died over them


def _wrong(folder: Path, files: list[Path]) -> Iterator[tuple[str, int, str]]:
    for path in files:
        name = str(path.relative_to(folder))
        source = path.read_bytes()
        try:
            code = compile(source, f"{PACKAGE}/{name}", "exec", dont_inherit=True)
        except SyntaxError as exc:
            yield name, exc.lineno or 1, exc.msg
        except ValueError as exc:  # a null byte
            yield name, 1, str(exc)
        except (MemoryError, RecursionError):
            yield name, 1, "nested too deeply or too big to compile"
        else:
            _keep(path, source, marshal.dumps(code))


def _keep(path: Path, source: bytes, compiled: bytes) -> None:
    """Write what importlib looks for: PEP 552's hash-based file, unchecked, for a package never
    changes."""
    if len(compiled) > max(SMALL_BYTES, GROWTH_MAX * len(source)):
        return
    place = Path(importlib.util.cache_from_source(str(path), optimization=""))
    place.parent.mkdir(exist_ok=True)
    head = importlib.util.MAGIC_NUMBER + b"\x01\0\0\0" + importlib.util.source_hash(source)
    place.write_bytes(head + compiled)


if __name__ == "__main__":
    main()
