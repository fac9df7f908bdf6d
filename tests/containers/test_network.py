"""The network of a container: what its handler's clients reach through the gateway, and what not.

`tests/egress` has what the gateway lets through and refuses; here is that real containers of Podman
are given one, with the files that their libraries read.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import re
import socket

import psutil
import pytest
import pytest_asyncio

from sandbox.confine import LayerFailed
from sandbox.egress.container import open_gateway
from sandbox.model import Egress
from tests.containers.conftest import WAIT, go
from tests.egress.conftest import LOOPBACK, Table, copy_packages, servers
from tests.egress.test_gateway import Canary, say_hello

pytestmark = [
    pytest.mark.slow,
    pytest.mark.root,
    pytest.mark.asyncio(loop_scope="session"),
]

LOCAL = Egress(private=LOOPBACK)
NODE = "localhost/flowmonkey/runtime-node20:latest"
_URLLIB = """
import urllib.request
def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()
"""
_REQUESTS = """
import sys
sys.path.append("/run/flowmonkey/app")
import requests
def get(url):
    return requests.get(url, timeout=5).text
"""
_PRINT = """
import json
said = []
for url in {urls}:
    try:
        said.append(get(url))
    except OSError as exc:
        while getattr(exc, "__context__", None) or isinstance(getattr(exc, "reason", 0), OSError):
            exc = exc.__context__ or exc.reason
        said.append(type(exc).__name__)
print(json.dumps(said))
"""
_FETCH = """
const fs = require("node:fs");
const nap = (ms) => new Promise((done) => setTimeout(done, ms));
async function main() {{
  while (!fs.existsSync("/run/flowmonkey/go")) await nap(2);
  const said = [];
  for (const url of {urls}) {{
    try {{
      said.push(await (await fetch(url)).text());
    }} catch (error) {{
      said.push(error.cause.code);
    }}
  }}
  console.log(JSON.stringify(said));
}}
main();
"""


@pytest_asyncio.fixture(loop_scope="session")
async def server():
    """See tests/egress."""
    async with servers() as start:
        yield start


@pytest.fixture
def table():
    """See tests/egress."""
    return Table()


@pytest_asyncio.fixture(loop_scope="session")
async def visited(containers, start, table):
    """`visited(egress, ports, code)`: what it has printed, as JSON, and its traffic."""

    async def run(egress, ports, code, app=(), **asked):
        container = await start(f"{WAIT}\n{code}", **asked)
        if app:
            copy_packages(container.folder / "app", *app)
        gateway = await open_gateway(containers.pidfd(container), ports, table)
        try:
            visit = gateway.open(egress)
            go(container)
            await containers.ended(container)
            return json.loads(await containers.output(container)), visit.traffic()
        finally:
            gateway.close()

    return run


def targets(traffic):
    return [one.target for one in traffic.denials]


# --- clients, unchanged --------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["urllib", "requests", "fetch"])
async def test_a_client_reaches_what_it_may_and_nothing_inside(
    containers, visited, server, table, client
):
    canary = Canary()
    port = await server(say_hello)
    inner = await server(canary, "127.0.0.2")
    table.names["api.example.com"] = ["127.0.0.1"]
    urls = [
        f"http://api.example.com:{port}/",
        f"http://127.0.0.1:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        f"http://127.0.0.2:{inner}/",
        "http://no-such-name.example/",
    ]
    asked = {}
    if client == "fetch":
        code = _FETCH.format(urls=json.dumps(urls))
        asked = {"image_id": await containers.image_id(NODE)}
        assert asked["image_id"] is not None, "script/setup makes it"
        asked["command"] = ("/usr/bin/node", "-e", code)
    elif client == "requests":
        code = _REQUESTS + _PRINT.format(urls=urls)
        asked = {"app": ("requests",)}
    else:
        code = _URLLIB + _PRINT.format(urls=urls)
    only_one = Egress(private=("127.0.0.1/32",))
    said, traffic = await visited(only_one, (80, port, inner), code, **asked)
    assert said[:2] == ["hello", "hello"]
    reset = "ECONNRESET" if client == "fetch" else "ConnectionResetError"
    assert said[2:4] == [reset, reset]
    assert said[4] in ("gaierror", "NameResolutionError", "ENOTFOUND")
    assert canary.reached == 0
    assert targets(traffic) == ["169.254.169.254:80", f"127.0.0.2:{inner}"]
    (contact,) = traffic.contacts
    assert (contact.host, contact.address, contact.port) == ("api.example.com", "127.0.0.1", port)
    assert contact.connections == 2 or client != "urllib"
    assert traffic.dns_queries >= 2


async def test_names_bound_it_as_in_the_sandbox(visited, server, table):
    port = await server(say_hello)
    table.names |= {"good.example": ["127.0.0.1"], "bad.example": ["127.0.0.1"]}
    urls = [f"http://{name}:{port}/" for name in ("good.example", "bad.example", "127.0.0.3")]
    egress = Egress(allow=("good.example",), private=LOOPBACK)
    said, traffic = await visited(egress, (80, port), _URLLIB + _PRINT.format(urls=urls))
    assert said == ["hello", "gaierror", "ConnectionResetError"]
    assert targets(traffic) == ["bad.example", f"127.0.0.3:{port}"]


async def test_attack_the_hosts_own_services_are_not_reached(visited, server):
    """On whatever address: its own, that of its containers' bridge, any other."""
    canary = Canary()
    own = [
        one.address
        for addresses in psutil.net_if_addrs().values()
        for one in addresses
        if one.family.name == "AF_INET"
    ]
    port = await server(canary, "0.0.0.0")
    urls = [f"http://{address}:{port}/" for address in [*own, "0.0.0.0", "localhost"]]
    said, traffic = await visited(Egress(), (80, port), _URLLIB + _PRINT.format(urls=urls))
    assert set(said) == {"ConnectionResetError"}
    assert canary.reached == 0
    assert traffic.contacts == ()


