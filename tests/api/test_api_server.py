"""The socket and the connections on it: who may take the place, what a connection may cost, how
everything ends."""

import asyncio
import os
import socket
import stat
from contextlib import closing

import pytest

from flowmonkeyd.api.server import CONNECTIONS_MAX, HEAD_BYTES_MAX, PATH_BYTES_MAX, Server
from flowmonkeyd.errors import Unavailable
from tests.api.api_server import Connection, served


@pytest.fixture
async def api(tmp_path):
    async with served(tmp_path) as api:
        yield api


def dialled(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(str(path))
    return sock


def spoken(path, *parts):
    """Everything the server answers to these bytes until it hangs up."""
    with closing(dialled(path)) as sock:
        try:
            for part in parts:
                sock.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it hung up early; what it said is still there
        return heard(sock)


def heard(sock):
    """What comes until the other end has hung up."""
    said = b""
    try:
        while chunk := sock.recv(65536):
            said += chunk
    except ConnectionResetError:
        pass
    return said


def bound(path, mode=0o660, inherited=()):
    server = Server(None, path, mode, list(inherited))
    server.bind()
    return server


# --- the place ---------------------------------------------------------------------------------


def test_the_socket_has_its_mode_and_goes_with_the_server(tmp_path):
    path = tmp_path / "new" / "s.sock"
    server = bound(path, 0o600)
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_ISSOCK(path.stat().st_mode)
    finally:
        server.unbind()
    assert not path.exists()


def test_a_socket_nobody_answers_on_is_replaced(tmp_path):
    path = tmp_path / "s.sock"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as killed:
        killed.bind(str(path))
    bound(path).unbind()


def a_file(path):
    path.write_text("precious")


def a_folder(path):
    path.mkdir()


def a_link_to_a_file(path):
    path.with_suffix(".txt").write_text("precious")
    path.symlink_to(path.with_suffix(".txt"))


@pytest.mark.parametrize("make", [a_file, a_folder, a_link_to_a_file])
def test_what_is_no_socket_is_left_alone(tmp_path, make):
    path = tmp_path / "s.sock"
    make(path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(Unavailable, match="is not a socket; move it away"):
        bound(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_socket_that_answers_is_another_daemons(tmp_path):
    first = bound(tmp_path / "s.sock")
    try:
        with pytest.raises(Unavailable, match="another daemon answers"):
            bound(tmp_path / "s.sock")
        assert (tmp_path / "s.sock").exists()
    finally:
        first.unbind()


def test_a_path_may_be_as_long_as_the_kernel_takes_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "d"
    name = "s" * (PATH_BYTES_MAX - len(os.fsencode(folder)) - 1)
    bound(folder / name).unbind()
    with pytest.raises(Unavailable, match="at most 107 bytes"):
        bound(folder / (name + "s"))
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"cannot serve on .*file/s\.sock"):
        bound(tmp_path / "file" / "s.sock")


def test_an_inherited_socket_is_used_and_its_file_stays(tmp_path):
    path = tmp_path / "s.sock"
    given = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    given.bind(str(path))
    given.listen()
    bound(tmp_path / "unused.sock", inherited=[given.detach()]).unbind()
    assert path.exists()
    assert not (tmp_path / "unused.sock").exists()


def test_an_inherited_descriptor_that_is_no_listening_unix_socket_is_refused(tmp_path):
    pipe_in, pipe_out = os.pipe()
    os.close(pipe_out)
    try:
        with pytest.raises(Unavailable, match="not a socket"):
            bound(tmp_path / "s", inherited=[pipe_in])
    finally:
        os.close(pipe_in)
    unheard = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with pytest.raises(Unavailable, match="not a listening Unix stream socket"):
        bound(tmp_path / "s", inherited=[unheard.detach()])


# --- what a connection may cost ----------------------------------------------------------------

LINE = b"GET /v1/version HTTP/1.1\r\nhost: x\r\n"
NOT_HTTP = [
    (b"hello\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # a TLS hello
    (b"GET /v1/\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    (b"GET /v1/version HTTP/9.9\r\n\r\n", 400),
    (b"POST /v1/events HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400),
    (b"POST /v1/events HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    (LINE + b"a: b\x00c\r\n\r\n", 400),
    (LINE + b"x: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", 431),
    (b"GET /" + b"y" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", 431),
    (LINE + b"".join(b"h%d: v\r\n" % n for n in range(10_000)) + b"\r\n", 431),
]


@pytest.mark.parametrize(("said", "status"), NOT_HTTP, ids=range(len(NOT_HTTP)))
async def test_what_is_not_http_gets_a_problem_and_the_daemon_goes_on(api, said, status):
    answer = await asyncio.to_thread(spoken, api.socket, said)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"application/problem+json" in answer
    assert (await api.call("GET", "/v1/version")).status == 200


async def test_a_head_that_never_ends_is_cut_off(api):
    endless = (b"x-more: " + b"y" * 8000 + b"\r\n" for _ in range(1000))
    answer = await asyncio.to_thread(spoken, api.socket, LINE, *endless)
    assert answer.startswith(b"HTTP/1.1 431 ")


async def test_a_head_within_the_limit_is_taken(api):
    answer = await api.call("GET", "/v1/version", None, {"x-long": "y" * (HEAD_BYTES_MAX - 300)})
    assert answer.status == 200


async def test_a_connection_carries_many_requests_and_survives_refusals(api):
    def ask():
        with closing(Connection(api.socket)) as connection:
            found = []
            for method, path, body in [
                ("GET", "/v1/version", None),
                ("POST", "/v1/executions", b" " * 2_100_000),
                ("POST", "/v1/executions", b"{"),
                ("DELETE", "/v1/flows", None),
                ("GET", "/v1/version", None),
            ]:
                connection.request(method, path, body)
                answer = connection.getresponse()
                answer.read()
                found.append(answer.status)
            return found

    assert await asyncio.to_thread(ask) == [200, 413, 400, 405, 200]


async def test_a_slash_too_many_is_not_found_rather_than_sent_elsewhere(api):
    for path in ("/v1/flows/", "//v1/flows", "/"):
        assert (await api.call("GET", path)).status == 404


async def test_one_connection_too_many_is_told_so_and_the_others_go_on(api):
    def crowd():
        held = [dialled(api.socket) for _ in range(CONNECTIONS_MAX)]
        try:
            held[0].sendall(LINE + b"\r\n")  # every one before it has been accepted
            first = held[0].recv(65536)
            last = held[-1]
            last.sendall(LINE + b"\r\n")
            assert last.recv(65536).startswith(b"HTTP/1.1 200 ")
            return first, spoken(api.socket, b"")
        finally:
            for sock in held:
                sock.close()

    first, refused = await asyncio.to_thread(crowd)
    assert first.startswith(b"HTTP/1.1 200 ")
    assert refused.startswith(b"HTTP/1.1 503 ")
    assert b"UNAVAILABLE" in refused


# --- the end -----------------------------------------------------------------------------------


@pytest.mark.slow  # half a request is given its two seconds
async def test_the_end_waits_for_answers_and_cuts_off_who_holds_on(tmp_path):
    """An idle connection, half a request and a stream: all are gone when it has ended."""
    async with served(tmp_path) as api:
        half = b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"
        idle, cut = dialled(api.socket), dialled(api.socket)
        stream = dialled(api.socket)
        try:
            await asyncio.to_thread(idle.sendall, LINE + b"\r\n")
            assert (await asyncio.to_thread(idle.recv, 65536)).startswith(b"HTTP/1.1 200 ")
            follow = b"GET /v1/events?follow=true HTTP/1.1\r\nhost: x\r\n\r\n"
            await asyncio.to_thread(stream.sendall, follow)
            assert (await asyncio.to_thread(stream.recv, 65536)).startswith(b"HTTP/1.1 200 ")
            await asyncio.to_thread(cut.sendall, half)
            assert (await api.call("GET", "/v1/version")).status == 200
        except BaseException:
            for sock in (idle, cut, stream):
                sock.close()
            raise
    try:
        heard(idle)
        assert heard(stream).endswith(b"0\r\n\r\n")  # ended, not broken off
        assert heard(cut) == b""
    finally:
        for sock in (idle, cut, stream):
            sock.close()
