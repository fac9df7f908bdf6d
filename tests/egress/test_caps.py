"""Each cap of an execution's network, reached; and names: what is told, what they allow."""

import asyncio
import socket

import pytest

from sandbox.egress.gateway import _NAMES_MAX
from sandbox.model import Egress
from tests.egress.conftest import LOOPBACK
from tests.egress.test_gateway import TALK, Canary, echo

LOOK_UP = """
    import socket
    def main(*names):
        said = []
        for name in names:
            try:
                found = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
                said.append(sorted(one[4][0] for one in found))
            except socket.gaierror as exc:
                said.append("no")
        return said
"""
# A real client's greeting for this server name to this host; what comes back first.
GREET = """
    import socket, ssl
    def main(host, port, name, cut=None):
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        outgoing = ssl.MemoryBIO()
        tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            hello = outgoing.read()
        with socket.create_connection((host, port), timeout=5) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for at in range(0, len(hello), cut or len(hello)):
                one.sendall(hello[at : at + (cut or len(hello))])
            came = b""
            while len(came) < len(hello):
                data = one.recv(65536)
                if not data:
                    break
                came += data
            return came == hello
"""


def reasons(traffic):
    return {one.reason: one.count for one in traffic.denials}


async def test_connections_are_counted(cell, server):
    code = """
        import socket
        def main(port, count):
            said = []
            for _ in range(count):
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
                        one.sendall(b"x")
                        said.append(one.recv(10).decode())
                except OSError as exc:
                    said.append(type(exc).__name__)
            return said
    """
    port = await server(echo)
    inside = await cell(port)
    result, traffic = await inside.visit(Egress(private=LOOPBACK, connections=3), code, port, 5)
    assert result[:3] == ["x"] * 3
    assert not set(result[3:]) & {"x", ""}
    assert reasons(traffic) == {"more than 3 connections": 2}
    # the next execution has its own
    result, traffic = await inside.visit(Egress(private=LOOPBACK, connections=3), code, port, 3)
    assert result == ["x"] * 3


async def test_bytes_are_counted_in_both_directions_together(cell, server):
    received = bytearray()

    async def serve(reader, writer):
        while data := await reader.read(65536):
            received.extend(data)
            writer.write(data)

    code = """
        import socket
        def main(port):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
                total = 0
                while True:
                    one.sendall(bytes(100))
                    total += len(one.recv(100, socket.MSG_WAITALL))
                    if total >= 10_000:
                        return total
    """
    port = await server(serve)
    inside = await cell(port)
    result, traffic = await inside.visit(Egress(private=LOOPBACK, bytes=2000), code, port)
    assert "Error" in result
    assert reasons(traffic) == {"more bytes than allowed": 1}
    assert traffic.sent_bytes + traffic.received_bytes == 2000
    assert len(received) == 1000


async def test_a_silent_connection_is_reset(cell, server):
    async def serve(reader, writer):
        writer.write(b"hello")
        await reader.read()

    code = """
        import socket
        def main(port):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as one:
                return [one.recv(100).decode(), one.recv(100).decode()]
    """
    port = await server(serve)
    inside = await cell(port)
    result, traffic = await inside.visit(Egress(private=LOOPBACK, idle_ms=30), code, port)
    assert "ConnectionResetError" in result
    assert reasons(traffic) == {"idle for too long": 1}


async def test_a_server_that_does_not_answer_is_given_up(cell):
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    port = full.getsockname()[1]
    waiting = []
    for _ in range(3):  # the backlog takes one or two; then the kernel drops what else comes
        one = socket.socket()
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", port))
        waiting.append(one)
    try:
        inside = await cell(port)
        egress = Egress(private=LOOPBACK, connect_ms=30)
        result, traffic = await inside.visit(egress, TALK, "127.0.0.1", port)
        assert "ConnectionResetError" in result
        assert reasons(traffic) == {"cannot be reached: no answer in time": 1}
    finally:
        for one in (full, *waiting):
            one.close()


async def test_dns_queries_are_counted(cell, table):
    table.names["a.example"] = ["8.8.8.8"]
    inside = await cell(80)
    code = """
        import socket, struct
        def main(count):
            name = b"\\x01a\\x07example\\0"
            said = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.settimeout(5)
                one.connect(("192.0.2.53", 53))
                for number in range(count):
                    question = struct.pack(">HHHHHH", number, 256, 1, 0, 0, 0) + name
                    one.send(question + b"\\0\\1\\0\\1")
                    said.append(one.recv(600)[3] & 15)
            return said
    """
    result, traffic = await inside.visit(Egress(dns_queries=3), code, 5)
    assert result == [0, 0, 0, 5, 5]  # RFC 1035 4.1.1: 5 is "refused"
    assert traffic.dns_queries == 5
    assert reasons(traffic) == {"more than 3 DNS queries": 2}
    assert len(table.asked) == 3


