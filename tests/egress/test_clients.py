"""The clients that people use work in a handler as they are, through the gateway.

Real handlers (`clients/handler.py`, `npm/handler.js`) run by the real pool, with their libraries in
their package as a user's would be, against servers of the test on the host's loopback, which the
operator allows them. `script/setup` installs the libraries of both languages.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import ssl
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import dns
import pyseccomp
import pytest
import pytest_asyncio
import trustme
from aiohttp import web

import sandbox
from sandbox import Call, Egress, Ending, Policy, Pool, PoolSettings
from sandbox.forkserver import PYTHON_DEFAULT
from tests.egress.conftest import copy_for_everybody, copy_packages

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.slow]

HERE = Path(__file__).parent
LOCAL = Policy(network=Egress(private=("127.0.0.0/8", "::1/128")))
METADATA = "http://169.254.169.254/latest/meta-data/"
BIG = bytes(range(256)) * 80_000  # 20 MB
AT_ONCE = Egress().connections

PYTHON = ("urllib", "requests", "httpx", "async_httpx", "aiohttp")
NODE = ("fetch", "https", "undici", "axios")


def each(*clients):
    """Runs a test with each of these, "language-client"."""
    pairs = [tuple(client.split("-")) for client in clients]
    return pytest.mark.parametrize(("runtime", "client"), pairs, ids=clients)


each_client = each(*(f"python-{name}" for name in PYTHON), *(f"node-{name}" for name in NODE))


class Servers:
    """One application on a plain port and on one with TLS; knows who came."""

    def __init__(self):
        self.seen = Counter()
        self._together = asyncio.Event()

    async def hello(self, request):
        """Names the connection, so that it is seen whether it was kept."""
        self.seen[request.path] += 1
        return web.Response(text=f"hello {request.transport.get_extra_info('peername')[1]}")

    async def away(self, request):
        self.seen[request.path] += 1
        raise web.HTTPFound(METADATA)

    async def big(self, request):
        return web.Response(body=BIG)

    async def together(self, request):
        """Answers only once as many as are allowed wait for it at the same time."""
        self.seen[request.path] += 1
        if self.seen[request.path] % AT_ONCE == 0:
            self._together.set()
            self._together = asyncio.Event()
        else:
            await self._together.wait()
        return await self.hello(request)

    async def echo(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data)
        return socket


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def place(tmp_path_factory):
    """The servers, by ports `plain`, `secure`, `plain6`; a pool whose gateway serves those."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    servers = Servers()
    application = web.Application()
    for handler in (servers.hello, servers.away, servers.big, servers.together, servers.echo):
        application.router.add_get(f"/{handler.__name__}", handler)
    async with contextlib.AsyncExitStack() as stack:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        ports = []
        for host, tls in (("127.0.0.1", None), ("127.0.0.1", context), ("::1", None)):
            site = web.TCPSite(runner, host, 0, ssl_context=tls, backlog=AT_ONCE)
            await site.start()
            ports.append(runner.addresses[-1][1])
        pool = Pool(PoolSettings(slots=2, ports=(80, 443, *ports)))
        await pool.start()
        stack.push_async_callback(pool.close)
        layers = {layer.name: layer for layer in pool.layers()}
        if not layers["network"].available:
            pytest.skip(f"no network here, so NO client is tested: {layers['network'].detail}")
        yield SimpleNamespace(
            seen=servers.seen,
            pool=pool,
            plain=ports[0],
            secure=ports[1],
            plain6=ports[2],
            folder=tmp_path_factory.mktemp("clients"),
            ca=authority.cert_pem.bytes(),
        )


@pytest.fixture(scope="module")
def package(place):
    """`package(runtime)`: the folder of the handlers, with all that they import."""
    return lambda runtime: {"python": _python_package, "node": _node_package}[runtime](place)


def _python_package(place):
    folder = place.folder / "python"
    if not folder.exists():
        shutil.copytree(HERE / "clients", folder)
        (folder / "ca.pem").write_bytes(place.ca)
        copy_packages(folder, "requests", "httpx", "aiohttp")
    return folder


def _node_package(place):
    folder = place.folder / "node"
    if not place.pool.node:
        pytest.skip("there is no Node here, so NO client of Node is tested: install Node and npm")
    if not (HERE / "npm" / "node_modules" / ".package-lock.json").exists():
        pytest.skip(
            "undici, axios and ws are not there, so NO client of Node is tested: install npm, "
            "then run script/setup"
        )
    if not folder.exists():
        shutil.copytree(HERE / "npm", folder)
        (folder / "ca.pem").write_bytes(place.ca)
    return folder


@pytest.fixture
def run(place, package):
    """`run(runtime, function, url, …)`: what the handler answered, and its traffic."""

    async def once(runtime, function, url, **asked):
        file = {"python": "handler.py", "node": "handler.js"}[runtime]
        reply = await place.pool.run(
            Call(
                str(package(runtime)),
                f"{file}:{function}",
                runtime,
                input={"url": url, **asked},
                policy=LOCAL,
            )
        )
        assert reply.ending is Ending.RESULT, reply
        assert reply.result["outcome"] == "success", reply.result
        return reply.result["output"], reply.traffic

    return once


