"""Attacks by the kernel's wider surface: namespaces, mounts, keys, rings, tracing, the machine.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import TEMP, Attack, call, tried

__all__ = ["FATAL_CALLS", "KERNEL"]

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
    *(
        Attack(f"unshare-{name}", "a new namespace", call(f"syscall(272, {flag:#x})"), is_open)
        for name, flag, is_open in (
            ("pid", 0x20000000, False),
            ("network", 0x40000000, False),
            ("ipc", 0x08000000, True),
            ("uts", 0x04000000, True),
            ("cgroup", 0x02000000, False),
            ("time", 0x00000080, False),
            ("files", 0x00000400, True),
        )
    ),
    Attack("fsconfig", "a file system's options", call("syscall(431, 3, 6, 0, 0, 0)"), open=False),
    Attack("fsmount", "a mount not yet attached", call("syscall(432, 3, 0, 0)"), open=False),
    Attack("fspick", "a mounted file system", call("syscall(433, -100, b'/', 0)")),
    Attack(
        "move-mount",
        "a mount attached",
        call("syscall(429, -100, b'/package', -100, b'/tmp', 0)"),
        open=False,
    ),
    Attack(
        "mount-setattr",
        "a root that can be written",
        call("syscall(442, -100, b'/package', 0, bytes(8) + b'\\1' + bytes(23), 32)"),
        open=False,
    ),
    Attack("statmount", "the mounts' table past /proc", call("syscall(457, 0, 0, 0, 0)"), False),
    Attack(
        "name-to-handle",
        "a handle for open_by_handle_at",
        call(
            "syscall(303, -100, b'/', ctypes.create_string_buffer(b'\\x80\\0\\0\\0', 200), "
            "ctypes.create_string_buffer(8), 0)"
        ),
        open=False,
    ),
    Attack("request-key", "a key of others", call("syscall(249, b'user', b'x', 0, -3)"), False),
    Attack("keyctl-session", "a session's ring", call("syscall(250, 1, 0)"), open=False),
    Attack("io-uring-enter", "a ring entered", call("syscall(426, 3, 0, 0, 0, 0, 0)"), False),
    Attack("io-uring-register", "a ring's table", call("syscall(427, 3, 0, 0, 0)"), open=False),
    Attack("asynchronous-io", "a queue of the kernel's", call("syscall(206, 1, bytes(8))"), False),
    Attack("fanotify-mark", "a mark", call("syscall(301, 3, 1, 1, -100, b'/')"), open=False),
    Attack("quotactl-fd", "a quota by descriptor", call("syscall(443, 3, 0, 0, 0)"), open=False),
    Attack("swap-on", "memory in a file", call("syscall(167, b'/package/x', 0)"), False),
    Attack("swap-off", "no swap for anybody", call("syscall(168, b'/package/x')"), open=False),
    Attack("accounting", "a log of every process", call("syscall(163, b'/package/x')"), open=False),
    Attack("kernel-log", "the kernel's messages", call("syscall(103, 10, 0, 0)")),
    Attack("kexec", "another kernel", call("syscall(246, 0, 0, 0, 0)"), open=False),
    Attack("kexec-file", "another kernel", call("syscall(320, -1, -1, 0, 0, 0)"), open=False),
    Attack("module-file", "a kernel module", call("syscall(313, 3, b'', 0)"), open=False),
    Attack("ports-iopl", "the machine's ports", call("syscall(172, 0)"), open=False),
    Attack("ports-ioperm", "the machine's ports", call("syscall(173, 0x80, 1, 0)"), open=False),
    Attack("hang-up", "the terminal", call("syscall(153)"), open=False),
    Attack("clock-set", "another time", call("syscall(227, 0, 0)"), open=False),
    Attack(
        "clock-adjust", "the clock's state", call("syscall(159, ctypes.create_string_buffer(256))")
    ),
    Attack("domain-name", "another name", call("syscall(171, b'', -1)"), open=False),
    Attack("lock-memory", "memory that cannot be swapped", call("syscall(151, 1)"), open=False),
    Attack(
        "lock-page",
        "a page that cannot be swapped",
        call("libc.mlock(ctypes.create_string_buffer(1), ctypes.c_size_t(1))"),
    ),
    Attack("secret-memory", "memory that nobody may look at", call("syscall(447, 0)"), False),
    Attack("memory-policy", "the nodes of memory", call("syscall(238, 0, 0, 0)")),
    Attack("set-segment", "a segment register", call("syscall(158, 0x1001, 0)")),
    Attack("thread-area", "a segment", call("syscall(205, bytes(16))"), open=False),
    Attack("landlock", "a ruleset of its own", call("syscall(444, 0, 0, 1)"), open=False),
    Attack("semaphore", "a semaphore that outlives it", call("syscall(64, 0, 1, 0o1600)"), False),
    Attack("posix-queue", "a named queue", call("syscall(240, b'x', 0o102, 0o600, 0)"), False),
    Attack("signalfd", "signals as a file", call("syscall(289, -1, bytes(8), 8, 0)")),
    Attack("page-gift", "pages given to a pipe (vmsplice)", call("syscall(278, 1, 0, 0, 0)")),
    Attack("splice", "pages moved between files", call("syscall(275, 0, 0, 1, 0, 0, 0)")),
    Attack("tee", "pages in two pipes", call("syscall(276, 0, 1, 0, 0)"), open=False),
    Attack(
        "resident-pages",
        "which pages of a shared library others use (mincore)",
        call("syscall(27, id(0) & ~4095, 4096, ctypes.create_string_buffer(1))"),
    ),
    Attack("write-back", "the host's disks made to work", call("syscall(306, 1)"), open=False),
    Attack(
        "root-by-chroot-fd",
        "the old root",
        tried("os.fchdir(3)\nos.chdir('..')\nreturn True"),
        open=False,
    ),
    Attack(
        "file-attribute",
        "an attribute of a file system",
        tried("os.setxattr('/tmp', 'user.x', b'y')\nreturn True"),
        policy=TEMP,
        open=False,
    ),
    Attack(
        "counter-of-cpu",
        "the processor's counters from user space",
        call("libc.prctl(26, 1, 0, 0, 0)"),
    ),
    Attack(
        "number-beyond",
        "a call that no kernel has",
        call("syscall(1023) + 37"),
        open=False,
    ),
)

# A call of x32 or of 32 bits must kill: there is nobody to return an error to.
FATAL_CALLS: tuple[Attack, ...] = (
    Attack("x32", "a result of the x32 getpid", call("syscall(0x40000000 + 39)"), open=False),
)
