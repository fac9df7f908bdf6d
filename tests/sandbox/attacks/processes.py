"""Attacks on other processes, and on what the daemon may have left behind in this one.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import Attack, call, tried

__all__ = ["PROCESSES"]

PROCESSES: tuple[Attack, ...] = (
    # other processes
    Attack(
        "proc-others",
        "another process in /proc",
        tried("return [p for p in os.listdir('/proc') if p.isdigit() and p != str(os.getpid())]"),
    ),
    Attack(
        "parent-environment",
        "the environment of the process above",
        tried("return open(f'/proc/{os.getppid()}/environ').read() or 'readable'"),
    ),
    Attack("parent-visible", "the parent's process id", tried("return os.getppid() != 0")),
    Attack("signal-parent", "a signal sent", tried("os.kill(os.getppid() or 2, 0)\nreturn True")),
    Attack("signal-all", "a signal to everything", call("syscall(62, -1, 0)"), open=False),
    Attack("signal-group", "a signal to the group", call("syscall(62, 0, 0)"), open=False),
    Attack("ptrace", "a traced parent", call("syscall(101, 16, os.getppid() or 2, 0, 0)"), False),
    Attack(
        "process-vm-readv",
        "memory of another process",
        call("syscall(310, os.getppid() or 2, 0, 0, 0, 0, 0)"),
    ),
    Attack("pidfd-open", "a handle on a process", tried("return os.pidfd_open(os.getpid()) >= 0")),
    Attack(
        "kcmp",
        "comparing kernel objects",
        call("syscall(312, os.getpid(), os.getpid(), 0)"),
        False,
    ),
    Attack(
        "prlimit-set",
        "changed limits",
        tried(
            "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))\nreturn True",
            "resource",
        ),
    ),
    Attack(
        "affinity",
        "more than the one CPU",
        tried("os.sched_setaffinity(0, range(os.cpu_count()))\nreturn True"),
    ),
    Attack("nice", "a changed priority", tried("os.setpriority(0, 0, 5)\nreturn True")),
    # descriptors, memory and environment of the daemon
    Attack(
        "inherited-descriptors",
        "an open descriptor beside stdin, stdout, stderr and the channel",
        tried(
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
        tried("return os.environ.get('SANDBOX_TEST_SECRET') or 'USER' in os.environ"),
        open=False,
    ),
    Attack(
        "daemon-memory",
        "the daemon's secret in inherited memory",
        tried(
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
    # signals by other doors than kill(2)
    Attack(
        "signal-by-owner",
        "a signal to another process when a descriptor becomes ready (F_SETOWN)",
        tried(
            "a, b = socket.socketpair()\nfcntl.fcntl(a, 8, os.getppid() or 2)\nreturn True",
            "fcntl, os, socket",
        ),
    ),
    Attack(
        "signal-by-queue",
        "a signal with a value of its own",
        call("syscall(129, os.getppid() or 2, 0, b'\\0' * 128)"),
        open=False,
    ),
    Attack("signal-thread", "a signal to thread 2", call("syscall(234, 2, 2, 0)"), open=False),
    Attack("signal-tkill", "a signal to any thread", call("syscall(200, 2, 0)"), open=False),
    Attack(
        "signal-by-timer",
        "a timer that signals (and holds a page of the kernel)",
        call("syscall(222, 1, 0, ctypes.create_string_buffer(8))"),
    ),
    Attack(
        "signal-by-pidfd",
        "a signal through a handle",
        call("syscall(424, 3, 0, 0, 0)"),
        open=False,
    ),
    *(
        Attack(
            f"prctl-{name}",
            success,
            call(f"libc.prctl({option}, {argument}, 0, 0, 0)"),
            is_open,
        )
        for name, option, argument, success, is_open in (
            ("dumpable", 4, 1, "memory that others may read, /proc that belongs to it", True),
            ("death-signal", 1, 0, "a life after its server's", True),
            ("reaper", 36, 1, "the orphans of others", False),
            ("tracer", 0x59616D61, -1, "anybody may trace it", False),
            ("memory-map", 35, 1, "another memory map", False),
            ("keep-capabilities", 8, 1, "capabilities kept", True),
            ("ambient", 47, 2, "ambient capabilities", False),
            ("timer-slack", 29, 1, "wake-ups as exact as it likes", True),
            ("speculation", 53, 0, "the mitigations' switch", False),
        )
    ),
    # others' memory and descriptors
    Attack("process-vm-writev", "memory written", call("syscall(311, 1, 0, 0, 0, 0, 0)")),
    Attack("pidfd-getfd", "a descriptor taken", call("syscall(438, 3, 0, 0)"), open=False),
    Attack("process-madvise", "advice on memory", call("syscall(440, 3, 0, 0, 0, 0)"), open=False),
    Attack("process-mrelease", "memory freed", call("syscall(448, 3, 0)"), open=False),
    Attack("move-pages", "pages moved", call("syscall(279, 0, 0, 0, 0, 0, 0)")),
    Attack(
        "robust-list", "another's locks", call("syscall(274, 2, b'\\0' * 8, b'\\0' * 8)"), False
    ),
    Attack(
        "earlier-packages",
        "the path of another execution's package in memory that the fork server left",
        tried(
            "needle = b'segakcap-dekcatta'[::-1]\n"
            "for line in open('/proc/self/maps').read().splitlines():\n"
            "    span, mode = line.split()[:2]\n"
            "    low, high = (int(x, 16) for x in span.split('-'))\n"
            "    if mode.startswith('rw') and high - low < 1 << 26:\n"
            "        found = ctypes.string_at(low, high - low)\n"
            "        where = found.find(needle + b'/')\n"
            "        if where >= 0: return True\n",
            "ctypes",
        ),
        open=False,
    ),
    Attack(
        "objects-of-the-server",
        "an open file or socket of the fork server among the interpreter's objects",
        tried(
            "for one in gc.get_objects():\n"
            "    if hasattr(type(one), 'fileno') and not isinstance(one, io.TextIOBase):\n"
            "        try:\n"
            "            number = one.fileno()\n"
            "            os.fstat(number)\n"
            "            if number > 3: return repr(one)\n"
            "        except (OSError, ValueError, TypeError):\n"
            "            pass",
            "gc, io, os",
        ),
        open=False,
    ),
)
