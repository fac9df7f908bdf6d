"""The gateway's network namespace: every address is local, and these sockets answer.

Runs in the fork server, in a new network namespace over which it has CAP_NET_ADMIN, as root or as
an ordinary user in a user namespace. It speaks rtnetlink(7) itself instead of running `ip`: three
messages of a format that never changes take 0.1 ms instead of 15, and the fork server may not
fork at this moment, because the first process that it forks becomes process 1 of its namespace.

Judging is all the gateway's: nothing is unreachable here, so that a handler's connection to
127.0.0.1 or 10.0.0.1 is seen, refused and counted like any other. What reaches no socket of ours
(other ports, datagrams) is refused by the kernel and leads nowhere: no route leaves the namespace.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Sequence

__all__ = ["RESOLVER", "prepare"]

# What /etc/resolv.conf inside names: an address of nobody (RFC 5737), answered by the gateway.
RESOLVER = "192.0.2.53"

_BACKLOG = 128
_DNS_BUFFER_BYTES = 64 * 1024
# linux/netlink.h, linux/rtnetlink.h, linux/if.h
_NLMSG_ERROR, _RTM_NEWLINK, _RTM_NEWROUTE, _RTA_OIF = 2, 16, 24, 4
_REQUEST_ACK, _CREATE_REPLACE = 0x1 | 0x4, 0x400 | 0x100
_IFF_UP, _LOOPBACK_INDEX = 1, 1
_RT_TABLE_LOCAL, _RTPROT_BOOT, _RT_SCOPE_HOST, _RTN_LOCAL = 255, 3, 254, 2
_HEADER, _LINK = struct.Struct("=IHHII"), struct.Struct("=BxHiII")
_ROUTE, _OIF = struct.Struct("=BBBBBBBBI"), struct.Struct("=HHI")


def prepare(ports: Sequence[int]) -> list[int]:
    """Make every address of this network namespace local and listen; OSError if it cannot be.

    Returns descriptors, non-blocking: the DNS socket (UDP 53 of `RESOLVER`), a TCP listener of
    IPv4 for each port, then one of IPv6 for each port. Without IPv6 on this host the last are
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
        _make_family_local(link, _socket.AF_INET, "IPv4")
        try:
            _make_family_local(link, _socket.AF_INET6, "IPv6")
        except OSError as exc:
            # a kernel without IPv6, or one where it is switched off
            if exc.errno not in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EACCES, errno.ENODEV):
                raise
            return False
        return True
    finally:
        link.close()


def _make_family_local(link: _socket.socket, family: int, name: str) -> None:
    """`ip route replace local default dev lo table local` ("AnyIP")."""
    scope = _RT_SCOPE_HOST
    table, protocol, kind = _RT_TABLE_LOCAL, _RTPROT_BOOT, _RTN_LOCAL
    body = _ROUTE.pack(family, 0, 0, 0, table, protocol, scope, kind, 0)
    body += _OIF.pack(_OIF.size, _RTA_OIF, _LOOPBACK_INDEX)
    _ask(link, _RTM_NEWROUTE, _CREATE_REPLACE, body, f"make every {name} address local")


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
