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
from uvicorn.server import ServerState

from flowmonkeyd import jsontext
from flowmonkeyd.api import wire
from flowmonkeyd.api.requests import Api, BadJson, Gone, Unsupported, known_query
from flowmonkeyd.api.routes import ROUTES, Route
from flowmonkeyd.errors import (
    Conflict,
    FlowMonkeyError,
    Forbidden,
    Invalid,
    LeaseLost,
    NotFound,
    TooLarge,
    TooMany,
    Unavailable,
)

__all__ = ["Server", "application"]

log = logging.getLogger(__name__)

# sockaddr_un.sun_path is 108 bytes with its end (unix(7)).
PATH_BYTES_MAX = 107
BACKLOG = 512
# Open streams are told to end; a client that does not read is cut off after this.
STOP_S = 2.0
# Request line and headers together; ours have a few hundred bytes. The parser sets no limit.
HEAD_BYTES_MAX = 64 * 1024
# A connection costs a descriptor, and 1 024 is the usual limit of those.
CONNECTIONS_MAX = 512
# A client that keeps its connection may think this long between two requests.
KEEP_ALIVE_S = 75

STATUS: tuple[tuple[type[FlowMonkeyError], int], ...] = (
    (BadJson, 400),
    (Unsupported, 415),
    (Invalid, 422),
    (Forbidden, 403),
    (NotFound, 404),
    (Conflict, 409),
    (LeaseLost, 409),
    (TooMany, 429),
    (TooLarge, 413),
    (Unavailable, 503),
)


def application(api: Api) -> Starlette:
    """The ASGI application of the route table."""
    routes = []
    for route in ROUTES:
        made = StarletteRoute(route.path, _guarded(api, route), methods=[route.method])
        made.methods = {route.method}  # no HEAD beside GET: the table says what there is
        routes.append(made)
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_exception})
    app.router.redirect_slashes = False  # a redirect would name a host, and there is none
    return app


def _guarded(api: Api, route: Route) -> Callable[[Request], Awaitable[Response]]:
    async def call(request: Request) -> Response:
        try:
            if route.method != "GET" and api.is_draining():
                raise Unavailable("cannot take new work: the daemon is stopping; try again later")
            if request.scope["query_string"]:
                known_query(request, route.query)
            response = await route.function(api, request)
        except FlowMonkeyError as exc:
            response = _refusal(exc)
        except Gone:
            response = Response(status_code=400)  # nobody is there to read it
        except Exception:
            log.exception("a request failed", extra={"path": request.url.path})
            response = _problem(500, "INTERNAL", "a bug in the daemon; its log has the traceback")
        return _identified(request, response)

    return call


def _identified(request: Request, response: Response) -> Response:
    """The response with the id the client gave its request."""
    request_id = request.headers.get("x-request-id")
    if request_id and len(request_id) <= 128:
        response.headers["x-request-id"] = request_id
    return response


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
    path, method = request.url.path, request.method
    if exc.status_code != 405:
        detail = f"there is nothing at {path[:200]!r}; see /v1/openapi.json"
        return _identified(request, _problem(exc.status_code, "NOT_FOUND", detail))
    matching = [route for route in request.app.routes if route.path_regex.match(path)]
    methods = ", ".join(sorted({name for route in matching for name in route.methods}))
    response = _problem(405, "INVALID", f"{method} is not for {path[:200]!r}: use {methods}")
    response.headers["allow"] = methods
    return _identified(request, response)


class _State(ServerState):
    """uvicorn's state, which can be waited on: `alone` is set while nobody is connected."""

    def __init__(self) -> None:
        super().__init__()
        self.alone = asyncio.Event()
        self.alone.set()


class _Protocol(HttpToolsProtocol):
    """A connection whose peer is known (see `requests.peer`) and whose head is bounded; what is
    not HTTP gets a problem like everything else."""

    server_state: _State
    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.server_state.alone.clear()
        if len(self.connections) > CONNECTIONS_MAX:
            self._refuse(503, "UNAVAILABLE", f"there are {CONNECTIONS_MAX} connections already")
            return
        uid = None
        with suppress(OSError, AttributeError):
            peer = transport.get_extra_info("socket")
            creds = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            uid = struct.unpack("3i", creds)[1]
        self.app_state = {**self.app_state, "uid": uid}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.connections:
            self.server_state.alone.set()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES_MAX:
            self._head_bytes = size
            raise ValueError("the head is too big")  # the parser stops and asks for a 400
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        if self._head_bytes > HEAD_BYTES_MAX:
            detail = f"cannot take the request: its headers are over {HEAD_BYTES_MAX} bytes"
            self._refuse(431, "TOO_LARGE", detail)
        else:
            self._refuse(400, "INVALID", "cannot read the request: it is not HTTP/1.1")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer outside any request, and hang up."""
        response = _problem(status, code, detail)
        response.headers["connection"] = "close"
        lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
        lines += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*lines, b"", bytes(response.body)]))
        self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn without what the daemon does itself: signals, and a tick ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state: _State = _State()
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody, let requests end, then cut off who still holds on."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await self.server_state.alone.wait()
        for connection in list(self.server_state.connections):
            connection.transport.abort()  # its request sees a client that went away
        if tasks := set(self.server_state.tasks):
            _, late = await asyncio.wait(tasks, timeout=STOP_S)
            for task in late:
                task.cancel()
        for server in self.servers:
            await server.wait_closed()


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
            http=_Protocol,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        self._uvicorn = _Uvicorn(config)

    def bind(self) -> None:
        """Take the socket. The caller holds the data directory's lock. Raises Unavailable."""
        if self._inherited:
            self._socket = _listening(self._inherited[0])
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
                self._socket.bind(os.fsencode(path))
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


def _listening(fd: int) -> socket.socket:
    """The socket that systemd gave us."""
    try:
        given = socket.socket(fileno=fd)
    except OSError:
        raise Unavailable(f"cannot serve on descriptor {fd}: it is not a socket") from None
    if given.family != socket.AF_UNIX or not given.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        given.close()
        raise Unavailable(
            f"cannot serve on descriptor {fd}: it is not a listening Unix stream socket; see "
            "ListenStream= in flowmonkeyd.socket"
        )
    return given


def _remove_stale(path: Path) -> None:
    """A socket file that nobody answers on is left from a daemon that was killed."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Unavailable(f"cannot serve on {path}: it exists and is not a socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fsencode(path))
        except ConnectionRefusedError:
            path.unlink()
        else:
            raise Unavailable(f"cannot serve on {path}: another daemon answers there")
