"""The gateway from a handler's side: what gets through, unchanged, and what is refused.

`test_attack_…` tests have a canary: a server of the host that the attack would reach if it
succeeded.
"""

import asyncio
import hashlib
import inspect
import shutil

import psutil
import pytest
import uvloop

from sandbox.egress import routes
from sandbox.model import Egress
from tests.egress.conftest import LOOPBACK, Table, cells, servers

# libuv opens a pipe at its first loop and keeps it: not in a test, where it would count as a leak
uvloop.new_event_loop().close()

LOCAL = Egress(private=LOOPBACK)
GET = """
    import urllib.request
    def main(url):
        with urllib.request.urlopen(url, timeout=5) as answer:
            return [answer.status, answer.read().decode()]
"""
# What comes back for these bytes, or the name of the error.
TALK = """
    import socket
    def main(host, port, data="x"):
        with socket.create_connection((host, port), timeout=5) as one:
            one.sendall(data.encode())
            return one.recv(1000).decode()
"""


class Canary:
    """A server that must not be reached: counts who does, and answers with its own name."""

    def __init__(self):
        self.reached = 0

    async def __call__(self, reader, writer):
        self.reached += 1
        writer.write(b"canary")


async def say_hello(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello")
    await writer.drain()


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


# --- what gets through ---------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, 65534])
async def test_a_standard_client_works_unchanged(cell, server, uid):
    port = await server(say_hello)
    inside = await cell(port, uid=uid)
    url = f"http://127.0.0.1:{port}/"
    result, traffic = await inside.visit(LOCAL, GET, url)
    assert result == [200, "hello"]
    (contact,) = traffic.contacts
    assert (contact.host, contact.address, contact.port) == ("127.0.0.1", "127.0.0.1", port)
    assert (contact.connections, contact.received_bytes) == (1, 62)
    assert traffic.sent_bytes == contact.sent_bytes > 50
    assert traffic.denials == ()


async def test_ipv6_works_alike(cell, server):
    port = await server(say_hello, "::1")
    inside = await cell(port)
    result, traffic = await inside.visit(LOCAL, GET, f"http://[::1]:{port}/")
    assert result == [200, "hello"]
    assert traffic.contacts[0].address == "::1"


async def test_a_name_is_looked_up_and_shown(cell, server, table):
    port = await server(say_hello)
    table.names["api.example.com"] = ["127.0.0.1"]
    inside = await cell(port)
    result, traffic = await inside.visit(LOCAL, GET, f"http://API.example.com:{port}/")
    assert result == [200, "hello"]
    assert traffic.contacts[0].host == "api.example.com"
    assert traffic.dns_queries >= 1
    assert traffic.denials == ()


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node here")
@pytest.mark.slow
async def test_fetch_of_node_works_unchanged(cell, server, table):
    code = """
        import subprocess
        def main(node, url):
            script = "fetch(process.argv[1]).then(r => r.text()).then(console.log)"
            return subprocess.run([node, "-e", script, url], capture_output=True, text=True).stdout
    """
    port = await server(say_hello)
    table.names["api.example.com"] = ["127.0.0.1"]
    inside = await cell(port)
    url = f"http://api.example.com:{port}/"
    result, traffic = await inside.visit(LOCAL, code, shutil.which("node"), url)
    assert result == "hello\n", traffic
    assert traffic.contacts[0].host == "api.example.com"


async def test_a_kept_connection_serves_many_requests(cell, server):
    async def serve(reader, writer):
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    code = """
        import http.client
        def main(port):
            one = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            said = []
            for _ in range(200):
                one.request("GET", "/")
                said.append(one.getresponse().read().decode())
            one.close()
            return said
    """
    port = await server(serve)
    inside = await cell(port)
    result, traffic = await inside.visit(LOCAL, code, port)
    assert result == ["ok"] * 200
    assert traffic.contacts[0].connections == 1


async def test_bytes_stream_both_ways_at_once_and_unchanged(cell, server):
    code = """
        import hashlib, os, socket, threading
        def main(port, size):
            data = os.urandom(size)
            with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
                def send():
                    for at in range(0, size, 70001):
                        one.sendall(data[at : at + 70001])
                    one.shutdown(socket.SHUT_WR)
                sender = threading.Thread(target=send)
                sender.start()
                came = b"".join(iter(lambda: one.recv(100_000), b""))
                sender.join()
            return [hashlib.sha256(one).hexdigest() for one in (data, came)]
    """
    port = await server(echo)
    inside = await cell(port)
    (sent, came), traffic = await inside.visit(LOCAL, code, port, 8_000_000)
    assert sent == came != hashlib.sha256(b"").hexdigest()
    assert (traffic.sent_bytes, traffic.received_bytes) == (8_000_000, 8_000_000)


async def test_one_side_may_end_while_the_other_goes_on(cell, server):
    async def serve(reader, writer):
        asked = await reader.read()  # until the client has ended its side
        writer.write(asked[::-1])

    code = """
        import socket
        def main(port):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
                one.sendall(b"abc")
                one.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: one.recv(100), b"")).decode()
    """
    port = await server(serve)
    inside = await cell(port)
    assert (await inside.visit(LOCAL, code, port))[0] == "cba"


async def test_a_server_that_talks_first_is_heard(cell, server):
    async def serve(reader, writer):
        writer.write(b"220 welcome")
        await reader.read()

    code = """
        import socket
        def main(port):
            with socket.create_connection(("a.example", port), timeout=5) as one:
                return one.recv(100).decode()
    """
    port = await server(serve)
    inside = await cell(port)
    inside.table.names["a.example"] = ["127.0.0.1"]
    named = Egress(private=LOOPBACK, allow=(f"a.example:{port}",))
    assert (await inside.visit(named, code, port))[0] == "220 welcome"


async def test_a_slow_reader_slows_its_server(cell, server):
    size, written = 64 << 20, 0

    async def serve(reader, writer):
        nonlocal written
        if await reader.read(1) == b"?":
            writer.write(b"%d" % written)
            return
        while written < size:
            writer.write(bytes(65536))
            await writer.drain()
            written += 65536

    code = """
        import socket
        def ask(port):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
                one.sendall(b"?")
                return int(one.recv(100))
        def main(port):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as slow:
                slow.sendall(b"!")
                counts = [ask(port)]
                while len(counts) < 50 or counts[-50] != counts[-1] or not counts[-1]:
                    counts.append(ask(port))
                total = 0
                while data := slow.recv(1 << 20):
                    total += len(data)
                return [counts[-1], total]
    """
    port = await server(serve)
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, connections=1024)
    (stalled_at, total), _traffic = await inside.visit(egress, code, port)
    assert stalled_at < size / 2  # what the kernel's buffers hold, and one of ours
    assert total == size


