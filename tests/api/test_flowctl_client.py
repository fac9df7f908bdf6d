"""The socket's place, and servers that misbehave: a clear error and the right exit code."""

from __future__ import annotations

import os
import socket
import threading

import pytest
from flowctl_server import Reply, flowctl, serving

from flowctl.client import segment, socket_path


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


def test_socket_is_the_flag_then_the_environment_then_the_usual_place(monkeypatch):
    monkeypatch.setenv("FLOWMONKEY_SOCKET", "/from/env")
    assert socket_path("/from/flag") == "/from/flag"
    assert socket_path(None) == "/from/env"
    monkeypatch.delenv("FLOWMONKEY_SOCKET")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert socket_path(None) == "/run/flowmonkey/flowmonkeyd.sock"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert socket_path(None) == "/run/user/1000/flowmonkey/flowmonkeyd.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("HOME", "/home/u")
    assert socket_path(None) == "/home/u/.local/state/flowmonkey/flowmonkeyd.sock"


@pytest.mark.parametrize(
    ("text", "sent"),
    [("acme/resize", "acme%2Fresize"), ("a b?#%", "a%20b%3F%23%25"), ("é", "%C3%A9")],
)
def test_segment_is_one_segment(text, sent):
    assert segment(text) == sent


def _not_there(path):
    return "no such file or directory; start it with `flowmonkeyd` or `systemctl start flowmonkeyd`"


def _nobody_listens(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))
    return "connection refused; start it with `flowmonkeyd` or `systemctl start flowmonkeyd`"


def _plain_file(path):
    path.write_text("")
    return "connection refused; start it with `flowmonkeyd` or `systemctl start flowmonkeyd`"


@pytest.mark.parametrize("make", [_not_there, _nobody_listens, _plain_file])
def test_unreachable_daemon_exits_3_and_says_how_to_start_it(tmp_path, make):
    path = tmp_path / "s"
    said = make(path)
    result = flowctl("flow", "list", "--socket", str(path), "-o", "json")
    assert (result.code, result.out) == (3, "")
    assert result.err == (
        f"flowctl: cannot reach the daemon at {path}: {said}, "
        "or name its socket with --socket or FLOWMONKEY_SOCKET\n"
    )


def test_forbidden_socket_says_whom_to_ask(daemon):
    os.chmod(daemon.path, 0)
    before = os.geteuid()
    if before == 0:  # root may open every socket; nobody may not
        os.seteuid(65534)
    try:
        result = flowctl("flow", "list")
    finally:
        os.seteuid(before)
    assert "permission denied; ask for the right to use its group" in result.err


def test_path_too_long_for_a_socket_says_so(tmp_path):
    result = flowctl("--socket", str(tmp_path / ("x" * 120)), "flow", "list")
    assert result.code == 3
    assert "a Unix socket's path has at most 107 bytes" in result.err


