"""What every API function needs: the parts it speaks to, its request decoded, its answer encoded.

Bodies are read under a limit, JSON is parsed strictly, query parameters are checked one by one;
whatever is wrong is a FlowMonkeyError that names it, and changes nothing. A stream is sent as fast
as its reader takes it, and ends with its reader.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from flowmonkeyd import jsontext
from flowmonkeyd.api.feed import Feed
from flowmonkeyd.builder import Builder
from flowmonkeyd.clock import Clock, SystemClock
from flowmonkeyd.documents.problems import problems_of
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import FlowMonkeyError, Forbidden, Invalid, Problem, TooLarge
from flowmonkeyd.packages import Packages
from flowmonkeyd.settings import Settings
from flowmonkeyd.vault import Vault

__all__ = [
    "Api",
    "BadJson",
    "Gone",
    "Jobs",
    "Lines",
    "Unsupported",
    "Vitals",
    "answer",
    "bounded",
    "cursor",
    "decode",
    "instant",
    "known_query",
    "number",
    "operators_only",
    "page_of",
    "peer",
    "read_body",
    "read_json",
    "until_gone",
    "word",
]

log = logging.getLogger(__name__)

Body = TypeVar("Body")

LIMIT_DEFAULT = 50
LIMIT_MAX = 500
# A batch can be wrong ten thousand times; nobody reads more than this.
PROBLEMS_MAX = 100
_CURSOR = re.compile(r"k[0-9]{1,18}")
_EPOCH = datetime.fromtimestamp(0, UTC)


class BadJson(Invalid):
    """The body is not JSON: 400, where other invalid input is 422."""


class Unsupported(Invalid):
    """The body has a media type that this route does not take: 415."""


class Gone(Exception):
    """The client went away in the middle of its request: there is nobody to answer."""


class Vitals(Protocol):
    """How the daemon is (`flowmonkeyd.vitals`, which knows the parts that the API must not)."""

    async def health(self) -> Mapping[str, Any]: ...

    async def pools(self) -> dict[str, Any]: ...

    async def metrics(self) -> str: ...


class Jobs(Protocol):
    """Who runs the containers of stateful handlers (`flowmonkeyd.jobs`)."""

    async def pause(self, job_id: str, by: str, reason: str | None) -> None:
        """Freeze a running job and save that it is paused. Raises Conflict when it does not run."""


@dataclass(frozen=True, slots=True)
class Api:
    """The parts that the API's functions speak to."""

    engine: Engine
    packages: Packages
    feed: Feed
    settings: Settings
    vitals: Vitals
    vault: Vault | None = None
    jobs: Jobs | None = None  # None: this daemon runs no containers
    builder: Builder | None = None
    clock: Clock = field(default_factory=SystemClock)
    is_draining: Callable[[], bool] = lambda: False


def peer(request: Request) -> str:
    """Who asks, for the audit log: the uid that SO_PEERCRED gives."""
    uid = getattr(request.state, "uid", None)
    return "unknown" if uid is None else f"uid:{uid}"


def operators_only(request: Request, what: str) -> None:
    """For what everybody who may connect must not do: a publisher could trust himself. Raises
    Forbidden."""
    uid = getattr(request.state, "uid", None)
    if uid is None or uid not in (0, os.geteuid()):
        raise Forbidden(
            f"cannot {what}: only root and the user who runs the daemon (uid {os.geteuid()}) may; "
            "ask them"
        )


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be over `limit` bytes."""
    refusal = TooLarge(f"cannot take the request: its body is over {limit} bytes")
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise refusal
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise refusal
            chunks.append(chunk)
    except ClientDisconnect:
        raise Gone from None
    return b"".join(chunks)


async def read_json(request: Request, api: Api, empty: Any = None) -> Any:
    """The body as JSON; `empty` for no body. Raises BadJson with line and column."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # The last is what `curl -d` says when it is told nothing.
    if kind not in ("", "application/json", "application/x-www-form-urlencoded"):
        raise Unsupported(f"cannot read {kind!r}: send application/json")
    body = await read_body(request, api.settings.api.bodyBytesMax)
    if not body.strip():
        if empty is not None:
            return empty
        raise BadJson("cannot read the request: the body is empty; send JSON")
    try:
        return jsontext.loads(body)
    except ValueError as exc:
        raise BadJson(f"cannot read the request: not JSON: {exc}") from None


def decode(model: TypeAdapter[Body], value: Any) -> Body:
    """The value as a request model. Raises Invalid with every problem and its path."""
    try:
        return model.validate_python(value)
    except ValidationError as exc:
        problems = problems_of(exc)[:PROBLEMS_MAX]
        what = "; ".join(f"{problem.path}: {problem.message}" for problem in problems[:3])
        raise Invalid(f"cannot take the request: {what}", problems=problems) from None


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(jsontext.dumps(value).encode(), status, headers, media_type="application/json")


class Lines(Response):
    """An NDJSON stream. What breaks it is logged, and the reader sees it cut, not ended."""

    media_type = "application/x-ndjson"

    def __init__(self, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send(send))
            watching = group.create_task(until_gone(receive, sending.cancel))
            await asyncio.wait([sending])
            watching.cancel()

    async def _send(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        try:
            async with aclosing(self._lines) as lines:
                async for chunk in lines:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception:
            log.exception("a stream broke off")
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def until_gone(receive: Receive, then: Callable[[], object]) -> None:
    """Call `then` when the client has gone away; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
    then()


def known_query(request: Request, names: Collection[str]) -> None:
    """Raises Invalid for a query parameter the route does not have: most likely a misspelt filter,
    and a list without its filter is the wrong answer."""
    for name in request.query_params:
        if name not in names:
            known = ", ".join(names) or "none here"
            raise _query(name[:50], f"is not a parameter of this route; there are: {known}")


def number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number from the query. Raises Invalid."""
    text = request.query_params.get(name)
    if text is None:
        return default
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise _query(name, f"must be a whole number from {low} to {high}, not {text[:50]!r}")


def word(request: Request, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    """Words from the query, given several times or with commas. Raises Invalid."""
    words = [
        part for text in request.query_params.getlist(name) for part in text.split(",") if part
    ]
    for one in words:
        if one not in allowed:
            raise _query(name, f"must be one of {', '.join(allowed)}, not {one[:50]!r}")
    return tuple(words)


def instant(request: Request, name: str) -> int | None:
    """An RFC 3339 time from the query, in ms. Raises Invalid."""
    text = request.query_params.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    except (ValueError, TypeError, OverflowError):  # TypeError: it has no time zone
        example = "2026-01-31T08:00:00Z"
        raise _query(name, f"must be an RFC 3339 time such as {example}") from None


def bounded(request: Request) -> int:
    """The page's `limit`."""
    return number(request, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)


def page_of(request: Request) -> int | None:
    """The key that the opaque `cursor` holds. Raises Invalid."""
    text = request.query_params.get("cursor")
    if text is None:
        return None
    try:
        key = base64.urlsafe_b64decode(text.encode() + b"==").decode()
    except ValueError:
        key = ""
    if not _CURSOR.fullmatch(key):
        raise _query("cursor", "is not one that a list gave out")
    return int(key[1:])


def cursor(key: int) -> str:
    """The opaque cursor that goes on after a key."""
    return base64.urlsafe_b64encode(f"k{key}".encode()).decode().rstrip("=")


def _query(name: str, message: str) -> FlowMonkeyError:
    problem = Problem(f"?{name}", message)
    return Invalid(f"cannot take the request: {name} {message}", problems=(problem,))
