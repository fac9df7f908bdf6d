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
)
