"""DNS for a slot: queries of a stranger read, answers written, names looked up by the host.

Messages are dnspython's to parse and to write. Only A and AAAA are answered with data; an answer
has at most 8 addresses, so it fits the 512 bytes that every client takes, and nobody needs TCP.
Names are looked up with getaddrinfo(3), as the daemon's own are: /etc/hosts counts, and one answer
serves both kinds of query. Never decides what may be asked or told: that is the gateway's.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

__all__ = ["BadQuery", "Question", "Resolver", "SystemResolver", "Unknown", "answer", "read_query"]

QUERY_MAX_BYTES = 1232  # what an EDNS client may send at most without fragments (DNS flag day)
_ADDRESSES_MAX = 8
# Short, so that a client that keeps answers (Node does not) follows its servers; the gateway
# never needs an answer to be still true.
_TTL_S = 5
_WORKERS = 8
_LEFT_MAX = 64
_FAMILIES = {dns.rdatatype.A: socket.AF_INET, dns.rdatatype.AAAA: socket.AF_INET6}


class BadQuery(ValueError):
    """Bytes that are no query of one name."""


class Unknown(Exception):
    """There is no such name."""


@dataclass(frozen=True, slots=True)
class Question:
    """One query. `family` is None for a kind of record that is never answered with data."""

    name: str
    family: socket.AddressFamily | None
    message: dns.message.Message


class Resolver(Protocol):
    """Looks names up for a gateway."""

    def lookup(self, name: str) -> asyncio.Future[list[str]]:
        """A future of the name's addresses; `Unknown` if there is no such name, OSError if it
        could not be found out. Cancelled when nobody waits for it any more."""

    def leave(self) -> None:
        """Nobody waits for anything any more: what is asked from now on is another's, and does
        not wait for what was asked before."""

    def close(self) -> None:
        """Let go of what it holds."""


class SystemResolver:
    """The host's own resolver, at most 8 names at a time, in threads of its own.

    Nothing ends a look-up that the system's resolver takes half a minute for, as it does where a
    name's own server is silent. It holds up the names of who asked for it, and nobody else's.
    """

    def __init__(self) -> None:
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._running: set[concurrent.futures.Future[list[str]]] = set()

    def lookup(self, name: str) -> asyncio.Future[list[str]]:
        """See `Resolver`."""
        if self._threads is None:
            self._threads = concurrent.futures.ThreadPoolExecutor(_WORKERS, "resolve")
        work = self._threads.submit(_lookup, name)
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        return asyncio.wrap_future(work)

    def leave(self) -> None:
        """See `Resolver`. Of threads that are left behind there is a limit: beyond it, names wait
        for them after all."""
        if 0 < len(self._running) < _LEFT_MAX:
            self.close()

    def close(self) -> None:
        """The threads end with what they do now; waits for none."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None


def read_query(data: bytes) -> Question:
    """Raises BadQuery, and nothing else, whatever the bytes."""
    if len(data) > QUERY_MAX_BYTES:
        raise BadQuery("too long")
    try:
        message = dns.message.from_wire(data)
        if message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY:
            raise BadQuery("no query")
        (question,) = message.question
        name = question.name.to_text(omit_final_dot=True).lower()
        family = _FAMILIES.get(question.rdtype)
        if question.rdclass != dns.rdataclass.IN:
            family = None
    except BadQuery:
        raise
    except Exception as exc:  # a stranger's bytes in a library that has many errors of its own
        raise BadQuery(str(exc) or type(exc).__name__) from exc
    return Question(name, family, message)


def answer(question: Question, addresses: Iterable[str] = (), error: str = "") -> bytes:
    """The message that answers a question: addresses of its family, or an error.

    `error` is "" or a name of an RCODE: NXDOMAIN, REFUSED, SERVFAIL.
    """
    reply = dns.message.make_response(question.message, recursion_available=True)
    if error:
        reply.set_rcode(dns.rcode.from_text(error))
        return reply.to_wire()
    of_family = [one for one in addresses if (":" in one) == (question.family == socket.AF_INET6)]
    if of_family and question.family is not None:
        asked = question.message.question[0]
        texts = of_family[:_ADDRESSES_MAX]
        kept = dns.rrset.from_text_list(asked.name, _TTL_S, "IN", asked.rdtype, texts)
        reply.answer.append(kept)
    return reply.to_wire()


def _lookup(name: str) -> list[str]:
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        # EAI_NODATA is not in every libc
        if exc.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)):
            raise Unknown(name) from None
        raise
    # an IPv6 address may have a scope, which means nothing elsewhere
    return list(dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found))
