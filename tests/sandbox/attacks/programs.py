"""Attacks that start processes and programs, or become another user.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import SYSCALL, Attack, call, tried

__all__ = ["PROGRAMS"]

PROGRAMS: tuple[Attack, ...] = (
    # programs and processes
    Attack("fork", "a second process", tried("p = os.fork()\nif not p: os._exit(0)\nreturn p > 0")),
    Attack(
        "clone-process",
        "a second process: the child's answer comes from process 2",
        SYSCALL
        + """
def attack():
    pid = syscall(56, 17, 0, 0, 0, 0)  # SIGCHLD, no CLONE_THREAD
    if pid == 0:
        os._exit(0)
    return pid > 0 and os.waitpid(pid, 0)[0] == pid
""",
    ),
    Attack("clone3", "a process by the new call", call("syscall(435, 0, 0)"), open=False),
    Attack(
        "execute",
        "a program's output",
        tried("return subprocess.run(['/bin/true']).returncode == 0", "subprocess"),
    ),
    Attack(
        "execve-self",
        "a fresh interpreter",
        tried("os.execv('/proc/self/exe', ['python', '-c', 'pass'])", "os"),
        open=False,
    ),
    Attack("memfd", "memory that can be executed", tried("return os.memfd_create('x') >= 0")),
    Attack("set-uid", "another user", tried("os.setuid(0)\nreturn os.getuid() == 0")),
    Attack("new-session", "a daemon's own session", tried("os.setsid()\nreturn True"), open=False),
)
