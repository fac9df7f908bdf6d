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
# As the sandbox shows it to the handler, for tracebacks.
PACKAGE = "/package"


def main() -> None:
    """Compile the folder named by the first argument."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    warnings.simplefilter("ignore")
    json.dump(list(_wrong(sys.argv[1])), sys.stdout)


def _wrong(folder: str) -> Iterator[tuple[str, int, str]]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for file in sorted(names):
            if not file.endswith(".py"):
                continue
            path = Path(place, file)
            source = path.read_bytes()
            shown = f"{PACKAGE}/{path.relative_to(folder)}"
            try:
                code = compile(source, shown, "exec", dont_inherit=True)
            except SyntaxError as exc:
                yield str(path.relative_to(folder)), exc.lineno or 1, exc.msg
            except ValueError as exc:  # a null byte
                yield str(path.relative_to(folder)), 1, str(exc)
            except (MemoryError, RecursionError):
                yield str(path.relative_to(folder)), 1, "nested too deeply or too big to compile"
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