# --- one request after the other -----------------------------------------------------------------


@each_client
async def test_http_and_a_kept_connection(place, run, runtime, client):
    url = f"http://127.0.0.1:{place.plain}/hello"
    answer, traffic = await run(runtime, f"get_with_{client}", url, times=3)
    said = answer["said"]
    assert [text.split()[0] for text in said] == ["hello"] * 3
    connections = len(set(said))
    if client == "urllib":
        assert connections == 3, "its documentation: 'Connection: close' is in every request"
    else:
        # Not 1: undici takes a second one if it is asked again before it has put back the first.
        assert connections < 3
    (contact,) = traffic.contacts
    assert (contact.address, contact.port) == ("127.0.0.1", place.plain)
    assert contact.connections == connections
    assert traffic.denials == ()


@each_client
async def test_an_address_of_ipv6(place, run, runtime, client):
    url = f"http://[::1]:{place.plain6}/hello"
    answer, traffic = await run(runtime, f"get_with_{client}", url)
    assert "hello" in answer.get("said", [""])[0], answer
    assert [contact.address for contact in traffic.contacts] == ["::1"]


@each_client
async def test_https_by_name_with_the_ca_of_the_package(place, run, runtime, client):
    url = f"https://localhost:{place.secure}/hello"
    answer, traffic = await run(runtime, f"get_with_{client}", url)
    assert answer["said"][0].startswith("hello ")
    assert [contact.port for contact in traffic.contacts] == [place.secure]


@each_client
async def test_https_of_an_unknown_ca_fails(place, run, runtime, client):
    """Or the test above would show nothing."""
    before = place.seen["/hello"]
    url = f"https://localhost:{place.secure}/hello"
    answer, _traffic = await run(runtime, f"get_with_{client}", url, verify=False)
    assert "certificate" in answer["error"].lower()
    assert place.seen["/hello"] == before


@each_client
async def test_a_redirect_to_the_metadata_service_fails(place, run, runtime, client):
    before = place.seen["/away"]
    answer, traffic = await run(
        runtime, f"get_with_{client}", f"http://127.0.0.1:{place.plain}/away"
    )
    assert place.seen["/away"] == before + 1, "it has to be the redirect that fails"
    assert "said" not in answer
    assert "169.254.169.254:80" in {denial.target for denial in traffic.denials}


# --- WebSockets, much, many ----------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["ws", "wss"])
@each("python-aiohttp", "node-ws", "node-undici")
async def test_websockets(place, run, runtime, client, tls):
    url = f"wss://localhost:{place.secure}" if tls else f"ws://127.0.0.1:{place.plain}"
    answer, _traffic = await run(runtime, f"talk_with_{client}", f"{url}/echo", times=3)
    assert answer == {"said": ["message 0", "message 1", "message 2"]}


@each("python-requests", "node-fetch")
async def test_a_large_download_arrives_whole(place, run, runtime, client):
    url = f"http://127.0.0.1:{place.plain}/big"
    answer, traffic = await run(runtime, f"digest_with_{client}", url)
    assert answer == {"said": [hashlib.sha256(BIG).hexdigest()]}
    assert len(BIG) < traffic.received_bytes < len(BIG) + 1000


@each("python-aiohttp", "node-fetch")
async def test_as_many_connections_at_once_as_are_allowed(place, run, runtime, client):
    url = f"http://127.0.0.1:{place.plain}/together"
    answer, traffic = await run(runtime, f"get_at_once_with_{client}", url, times=AT_ONCE)
    assert len(set(answer["said"])) == AT_ONCE
    assert sum(contact.connections for contact in traffic.contacts) == AT_ONCE
    assert traffic.denials == ()


# --- another user --------------------------------------------------------------------------------


@pytest.mark.skipif(os.getuid() != 0, reason="the other tests ran as an ordinary user already")
@pytest.mark.skipif(
    shutil.which("setpriv") is None,
    reason="setpriv is not installed, so the gateway of an ordinary user is NOT tested",
)
async def test_an_ordinary_user_has_a_gateway_too(place):
    uid = 65534
    url = f"http://127.0.0.1:{place.plain}/hello"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clients = shutil.copytree(HERE / "clients", place.folder / "copied" / "clients")
        (clients / "ca.pem").write_bytes(place.ca)
        trees = (Path(sandbox.__file__).parent, Path(dns.__file__).parent, pyseccomp.__file__)
        copy_for_everybody(folder, *trees, clients, HERE / "call_once.py")
        process = await asyncio.create_subprocess_exec(
            *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
            *(PYTHON_DEFAULT, "-B", folder / "call_once.py", folder / "clients"),
            *(url, str(place.plain)),
            cwd=folder,
            env={"PATH": os.environ["PATH"]},
            stdout=asyncio.subprocess.PIPE,
        )
        printed, _ = await process.communicate()
    assert process.returncode == 0
    said = json.loads(printed)
    if "no_network" in said:
        pytest.skip(f"a user has no network here, so it is NOT tested: {said['no_network']}")
    assert said["output"]["said"][0].startswith("hello "), said
