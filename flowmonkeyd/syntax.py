"""A program: says which Python files below the folder it is given are not Python.

`packages` runs it in a process of its own, because compiling a stranger's text can take a third of
a gigabyte and most of a second for each megabyte and holds the interpreter's lock all the while.
It prints a JSON list of [name, line, message]; it never runs what it compiles and imports nothing
of ours.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

__all__ = ["main"]

MEMORY_BYTES_MAX = 1024 * 1024 * 1024
CPU_S_MAX = 10


def main() -> None:
    """Check the folder named by the first argument."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    warnings.simplefilter("ignore")
    json.dump(list(_wrong(sys.argv[1])), sys.stdout)


def _wrong(folder: str) -> Iterator[tuple[str, int, str]]:
    for place, folders, names in os.walk(folder):
        folders.sort()
        for file in sorted(names):
            if not file.endswith(".py"):
                continue
            path = Path(place, file)
            try:
                compile(path.read_bytes(), file, "exec", dont_inherit=True)
            except SyntaxError as exc:
                yield str(path.relative_to(folder)), exc.lineno or 1, exc.msg
            except ValueError as exc:  # a null byte
                yield str(path.relative_to(folder)), 1, str(exc)
            except (MemoryError, RecursionError):
                yield str(path.relative_to(folder)), 1, "nested too deeply or too big to compile"


if __name__ == "__main__":
    main()
