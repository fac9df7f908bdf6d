"""Attack: code that is imported ahead of its call, and meanwhile uses the network of another's.

A success would be a connection that comes from the handler that nobody has called at that time:
it would be judged by the rules, and count as the traffic, of whichever execution runs then. (Node
has one thread, which waits for its call.)
"""

from __future__ import annotations

import asyncio

import pytest
from attacks import write_package

from sandbox import Call, Egress, Policy, Pool, PoolSettings

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
