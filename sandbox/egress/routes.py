"""What the kernel's routing says of an address now: the host's own, or reachable at all.

Asks by connecting a datagram socket, which sends nothing (connect(2)): the kernel picks a source
address, and for an address of its own that is the address itself. So there is no list of
interfaces that could be out of date, and addresses that are local by a route alone are found.
An address that another machine passes on to this host is nobody's to know: operators deny those.
"""

from __future__ import annotations

import socket

__all__ = ["has_route", "is_own"]


def is_own(address: str) -> bool:
    """Whether packets to this address stay on this host; False where no route leads."""
    return _source_towards(address) == address


def has_route(address: str) -> bool:
    """Whether the host has any route to this address."""
    return _source_towards(address) is not None


def _source_towards(address: str) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
            source: str = probe.getsockname()[0]
            return source
    except OSError:
        return None
