"""Which addresses and names an execution may reach: parsed once, then judged. Pure.

Fails closed: an address is refused unless it is global unicast by the registries of IANA, none of
the host's own, and allowed. What carries another address inside (IPv4-mapped is unwrapped and
judged; 6to4, Teredo, NAT64, IPv4-compatible) is refused, and so is what clouds answer metadata on,
public addresses among them. `Egress.private` lifts only "not global" and "the host's own", for its
networks. Deny beats allow.

Names. A target by name allows the addresses that this execution's resolver gave for such a name,
and no other; if the connection begins with TLS, its server name must be such a name too. What is
not TLS is passed on unread: a Host header is not looked at, since the requests after the first
could name any other host; who needs certainty allows port 443 only. A denied name is not looked
up and is refused as a server name; who knows its address, and says no name, is not stopped by it.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from sandbox.egress.hello import Hello
from sandbox.model import Egress

__all__ = ["Network", "Rules", "is_host_name", "split_target"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_ALLOWED = "not among the allowed targets"
_DENIED = "denied by a rule"

# Never, whatever the operator says: they are no hosts, or carry another address inside.
_NEVER = {
    "0.0.0.0/32": "no address",
    "224.0.0.0/4": "multicast",
    "255.255.255.255/32": "broadcast",
    "::/128": "no address",
    "::/96": "an IPv4 address in IPv6",  # but for ::1, below
    "::ffff:0:0:0/96": "an IPv4 address in IPv6",  # RFC 2765, IPv4-translated
    "64:ff9b::/96": "an IPv4 address in IPv6 (NAT64)",
    "64:ff9b:1::/48": "an IPv4 address in IPv6 (NAT64)",
    "2001::/32": "an IPv4 address in IPv6 (Teredo)",
    "2002::/16": "an IPv4 address in IPv6 (6to4)",
    "ff00::/8": "multicast",
}
# IANA's special-purpose registries; metadata of clouds before the networks that it lies in.
_SPECIAL = {
    "100.100.100.200/32": "a cloud's metadata",
    "168.63.129.16/32": "a cloud's metadata",  # Azure; a public address
    "169.254.169.254/32": "a cloud's metadata",
    "169.254.170.2/32": "a cloud's metadata",
    "192.0.0.192/32": "a cloud's metadata",
    "fd00:ec2::254/128": "a cloud's metadata",
    "fd20:ce::254/128": "a cloud's metadata",
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private",
    "100.64.0.0/10": "shared by a provider (CGNAT)",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private",
    "192.0.0.0/24": "protocol assignments",
    "192.0.2.0/24": "documentation",
    "192.88.99.0/24": "6to4 relays",
    "192.168.0.0/16": "private",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation",
    "203.0.113.0/24": "documentation",
    "240.0.0.0/4": "reserved",
    "::1/128": "loopback",
    "100::/64": "discard-only",
    "2001::/23": "protocol assignments",
    "2001:db8::/32": "documentation",
    "3fff::/20": "documentation",
    "5f00::/16": "segment routing",
    "fc00::/7": "private",
    "fe80::/10": "link-local",
    "fec0::/10": "site-local",
}
_LOOPBACK6 = ipaddress.IPv6Address(1)
_GLOBAL6 = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out as global unicast

# RFC 1123 section 2.1, and underscores, which names in use have; IDN is written as `xn--…`.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_SPLIT = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
# What inet_aton(3) takes for an address, such as 127.1 or 0x7f.1: none of these is a name.
_NUMBER = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")
_TARGET_CHARS_MAX, _NAME_CHARS_MAX = 300, 253


def is_host_name(name: str) -> bool:
    """Whether this is a name that can be looked up, and no number that stands for an address."""
    if len(name) > _NAME_CHARS_MAX or not _NAME.fullmatch(name):
        return False
    return not _NUMBER.fullmatch(name.rpartition(".")[2])


class Rules:
    """What one `Egress` allows. Every judgement is a reason for refusal, or None.

    `is_own` tells of an address whether packets to it stay on this host. ValueError for a target
    of `egress` that is none, naming it.
    """

    def __init__(
        self, egress: Egress, ports: Collection[int], is_own: Callable[[str], bool]
    ) -> None:
        self._ports = tuple(ports)
        self._is_own = is_own
        self._private = tuple(_network(text) for text in egress.private)
        self._deny = _Targets(egress.deny)
        self._allow = None if egress.allow is None else _Targets(egress.allow)

    def judge_address(self, address: str, port: int, names: Collection[str] = ()) -> str | None:
        """A connection to this address; `names` are those that the resolver gave it for."""
        parsed = _parse(address)
        if parsed is None:
            return "no address"
        if port not in self._ports:
            return "a port that is not served"
        kind = _kind(parsed)
        if kind is not None and kind[1]:
            return kind[0]
        if not any(parsed in network for network in self._private):
            if kind is not None:
                return kind[0]
            if self._is_own(str(parsed)):
                return "the host's own address"
        if self._deny.has_address(parsed, port) or self._deny.has_name(names, port):
            return _DENIED
        if self._allow is None or self._allow.has_address(parsed, port):
            return None
        return None if self._allow.has_name(names, port) else _NOT_ALLOWED

    def judge_name(self, name: str) -> str | None:
        """A look-up of this name (lower case)."""
        if not is_host_name(name):
            return "no host name"
        if all(self._deny.has_name((name,), port) for port in self._ports):
            return _DENIED
        # Where networks are allowed, any name may turn out to lie in them.
        if self._allow is None or self._allow.networks:
            return None
        return None if self._allow.has_name((name,), None) else _NOT_ALLOWED

    def judge_answer(self, name: str, address: str) -> str | None:
        """Giving out this address for this name: whether any port of it could be reached."""
        reason: str | None = "no port is served"
        for port in self._ports:
            reason = self.judge_address(address, port, (name,))
            if reason is None:
                return None
        return reason

    def reads_hello(self, address: str, port: int) -> bool:
        """Whether the first bytes of this allowed connection must be judged before they go on."""
        if self._deny.names:
            return True
        parsed = _parse(address)
        return self._allow is not None and not (
            parsed is not None and self._allow.has_address(parsed, port)
        )

    def judge_hello(
        self, hello: Hello, address: str, port: int, names: Collection[str]
    ) -> str | None:
        """The first bytes of a connection that `judge_address` allowed."""
        if not hello.is_tls:
            return None
        said = hello.server_name
        if said is not None and self._deny.has_name((said,), port):
            return f"the server name {said} is denied by a rule"
        parsed = _parse(address)
        if self._allow is None or (parsed and self._allow.has_address(parsed, port)):
            return None
        if said is None:
            return "TLS without a server name"
        if said in names and self._allow.has_name((said,), port):
            return None
        return f"the server name {said} is not allowed here"


@dataclass(frozen=True, slots=True)
class _Named:
    name: str  # without "*."
    below: bool  # "*.name": all names below it, not itself
    port: int | None

    def matches(self, name: str, port: int | None) -> bool:
        if self.port is not None and port is not None and self.port != port:
            return False
        return name.endswith("." + self.name) if self.below else name == self.name


class _Targets:
    """A list of targets. `names` and `networks` are those of its targets that are such."""

    def __init__(self, targets: Iterable[str]) -> None:
        self.names: list[_Named] = []
        self.networks: list[tuple[Network, int | None]] = []
        for text in targets:
            host, port = split_target(text)
            if isinstance(host, str):
                below = host.startswith("*.")
                self.names.append(_Named(host.removeprefix("*.").lower(), below, port))
            else:
                self.networks.append((host, port))

    def has_address(self, address: Address, port: int) -> bool:
        return any(p in (None, port) and address in network for network, p in self.networks)

    def has_name(self, names: Collection[str], port: int | None) -> bool:
        """Whether one of these names is meant, on this port (None: on any)."""
        return any(one.matches(name, port) for one in self.names for name in names)


def split_target(text: str) -> tuple[str | Network, int | None]:
    """A target's host (or network) and port; raises ValueError, naming the target."""
    bad = f"cannot use the network target {text!r}: "
    if not isinstance(text, str) or len(text) > _TARGET_CHARS_MAX:
        raise ValueError(f"{bad}it should be text of at most {_TARGET_CHARS_MAX} characters")
    try:  # an IPv6 address or network without a port
        return _unwrapped(ipaddress.ip_network(text)), None
    except ValueError:
        pass
    match = _SPLIT.fullmatch(text)
    if match is None or not match["host"]:
        raise ValueError(f"{bad}write host:port, *.host:port, address:port or network/bits:port")
    host, port = match["host"], None if match["port"] is None else int(match["port"])
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"{bad}a port is from 1 to 65535")
    name = host.removeprefix("*.")
    if host.startswith("[") or "/" in host or _NUMBER.fullmatch(host.rpartition(".")[2]):
        try:
            return _unwrapped(ipaddress.ip_network(host.removeprefix("[").removesuffix("]"))), port
        except ValueError:
            raise ValueError(f"{bad}it is neither address nor network") from None
    if not is_host_name(name) or len(host) > _NAME_CHARS_MAX:
        raise ValueError(f"{bad}it names no host; write IDN as xn--…")
    return host, port


