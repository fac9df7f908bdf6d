"""The gateway of a container, opened from outside: what works, what is refused, what is left.

The process that stands for the container's has real namespaces of its own, as a container's init;
`tests/containers` has the same with Podman. What the gateway lets through once it is open is what
every other test here is about.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import dns
import psutil
import pytest

import sandbox
from sandbox.confine import LayerFailed
from sandbox.egress.container import open_gateway
from sandbox.forkserver import PYTHON_DEFAULT
from sandbox.model import Egress
from tests.egress.conftest import LOOPBACK, copy_for_everybody
from tests.egress.test_gateway import GET, LOCAL, TALK, Canary, echo, say_hello

ROOT = Path(__file__).parents[2]
OPENER = Path(__file__).with_name("opener.py")
NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="it takes root to be two users")


@pytest.fixture
async def opened(container, table):
    """Starts such a process and opens a gateway for these ports."""
    gateways = []

    async def start(*ports, uid=None):
        inside = await container(uid)
        inside.gateway = await open_gateway(inside.pidfd, ports, table)
        gateways.append(inside.gateway)
        return inside

    yield start
    for gateway in gateways:
        gateway.close()


@pytest.fixture
def nobody():
    """For `daemon`: another user, and what it imports where that user may read it."""
    with tempfile.TemporaryDirectory() as name:
        trees = (Path(sandbox.__file__).parent, Path(dns.__file__).parent, OPENER)
        copy_for_everybody(Path(name), *trees)
        yield {"python": PYTHON_DEFAULT, "uid": NOBODY, "folder": Path(name)}


async def daemon(pidfd, port, *more, python=sys.executable, uid=None, folder=ROOT):
    """Another process that opens a gateway, and the first line that it prints."""
    user = () if uid is None else ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups")
    program = OPENER if folder is ROOT else folder / OPENER.name
    process = await asyncio.create_subprocess_exec(
        *(*user, python, "-B", program, str(pidfd), str(port), *more),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        pass_fds=[pidfd] if pidfd >= 0 else [],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder)},
    )
    return process, (await process.stdout.readline()).decode().strip()


async def end(process):
    process.stdin.close()
    process.kill()
    await process.wait()


# --- what works ----------------------------------------------------------------------------------


@pytest.mark.parametrize("uid", [0, NOBODY])
async def test_a_client_inside_works_unchanged(opened, server, table, uid):
    port = await server(say_hello)
    table.names["api.example.com"] = ["127.0.0.1"]
    inside = await opened(port, uid=uid)
    result, traffic = await inside.visit(LOCAL, GET, f"http://api.example.com:{port}/")
    assert result == [200, "hello"], traffic
    (contact,) = traffic.contacts
    assert (contact.host, contact.address, contact.port) == ("api.example.com", "127.0.0.1", port)
    assert traffic.denials == ()


@pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="there is no IPv6 here")
async def test_a_name_is_found_whatever_family_the_client_asks_for(opened, table):
    """With AI_ADDRCONFIG libc leaves out a family in which nothing but loopback has an address;
    unlike in the sandbox it may look here."""
    code = """
        import socket
        def main(name):
            kinds = (socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6)
            asked = [(kind, flags) for kind in kinds for flags in (0, socket.AI_ADDRCONFIG)]
            found = [socket.getaddrinfo(name, 80, kind, 1, 0, flags) for kind, flags in asked]
            return [[one[4][0] for one in answers] for answers in found]
    """
    table.names["both.example"] = ["127.0.0.1", "::1"]
    inside = await opened(80)
    result, _traffic = await inside.visit(LOCAL, code, "both.example")
    each = (["127.0.0.1", "::1"], ["127.0.0.1"], ["::1"])
    assert [sorted(one) for one in result] == [found for found in each for _flags in range(2)]


async def test_what_went_over_it_is_told_at_any_time(opened, server):
    port = await server(say_hello)
    inside = await opened(port)
    visit = inside.gateway.open(LOCAL)
    assert visit.traffic().contacts == ()
    for count in (1, 2, 3):
        await inside.run(GET, f"http://127.0.0.1:{port}/")
        assert visit.traffic().contacts[0].connections == count
    assert visit.close().received_bytes == 3 * 62


@as_root
@pytest.mark.slow
async def test_an_ordinary_user_opens_it_for_a_container_of_theirs(server, nobody):
    port = await server(say_hello)
    process, said = await daemon(-1, port, f"http://127.0.0.1:{port}/", **nobody)
    await end(process)
    assert said == "hello"


# --- what is refused -----------------------------------------------------------------------------


async def test_attack_inner_addresses_are_reset(opened, server):
    canary = Canary()
    port = await server(canary)
    inside = await opened(80, port)
    for host, served in (("169.254.169.254", 80), ("127.0.0.1", port), ("10.0.0.1", 80)):
        result, traffic = await inside.visit(Egress(), TALK, host, served)
        assert "ConnectionResetError" in result, (host, result)
        assert [one.target for one in traffic.denials] == [f"{host}:{served}"]
    assert canary.reached == 0


async def test_attack_nothing_is_reached_while_nobody_has_it_or_after_it(container, server):
    canary = Canary()
    port = await server(canary)
    inside = await container()
    assert "Error" in await inside.run(TALK, "127.0.0.1", port)
    assert "Error" in await inside.run(TALK, "192.0.2.7", port)
    gateway = await open_gateway(inside.pidfd, [port])
    try:
        assert "ConnectionResetError" in await inside.run(TALK, "127.0.0.1", port)
        visit = gateway.open(LOCAL)
        assert await inside.run(TALK, "127.0.0.1", port) == "canary"
        visit.close()
        assert "ConnectionResetError" in await inside.run(TALK, "127.0.0.1", port)
    finally:
        gateway.close()
    assert "ConnectionRefusedError" in await inside.run(TALK, "127.0.0.1", port)
    assert canary.reached == 1


async def refusal(pidfd, ports=(80,)):
    with pytest.raises(LayerFailed) as caught:
        await open_gateway(pidfd, ports)
    assert caught.value.layer == "network"
    return caught.value.reason


async def test_the_daemons_own_network_is_left_alone():
    pidfd = os.pidfd_open(os.getpid())
    before = Path("/proc/net/fib_trie").read_text()
    try:
        reason = await refusal(pidfd)
    finally:
        os.close(pidfd)
    # root may enter it, where it is already; who may not is refused before
    assert "own network" in reason or "Operation not permitted" in reason
    assert Path("/proc/net/fib_trie").read_text() == before


async def test_a_network_with_another_interface_is_left_alone(container):
    link = """
        import subprocess
        def main():
            add = ["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]
            subprocess.run(add, check=True)
            subprocess.run(["ip", "link", "set", "eth0", "up"], check=True)
    """
    if shutil.which("ip") is None:
        pytest.skip("ip is not installed, so a container with a bridge is NOT tried: iproute2")
    routes = 'def main(): return open("/proc/thread-self/net/fib_trie").read()'
    inside = await container()
    assert await inside.run(link) is None
    before = await inside.run(routes)
    assert await refusal(inside.pidfd) == "cannot open a gateway beside the interface eth0"
    assert await inside.run(routes) == before


async def test_a_process_that_has_ended_is_nobody_else(container):
    inside = await container()
    inside.process.kill()
    await inside.process.wait()
    assert await refusal(inside.pidfd) == "cannot enter the container's network: No such process"


async def test_a_port_that_something_inside_has_taken_is_named(container):
    taken = """
        import socket
        held = []
        def main(port):
            held.append(socket.create_server(("0.0.0.0", port)))
            globals()["__builtins__"]["held"] = held
    """
    inside = await container()
    await inside.run(taken, 8080)
    assert await refusal(inside.pidfd, (8080,)) == (
        "cannot bind 0.0.0.0 port 8080: Address already in use"
    )


async def test_without_ports_nobody_has_network(container):
    inside = await container()
    assert await refusal(inside.pidfd, ()) == "no port is served"


@as_root
@pytest.mark.slow
async def test_attack_another_users_container_is_not_entered(container, nobody):
    inside = await container(0)
    process, said = await daemon(inside.pidfd, 80, **nobody)
    await end(process)
    assert said == "network: cannot enter the container's network: Operation not permitted"


# --- long lives ----------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_daemon_that_was_killed_has_a_successor(container, server):
    """With a connection open, and without any of it in the way of the next."""
    port = await server(echo)
    code = """
        import socket
        def main(port):
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            globals()["__builtins__"]["kept"] = one
            one.sendall(b"x")
            return one.recv(10).decode()
    """
    again = """
        def main():
            try:
                return kept.recv(10).decode()
            except OSError as exc:
                return type(exc).__name__
    """
    inside = await container()
    for _ in range(2):
        process, said = await daemon(inside.pidfd, port)
        assert said == "open"
        assert await inside.run(code, port) == "x"
        await end(process)
        assert await inside.run(again) in ("", "ConnectionResetError")
    gateway = await open_gateway(inside.pidfd, [port])
    gateway.open(Egress(private=LOOPBACK))
    try:
        assert await inside.run(TALK, "127.0.0.1", port) == "x"
    finally:
        gateway.close()


async def test_an_idle_one_costs_its_sockets_only(container):
    inside = await container()
    threads, tasks = threading.active_count(), len(asyncio.all_tasks())
    openers = _openers()
    before = _open_fds()
    gateway = await open_gateway(inside.pidfd, (80, 443))
    try:
        new = _open_fds() - before
        assert 3 <= len(new) <= 5
        assert not any(map(os.get_inheritable, new))
        assert (threading.active_count(), len(asyncio.all_tasks())) == (threads, tasks)
        assert _openers() == openers
    finally:
        gateway.close()
    assert _open_fds() == before


def _open_fds():
    """Not the one by which they are listed."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/dev/fd/{fd}")}


