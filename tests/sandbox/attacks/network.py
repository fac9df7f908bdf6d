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
)
