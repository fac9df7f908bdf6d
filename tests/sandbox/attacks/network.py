"""Attacks by sockets, for a handler without network.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import SYSCALL, Attack, call, tried

__all__ = ["NETWORK"]

NETWORK: tuple[Attack, ...] = (
    # network
    *(
        Attack(
            f"socket-{name}", "a socket of that family", call(f"syscall(41, {family}, {kind}, 0)")
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
        tried("return socket.create_connection(('127.0.0.1', 1), 1)"),
        open=False,
    ),
    Attack("interfaces", "an interface that is up", tried("return len(socket.if_nameindex()) > 0")),
    Attack(
        "socketpair-netlink", "a pair of another family", call("syscall(53, 16, 3, 0, 0)"), False
    ),
    Attack(
        "socket-filter",
        "a program of its own in the kernel, on a socket",
        SYSCALL
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
        tried("a, b = socket.socketpair()\nreturn a.send(b'x', socket.MSG_OOB)"),
    ),
    Attack(
        "socket-other-peer",
        "the kernel looks for another peer: it says that there is none, not that it may not",
        tried(
            "a, b = socket.socketpair(type=socket.SOCK_DGRAM)\n"
            "try:\n    a.sendto(b'x', '/nowhere')\n"
            "except FileNotFoundError:\n    return True"
        ),
    ),
    Attack(
        "descriptor-in-flight",
        "a descriptor sent away, past the limit on open ones",
        tried("a, b = socket.socketpair()\nreturn socket.send_fds(a, [b'x'], [0])"),
    ),
    Attack(
        "socket-peer-process",
        "a handle on the process that made the channel, or on oneself (SO_PEERPIDFD)",
        tried("a, b = socket.socketpair()\nreturn a.getsockopt(socket.SOL_SOCKET, 77) >= 0"),
    ),
    *(
        Attack(
            f"socket-{name}",
            "a socket of that kind",
            call(f"syscall(41, {family}, {kind}, {protocol})"),
            is_open,
        )
        for name, family, kind, protocol, is_open in (
            ("raw-icmp", 2, 3, 1, True),
            ("raw-any", 2, 3, 255, True),
            ("raw-inet6", 10, 3, 58, True),
            ("ping", 2, 2, 1, False),
            ("alg", 38, 5, 0, False),
            ("xdp", 44, 3, 0, False),
            ("can", 29, 3, 1, False),
            ("bluetooth", 31, 3, 1, False),
            ("tipc", 30, 2, 0, False),
            ("key", 15, 3, 2, False),
            ("sctp", 2, 1, 132, False),
            ("mptcp", 2, 1, 262, False),
            ("audit", 16, 3, 9, True),
            ("unix-datagram", 1, 2, 0, True),
            ("unix-sequence", 1, 5, 0, True),
        )
    ),
    Attack(
        "abstract-socket",
        "a name that all of one network namespace share",
        tried("s = socket.socket(socket.AF_UNIX)\ns.bind('\\0fm-attack')\nreturn s"),
    ),
    Attack(
        "daemon-socket",
        "a path of the daemon's socket that can be named",
        tried(
            "s = socket.socket(socket.AF_UNIX)\n"
            "for path in ('/run/flowmonkey/flowmonkeyd.sock', '/run/systemd/notify'):\n"
            "    s.connect(path)\nreturn True"
        ),
        open=False,
    ),
    Attack(
        "channel-as-any-socket",
        "the channel itself connected to somebody else",
        call("syscall(42, 3, b'\\1\\0' + b'/run/x' + bytes(20), 28)"),
        open=False,
    ),
    Attack(
        "channel-descriptor",
        "a descriptor sent to the pool over the channel",
        tried("s = socket.socket(fileno=os.dup(3))\nreturn socket.send_fds(s, [b''], [0])"),
        open=False,
    ),
    Attack(
        "channel-credentials",
        "who it is that listens (SO_PEERCRED)",
        tried("s = socket.socket(fileno=os.dup(3))\nreturn s.getsockopt(1, 17, 12)"),
    ),
    Attack(
        "channel-buffer",
        "a larger buffer of the kernel than it was given",
        tried("s = socket.socket(fileno=os.dup(3))\ns.setsockopt(1, 7, 1 << 30)\nreturn True"),
    ),
    Attack("listen", "somebody who is served", call("syscall(50, 3, 1)"), open=False),
    Attack("bind", "an address", call("syscall(49, 3, b'\\1\\0', 2)"), open=False),
    Attack(
        "pipe-size",
        "a pipe of more memory than the default",
        tried("a, b = os.pipe()\nreturn fcntl.fcntl(b, 1031, 1 << 20) >= 1 << 20", "fcntl, os"),
    ),
)
