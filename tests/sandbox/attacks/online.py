"""Attacks by sockets, for a handler with network: what is more than a client's TCP and UDP.

Which addresses it reaches is the gateway's to judge; here are the kinds of sockets and what is
done with them. The same calls are shown to succeed without layers in `network`, or need the
gateway's own namespace; harmless to a host.
"""

from __future__ import annotations

from attacks.attack import Attack, call, tried
from sandbox import Egress, Policy

__all__ = ["ONLINE"]

_ONLINE = Policy(network=Egress())

ONLINE: tuple[Attack, ...] = (
    *(
        Attack(
            f"online-socket-{name}",
            "a socket of that kind",
            call(f"syscall(41, {family}, {kind}, {protocol})"),
            False,
            _ONLINE,
        )
        for name, family, kind, protocol in (
            ("unix", 1, 1, 0),
            ("raw", 2, 3, 1),
            ("raw-inet6", 10, 3, 58),
            ("ping", 2, 2, 1),
            ("netlink", 16, 3, 0),
            ("packet", 17, 3, 0),
            ("vsock", 40, 1, 0),
            ("alg", 38, 5, 0),
            ("mptcp", 2, 1, 262),
            ("sctp", 2, 1, 132),
            ("high-bits", 0x100000001, 1, 0),
        )
    ),
    *(
        Attack(
            f"online-option-{name}",
            success,
            tried(
                f"s = socket.socket()\ns.setsockopt({level}, {option}, {value})\nreturn True",
                "socket",
            ),
            False,
            _ONLINE,
        )
        for name, level, option, value, success in (
            ("filter", 1, 26, "bytes(16)", "a program in the kernel"),
            ("device", 1, 25, "b'lo'", "another interface"),
            ("mark", 1, 36, "1", "another route"),
            ("transparent", 0, 19, "1", "somebody else's address"),
            ("header", 0, 3, "1", "headers of its own"),
            ("route", 0, 4, "bytes(4)", "a source route"),
            ("upper-layer", 6, 31, "b'tls'", "a protocol of the kernel's"),
            ("repair", 6, 19, "1", "a connection out of thin air"),
            ("congestion", 6, 13, "b'reno'", "more than its share"),
            ("fast-open", 6, 30, "1", "data before the gateway has judged"),
            ("group", 0, 35, "bytes(8)", "packets for others"),
            ("broadcast", 1, 6, "1", "packets to everybody"),
            ("share-port", 1, 15, "1", "a part of the gateway's own connections"),
            ("buffers", 1, 33, "1 << 30", "buffers past the limit"),
        )
    ),
    Attack(
        "online-bind",
        "an address to be called at",
        tried("s = socket.socket()\ns.bind(('0.0.0.0', 0))\nreturn True"),
        False,
        _ONLINE,
    ),
    *(
        Attack(
            f"online-bind-{name}",
            "an address to be called at, by the one bind that is answered as if it had been done",
            tried(
                "s = socket.socket(socket.AF_INET6, socket.SOCK_" + kind + ")\n"
                f"s.bind(('::1', 0))\n{then}",
            ),
            False,
            _ONLINE,
        )
        for name, kind, then in (
            ("stream", "STREAM", "return s.getsockname()[1]"),
            ("datagram", "DGRAM", "return s.getsockname()[1]"),
            ("listen", "STREAM", "s.listen()\nreturn True"),
            ("again", "STREAM", "s.bind(('::1', 8080))\nreturn True"),
        )
    ),
    Attack(
        "online-listen",
        "the gateway's port taken over",
        tried("s = socket.socket()\ns.listen()\nreturn True"),
        False,
        _ONLINE,
    ),
    Attack(
        "online-accept",
        "the connection of another",
        tried("s = socket.socket()\ns.settimeout(1)\nreturn s.accept()"),
        False,
        _ONLINE,
    ),
    Attack(
        "online-urgent",
        "urgent data",
        tried("a, b = socket.socketpair()\nreturn a.send(b'x', socket.MSG_OOB)"),
        False,
        _ONLINE,
    ),
    Attack(
        "online-interfaces",
        "the network's configuration",
        tried("return socket.if_nameindex()"),
        False,
        _ONLINE,
    ),
    Attack(
        "online-tables",
        "a connection that it has not made, in its namespace's table",
        tried(
            "rows = open('/proc/self/net/tcp').read().splitlines()[1:]\n"
            "return [row for row in rows if row.split()[3] != '0A']",  # TCP_LISTEN
            "os",
        ),
        False,
        _ONLINE,
    ),
    Attack(
        "online-descriptors-in-flight",
        "more sockets than it may have descriptors, in a message that nobody reads",
        tried(
            "a, b = socket.socketpair()\n"
            "total = 0\n"
            "while total < 2000:\n"
            "    sockets = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(100)]\n"
            "    try:\n"
            "        socket.send_fds(a, [b'x'], [one.fileno() for one in sockets])\n"
            "    except OSError:\n"
            "        break\n"
            "    total += len(sockets)\n"
            "    for one in sockets:\n        one.close()\n"
            "return total > 2 * 256 + 100",
            "socket",
        ),
        False,
        _ONLINE,
    ),
    Attack(
        "online-fork",
        "a process that holds the connection",
        tried("p = os.fork()\nif not p: os._exit(0)\nreturn p > 0"),
        False,
        _ONLINE,
    ),
    Attack(
        "online-namespace",
        "the daemon's own network",
        tried("return os.open('/proc/1/ns/net', os.O_RDONLY) >= 0 and os.listdir('/proc/2')"),
        False,
        _ONLINE,
    ),
)
