"""The gateway's network namespace: every address is local, and these sockets answer.

Runs in the fork server, or in `enter` for a container: in a network namespace over which it has
CAP_NET_ADMIN, as root or as an ordinary user in a user namespace. It speaks rtnetlink(7) itself
instead of running `ip`: three messages of a format that never changes take 0.1 ms instead of 15,
and the fork server may not fork at this moment, because the first process that it forks becomes
process 1 of its namespace.

Judging is all the gateway's: nothing is unreachable here, so that a handler's connection to
127.0.0.1 or 10.0.0.1 is seen, refused and counted like any other. What reaches no socket of ours
(other ports, datagrams) is refused by the kernel and leads nowhere: no route leaves the namespace.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Mapping, Sequence

__all__ = ["FILES", "RESOLVER", "prepare"]

# An address of nobody (RFC 5737), answered by the gateway.
RESOLVER = "192.0.2.53"
# getaddrinfo(3) with AI_ADDRCONFIG, where it may look, passes over a family without an address
# beside loopback's. One of a private network: it is preferred to no address of IPv4 (RFC 6724).
_ADDRESS6 = "fd00::53"
# What a handler needs to see so that its clients ask the gateway for names.
FILES: Mapping[str, str] = {
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "/etc/resolv.conf": f"nameserver {RESOLVER}\n",
}

_BACKLOG = 128
_DNS_BUFFER_BYTES = 64 * 1024
_SETTINGS: Mapping[str, str] = {
    # It outlives executions: what one of them was connected to must not show to the next.
    "tcp_max_tw_buckets": "0",
    # What is on its way between a handler and the gateway is memory of the kernel's that nobody
    # is charged for: fixed, not 6 MiB a connection.
    "tcp_rmem": "4096 65536 131072",
    "tcp_wmem": "4096 65536 131072",
}
# linux/netlink.h, linux/rtnetlink.h, linux/if.h
_NLMSG_ERROR, _RTM_NEWLINK, _RTM_NEWADDR, _RTM_NEWROUTE = 2, 16, 20, 24
_RTA_OIF, _IFA_ADDRESS, _IFA_LOCAL = 4, 1, 2
_REQUEST_ACK, _CREATE_REPLACE = 0x1 | 0x4, 0x400 | 0x100
_IFF_UP, _LOOPBACK_INDEX = 1, 1
_RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 3, 254, 2
_HEADER, _LINK = struct.Struct("=IHHII"), struct.Struct("=BxHiII")
_ROUTE, _OIF = struct.Struct("=BBBBBBBBI"), struct.Struct("=HHI")
_ADDRESS, _ATTRIBUTE = struct.Struct("=BBBBI"), struct.Struct("=HH")


def prepare(ports: Sequence[int]) -> list[int]:
    """Make every address of this network namespace local and listen; OSError if it cannot be.

    Can be done again once the sockets of the first time are closed, whatever still uses them
    inside. Returns descriptors, non-blocking: the DNS socket (UDP 53 of `RESOLVER`), a TCP listener
    of IPv4 for each port, then one of IPv6 for each port. Without IPv6 on this host the last are
    missing; `gateway.Gateway` then gives out no IPv6 addresses.
    """
    sockets: list[_socket.socket] = []
    try:
        with_ipv6 = _make_all_local()
        dns = _open(sockets, _socket.AF_INET, _socket.SOCK_DGRAM, (RESOLVER, 53))
        dns.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF, _DNS_BUFFER_BYTES)
        for port in ports:
            _listen(_open(sockets, _socket.AF_INET, _socket.SOCK_STREAM, ("0.0.0.0", port)))
        for port in ports if with_ipv6 else ():
            _listen(_open(sockets, _socket.AF_INET6, _socket.SOCK_STREAM, ("::", port)))
        for name, value in _SETTINGS.items():
            _set(f"/proc/sys/net/ipv4/{name}", value)
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return [one.detach() for one in sockets]


def _make_all_local() -> bool:
    """Whether IPv6 could be had too."""
    kind = _socket.SOCK_RAW | _socket.SOCK_CLOEXEC
    link = _socket.socket(_socket.AF_NETLINK, kind, 0)  # NETLINK_ROUTE
    try:
        up = _LINK.pack(_socket.AF_UNSPEC, 0, _LOOPBACK_INDEX, _IFF_UP, _IFF_UP)
        _ask(link, _RTM_NEWLINK, 0, up, "bring the loopback interface up")
        _make_family_local(link, _socket.AF_INET, "IPv4", RESOLVER)
        try:
            _make_family_local(link, _socket.AF_INET6, "IPv6", _ADDRESS6)
        except OSError as exc:
            # a kernel without IPv6, or one where it is switched off
            if exc.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV):
                raise
            return False
        return True
    finally:
        link.close()


def _make_family_local(link: _socket.socket, family: int, name: str, address: str) -> None:
    """`ip route replace local default dev lo table local` ("AnyIP"), and an address."""
    scope = _RT_SCOPE_HOST
    table, protocol, kind = _RT_TABLE_LOCAL, _RTPROT_BOOT, _RTN_LOCAL
    body = _ROUTE.pack(family, 0, 0, 0, table, protocol, scope, kind, 0)
    body += _OIF.pack(_OIF.size, _RTA_OIF, _LOOPBACK_INDEX)
    _ask(link, _RTM_NEWROUTE, _CREATE_REPLACE, body, f"make every {name} address local")
    packed = _socket.inet_pton(family, address)
    body = _ADDRESS.pack(family, len(packed) * 8, 0, 0, _LOOPBACK_INDEX)
    for kind in (_IFA_LOCAL, _IFA_ADDRESS):
        body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), kind) + packed
    _ask(link, _RTM_NEWADDR, _CREATE_REPLACE, body, f"have the address {address}")


def _ask(link: _socket.socket, kind: int, flags: int, body: bytes, does: str) -> None:
    size = _HEADER.size + len(body)
    link.send(_HEADER.pack(size, kind, _REQUEST_ACK | flags, 1, 0) + body)
    answer = link.recv(4096)
    _size, kind, *_ = _HEADER.unpack_from(answer)
    (code,) = struct.unpack_from("=i", answer, _HEADER.size)
    if kind != _NLMSG_ERROR or code != 0:
        raise OSError(-code, f"{does}: {os.strerror(-code)}")


def _open(
    sockets: list[_socket.socket], family: int, kind: int, address: tuple[str, int]
) -> _socket.socket:
    one = _socket.socket(family, kind | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK, 0)
    sockets.append(one)
    if kind == _socket.SOCK_STREAM:
        # Connections whose daemon was killed may be there still; two that listen never are.
        one.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    if family == _socket.AF_INET6:
        one.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
    try:
        one.bind(address)
    except OSError as exc:
        raise OSError(exc.errno, f"bind {address[0]} port {address[1]}: {exc.strerror}") from exc
    return one


def _listen(one: _socket.socket) -> None:
    # Accepted sockets inherit it: bytes are passed on as they come.
    one.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    one.listen(_BACKLOG)


def _set(path: str, value: str) -> None:
    """/proc/sys shows the network namespace of the process that opens it."""
    try:
        fd = os.open(path, os.O_WRONLY)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as exc:
        raise OSError(exc.errno, f"set {path}: {exc.strerror}") from exc
