"""HTTP over the daemon's Unix socket: requests, pages and NDJSON streams.

Owns where the socket is, the words for a daemon that cannot be reached, and the reading of
problem documents. Every request has a time limit; a stream has one only when the caller asks.
It never retries: a request that was cut may have happened, and only the caller knows whether
that matters.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import quote, urlencode

from flowctl.problems import BadAnswer, FlowctlError, Refused, TimedOut, Unreachable

__all__ = ["PAGE_MAX", "Answer", "Client", "Listing", "Params", "segment", "socket_path"]

PAGE_MAX = 500  # the most items the API gives in one page
READ_BYTES = 65_536  # of a stream at once; it arrives in smaller pieces
PROBLEM_TEXT_MAX = 200  # characters of a body that is no problem document, shown to the person

Params = Mapping[str, str | int | None]


class Answer:
    """One answer of the daemon: its status and its body as it came.

    A plain class, as Listing is: making a dataclass takes a millisecond of every start.
    """

    __slots__ = ("body", "status")

    def __init__(self, status: int, body: bytes) -> None:
        self.status = status
        self.body = body

    def value(self) -> Any:
        """The body as JSON. Raises BadAnswer when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as exc:
            raise BadAnswer(f"cannot read the daemon's answer: it is not JSON ({exc})") from exc

    def fields(self) -> dict[str, Any]:
        """The body as a JSON object. Raises BadAnswer when it is none."""
        value = self.value()
        if not isinstance(value, dict):
            raise BadAnswer("cannot read the daemon's answer: it is not a JSON object")
        return value


class Listing:
    """Items of one or more pages; `body` is the API's own text when one page was enough."""

    __slots__ = ("body", "items", "next_cursor")

    def __init__(self, items: list[dict[str, Any]], next_cursor: str | None, body: bytes) -> None:
        self.items = items
        self.next_cursor = next_cursor
        self.body = body


