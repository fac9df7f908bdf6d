"""What the kernel's routing says of an address now: the host's own, or reachable at all.

Asks rtnetlink(7) for the very route that a connection would take, which sends nothing and needs
no privilege. So there is no list of interfaces that could be out of date, and addresses that are
local by a route alone are found. It fails closed: who cannot ask calls every address its own.
An address that another machine passes on to this host is nobody's to know: operators deny those.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

__all__ = ["has_route", "is_own"]

# linux/netlink.h, linux/rtnetlink.h
_REQUEST, _RTM_NEWROUTE, _RTM_GETROUTE, _RTA_DST = 1, 24, 26, 1
_NLMSG_ERROR, _RTN_UNICAST, _RTN_NOWHERE = 2, 1, 0
_HEADER, _ROUTE, _ATTRIBUTE = (struct.Struct(f"={one}") for one in ("IHHII", "BBBBBBBBI", "HH"))
_TYPE_AT = _HEADER.size + 7
# No route, or one that prohibits or drops: a connection gets the same error.
_NOWHERE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL}


def is_own(address: str) -> bool:
    """Whether packets to this address stay on this host or go to a group; False if they go
    nowhere."""
    try:
        return _kind_of_route(address) not in (_RTN_UNICAST, _RTN_NOWHERE)
    except OSError:
        return True


def has_route(address: str) -> bool:
    """Whether the host has any route to this address."""
    try:
        return _kind_of_route(address) != _RTN_NOWHERE
    except OSError:
        return False


def _kind_of_route(address: str) -> int:
    """`rtm_type` of the route to this address, _RTN_NOWHERE if there is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    size = _HEADER.size + len(body)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        link.send(_HEADER.pack(size, _RTM_GETROUTE, _REQUEST, 1, 0) + body)
        answer = link.recv(4096)
    _size, kind, *_ = _HEADER.unpack_from(answer)
    if kind == _RTM_NEWROUTE:
        return answer[_TYPE_AT]
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _NLMSG_ERROR else 0
    if code not in _NOWHERE:
        raise OSError(code, f"ask for a route: {os.strerror(code)}")
    return _RTN_NOWHERE
