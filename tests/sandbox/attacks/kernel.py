"""Attacks by the kernel's wider surface: namespaces, mounts, keys, rings, tracing, the machine.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import Attack, call, tried

__all__ = ["FATAL", "KERNEL"]

KERNEL: tuple[Attack, ...] = (
    # kernel surfaces
    Attack("unshare-user", "a new user namespace", call("syscall(272, 0x10000000)")),
    Attack("unshare-mount", "a new mount namespace", call("syscall(272, 0x20000)")),
    Attack("setns", "another namespace", call("syscall(308, 3, 0)"), open=False),
    Attack("mount", "a mount", call("libc.mount(b'x', b'/package', b'tmpfs', 0, 0)"), open=False),
    Attack("umount", "a mount taken away", call("libc.umount2(b'/package', 2)"), open=False),
    Attack("pivot-root", "another root", call("syscall(155, b'/', b'/')"), open=False),
    Attack("chroot", "another root", tried("os.chroot('/')\nreturn True")),
    Attack("open-tree", "a detached mount", call("syscall(428, -100, b'/', 1)")),
    Attack("fsopen", "a file system", call("syscall(430, b'tmpfs', 0)")),
    Attack(
        "mknod",
        "a device",
        tried("os.mknod('/package/x-node', 0o20600, 0x101)\nreturn True"),
        False,
    ),
    Attack("keyctl", "a key ring", call("syscall(250, 0, -3, 1)"), open=False),
    Attack("add-key", "a key", call("syscall(248, b'user', b'x', b'y', 1, -3)"), open=False),
    Attack("io-uring", "a ring", call("syscall(425, 1, b'\\0' * 120)"), open=False),
    Attack(
        "bpf",
        "a map",
        call("syscall(321, 0, b'\\1\\0\\0\\0\\4\\0\\0\\0\\4\\0\\0\\0\\1' + bytes(60), 72)"),
        False,
    ),
    Attack("userfaultfd", "a page fault handler", call("syscall(323, 1)")),
    Attack("perf", "a counter", call("syscall(298, bytes(128), 0, -1, -1, 0)"), open=False),
    Attack("personality", "another personality", call("syscall(135, 0xFFFFFFFF)")),
    Attack("ldt", "a segment", call("syscall(154, 0, 0, 0)")),
    Attack("quota", "a quota", call("syscall(179, 0, 0, 0, 0)"), open=False),
    Attack("module", "a kernel module", call("syscall(175, 0, 0, b'')"), open=False),
    Attack("reboot", "a reboot", call("syscall(169, 0, 0, 0, 0)"), open=False),
    Attack(
        "hostname",
        "the right to change the host's name: it is set to what it is",
        tried("socket.sethostname(socket.gethostname())\nreturn True"),
    ),
    Attack("host-name-read", "the host's name", tried("return socket.gethostname() != 'sandbox'")),
    Attack("shm", "shared memory", call("syscall(29, 0, 4096, 0o1600)"), open=False),
    Attack("message-queue", "a queue", call("syscall(68, 0, 0o1600)"), open=False),
    Attack("inotify", "a watch on files", call("syscall(294, 0)")),
    Attack("fanotify", "a watch on a file system", call("syscall(300, 0, 0)"), open=False),
    Attack("seccomp-again", "a filter of its own", call("syscall(317, 1, 0, 0)"), open=False),
    Attack(
        "flock",
        "a lock on a file that others share",
        tried("f = open(os.__file__)\nfcntl.flock(f, fcntl.LOCK_SH)\nreturn True", "os, fcntl"),
    ),
    Attack(
        "record-lock",
        "a lock on a file that others share",
        tried("f = open(os.__file__)\nfcntl.lockf(f, fcntl.LOCK_SH)\nreturn True", "os, fcntl"),
    ),
    Attack(
        "terminal-input",
        "a character pushed into a terminal",
        call("libc.ioctl(0, ctypes.c_ulong(0x5412), b'x')"),
        open=False,
    ),
    Attack(
        "terminal-input-high-bits",
        "the same past a filter that compares 64 bits",
        call("syscall(16, 0, 0x100005412, b'x')"),
        open=False,
    ),
)

# A call of x32 or of 32 bits must kill: there is nobody to return an error to.
FATAL: tuple[Attack, ...] = (
    Attack("x32", "a result of the x32 getpid", call("syscall(0x40000000 + 39)"), open=False),
)