async def test_what_is_no_query_is_dropped_and_counted(cell, table):
    code = """
        import socket
        def main(name):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                for data in (b"", b"x", bytes(12), bytes(5000)):
                    one.sendto(data, ("192.0.2.53", 53))
            return [one[4][0] for one in socket.getaddrinfo(name, 80, socket.AF_INET)][:1]
    """
    table.names["a.example"] = ["8.8.8.8"]
    inside = await cell(80)
    result, traffic = await inside.visit(Egress(), code, "a.example")
    assert result == ["8.8.8.8"]
    assert reasons(traffic) == {"a query that is none": 4}


async def test_a_hosts_inner_names_are_not_told(cell, table):
    table.names |= {
        "db.corp.example": ["10.0.0.5"],
        "both.example": ["10.0.0.5", "8.8.8.8"],
        "six.example": ["fd00::5", "::1", "fe80::1"],
        "broken.example": OSError(5, "no server answers"),
    }
    inside = await cell(80)
    names = ["db.corp.example", "both.example", "six.example", "broken.example", "none.example"]
    result, traffic = await inside.visit(Egress(), LOOK_UP, *names)
    assert result == ["no", ["8.8.8.8"], "no", "no", "no"]
    targets = {one.target for one in traffic.denials}
    assert targets == {"db.corp.example", "both.example", "six.example"} or targets == {
        "db.corp.example",
        "both.example",  # a host without a route for IPv6 does not even look at those
    }


async def test_numbers_are_not_looked_up(cell, table):
    code = """
        import socket, struct
        def main(*names):
            said = []
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                one.settimeout(5)
                one.connect(("192.0.2.53", 53))
                for name in names:
                    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
                    head = struct.pack(">HHHHHH", 1, 256, 1, 0, 0, 0)
                    one.send(head + labels + b"\\0\\0\\1\\0\\1")
                    said.append(one.recv(600)[3] & 15)
            return said
    """
    inside = await cell(80)
    names = ["127.0.0.1", "0x7f.1", "2130706433"]
    result, traffic = await inside.visit(Egress(private=LOOPBACK), code, *names)
    assert result == [3, 3, 3]
    assert table.asked == []
    assert len(traffic.denials) == 3


async def test_with_names_allowed_other_names_are_not_even_asked_for(cell, table):
    table.names |= {"a.example": ["8.8.8.8"], "secret.evil.example": ["9.9.9.9"]}
    inside = await cell(80)
    egress = Egress(allow=("a.example:80",))
    result, traffic = await inside.visit(egress, LOOK_UP, "a.example", "secret.evil.example")
    assert result == [["8.8.8.8"], "no"]
    assert set(table.asked) == {"a.example"}
    assert [one.target for one in traffic.denials] == ["secret.evil.example"]


async def test_look_ups_end_with_their_visit(cell, table):
    code = """
        import socket, struct
        def main():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                head = struct.pack(">HHHHHH", 1, 256, 1, 0, 0, 0)
                one.sendto(head + b"\\4slow\\7example\\0\\0\\1\\0\\1", ("192.0.2.53", 53))
                one.sendto(head + b"\\5quick\\7example\\0\\0\\1\\0\\1", ("192.0.2.53", 53))
                return one.recv(600)[3] & 15
    """
    table.names["slow.example"] = "never"
    inside = await cell(80)
    result, traffic = await inside.visit(Egress(), code)
    assert result == 3  # of the second: one slow name holds up no other
    assert traffic.dns_queries == 2
    assert all(future.done() for future in table.futures)


@pytest.mark.parametrize("cut", [None, 1, 100])
async def test_tls_to_an_allowed_name_passes_unchanged(cell, server, table, cut):
    port = await server(echo)
    table.names["a.example"] = ["127.0.0.1"]
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, allow=(f"*.other.example:{port}", f"a.example:{port}"))
    result, traffic = await inside.visit(egress, GREET, "a.example", port, "A.example", cut)
    assert result is True
    assert traffic.denials == ()
    assert traffic.contacts[0].host == "a.example"


@pytest.mark.parametrize("name", ["b.example", "c.example", None])
async def test_attack_tls_to_another_name_at_the_same_address_is_reset(cell, server, table, name):
    heard = bytearray()

    async def serve(reader, writer):
        heard.extend(await reader.read())

    port = await server(serve)
    table.names |= {"a.example": ["127.0.0.1"], "b.example": ["127.0.0.1"]}
    inside = await cell(port)
    # c is allowed, but nobody was told that it is at this address
    egress = Egress(private=LOOPBACK, allow=(f"a.example:{port}", f"c.example:{port}"))
    result, traffic = await inside.visit(egress, GREET, "a.example", port, name)
    assert "ConnectionResetError" in result
    assert len(traffic.denials) == 1
    assert heard == b""