CUT = Reply(body=b'{"items": [', cut=True)
BROKEN = [
    (CUT, "closed the connection in the middle of an answer"),
    (Reply(raw=b""), "closed the connection in the middle of an answer"),
    (Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n"), "it is not HTTP as the daemon speaks it"),
    (Reply(raw=b"HTTP/1.1 banana\r\n\r\n"), "it is not HTTP as the daemon speaks it"),
    (
        Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "closed the connection in the middle of an answer",
    ),
    (Reply(body=b"{nope"), "cannot read the daemon's answer: it is not JSON"),
    (Reply(body=b"\xff\xfe{"), "cannot read the daemon's answer: it is not JSON"),
    (Reply(body=b"[" * 100_000), "cannot read the daemon's answer: it is not JSON"),
    (Reply(body=b"[]"), "cannot read the daemon's answer: it is not a JSON object"),
    (Reply(body=b"{}"), "cannot read the daemon's answer: a list without items"),
    (Reply(status=204), "cannot read the daemon's answer: it is not JSON"),
    (Reply(status=302, body=b"{}"), "unexpected status 302"),
    (
        Reply(status=500, body=b"<html>\n<b>oops\x1b[2J</b>", content_type="text/html"),
        "status 500 without a problem document: <html> <b>oops\\e[2J</b>",
    ),
    (Reply(status=404, body=b"{}"), "status 404 without a problem document: {}"),
]


@pytest.mark.parametrize(("reply", "said"), BROKEN)
def test_broken_answer_exits_3_with_a_clear_error(daemon, reply, said):
    daemon.put("GET", "/v1/flows?limit=100", reply)
    result = flowctl("flow", "list")
    assert (result.code, result.out) == (3, "")
    assert said in result.err
    assert result.err.startswith("flowctl: ")
    assert result.err.count("\n") == 1


def test_slow_daemon_is_given_up_after_the_request_timeout(daemon):
    hold = threading.Event()
    daemon.put("GET", "/v1/flows?limit=100", Reply(hold=hold))
    result = flowctl("flow", "list", "--request-timeout", "0.05")
    hold.set()
    assert result.code == 3
    assert "gave no answer within 0.05 s; what was asked may still happen" in result.err


STREAM = "/v1/events?follow=true"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(lines=[b'{"seq": 1}\n'], cut=True), "closed the connection in the middle"),
        (Reply(lines=[b'{"seq": 1}\n', b"nope\n"]), "it is not JSON"),
        (Reply(lines=[b'{"seq": 1}\n', b"[]\n"]), "it is not a JSON object"),
    ],
)
def test_stream_that_breaks_keeps_what_came_and_exits_3(daemon, reply, said):
    daemon.put("GET", STREAM, reply)
    result = flowctl("event", "tail", "-o", "json")
    assert (result.code, result.out) == (3, '{"seq": 1}\n')
    assert said in result.err


def test_stream_lines_may_come_in_any_pieces_and_blank_ones_keep_it_alive(daemon):
    text = b'{"seq": 1}\n\n{"seq": 2, "type": "x"}\n{"seq": 3}'
    daemon.put("GET", STREAM, Reply(lines=[text[i : i + 1] for i in range(len(text))]))
    result = flowctl("event", "tail", "-o", "json")
    assert (result.code, result.out) == (0, '{"seq": 1}\n{"seq": 2, "type": "x"}\n{"seq": 3}\n')


def test_refused_stream_is_a_refusal(daemon):
    body = b'{"status": 404, "code": "NOT_FOUND", "detail": "no such execution"}'
    daemon.put("GET", "/v1/executions/x/logs?follow=true", Reply(status=404, body=body))
    result = flowctl("execution", "logs", "x", "-f")
    assert (result.code, result.err) == (4, "flowctl: no such execution (NOT_FOUND)\n")


def test_cursor_that_never_ends_stops_at_an_empty_page(daemon):
    daemon.on("GET", "/v1/flows?limit=100", {"items": [], "nextCursor": "again"})
    assert flowctl("flow", "list", "--no-headers").out == ""
    assert len(daemon.requests) == 1


def test_refusal_that_comes_before_the_body_was_read_is_still_read(tmp_path):
    path = str(tmp_path / "s")
    text = b'{"status": 413, "code": "TOO_LARGE", "detail": "cannot take it: over 10 MiB"}'
    head = b"HTTP/1.1 413 Too Large\r\nContent-Length: %d\r\n\r\n" % len(text)

    def serve():
        peer, _ = listener.accept()
        with peer:
            assert peer.recv(100)
            peer.sendall(head + text)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        big = f'{{"x": "{"x" * 5_000_000}"}}'.encode()
        result = flowctl("run", "f", "--context", "-", "--socket", path, stdin=big)
        thread.join()
    assert (result.code, result.err) == (5, "flowctl: cannot take it: over 10 MiB (TOO_LARGE)\n")