# --- walls ---------------------------------------------------------------------------------------


async def test_without_a_gateway_there_is_no_network(printed, server):
    canary = Canary()
    port = await server(canary)
    urls = [f"http://127.0.0.1:{port}/", "http://192.0.2.7/", "http://api.example.com/"]
    said = json.loads(await printed(_URLLIB + _PRINT.format(urls=urls)))
    assert said[0] == "ConnectionRefusedError"
    assert said[1] == "OSError"  # there is no route
    assert said[2] == "gaierror"
    assert canary.reached == 0


async def test_its_files_say_nothing_of_the_host(printed):
    code = 'print(open("/etc/hosts").read(), open("/etc/resolv.conf").read(), sep="|")'
    said = await printed(code)
    assert said == "127.0.0.1 localhost\n::1 localhost\n|nameserver 192.0.2.53\n\n"


_WAYS_OUT = """
import ctypes, errno, json, socket
def tried(what):
    try:
        what()
    except OSError as exc:
        return errno.errorcode[exc.errno]
    return "done"
link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
def ask(kind, body):
    import struct
    link.send(struct.pack("=IHHII", 16 + len(body), kind, 0x405, 1, 0) + body)
    code = struct.unpack_from("=i", link.recv(4096), 16)[0]
    if code:
        raise OSError(-code, "")
def write(name):
    open("/proc/sys/net/ipv4/" + name, "w").write("0")
print(json.dumps({
    "a route": tried(lambda: ask(24, bytes([2, 0, 0, 0, 254, 3, 0, 1]) + bytes(4))),
    "the local route away": tried(lambda: ask(25, bytes([2, 0, 0, 0, 255, 3, 254, 2]) + bytes(4))),
    "an interface": tried(lambda: ask(16, bytes(16))),
    "a setting": tried(lambda: write("ip_unprivileged_port_start")),
    "the gateway's port": tried(lambda: socket.socket().bind(("127.0.0.1", 80))),
    "raw packets": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)),
    "packets": tried(lambda: socket.socket(17, socket.SOCK_RAW, 0)),
    "the machine's host": tried(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "another device": tried(lambda: socket.socket().setsockopt(1, 25, b"eth0")),
    "a mark": tried(lambda: socket.socket().setsockopt(1, 36, 1)),
    "an address of another": tried(
        lambda: socket.socket().setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
    ),
}))
"""


async def test_attack_nothing_of_its_network_can_be_changed_from_within(visited):
    """`done` is a success."""
    said, _traffic = await visited(LOCAL, (80, 443), _WAYS_OUT)
    assert "done" not in said.values(), said


# --- long lives ----------------------------------------------------------------------------------


async def test_a_frozen_one_goes_on_after_its_connections_have_ended(
    containers, start, server, table
):
    async def wait(reader, writer):
        writer.write(b"x")
        await reader.read()

    port, hello = await server(wait), await server(say_hello)
    code = f"""{_URLLIB}
import socket
one = socket.create_connection(("127.0.0.1", {port}), timeout=30)
assert one.recv(1) == b"x"
{WAIT}
try:
    said = [one.recv(1).decode()]
except OSError as exc:
    said = [type(exc).__name__]
import json
print(json.dumps([*said, get("http://127.0.0.1:{hello}/")]))
"""
    container = await start(f"{WAIT.replace('/go', '/begin')}\n{code}")
    gateway = await open_gateway(containers.pidfd(container), (port, hello), table)
    try:
        visit = gateway.open(Egress(private=LOOPBACK, idle_ms=200))
        (container.folder / "begin").touch()
        while not visit.traffic().received_bytes:  # noqa: ASYNC110  no event to await
            await asyncio.sleep(0.01)
        await containers.freeze(container)
        while not visit.traffic().denials:  # noqa: ASYNC110  no event to await
            await asyncio.sleep(0.01)
        go(container)
        await containers.thaw(container)
        await containers.ended(container)
        said = json.loads(await containers.output(container))
    finally:
        gateway.close()
    assert said == ["ConnectionResetError", "hello"]
    assert [one.reason for one in visit.traffic().denials] == ["idle for too long"]


def _held():
    """What this process has open, but for connections to Podman, which are kept for the next call,
    and by kind: the numbers of others differ each time."""
    found = collections.Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            kind = re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{name}"))
            if kind.startswith("socket:"):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    kind = one.family.name
            found[kind] += kind != "AF_UNIX"
    return found


async def test_nothing_is_left_of_it(containers, start):
    before = _held()
    container = await start()
    gateway = await open_gateway(containers.pidfd(container), (80, 443))
    own = os.stat(f"/proc/{container.pid}/ns/net").st_ino
    gateway.close()
    await containers.kill(container)
    inside = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino == own:
                inside.append(pid)
    assert inside == []
    with pytest.raises(KeyError):
        containers.pidfd(container)
    assert _held() == before


async def test_one_that_has_ended_is_given_none(containers, start):
    container = await start(WAIT)
    go(container)
    await containers.ended(container)
    with pytest.raises(LayerFailed, match="No such process"):
        await open_gateway(containers.pidfd(container), (80,))
