"""What hostile code tries: one entry an attack, each with what a success would look like.

`code` defines `attack()`; it has succeeded if it returns something true. `open` says that it does
succeed without the sandbox's layers, for root on this kind of host: that run shows that the attack
is a real one. There it runs with nothing around it, so an `open` attack must change nothing on
the host: it asks (`os.access`), repeats what is so already, or undoes what it did. The others are
harmless too if a layer should fail: they name paths that only the sandbox has.
Run as a script, prints the outcome of each as JSON (for the run as another user).
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from sandbox import Call, Limits, Policy, Pool, PoolSettings


class Attack(NamedTuple):
    """An attack and the evidence of its success."""

    name: str
    success: str
    code: str
    open: bool = True
    policy: Policy = Policy()


_SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def syscall(*arguments):
    result = libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result if result >= 0 else -ctypes.get_errno()
"""


def _call(expression: str) -> str:
    return f"{_SYSCALL}\ndef attack():\n    return {expression} >= 0\n"


def _try(body: str, imports: str = "os, socket") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"import {imports}\ndef attack():\n{lines}"


ATTACKS: tuple[Attack, ...] = (
    # files of the host
    Attack("host-passwd", "the host's users", _try("return 'root' in open('/etc/passwd').read()")),
    Attack("host-home", "a listing of root's folder", _try("return os.listdir('/root')")),
    Attack("host-var", "a listing of /var", _try("return os.listdir('/var')")),
    Attack("host-bin", "a program of the host", _try("return os.path.exists('/usr/bin/env')")),
    Attack("host-sys", "the host's kernel objects", _try("return os.listdir('/sys')")),
    Attack(
        "proc-root",
        "the host's files through another process's root",
        _try("return any('var' in os.listdir(f'/proc/{p}/root/') for p in ('self', '1'))"),
    ),
    Attack(
        "dot-dot",
        "files above the root",
        _try("os.chdir('/')\nos.chdir('../../..')\nreturn 'var' in os.listdir('.')"),
    ),
    Attack(
        "open-by-handle",
        "a file opened by its inode, past every path",
        _call("syscall(304, -100, b'\\0' * 64, os.O_RDONLY)"),
        open=False,
    ),
    Attack(
        "symlink-in-temp",
        "the host's file through a link made in temp",
        _try("os.symlink('/etc/shadow', '/tmp/x-link')\nreturn open('/tmp/x-link').read()"),
        open=False,
        policy=Policy(filesystem="temp"),
    ),
    Attack(
        "execute-from-temp",
        "a program written to temp and mapped executable",
        _try(
            "open('/tmp/x-map', 'wb').write(bytes(4096))\n"
            "f = open('/tmp/x-map', 'rb')\n"
            "m = mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)\n"
            "os.unlink('/tmp/x-map')\nreturn m is not None",
            "os, mmap",
        ),
        policy=Policy(filesystem="temp"),
    ),
    Attack(
        "write-package",
        "a changed handler, for the next execution to run",
        _try("open(os.path.dirname(__file__) + '/planted.py', 'w').write('x = 1')\nreturn True"),
    ),
    Attack(
        "write-library",
        "a changed standard library",
        _try("p = os.path.dirname(os.__file__)\nreturn os.access(p, os.W_OK)"),
    ),
    Attack("write-root", "a new file in the root", _try("return os.access('/', os.W_OK)")),
    Attack(
        "remount", "a writable root", _call("libc.mount(0, b'/package', 0, 0x1020, 0)"), open=False
    ),
    # other processes
    Attack(
        "proc-others",
        "another process in /proc",
        _try("return [p for p in os.listdir('/proc') if p.isdigit() and p != str(os.getpid())]"),
    ),
    Attack(
        "parent-environment",
        "the environment of the process above",
        _try("return open(f'/proc/{os.getppid()}/environ').read() or 'readable'"),
    ),
    Attack("parent-visible", "the parent's process id", _try("return os.getppid() != 0")),
    Attack("signal-parent", "a signal sent", _try("os.kill(os.getppid() or 2, 0)\nreturn True")),
    Attack("signal-all", "a signal to everything", _call("syscall(62, -1, 0)"), open=False),
    Attack("signal-group", "a signal to the group", _call("syscall(62, 0, 0)"), open=False),
    Attack("ptrace", "a traced parent", _call("syscall(101, 16, os.getppid() or 2, 0, 0)"), False),
    Attack(
        "process-vm-readv",
        "memory of another process",
        _call("syscall(310, os.getppid() or 2, 0, 0, 0, 0, 0)"),
    ),
    Attack("pidfd-open", "a handle on a process", _try("return os.pidfd_open(os.getpid()) >= 0")),
    Attack(
        "kcmp",
        "comparing kernel objects",
        _call("syscall(312, os.getpid(), os.getpid(), 0)"),
        False,
    ),
    Attack(
        "prlimit-set",
        "changed limits",
        _try(
            "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\nreturn True",
            "resource",
        ),
    ),
    Attack(
        "affinity",
        "more than the one CPU",
        _try("os.sched_setaffinity(0, range(os.cpu_count()))\nreturn True"),
    ),
    Attack("nice", "a changed priority", _try("os.setpriority(0, 0, 5)\nreturn True")),
    # descriptors, memory and environment of the daemon
    Attack(
        "inherited-descriptors",
        "an open descriptor beside stdin, stdout, stderr and the channel",
        _try(
            "def there(n):\n"
            "    try:\n        os.fstat(n)\n        return True\n"
            "    except OSError:\n        return False\n"
            "return [n for n in range(4, 1024) if there(n)]"
        ),
        open=False,
    ),
    Attack(
        "daemon-environment",
        "a variable of the daemon",
        _try("return os.environ.get('SANDBOX_TEST_SECRET') or 'USER' in os.environ"),
        open=False,
    ),
    Attack(
        "daemon-memory",
        "the daemon's secret in inherited memory",
        _try(
            "needle = b'EULAV_TERCES_YROMEM_TSET'[::-1]\n"
            "copies = 0\n"
            "for line in open('/proc/self/maps').read().splitlines():\n"
            "    span, mode = line.split()[:2]\n"
            "    low, high = (int(x, 16) for x in span.split('-'))\n"
            "    if mode.startswith('rw') and high - low < 1 << 26:\n"
            "        found = ctypes.string_at(low, high - low).count(needle)\n"
            "        copies += found\n"
            "return copies > 1  # one is our own needle\n",
            "ctypes",
        ),
        open=False,
    ),
    # network
    *(
        Attack(
            f"socket-{name}", "a socket of that family", _call(f"syscall(41, {family}, {kind}, 0)")
        )
        for name, family, kind in (
            ("unix", 1, 1),
            ("inet", 2, 1),
            ("inet-datagram", 2, 2),
            ("inet6", 10, 1),
            ("netlink", 16, 3),
            ("packet", 17, 3),
            ("vsock", 40, 1),
        )
    ),
    Attack(
        "resolve",
        "a name resolved",
        _try("return socket.create_connection(('127.0.0.1', 1), 1)"),
        open=False,
    ),
    Attack("interfaces", "an interface that is up", _try("return len(socket.if_nameindex()) > 0")),
    Attack(
        "socketpair-netlink", "a pair of another family", _call("syscall(53, 16, 3, 0, 0)"), False
    ),
    Attack(
        "socket-filter",
        "a program of its own in the kernel, on a socket",
        _SYSCALL
        + """
import socket, struct
def attack():
    pair = socket.socketpair()
    accept = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0xFFFF))
    program = struct.pack("H6xQ", 1, ctypes.addressof(accept))
    return syscall(54, pair[0].fileno(), 1, 26, program, 16) == 0
""",
    ),
    Attack(
        "socket-urgent-data",
        "urgent data on a socket pair",
        _try("a, b = socket.socketpair()\nreturn a.send(b'x', socket.MSG_OOB)"),
    ),
    Attack(
        "socket-other-peer",
        "the kernel looks for another peer: it says that there is none, not that it may not",
        _try(
            "a, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
            "try:\n    a.sendto(b'x', '/nowhere')\n"
            "except FileNotFoundError:\n    return True"
        ),
    ),
    Attack(
        "descriptor-in-flight",
        "a descriptor sent away, past the limit on open ones",
        _try("a, b = socket.socketpair()\nreturn socket.send_fds(a, [b'x'], [0])"),
    ),
    Attack(
        "socket-peer-process",
        "a handle on the process that made the channel, or on oneself (SO_PEERPIDFD)",
        _try("a, b = socket.socketpair()\nreturn a.getsockopt(socket.SOL_SOCKET, 77) >= 0"),
    ),
    # programs and processes
    Attack("fork", "a second process", _try("p = os.fork()\nif not p: os._exit(0)\nreturn p > 0")),
    Attack(
        "clone-process",
        "a second process: the child's answer comes from process 2",
        _SYSCALL
        + """
def attack():
    pid = syscall(56, 17, 0, 0, 0, 0)  # SIGCHLD, no CLONE_THREAD
    if pid == 0:
        os._exit(0)
    return pid > 0 and os.waitpid(pid, 0)[0] == pid
""",
    ),
    Attack("clone3", "a process by the new call", _call("syscall(435, 0, 0)"), open=False),
    Attack(
        "execute",
        "a program's output",
        _try("return subprocess.run(['/bin/true']).returncode == 0", "subprocess"),
    ),
    Attack(
        "execve-self",
        "a fresh interpreter",
        _try("os.execv('/proc/self/exe', ['python', '-c', 'pass'])", "os"),
        open=False,
    ),
    Attack("memfd", "memory that can be executed", _try("return os.memfd_create('x') >= 0")),
    Attack("set-uid", "another user", _try("os.setuid(0)\nreturn os.getuid() == 0")),
    Attack("new-session", "a daemon's own session", _try("os.setsid()\nreturn True"), open=False),
    # kernel surfaces
    Attack("unshare-user", "a new user namespace", _call("syscall(272, 0x10000000)")),
    Attack("unshare-mount", "a new mount namespace", _call("syscall(272, 0x20000)")),
    Attack("setns", "another namespace", _call("syscall(308, 3, 0)"), open=False),
    Attack("mount", "a mount", _call("libc.mount(b'x', b'/package', b'tmpfs', 0, 0)"), open=False),
    Attack("umount", "a mount taken away", _call("libc.umount2(b'/package', 2)"), open=False),
    Attack("pivot-root", "another root", _call("syscall(155, b'/', b'/')"), open=False),
    Attack("chroot", "another root", _try("os.chroot('/')\nreturn True")),
    Attack("open-tree", "a detached mount", _call("syscall(428, -100, b'/', 1)")),
    Attack("fsopen", "a file system", _call("syscall(430, b'tmpfs', 0)")),
    Attack(
        "mknod", "a device", _try("os.mknod('/package/x-node', 0o20600, 0x101)\nreturn True"), False
    ),
    Attack("keyctl", "a key ring", _call("syscall(250, 0, -3, 1)"), open=False),
    Attack("add-key", "a key", _call("syscall(248, b'user', b'x', b'y', 1, -3)"), open=False),
    Attack("io-uring", "a ring", _call("syscall(425, 1, b'\\0' * 120)"), open=False),
    Attack(
        "bpf",
        "a map",
        _call("syscall(321, 0, b'\\1\\0\\0\\0\\4\\0\\0\\0\\4\\0\\0\\0\\1' + bytes(60), 72)"),
        False,
    ),
    Attack("userfaultfd", "a page fault handler", _call("syscall(323, 1)")),
    Attack("perf", "a counter", _call("syscall(298, bytes(128), 0, -1, -1, 0)"), open=False),
    Attack("personality", "another personality", _call("syscall(135, 0xFFFFFFFF)")),
    Attack("ldt", "a segment", _call("syscall(154, 0, 0, 0)")),
    Attack("quota", "a quota", _call("syscall(179, 0, 0, 0, 0)"), open=False),
    Attack("module", "a kernel module", _call("syscall(175, 0, 0, b'')"), open=False),
    Attack("reboot", "a reboot", _call("syscall(169, 0, 0, 0, 0)"), open=False),
    Attack(
        "hostname",
        "the right to change the host's name: it is set to what it is",
        _try("socket.sethostname(socket.gethostname())\nreturn True"),
    ),
    Attack("host-name-read", "the host's name", _try("return socket.gethostname() != 'sandbox'")),
    Attack("shm", "shared memory", _call("syscall(29, 0, 4096, 0o1600)"), open=False),
    Attack("message-queue", "a queue", _call("syscall(68, 0, 0o1600)"), open=False),
    Attack("inotify", "a watch on files", _call("syscall(294, 0)")),
    Attack("fanotify", "a watch on a file system", _call("syscall(300, 0, 0)"), open=False),
    Attack("seccomp-again", "a filter of its own", _call("syscall(317, 1, 0, 0)"), open=False),
    Attack(
        "flock",
        "a lock on a file that others share",
        _try("f = open(os.__file__)\nfcntl.flock(f, fcntl.LOCK_SH)\nreturn True", "os, fcntl"),
    ),
    Attack(
        "record-lock",
        "a lock on a file that others share",
        _try("f = open(os.__file__)\nfcntl.lockf(f, fcntl.LOCK_SH)\nreturn True", "os, fcntl"),
    ),
    Attack(
        "terminal-input",
        "a character pushed into a terminal",
        _call("libc.ioctl(0, ctypes.c_ulong(0x5412), b'x')"),
        open=False,
    ),
    Attack(
        "terminal-input-high-bits",
        "the same past a filter that compares 64 bits",
        _call("syscall(16, 0, 0x100005412, b'x')"),
        open=False,
    ),
)