async def test_attack_an_address_without_its_name_is_reset(cell, server, table):
    canary = Canary()
    port = await server(canary)
    table.names["a.example"] = ["127.0.0.1"]
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, allow=(f"a.example:{port}",))
    result, _traffic = await inside.visit(egress, TALK, "127.0.0.1", port)
    assert "ConnectionResetError" in result
    assert canary.reached == 0
    # and what one execution was told is worth nothing to the next
    assert (await inside.visit(egress, LOOK_UP, "a.example"))[0] == [["127.0.0.1"]]
    result, _traffic = await inside.visit(egress, TALK, "127.0.0.1", port)
    assert "ConnectionResetError" in result
    assert canary.reached == 0


async def test_attack_a_denied_server_name_is_reset_at_any_address(cell, server):
    heard = bytearray()

    async def serve(reader, writer):
        heard.extend(await reader.read())

    port = await server(serve)
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, deny=("*.bad.example",))
    result, traffic = await inside.visit(egress, GREET, "127.0.0.1", port, "x.bad.example")
    assert "ConnectionResetError" in result
    assert "denied" in traffic.denials[0].reason
    assert heard == b""


async def test_attack_half_a_greeting_reaches_nobody(cell, server, table):
    code = """
        import socket
        def main(port):
            with socket.create_connection(("a.example", port), timeout=5) as one:
                one.sendall(bytes([22, 3, 1, 0, 200]) + b"data for a server that is not asked")
                one.shutdown(socket.SHUT_WR)
                return one.recv(100).decode()
    """
    heard = bytearray()

    async def serve(reader, writer):
        heard.extend(await reader.read())

    port = await server(serve)
    table.names["a.example"] = ["127.0.0.1"]
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, allow=(f"a.example:{port}",))
    result, traffic = await inside.visit(egress, code, port)
    assert "Error" in result  # a reset, seen by whichever call came next
    assert len(traffic.denials) == 1
    assert heard == b""


@pytest.mark.slow
async def test_attack_a_flood_of_connections_leaves_the_loop_to_others(cell, server):
    code = """
        import socket
        def main(port, count):
            for _ in range(count):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                except OSError:
                    pass
            return count
    """
    port = await server(echo)
    inside = await cell(port)
    visit = inside.gateway.open(Egress())
    async with asyncio.TaskGroup() as group:
        flood = group.create_task(inside.run(code, port, 1100))
        turns = 0
        while not flood.done():
            await asyncio.sleep(0)
            turns += 1
    traffic = visit.close()
    assert turns > 100
    # after a thousand the rest is looked at in batches, or not any more
    assert 1000 < sum(one.count for one in traffic.denials) <= 1100
    assert len(traffic.denials) == 2
    # and the next execution finds nothing of it
    result, traffic = await inside.visit(Egress(private=LOOPBACK), TALK, "127.0.0.1", port)
    assert result == "x"
    assert traffic.denials == ()


async def test_connections_at_once_are_counted_apart(cell, server):
    """A job of hours makes many of them, one after the other."""
    code = """
        import socket
        def main(port, kept, more):
            def ask():
                try:
                    one = socket.create_connection(("127.0.0.1", port), timeout=5)
                    one.sendall(b"x")
                    one.recv(10)
                except OSError:
                    return None
                return one
            held = [ask() for _ in range(kept)]
            full = ask()
            for _ in range(more):
                held.pop().close()
                assert held.insert(0, ask()) is None
                while held[0] is None:  # the other end's end has to be seen first
                    held[0] = ask()
            return [full, len(held), None in held]
    """
    port = await server(echo)
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, connections=10_000, at_once=3)
    result, traffic = await inside.visit(egress, code, port, 3, 20)
    assert result == [None, 3, False]
    assert set(reasons(traffic)) == {"more than 3 connections at once"}


async def test_of_more_names_than_are_kept_the_first_are_forgotten(cell, server, table):
    code = """
        import socket
        def main(port, first, count):
            def ask(name):
                try:
                    with socket.create_connection((name, port), timeout=5) as one:
                        one.sendall(b"x")
                        return one.recv(10).decode()
                except OSError as exc:
                    return type(exc).__name__
            said = [ask(first)]
            found = [socket.getaddrinfo(f"{n}.example", port, socket.AF_INET)[0][4][0]
                     for n in range(count)]
            with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
                try:
                    one.sendall(b"x")
                    said.append(one.recv(10).decode())
                except OSError as exc:
                    said.append(type(exc).__name__)
            return said + [ask(first)]
    """
    count = _NAMES_MAX + 10
    port = await server(echo)
    inside = await cell(port)
    table.names["first.test"] = ["127.0.0.1"]
    for n in range(count):
        table.names[f"{n}.example"] = [f"127.{1 + n // 250 // 250}.{n // 250 % 250}.{1 + n % 250}"]
    allow = ("first.test", "*.example")
    egress = Egress(allow=allow, private=LOOPBACK, dns_queries=100_000)
    result, traffic = await inside.visit(egress, code, port, "first.test", count)
    assert result == ["x", "ConnectionResetError", "x"]
    assert reasons(traffic) == {"not among the allowed targets": 1}