# --- what is refused -----------------------------------------------------------------------------

SPELLINGS = [
    *("127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.2"),
    *("0.0.0.0", "0", "::", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:ffff:127.0.0.1"),
    *("::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::"),
    *("localhost", "169.254.169.254", "fd00:ec2::254", "10.0.0.1", "192.168.0.1", "100.64.0.1"),
]


async def test_attack_every_spelling_of_an_inner_address_is_reset(cell, server):
    canary = Canary()
    port = await server(canary, "127.0.0.1")
    await server(canary, "127.0.0.2", port)
    await server(canary, "::1", port)
    own = [
        one.address
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family.name.startswith("AF_INET") and "%" not in one.address
    ]
    inside = await cell(port)
    for host in [*SPELLINGS, *own]:
        result, traffic = await inside.visit(Egress(), TALK, host, port)
        assert "ConnectionResetError" in result, (host, result)
        count = sum(one.count for one in traffic.denials)
        assert count == 1 or (host, count) == ("localhost", 2), (host, traffic)
        assert traffic.contacts == ()
    assert canary.reached == 0


async def test_attack_a_redirect_to_an_inner_address_is_reset(cell, server):
    canary = Canary()
    port = await server(canary, "127.0.0.2")

    async def redirect(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        where = b"http://127.0.0.2:%d/" % port
        writer.write(b"HTTP/1.1 302 Found\r\nlocation: %s\r\ncontent-length: 0\r\n\r\n" % where)

    await server(redirect, "127.0.0.1", port)
    inside = await cell(port)
    only_one = Egress(private=("127.0.0.1/32",))
    result, traffic = await inside.visit(only_one, GET, f"http://127.0.0.1:{port}/")
    assert "reset" in result
    assert [one.target for one in traffic.denials] == [f"127.0.0.2:{port}"]
    assert canary.reached == 0


async def test_attack_a_name_that_changes_between_look_ups_gets_nowhere(cell, server, table):
    code = """
        import socket
        def main(port):
            said = []
            for _ in range(4):
                try:
                    with socket.create_connection(("rebind.example", port), timeout=5) as one:
                        said.append(one.recv(100).decode())
                except OSError as exc:
                    said.append(type(exc).__name__)
            return said
    """
    canary = Canary()
    port = await server(canary, "127.0.0.2")

    async def outside(reader, writer):
        writer.write(b"outside")

    await server(outside, "127.0.0.1", port)
    # A and AAAA of one look-up may be asked one after the other
    table.names["rebind.example"] = [["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"]]
    inside = await cell(port)
    result, traffic = await inside.visit(Egress(private=("127.0.0.1/32",)), code, port)
    assert result[0] == "outside"
    assert result[-1] == "gaierror"
    assert canary.reached == 0
    assert {one.reason for one in traffic.denials} == {"its address is refused: loopback"}


async def test_attack_ports_that_are_not_served_do_not_exist(cell, server):
    canary = Canary()
    served, other = await server(echo), await server(canary)
    inside = await cell(served)
    result, _traffic = await inside.visit(LOCAL, TALK, "127.0.0.1", other)
    assert "ConnectionRefusedError" in result
    assert canary.reached == 0


async def test_attack_datagrams_go_nowhere(cell, server):
    code = """
        import socket
        def main(targets):
            said = []
            for host, port in targets:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                    one.settimeout(5)
                    one.connect((host, port))
                    one.send(b"data")
                    try:
                        said.append(one.recv(100).decode())
                    except OSError as exc:
                        said.append(type(exc).__name__)
            return said
    """

    class Heard(asyncio.DatagramProtocol):
        data = []

        def datagram_received(self, data, _address):
            self.data.append(data)

    loop = asyncio.get_running_loop()
    transport, heard = await loop.create_datagram_endpoint(Heard, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    inside = await cell(port)
    targets = [("127.0.0.1", port), ("8.8.8.8", 53), ("8.8.8.8", 443)]
    result, _traffic = await inside.visit(LOCAL, code, targets)
    assert result == ["ConnectionRefusedError"] * 3
    assert heard.data == []
    transport.close()


async def test_deny_beats_what_is_private(cell, server):
    canary = Canary()
    port = await server(canary)
    inside = await cell(port)
    egress = Egress(private=LOOPBACK, deny=("127.0.0.0/8",))
    result, traffic = await inside.visit(egress, TALK, "127.0.0.1", port)
    assert "ConnectionResetError" in result
    assert traffic.denials[0].reason == "denied by a rule"
    assert canary.reached == 0


async def test_a_server_that_is_not_there_is_said_to_be_so(cell, server):
    port = await server(echo)
    inside = await cell(port)
    result, traffic = await inside.visit(LOCAL, TALK, "127.0.0.3", port)
    assert "ConnectionResetError" in result
    assert traffic.denials[0].target == f"127.0.0.3:{port}"
    assert traffic.denials[0].reason == "cannot be reached: Connection refused"
    assert traffic.contacts == ()


async def test_attack_without_an_open_visit_every_connection_is_reset(cell, server):
    canary = Canary()
    port = await server(canary)
    inside = await cell(port)
    assert "ConnectionResetError" in await inside.run(TALK, "127.0.0.1", port)
    _result, _traffic = await inside.visit(LOCAL, TALK, "127.0.0.1", port)
    assert canary.reached == 1
    assert "ConnectionResetError" in await inside.run(TALK, "127.0.0.1", port)
    assert canary.reached == 1


async def test_attack_what_was_begun_before_a_visit_is_not_part_of_it(cell, server):
    connect = """
        import socket
        def main(port):
            global one
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            one.sendall(b"from before")
            import builtins
            builtins.kept = one
    """
    canary = Canary()
    port = await server(canary)
    inside = await cell(port)
    inside.run_while_the_loop_stands(connect, port)
    visit = inside.gateway.open(LOCAL)
    read = "def main():\n    return kept.recv(100).decode()"
    assert "ConnectionResetError" in await inside.run(read)
    assert visit.close().contacts == ()
    assert canary.reached == 0


async def test_the_end_of_a_visit_resets_what_is_open(cell, server):
    gone = asyncio.Event()

    async def serve(reader, writer):
        writer.write(b"hello")
        try:
            await reader.read()
        except ConnectionResetError:
            gone.set()

    connect = """
        import builtins, socket
        def main(port):
            builtins.kept = socket.create_connection(("127.0.0.1", port), timeout=5)
            return kept.recv(100).decode()
    """
    port = await server(serve)
    inside = await cell(port)
    visit = inside.gateway.open(LOCAL)
    assert await inside.run(connect, port) == "hello"
    traffic = visit.close()
    assert traffic == visit.close()
    assert traffic.received_bytes == 5
    await gone.wait()
    assert "ConnectionResetError" in await inside.run("def main():\n    kept.recv(1)")


@pytest.mark.parametrize(
    "test",
    [
        test_ipv6_works_alike,
        test_a_name_is_looked_up_and_shown,
        test_a_kept_connection_serves_many_requests,
        test_bytes_stream_both_ways_at_once_and_unchanged,
        test_one_side_may_end_while_the_other_goes_on,
        test_a_slow_reader_slows_its_server,
        test_attack_a_redirect_to_an_inner_address_is_reset,
        test_attack_without_an_open_visit_every_connection_is_reset,
        test_attack_what_was_begun_before_a_visit_is_not_part_of_it,
        test_a_server_that_is_not_there_is_said_to_be_so,
        test_the_end_of_a_visit_resets_what_is_open,
    ],
)
def test_uvloop_does_the_same(test):
    async def run():
        table = Table()
        async with servers() as server, cells(table) as cell:
            given = {"cell": cell, "server": server, "table": table}
            await test(**{name: given[name] for name in inspect.signature(test).parameters})

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_a_slot_has_one_visit_at_a_time(cell, server):
    inside = await cell(await server(echo))
    visit = inside.gateway.open(LOCAL)
    with pytest.raises(RuntimeError):
        inside.gateway.open(LOCAL)
    visit.close()
    with pytest.raises(ValueError, match="'nonsense:x'"):
        inside.gateway.open(Egress(allow=("nonsense:x",)))
    inside.gateway.open(LOCAL).close()


async def test_the_kernel_knows_what_is_the_hosts_own(cell, server):
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family.name.startswith("AF_INET") and "%" not in one.address:
                assert routes.is_own(one.address), one
    assert not routes.is_own("8.8.8.8")
    # inside, every address is local though no interface has it
    code = """
        from sandbox.egress import routes
        def main():
            return [routes.is_own(one) for one in ("8.8.8.8", "2606:4700::1111")]
    """
    inside = await cell(await server(echo))
    assert await inside.run(code) == [True, True]
