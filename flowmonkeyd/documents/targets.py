"""Targets of the network as documents and settings name them: checked, and intersected. Pure.

Reading a target and judging a connection is the gateway's (`sandbox.egress.rules`); here it is told
what is no target, and what two lists allow together.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from sandbox.egress.rules import Network, split_target

__all__ = ["both", "wrong_network", "wrong_target"]


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
    """What is wrong with a target; None for a good one."""
    try:
        _parsed(text)
    except ValueError as exc:
        return str(exc)
    return None


def wrong_network(text: str) -> str | None:
    """What is wrong with a network such as 10.0.0.0/8; None for a good one."""
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return f"{text!r} should be a network such as 10.0.0.0/8, with no bits set after its length"
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
    place, port = split_target(text)
    return _Target(place.lower() if isinstance(place, str) else place, port)


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