def _unwrapped(network: Network) -> Network:
    """What is meant by IPv4-mapped addresses: those that they stand for, as `_parse` reads them."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        first = int(network.network_address) & 0xFFFF_FFFF
        return ipaddress.IPv4Network((first, network.prefixlen - 96))
    return network


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f"cannot use the private network {text!r}: write a network such as 10.0.0.0/8"
        ) from None


@functools.lru_cache(4096)
def _parse(text: str) -> Address | None:
    """The address meant, IPv4-mapped ones unwrapped; None for what is none."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


@functools.lru_cache(4096)
def _kind(address: Address) -> tuple[str, bool] | None:
    """Why an address is not global, and whether for good; None for a global one."""
    if address != _LOOPBACK6:
        for network, kind in _NEVER_NETWORKS:
            if address in network:
                return kind, True
    for network, kind in _SPECIAL_NETWORKS:
        if address in network:
            return kind, False
    if isinstance(address, ipaddress.IPv6Address):
        is_global = address in _GLOBAL6
    else:
        is_global = address.is_global
    return None if is_global else ("not global", False)


_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NEVER_NETWORKS = [(ipaddress.ip_network(text), kind) for text, kind in _NEVER.items()]
_SPECIAL_NETWORKS = [(ipaddress.ip_network(text), kind) for text, kind in _SPECIAL.items()]
