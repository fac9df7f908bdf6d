"""What it takes to start Node: the program, its command line, its limits. (Placeholder.)"""

from __future__ import annotations

from typing import NoReturn

__all__ = [
    "NODE_MEMORY_MIN_BYTES",
    "PROGRAM_FD",
    "RESIDENT_BYTES",
    "THREADS",
    "data_limit",
    "find",
    "heap_mib",
    "needed_files",
    "open_program",
    "start",
]

NODE_MEMORY_MIN_BYTES = 64 << 20
RESIDENT_BYTES = 64 << 20  # of a Node that has started and runs nothing
THREADS = 16
PROGRAM_FD = 1000  # where the fork server keeps the program open (close-on-exec)


def find(program: str | None) -> str:
    """The path of a Node to use (None: the one in PATH, "": none); raises OSError, in words."""
    raise OSError(2, "node cannot be run yet")


def needed_files(program: str) -> list[str]:
    """Files of the host that the private root must have for it: loader and libraries."""
    raise NotImplementedError


def open_program(program: str) -> None:
    """In the fork server, before its private root: open it as PROGRAM_FD."""
    raise NotImplementedError


def start(heap_mib: int) -> NoReturn:
    """In the confined child: become Node, running the shim (execveat of PROGRAM_FD)."""
    raise NotImplementedError


def heap_mib(memory_bytes: int) -> int:
    """V8's old space for a memory limit."""
    return memory_bytes * 3 // 4 >> 20


def data_limit(memory_bytes: int) -> int:
    """RLIMIT_DATA for a memory limit."""
    return memory_bytes * 3 // 2 + (128 << 20)
