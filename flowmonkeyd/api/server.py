"""The socket, and the HTTP library behind it: the only file that knows uvicorn.

Binds or takes over the socket, knows who asks (SO_PEERCRED), turns whatever a function raises into
problem+json, and ends gracefully. It knows nothing of flows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from flowmonkeyd import jsontext
from flowmonkeyd.api import wire
from flowmonkeyd.api.requests import Api, BadJson, Gone, Unsupported
from flowmonkeyd.api.routes import ROUTES, Function
from flowmonkeyd.errors import (
    Conflict,
    FlowMonkeyError,
    Invalid,
    LeaseLost,
    NotFound,
    TooLarge,
    Unavailable,
)

__all__ = ["Server", "application"]

log = logging.getLogger(__name__)

# sockaddr_un.sun_path is 108 bytes with its end (unix(7)).
PATH_BYTES_MAX = 107
BACKLOG = 512
# Open streams are told to end; a client that does not read is cut off after this.
STOP_S = 2.0

STATUS: tuple[tuple[type[FlowMonkeyError], int], ...] = (
    (BadJson, 400),
    (Unsupported, 415),
    (Invalid, 422),
    (NotFound, 404),
    (Conflict, 409),
    (LeaseLost, 409),
    (TooLarge, 413),
    (Unavailable, 503),
)


def application(api: Api) -> Starlette:
    """The ASGI application of the route table."""
    routes = []
    for route in ROUTES:
        made = StarletteRoute(route.path, _guarded(api, route.function), methods=[route.method])
        made.methods = {route.method}  # no HEAD beside GET: the table says what there is
        routes.append(made)
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_exception})


def _guarded(api: Api, function: Function) -> Callable[[Request], Awaitable[Response]]:
    async def call(request: Request) -> Response:
        try:
            response = await function(api, request)
        except FlowMonkeyError as exc:
            response = _refusal(exc)
        except Gone:
            response = Response(status_code=400)  # nobody is there to read it
        except Exception:
            log.exception("a request failed", extra={"path": request.url.path})
            response = _problem(500, "INTERNAL", "a bug in the daemon; its log has the traceback")
        request_id = request.headers.get("x-request-id")
        if request_id and len(request_id) <= 128:
            response.headers["x-request-id"] = request_id
        return response

    return call


def _problem(
    status: int, code: str, detail: str, errors: list[dict[str, str]] | None = None
) -> Response:
    """An RFC 9457 answer."""
    shown: dict[str, Any] = {
        "type": f"urn:flowmonkey:{code.lower().replace('_', '-')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        shown["errors"] = errors
    body = jsontext.dumps(shown).encode()
    return Response(body, status, media_type="application/problem+json")


def _refusal(exc: FlowMonkeyError) -> Response:
    status = next((number for kind, number in STATUS if isinstance(exc, kind)), 500)
    if exc.code == "DISK_FULL":
        status = 507
    return _problem(status, exc.code, exc.message, wire.problems_json(exc.problems))


async def _http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        allowed = sorted(
            (route.methods and min(route.methods)) or ""
            for route in request.app.routes
            if route.path_regex.match(request.url.path)
        )
        methods = ", ".join(allowed)
        detail = f"{request.method} is not for {request.url.path}: use {methods}"
        response = _problem(405, "INVALID", detail)
        response.headers["allow"] = methods
        return response
    detail = f"there is nothing at {request.url.path}; see /v1/openapi.json"
    return _problem(exc.status_code, "NOT_FOUND", detail)


class _PeerProtocol(HttpToolsProtocol):
    """Knows the uid on the other end of its connection; see `requests.peer`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        uid = None
        with suppress(OSError, AttributeError):
            peer = transport.get_extra_info("socket")
            creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            uid = struct.unpack("3i", creds)[1]
        self.app_state = {**self.app_state, "uid": uid}


class _Uvicorn(uvicorn.Server):
    """uvicorn without what the daemon does itself: signals, and a tick ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.ending = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.ending.wait()


class Server:
    """Serves an application on the Unix socket at `path`, or on the first inherited descriptor."""

    def __init__(self, app: Starlette, path: Path, mode: int, inherited: list[int]) -> None:
        self._path = path
        self._mode = mode
        self._inherited = inherited
        self._socket: socket.socket | None = None
        self._bound = False
        config = uvicorn.Config(
            app,
            http=_PeerProtocol,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=int(STOP_S),
        )
        self._uvicorn = _Uvicorn(config)

    def bind(self) -> None:
        """Take the socket. The caller holds the data directory's lock. Raises Unavailable."""
        if self._inherited:
            self._socket = socket.socket(fileno=self._inherited[0])
            return
        path = self._path
        if len(os.fsencode(path)) > PATH_BYTES_MAX:
            raise Unavailable(
                f"cannot serve on {path}: a socket's path has at most {PATH_BYTES_MAX} bytes; "
                "choose a shorter one with --socket"
            )
        try:
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            _remove_stale(path)
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o777)  # nobody may connect before the mode is right
            try:
                self._socket.bind(str(path))
            finally:
                os.umask(before)
            self._bound = True
            os.chmod(path, self._mode)
            self._socket.listen(BACKLOG)
        except OSError as exc:
            raise Unavailable(f"cannot serve on {path}: {exc.strerror or exc}") from None

    async def serve(self) -> None:
        """Serve until `stop()`."""
        assert self._socket is not None
        await self._uvicorn.serve([self._socket])

    async def started(self) -> None:
        """Return once requests are taken."""
        await self._uvicorn.up.wait()

    def stop(self) -> None:
        """Take no more requests; `serve` returns when the last one is answered."""
        self._uvicorn.should_exit = True
        self._uvicorn.ending.set()

    def unbind(self) -> None:
        """Give the socket up; its file goes unless it was inherited."""
        if self._socket is not None:
            self._socket.close()
        if self._bound:
            self._path.unlink(missing_ok=True)
            self._bound = False


def _remove_stale(path: Path) -> None:
    """A socket file that nobody answers on is left from a daemon that was killed."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Unavailable(f"cannot serve on {path}: it exists and is not a socket; move it away")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(str(path))
    except OSError:
        path.unlink()
    else:
        raise Unavailable(f"cannot serve on {path}: another daemon answers there")
    finally:
        probe.close()
