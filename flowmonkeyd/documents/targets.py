"""Targets of the network as documents and settings name them: checked, and intersected. Pure.

`host`, `*.host`, `address`, `network/bits`, each with `:port` or for every port that the gateway
serves (IPv6 in brackets when a port follows). Judging a connection is the gateway's; here it is
told what is no target, and what two lists allow together, in the gateway's spelling.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["both", "wrong_network", "wrong_target"]

TARGET_CHARS_MAX = 300
# RFC 1123 section 2.1, and underscores, which names in use have; IDN is written as `xn--…`.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?{_LABEL}(?:\.{_LABEL})*")
_SPLIT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
# What inet_aton(3) takes for an address: a name is none of these.
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class _Target:
    """`place` is a name (`*.` before it: all names below) or a network."""

    place: str | Network
    port: int | None

    def text(self) -> str:
        if isinstance(self.place, str):
            shown = self.place
        else:
            whole = self.place.prefixlen == self.place.max_prefixlen
            shown = str(self.place.network_address if whole else self.place)
            if self.place.version == 6 and self.port is not None:
                shown = f"[{shown}]"
        return shown if self.port is None else f"{shown}:{self.port}"


def wrong_target(text: str) -> str | None:
    """What is wrong with a target, as words that follow it; None for a good one."""
    try:
        _parsed(text)
    except ValueError as exc:
        return str(exc)
    return None


def wrong_network(text: str) -> str | None:
    """What is wrong with a network such as 10.0.0.0/8 or an address; None for a good one."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return "should be a network such as 10.0.0.0/8, with no bits set after its length"
    return None


def both(first: Iterable[str] | None, second: Iterable[str] | None) -> tuple[str, ...] | None:
    """What two lists of targets allow together; None is a list that allows everything.

    A name and a network have nothing in common here: which address a name has is not known
    beforehand, and what is not known to be allowed is refused.
    """
    if first is None or second is None:
        given = second if first is None else first
        return None if given is None else tuple(given)
    seconds = [_parsed(text) for text in second]
    found = dict[str, None]()
    for one in map(_parsed, first):
        for other in seconds:
            if one.port is None or other.port is None or one.port == other.port:
                place = _narrower(one.place, other.place)
                if place is not None:
                    found[_Target(place, one.port or other.port).text()] = None
    return tuple(found)


def _parsed(text: str) -> _Target:
    """Raises ValueError, in words."""
    if not isinstance(text, str) or len(text) > TARGET_CHARS_MAX:
        raise ValueError(f"should be text of at most {TARGET_CHARS_MAX} characters")
    try:  # an IPv6 address or network without a port
        return _Target(ipaddress.ip_network(text), None)
    except ValueError:
        pass
    match = _SPLIT.fullmatch(text)
    if match is None or not match["host"]:
        raise ValueError("should be host:port, *.host:port, address:port or network/bits:port")
    host, port = match["host"], None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= 65535:
        raise ValueError("has a port that is none of 1 to 65535")
    if host.startswith("[") or "/" in host or _looks_like_address(host):
        try:
            return _Target(ipaddress.ip_network(host.removeprefix("[").removesuffix("]")), port)
        except ValueError:
            wrong = "names no address or network (no bits may be set after a network's length)"
            raise ValueError(wrong) from None
    if not _NAME.fullmatch(host) or len(host) > 253:
        raise ValueError("names no host; write it as DNS does, IDN as xn--…")
    return _Target(host.lower(), port)


def _looks_like_address(host: str) -> bool:
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _narrower(one: str | Network, other: str | Network) -> str | Network | None:
    """The one that lies within the other, if any does."""
    if isinstance(one, str) and isinstance(other, str):
        if one == other or _below(one, other):
            return one
        return other if _below(other, one) else None
    if isinstance(one, str) or isinstance(other, str) or one.version != other.version:
        return None
    for narrow, wide in ((one, other), (other, one)):
        if narrow.subnet_of(wide):  # type: ignore[arg-type]  # both of one version
            return narrow
    return None


def _below(name: str, pattern: str) -> bool:
    """Whether all that `name` names lies below the pattern `*.host`."""
    return pattern.startswith("*.") and name.removeprefix("*.").endswith(pattern[1:])
