"""Executions one after the other: what one leaves, no stranger finds, and nothing of it runs.

A kept process (`Reuse`) serves calls alike in everything; that these do find what was left is
shown too, because an operator has allowed it and the attack is a real one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from pathlib import Path

import pytest
import pytest_asyncio
from attacks import HAUNTINGS, STRANGERS, run_haunting, survivors, write_package

from sandbox import Call, Egress, Ending, Policy, Pool, PoolSettings, Reuse

pytestmark = pytest.mark.asyncio(loop_scope="session")
_PATIENCE_S = 10.0


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def narrow_pool():
    """One slot: whoever is second is where the first one was."""
    pool = Pool(PoolSettings(slots=1))
    await pool.start()
    yield pool
    await pool.close()


@pytest.mark.parametrize("haunting", HAUNTINGS, ids=lambda one: one.name)
@pytest.mark.parametrize("stranger", STRANGERS)
async def test_stranger_finds_nothing(narrow_pool, tmp_path, haunting, stranger):
    found = await run_haunting(narrow_pool, tmp_path, haunting, STRANGERS[stranger])
    assert found["succeeded"] is False, f"{haunting.success}: {found}"


@pytest.mark.parametrize("haunting", HAUNTINGS, ids=lambda one: one.name)
async def test_the_same_call_finds_what_is_kept_only(narrow_pool, tmp_path, haunting):
    found = await run_haunting(narrow_pool, tmp_path, haunting, {})
    assert found["succeeded"] is haunting.kept, f"{haunting.success}: {found}"


_NAME = f"fm-{os.urandom(4).hex()}"
_SPIN = f"""
import ctypes, threading
def go():
    while True:
        pass
def handle(input, ctx):
    ctypes.CDLL(None).prctl(15, b"{_NAME}", 0, 0, 0)
    if input == "spin":
        threading.Thread(target=go, daemon=True).start()
"""


def _state_and_cpu(pid: int) -> tuple[str, int]:
    """State of a process, and its CPU time in ticks (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return fields[0], int(fields[11]) + int(fields[12])


async def test_nothing_of_a_kept_process_runs_while_another_does(narrow_pool, tmp_path):
    package = write_package(tmp_path / "package", _SPIN)
    call = Call(package, input="spin", reuse=Reuse(uses=2))
    other = Call(write_package(tmp_path / "other", "def handle(input, ctx): sum(range(10**6))"))
    assert (await narrow_pool.run(call)).ending is Ending.RESULT
    (pid,) = survivors(_NAME)
    await narrow_pool.run(other)
    before = _state_and_cpu(pid)
    for _ in range(5):
        await narrow_pool.run(other)
    assert (before[0], _state_and_cpu(pid)) == ("T", before)
    reused = narrow_pool.statistics()["reused"]
    again = await narrow_pool.run(dataclasses.replace(call, input="again"))
    assert (again.ending, narrow_pool.statistics()["reused"]) == (Ending.RESULT, reused + 1)


async def test_nothing_of_a_kept_process_runs_while_nobody_calls(narrow_pool, tmp_path):
    package = write_package(tmp_path / "package", _SPIN)
    await narrow_pool.run(Call(package, input="spin", reuse=Reuse(uses=2)))
    (pid,) = survivors(_NAME)
    async with asyncio.timeout(_PATIENCE_S):
        while _state_and_cpu(pid)[0] != "T":  # noqa: ASYNC110 (nobody is told of a stop)
            await asyncio.sleep(0)
    reply = await narrow_pool.run(Call(package, input="again", reuse=Reuse(uses=2)))
    assert reply.ending is Ending.RESULT
    await narrow_pool.idle()
    assert not os.path.exists(f"/proc/{pid}")  # it has served twice


_ROWS = """
def rows():  # without those that listen (0A)
    table = [row.split() for row in open("/proc/self/net/tcp").read().splitlines()[1:]]
    return [row for row in table if row[3] != "0A"]
"""
_CONNECT = f"""
import socket
{_ROWS}
def handle(input, ctx):
    with socket.create_connection(("127.0.0.1", input)) as connection:
        connection.sendall(b"x")
        said = connection.recv(1).decode()
    while any(row[3] in ("04", "05") for row in rows()):  # until the other side has closed, too
        pass
    return said
"""
_LOOK = f"{_ROWS}\ndef handle(input, ctx): return rows()\n"


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.read(1))
    await reader.read()
    writer.close()


async def test_connections_of_one_are_not_seen_by_the_next(tmp_path):
    """The slot's network outlives an execution; whom it talked to is its tenant's alone."""
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = Pool(PoolSettings(slots=1, ports=(port,)))
    await pool.start()
    try:
        layers = {layer.name: layer for layer in pool.layers()}
        if not layers["network"].available:
            pytest.skip(f"no network here, so this is NOT tested: {layers['network'].detail}")
        private = Policy(network=Egress(private=("127.0.0.0/8",)))
        connect = write_package(tmp_path / "connect", _CONNECT)
        first = await pool.run(Call(connect, input=port, tenant_id="a", policy=private))
        assert (first.result or {}).get("output") == "x", first
        look = write_package(tmp_path / "look", _LOOK)
        second = await pool.run(Call(look, tenant_id="b", policy=Policy(network=Egress())))
        assert (second.result or {}).get("output") == [], second
    finally:
        await pool.close()
        server.close()
        await server.wait_closed()
