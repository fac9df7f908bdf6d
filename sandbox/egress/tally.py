"""What one execution did with its network, counted: contacts and denials in bounded lists. Pure.

The first of each kind are kept one by one, the rest in a last entry that is called "…".
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.model import Contact, Denial, Traffic

__all__ = ["CONTACTS_MAX", "DENIALS_MAX", "Line", "Tally", "spelled"]

CONTACTS_MAX = DENIALS_MAX = 100
_REST = "…"
_TARGET_CHARS_MAX = 300


@dataclass(slots=True)
class Line:
    """The running figures of one contact; whoever has it counts in it."""

    connections: int = 0
    sent: int = 0
    received: int = 0


class Tally:
    """Counts for one execution."""

    def __init__(self) -> None:
        self.queries = 0
        self.refusals = 0
        self._contacts: dict[tuple[str, str, int], Line] = {}
        self._denials: dict[tuple[str, str], int] = {}

    def contact(self, host: str, address: str, port: int) -> Line:
        """One more connection to this target."""
        key = (host, address, port)
        if key not in self._contacts and len(self._contacts) >= CONTACTS_MAX:
            key = (_REST, "", 0)
        line = self._contacts.setdefault(key, Line())
        line.connections += 1
        return line

    def deny(self, target: str, reason: str) -> None:
        """One more refusal of this target for this reason."""
        self.refusals += 1
        key = (target[:_TARGET_CHARS_MAX], reason)
        if key not in self._denials and len(self._denials) >= DENIALS_MAX:
            key = (_REST, "further targets")
        self._denials[key] = self._denials.get(key, 0) + 1

    def traffic(self) -> Traffic:
        """Everything so far."""
        lines = self._contacts.values()
        return Traffic(
            contacts=tuple(
                Contact(host, address, port, line.connections, line.sent, line.received)
                for (host, address, port), line in self._contacts.items()
            ),
            denials=tuple(
                Denial(target, reason, count) for (target, reason), count in self._denials.items()
            ),
            dns_queries=self.queries,
            sent_bytes=sum(line.sent for line in lines),
            received_bytes=sum(line.received for line in lines),
        )


def spelled(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