class Client:
    """A connection per request to the daemon at `path`; `timeout_s` bounds each of its answers."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self.path = path
        self.timeout_s = timeout_s

    def get(self, path: str, params: Params | None = None) -> Answer:
        """GET one resource. Raises Refused, Unreachable or BadAnswer."""
        return self.request("GET", path, params=params)

    def send(self, method: str, path: str, body: Any, params: Params | None = None) -> Answer:
        """Send a JSON body. Raises Refused, Unreachable or BadAnswer."""
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return self.request(method, path, text.encode(errors="surrogatepass"), params=params)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        content_type: str = "application/json",
        params: Params | None = None,
        accept: tuple[int, ...] = (),
    ) -> Answer:
        """One request and its whole answer; statuses from 400 raise unless `accept` has them."""
        connection = _Connection(self.path, self.timeout_s)
        try:
            response = self._exchange(connection, method, path, body, content_type, params)
            with _reading(self.path, self.timeout_s):
                answer = Answer(response.status, response.read())
        finally:
            connection.close()
        if answer.status >= 400 and answer.status not in accept:
            raise _refusal(answer)
        if not 200 <= answer.status < 300 and answer.status not in accept:
            raise BadAnswer(f"cannot read the daemon's answer: unexpected status {answer.status}")
        return answer

    def pages(self, path: str, params: Params, limit: int | None = None) -> Listing:
        """The first `limit` items of a list (None = all), following cursors as needed."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        body = b""
        while True:
            size = PAGE_MAX if limit is None else min(PAGE_MAX, limit - len(items))
            answer = self.get(path, {**params, "limit": size, "cursor": cursor})
            page = answer.fields()
            found = page.get("items")
            if not isinstance(found, list):
                raise BadAnswer("cannot read the daemon's answer: a list without items")
            body = answer.body if cursor is None else b""
            items += found
            cursor = page.get("nextCursor")
            if not cursor or not found or (limit is not None and len(items) >= limit):
                break
        if not body:
            merged = {"items": items, "nextCursor": cursor}
            body = json.dumps(merged, ensure_ascii=False, separators=(",", ":")).encode()
        return Listing(items, cursor, body)

    def lines(
        self, path: str, params: Params, deadline: float | None = None
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """Each line of an NDJSON stream, as it came and as an object, until the daemon ends it.

        `deadline` is on time.monotonic()'s clock; when it passes TimedOut is raised. A stream that
        breaks off raises Unreachable: only the daemon's own end is an end.
        """
        connection = _Connection(self.path, self.timeout_s)
        try:
            response = self._exchange(connection, "GET", path, None, "", params)
            if response.status >= 400:
                with _reading(self.path, self.timeout_s):
                    raise _refusal(Answer(response.status, response.read()))
            rest, more = b"", True
            while more:
                connection.wait_at_most(_remaining(deadline))
                with _reading(self.path, None):
                    # not readline(): that takes a stream that broke off for one that has ended
                    read = response.read1(READ_BYTES)
                more = bool(read)
                *lines, rest = (rest + read).split(b"\n") if more else (rest, b"")
                for line in lines:
                    if line.strip():
                        yield line, Answer(response.status, line).fields()
        finally:
            connection.close()

    @contextmanager
    def download(self, path: str, params: Params) -> Iterator[tuple[str, Iterator[bytes]]]:
        """GET a body of any size: its media type, and its parts as they come.

        One that breaks off raises Unreachable: only a whole body is one.
        """
        connection = _Connection(self.path, self.timeout_s)
        try:
            response = self._exchange(connection, "GET", path, None, "", params)
            if response.status >= 400:
                with _reading(self.path, self.timeout_s):
                    raise _refusal(Answer(response.status, response.read()))
            kind = (response.headers.get("content-type") or "").partition(";")[0]
            yield kind, self._parts(response)
        finally:
            connection.close()

    def _parts(self, response: HTTPResponse) -> Iterator[bytes]:
        while True:
            with _reading(self.path, self.timeout_s):
                part = response.read(READ_BYTES)
                if not part and response.length:  # read(n) takes a cut body for a whole one
                    raise IncompleteRead(part, response.length)
            if not part:
                return
            yield part

    def _exchange(
        self,
        connection: _Connection,
        method: str,
        path: str,
        body: bytes | None,
        content_type: str,
        params: Params | None,
    ) -> HTTPResponse:
        """Connect, send the request, and read the answer's head."""
        query = urlencode({k: v for k, v in (params or {}).items() if v is not None})
        headers = {"Accept": "application/json", "User-Agent": "flowctl"}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            connection.connect()
        except (OSError, ValueError) as exc:
            raise _unreachable(self.path, exc) from exc
        with _reading(self.path, self.timeout_s):
            try:
                connection.request(method, f"{path}?{query}" if query else path, body, headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server that refuses a long body early has answered already: read that
            return connection.getresponse()


def segment(text: str) -> str:
    """One path segment: everything that is not unreserved is percent-encoded, slashes too."""
    return quote(text, safe="")


def socket_path(flag: str | None) -> str:
    """Where the daemon listens: the flag, FLOWMONKEY_SOCKET, or the user's usual place."""
    chosen = flag or os.environ.get("FLOWMONKEY_SOCKET")
    if chosen:
        return chosen
    if os.geteuid() == 0:
        return "/run/flowmonkey/flowmonkeyd.sock"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    place = runtime or os.path.expanduser("~/.local/state")
    return os.path.join(place, "flowmonkey", "flowmonkeyd.sock")


class _Connection(HTTPConnection):
    """http.client on a Unix socket; keeps the socket, which http.client forgets on close."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        self.sock = self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def wait_at_most(self, seconds: float | None) -> None:
        if self._socket is not None:
            self._socket.settimeout(seconds)


@contextmanager
def _reading(path: str, timeout_s: float | None) -> Iterator[None]:
    """Turn what http.client and the socket raise into our words; None = a caller's deadline."""
    try:
        yield
    except TimeoutError as exc:
        if timeout_s is None:
            raise TimedOut from exc
        raise Unreachable(
            f"cannot wait any longer: the daemon at {path} gave no answer within {timeout_s:g} s; "
            "what was asked may still happen"
        ) from exc
    except (IncompleteRead, ConnectionError) as exc:
        raise Unreachable(
            f"cannot go on: the daemon at {path} closed the connection in the middle of an "
            "answer; what was asked may still happen; see its log"
        ) from exc
    except (HTTPException, OSError, ValueError) as exc:
        raise BadAnswer(
            f"cannot read the answer from {path}: it is not HTTP as the daemon speaks it "
            f"({' '.join(str(exc).split()) or type(exc).__name__})"
        ) from exc


def _remaining(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    # 0 would mean "non-blocking" to the socket: the smallest wait keeps one meaning, a timeout
    return max(0.001, deadline - time.monotonic())


def _unreachable(path: str, exc: Exception) -> Unreachable:
    if isinstance(exc, PermissionError):
        remedy = "ask for the right to use its group, or name your own daemon with --socket"
    elif isinstance(exc, ValueError) or "too long" in str(exc):
        remedy = "a Unix socket's path has at most 107 bytes; choose a shorter one with --socket"
    else:
        remedy = (
            "start it with `flowmonkeyd` or `systemctl start flowmonkeyd`, or name its socket "
            "with --socket or FLOWMONKEY_SOCKET"
        )
    reason = getattr(exc, "strerror", None) or str(exc)
    return Unreachable(f"cannot reach the daemon at {path}: {reason.lower()}; {remedy}")


def _refusal(answer: Answer) -> FlowctlError:
    """The exception for an answer with an error status: a problem document, or whatever it is."""
    try:
        problem = json.loads(answer.body)
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict) or "status" not in problem:
        text = " ".join(answer.body.decode(errors="replace").split())[:PROBLEM_TEXT_MAX]
        return BadAnswer(
            f"cannot read the daemon's answer: status {answer.status} without a problem document"
            + (f": {text}" if text else "")
        )
    code = str(problem.get("code") or "")
    said = str(problem.get("detail") or problem.get("title") or f"status {answer.status}")
    lines = [f"{said} ({code})" if code else said]
    errors = problem.get("errors")
    for error in errors if isinstance(errors, list) else []:
        if isinstance(error, dict):
            lines.append(f"{error.get('path')}: {error.get('message')}")
    return Refused("\n".join(lines), answer.status, code)
