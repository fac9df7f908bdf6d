"""The gateway of one slot: accepts what a handler connects to, judges it, joins it to its server.

Lives in the daemon's event loop and owns the listening sockets of a slot or of a container
(`namespace`). One execution at a time has it open, as a `Visit` with its rules, its caps and its
tally; without one every connection is reset. It promises that nothing of one execution is passed on
under another's rules: what was begun before a visit opens is reset then, what is open when it
closes is reset at once. A refusal is a reset. It starts no task, and never resolves anything
between judging and dialling.

Caps are those of `Egress`, for the whole execution: `connections` counts all of them, refused ones
included, `at_once` those that are open, `bytes` both directions. What exceeds a cap is refused and
counted as a denial.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Sequence

from sandbox.egress import dns, routes
from sandbox.egress.hello import Hello
from sandbox.egress.rules import Rules
from sandbox.egress.splice import BUFFER_BYTES, Splice, reset
from sandbox.egress.tally import Line, Tally, spelled
from sandbox.model import Egress, Traffic

__all__ = ["Gateway", "Visit"]

_QUERIES_AT_ONCE = 16
# Of each connection and direction to the outside: fixed, for nobody's memory limit counts it.
_KERNEL_BUFFER_BYTES = 128 * 1024
# What the kernel may hold for us when a visit opens; more would be a process still alive.
_STALE_MAX = 4096
# A handler that goes on after so many refusals is served one by one, this far apart, so that the
# loop belongs to the others.
_REFUSALS_MAX, _PAUSE_S = 1000, 0.01
# Queries beyond the cap are answered REFUSED so many times; then nobody listens any more.
_QUERIES_BEYOND_MAX = 64
_LOOKUPS_MAX = 32  # at a time
_NAMES_MAX = 4096  # pairs of name and address that a visit remembers, the last ones


class Gateway:
    """Takes over `fds`, which `namespace.prepare` made for these `ports`. ValueError for others.

    `resolver` looks names up; by default it is the host's own.
    """

    def __init__(
        self, fds: Sequence[int], ports: Sequence[int], resolver: dns.Resolver | None = None
    ) -> None:
        self._ports = tuple(ports)
        self._loop = asyncio.get_running_loop()
        self._resolver = dns.SystemResolver() if resolver is None else resolver
        self._visit: Visit | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._shared: memoryview | None = None
        sockets = [socket.socket(fileno=fd) for fd in fds]
        self._listeners = [one for one in sockets if one.type == socket.SOCK_STREAM]
        for one in sockets:
            one.setblocking(False)
        questions = [one for one in sockets if one.type == socket.SOCK_DGRAM]
        self._has_ipv6 = any(one.family == socket.AF_INET6 for one in self._listeners)
        if len(questions) != 1 or len(self._listeners) < len(self._ports):
            for one in sockets:
                one.close()
            raise ValueError("cannot open a gateway: these are not the sockets of a namespace")
        self._questions = questions[0]
        self._is_deaf = False
        self._on_rested()
        self._hear()

    def open(self, egress: Egress) -> Visit:
        """Begin an execution. ValueError for a target that is none, RuntimeError while another
        execution has the gateway: a slot runs one at a time."""
        if self._visit is not None:
            raise RuntimeError("cannot open the gateway: another execution has it")
        rules = Rules(egress, self._ports, routes.is_own)
        self._drop_stale()
        if self._pause is not None:
            self._pause.cancel()
            self._on_rested()
        if self._is_deaf:
            self._hear()
        self._visit = Visit(self, egress, rules)
        return self._visit

    def close(self) -> None:
        """Reset everything and close the listening sockets, for good."""
        if self._visit is not None:
            self._visit.close()
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self._resolver.close()
        for one in (*self._listeners, self._questions):
            if one.fileno() >= 0:
                self._loop.remove_reader(one.fileno())
                one.close()

    # --- inside ------------------------------------------------------------------------------

    def _drop_stale(self) -> None:
        """What a process of an earlier execution began, and nobody has looked at yet."""
        for listener in self._listeners:
            for _ in range(_STALE_MAX):
                try:
                    reset(listener.accept()[0])
                except ConnectionAbortedError:
                    continue
                except OSError:
                    break
        for _ in range(_STALE_MAX):
            if self._received() is None:
                break

    def _on_connection(self, listener: socket.socket) -> None:
        """One at a turn of the loop, which comes back at once while there are more."""
        visit = self._visit
        try:
            client = listener.accept()[0]
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors left: they come back, or the handler's time is over
            self._rest()
            return
        if visit is None:
            reset(client)
        else:
            visit.connect(client)
        if visit is None or visit.tally.refusals > _REFUSALS_MAX:
            self._rest()

    def _rest(self) -> None:
        for one in self._listeners:
            self._loop.remove_reader(one.fileno())
        if self._pause is None:
            self._pause = self._loop.call_later(_PAUSE_S, self._on_rested)

    def _on_rested(self) -> None:
        self._pause = None
        for one in self._listeners:
            self._loop.add_reader(one.fileno(), self._on_connection, one)

    def _on_question(self) -> None:
        for _ in range(_QUERIES_AT_ONCE):
            received = self._received()
            if received is None:
                return
            if self._visit is not None and not self._visit.ask(*received):
                self._is_deaf = True
                self._loop.remove_reader(self._questions.fileno())
                return

    def _hear(self) -> None:
        self._is_deaf = False
        self._loop.add_reader(self._questions.fileno(), self._on_question)

    def _received(self) -> tuple[bytes, tuple[str, int]] | None:
        try:
            # one byte more than is taken, so that what is longer shows
            return self._questions.recvfrom(dns.QUERY_MAX_BYTES + 1)
        except OSError:
            return None

    # --- for visits --------------------------------------------------------------------------

    def _buffer(self) -> memoryview:
        """For one read at a time, of whichever connection; made when there is one."""
        if self._shared is None:
            self._shared = memoryview(bytearray(BUFFER_BYTES))
        return self._shared

    def _reply(self, message: bytes, peer: tuple[str, int]) -> None:
        try:
            self._questions.sendto(message, peer)
        except OSError:
            pass  # nobody waits for it any more, or too slowly

    def _left(self, visit: Visit) -> None:
        if self._visit is visit:
            self._visit = None


class Visit:
    """One execution's use of a gateway, from `Gateway.open` to `close`."""

    def __init__(self, gateway: Gateway, egress: Egress, rules: Rules) -> None:
        self.tally = Tally()
        self._gateway = gateway
        self._egress = egress
        self._rules = rules
        self._connections = 0
        self._bytes_left = egress.bytes
        self._splices: dict[Splice, tuple[str, str, int]] = {}
        # address: the names that it was given out for, the last one last
        self._names: dict[str, dict[str, None]] = {}
        self._given: dict[tuple[str, str], None] = {}  # the same pairs, the last one last
        self._lookups: dict[str, asyncio.Future[list[str]]] = {}
        self._asking: dict[str, list[tuple[dns.Question, tuple[str, int]]]] = {}
        self._closed = False

    def close(self) -> Traffic:
        """Reset everything that is open, at once; returns what there was. Idempotent."""
        if not self._closed:
            self._closed = True
            self._gateway._left(self)
            for splice in list(self._splices):
                splice.reset()
            for lookup in list(self._lookups.values()):
                lookup.cancel()
            if self._lookups:
                self._gateway._resolver.leave()
            self._lookups.clear()
            self._asking.clear()
        return self.traffic()

    def traffic(self) -> Traffic:
        """What there was so far."""
        return self.tally.traffic()

    # --- connections -------------------------------------------------------------------------

    def connect(self, client: socket.socket) -> None:
        """Join a connection to the server that it wants, or reset it."""
        client.setblocking(False)
        try:
            address, port = client.getsockname()[:2]
        except OSError:
            reset(client)
            return
        names = self._names.get(address, {})
        host = next(reversed(names), address)
        self._connections += 1
        if self._connections > self._egress.connections:
            reason: str | None = f"more than {self._egress.connections} connections"
        elif len(self._splices) >= self._egress.at_once:
            reason = f"more than {self._egress.at_once} connections at once"
        else:
            reason = self._rules.judge_address(address, port, names)
        if reason is not None:
            self.tally.deny(spelled(host, port), reason)
            reset(client)
            return
        judge = None
        if self._rules.reads_hello(address, port):
            judge = functools.partial(self._judge_hello, address, port)
        try:
            server = socket.socket(client.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                server.setsockopt(socket.SOL_SOCKET, option, _KERNEL_BUFFER_BYTES)
        except OSError as exc:  # no descriptors left
            self.tally.deny(spelled(host, port), f"cannot be reached: {exc.strerror}")
            reset(client)
            return
        splice = Splice(self, client, server, self._gateway._buffer(), judge)
        self._splices[splice] = host, address, port
        splice.dial(address, port, self._egress.connect_ms / 1000, self._egress.idle_ms / 1000)

    def _judge_hello(self, address: str, port: int, hello: Hello) -> str | None:
        return self._rules.judge_hello(hello, address, port, self._names.get(address, ()))

    def joined(self, splice: Splice) -> Line:
        """See `splice.Owner`."""
        return self.tally.contact(*self._splices[splice])

    def spend(self, count: int) -> bool:
        """See `splice.Owner`."""
        if count > self._bytes_left:
            self._bytes_left = 0
            return False
        self._bytes_left -= count
        return True

    def ended(self, splice: Splice, reason: str) -> None:
        """See `splice.Owner`."""
        host, _address, port = self._splices.pop(splice)
        if reason:
            self.tally.deny(spelled(host, port), reason)

    # --- names -------------------------------------------------------------------------------

    def ask(self, data: bytes, peer: tuple[str, int]) -> bool:
        """Answer a query, now or when it is looked up; False: this execution asks too much."""
        tally, most = self.tally, self._egress.dns_queries
        tally.queries += 1
        if tally.queries > most + _QUERIES_BEYOND_MAX:
            return False
        try:
            question = dns.read_query(data)
        except dns.BadQuery:
            tally.deny("DNS", "a query that is none")
            return True
        if tally.queries > most:
            tally.deny(question.name, f"more than {most} DNS queries")
            self._tell(question, peer, error="REFUSED")
        elif (reason := self._rules.judge_name(question.name)) is not None:
            tally.deny(question.name, reason)
            self._tell(question, peer, error="NXDOMAIN")
        elif question.family is None:
            self._tell(question, peer)
        elif question.name in self._asking:
            self._asking[question.name].append((question, peer))
        elif len(self._asking) >= _LOOKUPS_MAX:
            tally.deny(question.name, "too many names")
            self._tell(question, peer, error="SERVFAIL")
        else:
            self._look_up(question, peer)
        return True

    def _look_up(self, question: dns.Question, peer: tuple[str, int]) -> None:
        self._asking[question.name] = [(question, peer)]
        lookup = self._gateway._resolver.lookup(question.name)
        self._lookups[question.name] = lookup
        lookup.add_done_callback(functools.partial(self._on_found, question.name))

    def _on_found(self, name: str, lookup: asyncio.Future[list[str]]) -> None:
        if lookup.cancelled():
            return
        failure = lookup.exception()
        if self._closed:
            return
        del self._lookups[name]
        waiting = self._asking.pop(name)
        given: list[str] = []
        if failure is None:
            given = [one for one in lookup.result() if self._may_have(name, one)]
            error = "" if given else "NXDOMAIN"
        else:
            error = "NXDOMAIN" if isinstance(failure, dns.Unknown) else "SERVFAIL"
        for question, peer in waiting:
            self._tell(question, peer, given, error)

    def _may_have(self, name: str, address: str) -> bool:
        """Whether the handler is told this address; then it may connect to it as this name."""
        # Every address seems reachable from inside, so a client would not try the next one.
        with_ipv6 = self._gateway._has_ipv6
        if ":" in address and not (with_ipv6 and routes.has_route(address)):
            return False
        reason = self._rules.judge_answer(name, address)
        if reason is not None:
            self.tally.deny(name, f"its address is refused: {reason}")
            return False
        names = self._names.setdefault(address, {})
        names.pop(name, None)
        names[name] = None
        self._given.pop((address, name), None)
        self._given[address, name] = None
        if len(self._given) > _NAMES_MAX:
            self._forget(*next(iter(self._given)))
        return True

    def _forget(self, address: str, name: str) -> None:
        del self._given[address, name], self._names[address][name]
        if not self._names[address]:
            del self._names[address]

    def _tell(
        self,
        question: dns.Question,
        peer: tuple[str, int],
        addresses: Sequence[str] = (),
        error: str = "",
    ) -> None:
        self._gateway._reply(dns.answer(question, addresses, error), peer)
