"""Attacks that start processes and programs, or become another user.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import SYSCALL, TEMP, Attack, call, tried

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
    Attack(
        "vfork",
        "a second process that borrows this one's memory",
        call("syscall(58)"),
        open=False,
    ),
    Attack(
        "posix-spawn",
        "a program's process id",
        tried(
            "pid = os.posix_spawn('/bin/true', ['true'], {})\nreturn os.waitpid(pid, 0)[0] == pid"
        ),
    ),
    Attack(
        "terminal-fork",
        "a process with a terminal of its own",
        tried(
            "pid, fd = pty.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)\nreturn True",
            "os, pty",
        ),
    ),
    Attack(
        "worker-process",
        "an answer from another process",
        tried(
            "queue = multiprocessing.get_context('fork').SimpleQueue()\n"
            "worker = multiprocessing.get_context('fork').Process(target=queue.put, args=(1,))\n"
            "worker.start()\nworker.join()\nreturn queue.get()",
            "multiprocessing",
        ),
    ),
    Attack(
        "clone-thread-in-namespace",
        "a thread in namespaces of its own",
        call("syscall(56, 0x10010000, 0, 0, 0, 0)"),
        open=False,
    ),
    Attack(
        "clone3-thread",
        "a task made by the call whose flags a filter cannot see",
        call("syscall(435, b'\\0\\0\\1' + bytes(85), 88)"),
        open=False,
    ),
    Attack(
        "execute-descriptor",
        "a program started from memory",
        tried(
            "fd = os.memfd_create('x')\n"
            "os.write(fd, open('/proc/self/exe', 'rb').read())\n"
            "os.execve(fd, ['python', '-c', 'pass'], {})"
        ),
        open=False,
    ),
    Attack(
        "execute-node-descriptor",
        "the one program that another profile's filter knows: descriptor 1000, by execveat",
        call("syscall(322, 1000, b'', 0, 0, 0x1000)"),
        open=False,
    ),
    Attack(
        "descriptor-1000",
        "a descriptor of that number",
        tried("return os.dup2(1, 1000) == 1000"),
    ),
    Attack(
        "set-uid-file",
        "a file in temp that makes whoever runs it its owner, on a file system that honours it",
        tried("return not os.statvfs('/tmp').f_flag & os.ST_NOSUID"),
        policy=TEMP,
    ),
    Attack(
        "capabilities",
        "a capability that is held, or can be had from the bounding set",
        tried(
            "lines = open('/proc/self/status').read().splitlines()\n"
            "return [x for x in lines if x.startswith('Cap') and int(x.split()[1], 16)]"
        ),
    ),
    Attack(
        "set-capabilities",
        "capabilities set",
        call("syscall(126, b'\\x22\\x05\\x08\\x20' + bytes(4), bytes(24))"),
        open=False,
    ),
    Attack(
        "new-privileges",
        "programs that give privileges would: no_new_privs is not set",
        tried("return 'NoNewPrivs:\\t1' not in open('/proc/self/status').read()"),
    ),
    Attack(
        "groups",
        "the groups of a user of the host",
        tried("return [g for g in os.getgroups() if g != 65534]"),
        open=False,
    ),
    Attack(
        "change-owner",
        "a file given to somebody else",
        tried(
            "open('/tmp/x-mine', 'w').close()\n"
            "try:\n    os.chown('/tmp/x-mine', 12345, 12345)\n"
            "finally:\n    os.unlink('/tmp/x-mine')\n"
            "return True"
        ),
        policy=TEMP,
    ),
    Attack(
        "real-time",
        "a priority above everybody's",
        tried("os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))\nreturn True"),
    ),
    Attack("io-priority", "the disks first", call("syscall(251, 1, 0, 0x4004)")),
)