def _openers():
    """Children that run the program which opens it, or have ended and were not waited for."""
    children = psutil.Process().children()
    return [
        one.pid
        for one in children
        if one.status() == psutil.STATUS_ZOMBIE or "egress.enter" in " ".join(one.cmdline())
    ]


async def test_who_gives_up_while_it_opens_leaves_nothing(container):
    inside = await container()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await open_gateway(inside.pidfd, (80, 443))
        assert len(os.listdir("/proc/self/fd")) == before
    (await open_gateway(inside.pidfd, (80, 443))).close()


# --- names that nobody answers -------------------------------------------------------------------


async def test_attack_names_without_an_answer_hold_up_nobody_elses(opened, table):
    """The host's own resolver, asked from in here, where the silent server is our gateway. A
    success: what the next execution asks waits until the others are given up, 10 s."""
    code = """
        import asyncio, sys
        def main(folders, slow):
            sys.path += folders
            from sandbox.egress.dns import SystemResolver
            async def ask():
                resolver = SystemResolver()
                hanging = [resolver.lookup(name) for name in slow]
                resolver.leave()
                quick = resolver.lookup("quick.example")
                await asyncio.wait([quick, *hanging], return_when=asyncio.FIRST_COMPLETED)
                return [quick.done(), any(one.done() for one in hanging)]
            with asyncio.Runner() as runner:
                return runner.run(ask())
    """
    slow = [f"silent{n}.example" for n in range(8)]
    table.names |= {**dict.fromkeys(slow, "never"), "quick.example": ["127.0.0.1"]}
    inside = await opened(80)
    folders = [str(Path(dns.__file__).parents[1])]
    result, _traffic = await inside.visit(LOCAL, code, folders, slow)
    assert result == [True, False]
    assert table.left == 1  # the gateway does so too
