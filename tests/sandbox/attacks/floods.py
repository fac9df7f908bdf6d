"""Attacks that fill: logs, memory, address space, threads, descriptors, kernel buffers.

A success is more than the limit that the attack states. Harmless to a host that lets one
succeed: each stops at a few times its limit and gives back what it took.
"""

from __future__ import annotations

from attacks.attack import Attack, tried
from attacks.results import CHANNEL
from sandbox import Ending, Limits, Reply

__all__ = ["FLOODS"]

_LOG_BYTES = 10_000
_LOGS = Limits(wall_ms=20_000, log_bytes=_LOG_BYTES, log_rate=50)
_MIB = 1024 * 1024
_MEMORY = Limits(wall_ms=20_000, memory_bytes=64 * _MIB, threads=32, temp_bytes=_MIB)


def _too_much_kept(reply: Reply) -> bool:
    """The bytes as the limit counts them, with room for one line that says that it was reached."""
    kept = sum(len(line.message.encode()) + 100 for line in reply.logs)
    return kept > _LOG_BYTES + 300


def _log_flood(body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{CHANNEL}\ndef handle(input, ctx):\n{lines}"


_KEPT: tuple[Attack, ...] = tuple(
    Attack(
        name,
        "more of its log kept than allowed",
        _log_flood(body),
        False,
        limits=_LOGS,
        won=_too_much_kept,
    )
    for name, body in (
        ("log-calls", "for n in range(3000): ctx.log.info('x' * 90, number=n)"),
        ("log-prints", "for n in range(3000): print('x' * 90)"),
        ("log-writes", "for n in range(300): os.write(1, b'x' * 90 + b'\\n')"),
        ("log-one-line", "os.write(1, b'x' * 200_000)\nprint('y' * (1 << 20), end='')"),
        ("log-empty-lines", "os.write(2, b'\\n' * 60000)\nprint('\\n' * 60000)"),
        (
            "log-two-streams",
            "for n in range(100):\n    os.write(1, b'x' * 200)\n    os.write(2, b'y' * 200)",
        ),
        ("log-fields", "for n in range(100): ctx.log.info('x', field='y' * 1000)"),
        ("log-control", "for n in range(200): print('\\x1b[2J\\x00\\r\\x07' * 20)"),
        (
            "log-past-the-shim",
            "channel()._log_left = 1 << 60\nfor n in range(500): ctx.log.info('x' * 100)",
        ),
        (
            "log-by-frames",
            "line = framed(b'L', {'stream': 'log', 'level': 'info', 'message': 'x' * 100})\n"
            "for n in range(500): send(line)",
        ),
        (
            "log-as-somebody",
            "send(framed(b'L', {'stream': 'daemon', 'level': 'error', 'message': 'x' * 20000}))",
        ),
    )
)


def _filled(body: str, imports: str, over: str) -> str:
    """Take until it is refused, give back, and compare with the limit."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return tried(
        f"total, keep = 0, []\ntry:\n{lines}"
        f"except (OSError, MemoryError, RuntimeError, ValueError):\n    pass\n"
        f"keep.clear()\nreturn total > {over}",
        imports,
    )


_TAKEN: tuple[Attack, ...] = tuple(
    Attack(name, success, _filled(body, imports, over), is_open, limits=_MEMORY)
    for name, success, body, imports, over, is_open in (
        (
            "memory-heap",
            "twice the memory allowed",
            "while total < 160 << 20:\n    keep.append(bytearray(b'x' * (1 << 20)))\n"
            "    total += 1 << 20",
            "os",
            "128 << 20",
            True,
        ),
        (
            "memory-mapped",
            "twice the memory allowed, mapped for itself",
            "while total < 160 << 20:\n    keep.append(mmap.mmap(-1, 1 << 20))\n"
            "    keep[-1].write(b'x' * (1 << 20))\n    total += 1 << 20",
            "mmap",
            "128 << 20",
            True,
        ),
        (
            "memory-shared",
            "twice the memory allowed, as shared memory",
            "while total < 160 << 20:\n"
            "    keep.append(mmap.mmap(-1, 1 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS))\n"
            "    keep[-1].write(b'x' * (1 << 20))\n    total += 1 << 20",
            "mmap",
            "128 << 20",
            True,
        ),
        (
            "memory-by-threads",
            "stacks beyond the memory allowed",
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "libc.mmap.restype = ctypes.c_long\n"
            "while total < 160 << 20:\n"
            "    where = libc.mmap(0, 8 << 20, 3, 0x20022, -1, 0)\n"
            "    if where == -1: raise MemoryError\n"
            "    ctypes.memset(where, 1, 8 << 20)\n    total += 8 << 20",
            "ctypes",
            "128 << 20",
            True,
        ),
        (
            "address-space",
            "a terabyte of addresses",
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "libc.mmap.restype = ctypes.c_long\n"
            "where = libc.mmap(0, ctypes.c_size_t(1 << 40), 0, 0x4022, -1, 0)\n"
            "total = where != -1\n"
            "if total: libc.munmap(ctypes.c_void_p(where), ctypes.c_size_t(1 << 40))",
            "ctypes",
            "0",
            True,
        ),
        (
            "mapping-count",
            "more mappings than its address space has room for",
            "for total in range(40_000):\n    keep.append(mmap.mmap(-1, 4096, prot=1 + total % 2))",
            "mmap",
            "35_000",
            True,
        ),
        (
            "thread-bomb",
            "more threads than allowed",
            "stop = threading.Event()\n"
            "try:\n"
            "    for total in range(120):\n"
            "        threading.Thread(target=stop.wait, daemon=True).start()\n"
            "finally:\n    stop.set()",
            "threading",
            "32",
            True,
        ),
        (
            "fork-bomb",
            "more than one process",
            "pid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)\ntotal = 1",
            "os",
            "0",
            True,
        ),
        (
            "descriptors",
            "more descriptors than allowed",
            "for total in range(400):\n    keep.append(open('/dev/null'))",
            "os",
            "256",
            True,
        ),
        (
            "descriptor-number",
            "a descriptor beyond the limit",
            "total = os.dup2(1, 700)\nos.close(700)",
            "os",
            "256",
            True,
        ),
        (
            "pipe-memory",
            "more of the kernel's memory in pipes than its descriptors account for",
            "while total < 24 << 20:\n"
            "    a, b = os.pipe()\n    keep += [os.fdopen(a, 'rb', 0), os.fdopen(b, 'wb', 0)]\n"
            "    os.set_blocking(b, False)\n    total += os.write(b, bytes(65536))",
            "os",
            "16 << 20",
            True,
        ),
        (
            "socket-memory",
            "more of the kernel's memory in socket pairs than its descriptors account for",
            "while total < 80 << 20:\n"
            "    pair = socket.socketpair()\n    keep += pair\n"
            "    for one in pair:\n        one.setblocking(False)\n"
            "        try:\n            while True: total += one.send(bytes(65536))\n"
            "        except BlockingIOError: pass",
            "socket",
            "64 << 20",
            True,
        ),
        (
            "core-dump",
            "a core file of any size",
            "total = resource.getrlimit(resource.RLIMIT_CORE)[1]",
            "resource",
            "0",
            False,
        ),
        (
            "file-size",
            "a file, where nothing can be written",
            "total = os.open('/package/x', os.O_CREAT | os.O_WRONLY)",
            "os",
            "0",
            False,
        ),
    )
)

# What the pool has to read and parse for it costs everybody's time, kept or not.
_SENT: tuple[Attack, ...] = tuple(
    Attack(
        name,
        "a hundred times its log, read and parsed by the pool as if it were little",
        _log_flood(
            f"pad = b'[' + b'[],' * 100_000 + b'0]'\n"
            f"line = {line}\n"
            "for _ in range(12): send(framed(b'L', line))\n"
            "return 'all was taken'"
        ),
        False,
        limits=_LOGS,
        won=lambda reply: reply.ending is Ending.RESULT,
    )
    for name, line in (
        (
            "log-padded-with-names",
            'b\'{"stream":"stdout","level":null,"message":"","pad":\' + pad + b"}"',
        ),
        ("log-padded-with-space", 'b\' \' * 300_000 + b\'{"stream":"stdout","message":""}\''),
    )
)

FLOODS: tuple[Attack, ...] = _KEPT + _TAKEN + _SENT