# A call of x32 or of 32 bits must kill: there is nobody to return an error to.
FATAL: tuple[Attack, ...] = (
    Attack("x32", "a result of the x32 getpid", _call("syscall(0x40000000 + 39)"), open=False),
)

WRAP = """
def handle(input, ctx):
    try:
        return {"succeeded": bool(attack())}
    except (OSError, ValueError, ImportError) as exc:
        return {"succeeded": False, "stopped_by": f"{type(exc).__name__}: {exc}"}
"""


def write_package(folder: Path, code: str) -> str:
    """A handler package with that code; readable by the handler's user."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    (folder / "handler.py").write_text(code)
    (folder / "handler.py").chmod(0o644)
    return str(folder)


async def run_attack(pool: Pool, folder: Path, attack: Attack) -> dict[str, object]:
    """The handler's own report, or how it ended."""
    package = write_package(folder / attack.name, attack.code + WRAP)
    limits = Limits(wall_ms=20_000)
    reply = await pool.run(Call(package, limits=limits, policy=attack.policy))
    if reply.result is None:
        return {"succeeded": False, "ending": str(reply.ending), "message": reply.message}
    if reply.result["outcome"] != "success":
        return {"succeeded": None, "broken": reply.result["error"]["message"]}
    return dict(reply.result["output"])


async def _main() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        pool = Pool(PoolSettings(slots=2))
        await pool.start()
        try:
            layers = {layer.name: layer.available for layer in pool.layers() if layer.required}
            outcomes = {a.name: await run_attack(pool, folder, a) for a in ATTACKS + FATAL}
        finally:
            await pool.close()
    return {"layers": layers, "outcomes": outcomes}


if __name__ == "__main__":
    json.dump(asyncio.run(_main()), sys.stdout)
