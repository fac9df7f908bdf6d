"""What every API function needs: the parts it speaks to, its request decoded, its answer encoded.

Bodies are read under a limit, JSON is parsed strictly, query parameters are checked one by one;
whatever is wrong is a FlowMonkeyError that names it, and changes nothing.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from flowmonkeyd import jsontext
from flowmonkeyd.api.feed import Feed
from flowmonkeyd.config import Settings
from flowmonkeyd.documents.problems import problems_of
from flowmonkeyd.engine import Engine
from flowmonkeyd.errors import FlowMonkeyError, Invalid, Problem, TooLarge
from flowmonkeyd.packages import Packages

__all__ = [
    "Api",
    "BadJson",
    "Gone",
    "Unsupported",
    "answer",
    "bounded",
    "cursor",
    "decode",
    "instant",
    "number",
    "page_of",
    "peer",
    "read_body",
    "read_json",
    "word",
]

Body = TypeVar("Body", bound=BaseModel)

LIMIT_DEFAULT = 50
LIMIT_MAX = 500


class BadJson(Invalid):
    """The body is not JSON: 400, where other invalid input is 422."""


class Unsupported(Invalid):
    """The body has a media type that this route does not take: 415."""


class Gone(Exception):
    """The client went away in the middle of its request: there is nobody to answer."""


@dataclass(frozen=True, slots=True)
class Api:
    """The parts that the API's functions speak to."""

    engine: Engine
    packages: Packages
    feed: Feed
    settings: Settings
    health: Callable[[], Mapping[str, Any]]
    metrics: Callable[[], Awaitable[str]]


def peer(request: Request) -> str:
    """Who asks, for the audit log: the uid that SO_PEERCRED gives."""
    uid = getattr(request.state, "uid", None)
    return "unknown" if uid is None else f"uid:{uid}"


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
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip()
    if kind not in ("application/json", "", "application/x-www-form-urlencoded"):
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


def decode(model: type[Body], value: Any, root: str = "$") -> Body:
    """The value as a request model. Raises Invalid with every problem and its path."""
    try:
        return model.model_validate(value)
    except ValidationError as exc:
        problems = problems_of(exc, root)
        what = "; ".join(f"{problem.path}: {problem.message}" for problem in problems[:3])
        raise Invalid(f"cannot take the request: {what}", problems=problems) from None


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(jsontext.dumps(value).encode(), status, headers, media_type="application/json")


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
        if moment.tzinfo is None:
            raise ValueError("no time zone")
    except ValueError:
        example = "2026-01-31T08:00:00Z"
        raise _query(name, f"must be an RFC 3339 time such as {example}") from None
    return int(moment.timestamp() * 1000)


def bounded(request: Request) -> int:
    """The page's `limit`."""
    return number(request, "limit", LIMIT_DEFAULT, 1, LIMIT_MAX)


def page_of(request: Request) -> int | None:
    """The key that the opaque `cursor` holds. Raises Invalid."""
    text = request.query_params.get("cursor")
    if text is None:
        return None
    try:
        return int(base64.urlsafe_b64decode(text.encode() + b"==").decode().removeprefix("k"))
    except ValueError:
        raise _query("cursor", "is not one that a list gave out") from None


def cursor(key: int) -> str:
    """The opaque cursor that goes on after a key."""
    return base64.urlsafe_b64encode(f"k{key}".encode()).decode().rstrip("=")


def _query(name: str, message: str) -> FlowMonkeyError:
    problem = Problem(f"?{name}", message)
    return Invalid(f"cannot take the request: {name} {message}", problems=(problem,))
