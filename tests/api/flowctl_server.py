"""A small real HTTP server on a Unix socket with canned answers, for flowctl's own tests.

It records every request as it came and answers what the test laid down for it; a request nobody
laid down gets a 599 that no test expects. It stands for the API's wire only: what flowctl sends
and how it takes what comes back. The system tests use the real daemon.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingMixIn, UnixStreamServer

from flowctl.main import main


@dataclass
class Request:
    method: str
    path: str
    body: bytes
    content_type: str | None


@dataclass
class Reply:
    """`body` at once, or `lines` as they are made; `cut` closes before the end was sent."""

    status: int = 200
    body: bytes = b""
    lines: Iterable[bytes] | None = None
    content_type: str = "application/json"
    cut: bool = False
    raw: bytes | None = None  # sent instead of an HTTP answer
    hold: threading.Event | None = None  # answered only when set


@dataclass
class Daemon:
    path: str
    requests: list[Request] = field(default_factory=list)
    replies: dict[tuple[str, str], list[Reply]] = field(default_factory=lambda: defaultdict(list))
    changed: threading.Condition = field(default_factory=threading.Condition)

    def on(self, method: str, path: str, body: object = None, status: int = 200) -> bytes:
        """Lay down one more answer; the last one laid down for a request stays. Returns its body"""
        kind = "application/problem+json" if status >= 400 else "application/json"
        text = json.dumps(body, ensure_ascii=False).encode()
        return self.put(method, path, Reply(status, text, content_type=kind)).body

    def put(self, method: str, path: str, reply: Reply) -> Reply:
        self.replies[(method, path)].append(reply)
        return reply

    def stream(self, path: str, lines: Iterable[object], cut: bool = False) -> None:
        texts = (x if isinstance(x, bytes) else json.dumps(x).encode() + b"\n" for x in lines)
        self.put("GET", path, Reply(lines=texts, cut=cut, content_type="application/x-ndjson"))

    def asked(self) -> list[str]:
        return [f"{request.method} {request.path}" for request in self.requests]

    def wait_for(self, method: str, path: str) -> None:
        """Return once this request has come."""
        with self.changed:
            assert self.changed.wait_for(
                lambda: any((r.method, r.path) == (method, path) for r in self.requests), 10
            )


@contextlib.contextmanager
def serving(path: str) -> Iterator[Daemon]:
    daemon = Daemon(path)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kind = self.headers.get("Content-Type")
            with daemon.changed:
                daemon.requests.append(Request(self.command, self.path, body, kind))
                laid = daemon.replies.get((self.command, self.path)) or [Reply(599)]
                reply = laid.pop(0) if len(laid) > 1 else laid[0]
                daemon.changed.notify_all()
            self.close_connection = True
            with contextlib.suppress(ConnectionError):
                self.reply(reply)

        def reply(self, reply: Reply) -> None:
            if reply.hold is not None:
                assert reply.hold.wait(10)
            if reply.raw is not None:
                self.wfile.write(reply.raw)
                return
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            if reply.lines is None:
                self.send_header("Content-Length", str(len(reply.body) + (1 if reply.cut else 0)))
                self.end_headers()
                self.wfile.write(reply.body)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in reply.lines:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
                self.wfile.flush()
            if not reply.cut:
                self.wfile.write(b"0\r\n\r\n")

        do_GET = do_PUT = do_POST = do_DELETE = answer

    class Server(ThreadingMixIn, UnixStreamServer):
        daemon_threads = False  # server_close waits for those that answer

    server = Server(path, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield daemon
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


@dataclass
class Result:
    code: int
    out: str
    err: str


@contextlib.contextmanager
def _stdin(data: bytes) -> Iterator[None]:
    before, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    try:
        yield
    finally:
        sys.stdin = before


def flowctl(*args: str, stdin: bytes = b"", tty: bool = False) -> Result:
    """Run one command line in this process; `tty` makes stdout and stderr terminals."""
    make: Callable[..., io.TextIOWrapper] = Terminal if tty else io.TextIOWrapper
    out, err = (make(io.BytesIO(), encoding="utf-8", newline="") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _stdin(stdin):
        code = main(list(args))
        out.flush()
        err.flush()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return Result(code, *texts)


def problem(status: int, code: str, detail: str, *errors: tuple[str, str]) -> dict[str, object]:
    found: dict[str, object] = {
        "type": "about:blank",
        "title": code.lower(),
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        found["errors"] = [{"path": path, "message": message} for path, message in errors]
    return found


def script() -> str:
    """The installed program, for tests that need a process of their own."""
    return os.path.join(os.path.dirname(sys.executable), "flowctl")
