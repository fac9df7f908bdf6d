"""Attacks on another execution that runs at the same time: its memory, process, files, signals.

Owns the victim, a handler that holds a secret everywhere it can, and the attacks on it. Without
layers attackers find the victim by its name; within the sandbox they try every number.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from attacks.attack import SYSCALL, TEMP, Attack
from attacks.running import write_package
from sandbox import Call, LogLine, Policy, Pool

__all__ = ["NEIGHBOURS", "with_victim"]

_VICTIM = """
import ctypes, os, time
secret = b"fm-".replace(b"fm", b"FM") + b"the-victims-" + b"secret"
kept = ctypes.create_string_buffer(secret * 100)
def handle(input, ctx):
    ctypes.CDLL(None).prctl(15, b"fm-victim", 0, 0, 0)
    if input:
        open("/tmp/fm-victim", "wb").write(secret)
    ctx.log.info("%d" % ctypes.addressof(kept))
    time.sleep(50)
"""

# Without layers there is exactly one victim below the same pool; inside, all that could be one.
_FIND = f"""{SYSCALL}
import glob, socket
needle = b"FM-the-victims-" + b"secret"
def grandparent(pid):
    def parent(pid): return int(open(f"/proc/{{pid}}/stat").read().rsplit(")", 1)[1].split()[1])
    return parent(parent(pid))
def named():
    for path in glob.glob("/proc/[0-9]*/comm"):
        try:
            pid = int(path.split("/")[2])
            if open(path).read() == "fm-victim\\n" and grandparent(pid) == grandparent("self"):
                yield pid
        except OSError:
            pass
def victims():
    return list(named()) or [n for n in range(0, 400) if n != os.getpid()]
def kept(pid):
    for line in open(f"/proc/{{pid}}/maps"):
        if "[heap]" in line:
            return [int(x, 16) for x in line.split()[0].split("-")]
def each(attempt):
    for pid in victims():
        try:
            if attempt(pid): return True
        except OSError:
            pass
"""


def _on_each(body: str) -> str:
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    return f"{_FIND}\ndef attack():\n    def attempt(pid):\n{lines}    return each(attempt)\n"


_READ = """
low, high = kept(pid)
memory = ctypes.create_string_buffer(high - low)
class Span(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
ours, theirs = Span(ctypes.addressof(memory), high - low), Span(low, high - low)
libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
return needle in memory.raw
"""

NEIGHBOURS: tuple[Attack, ...] = (
    Attack("neighbour-seen", "its name", f"{_FIND}\ndef attack(): return list(named())\n"),
    Attack(
        "neighbour-status",
        "what /proc tells of it",
        _on_each("return b'' != open(f'/proc/{pid}/status', 'rb').read()"),
    ),
    Attack(
        "neighbour-files",
        "its open files",
        _on_each("return os.listdir(f'/proc/{pid}/fd')"),
    ),
    Attack(
        "neighbour-root",
        "its package, through its root",
        _on_each("return os.listdir(f'/proc/{pid}/root')"),
    ),
    Attack(
        "neighbour-memory",
        "its secret, in /proc",
        _on_each(
            "low, high = kept(pid)\nwith open(f'/proc/{pid}/mem', 'rb', 0) as memory:\n"
            "    memory.seek(low)\n    return needle in memory.read(high - low)"
        ),
    ),
    Attack("neighbour-memory-by-call", "its secret, by process_vm_readv", _on_each(_READ)),
    Attack(
        "neighbour-environment",
        "its environment",
        _on_each("open(f'/proc/{pid}/environ').read()\nreturn True"),
    ),
    Attack(
        "neighbour-signal",
        "a signal (0, which asks) that reaches it",
        _on_each("os.kill(pid, 0)\nreturn pid > 0"),
    ),
    Attack(
        "neighbour-handle",
        "a handle on its process",
        _on_each("os.close(os.pidfd_open(pid))\nreturn True"),
    ),
    Attack(
        "neighbour-descriptor",
        "its channel, through such a handle",
        _on_each("handle = os.pidfd_open(pid)\nreturn syscall(438, handle, 3, 0) >= 0"),
    ),
    Attack(
        "neighbour-traced",
        "it is traced (and let go)",
        _on_each(
            "return syscall(101, 0x4206, pid, 0, 0) == 0"  # PTRACE_SEIZE, which does not stop it
        ),
    ),
    Attack(
        "neighbour-priority",
        "its priority",
        _on_each("return pid and os.setpriority(os.PRIO_PROCESS, pid, 1) is None"),
    ),
    Attack(
        "neighbour-limits",
        "its limits",
        _on_each("import resource\nreturn pid and resource.prlimit(pid, resource.RLIMIT_CORE)"),
    ),
    Attack(
        "neighbour-affinity",
        "its CPU",
        _on_each("return pid and os.sched_setaffinity(pid, os.sched_getaffinity(pid)) is None"),
    ),
    Attack(
        "neighbour-namespace",
        "its namespaces named, to be entered",
        _on_each("return os.open(f'/proc/{pid}/ns/mnt', os.O_RDONLY) >= 0"),
    ),
    Attack(
        "neighbour-temp",
        "its file in temp",
        f"{_FIND}\ndef attack(): return glob.glob('/tmp/fm*') + glob.glob('/tmp/*/fm-victim')\n",
        False,
        TEMP,
    ),
    Attack(
        "neighbour-load",
        "the load or the tasks of the machine",
        "import os\ndef attack():\n    return os.path.exists('/proc/loadavg') or "
        "os.path.exists('/proc/sched_debug')\n",
    ),
)


@contextlib.asynccontextmanager
async def with_victim(pool: Pool, folder: Path) -> AsyncIterator[None]:
    """While this lasts, a victim runs in the pool, which needs two slots.

    Its end is its caller's cancellation.
    """
    ready = asyncio.Event()

    def on_log(_line: LogLine) -> None:
        ready.set()

    inside = {layer.name: layer.available for layer in pool.layers()}["private-root"]
    policy = TEMP if inside else Policy()
    package = write_package(folder / "victim", _VICTIM)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(pool.run(Call(package, input=inside, policy=policy), on_log))
        task.add_done_callback(lambda _task: ready.set())
        await ready.wait()
        if task.done():
            raise AssertionError(f"the victim did not live: {task.result()}")
        try:
            yield
        finally:
            alive = not task.done()
            task.cancel()
    if not alive:
        raise AssertionError("the victim did not live through the attacks")
