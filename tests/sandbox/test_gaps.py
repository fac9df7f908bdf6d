"""Gaps that a review of the sandbox found, each closed: what a success would look like is said.

One is open, and marked: `docs/security.md` tells it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from attacks import survivors, write_package
from attacks.results import CHANNEL

from sandbox import Call, Egress, Ending, Limits, Policy, Pool, PoolSettings, Reuse

pytestmark = pytest.mark.asyncio(loop_scope="session")
_MIB = 1 << 20
_NAME = f"fm-{os.urandom(4).hex()}"


async def _output(pool: Pool, call: Call):
    reply = await pool.run(call)
    assert reply.ending is Ending.RESULT, reply
    assert reply.result is not None
    return reply.result.get("output", reply.result)


async def _with_one_slot(tried, **settings):
    pool = Pool(PoolSettings(slots=1, **settings))
    await pool.start()
    try:
        return await tried(pool)
    finally:
        await pool.close()


_FIRST_WORDS = f"""{CHANNEL}
def handle(input, ctx):
    send(framed(b'U', {{'layer': 'seccomp', 'reason': 'forged'}}, bytes(8)))
    time.sleep(20)
"""


@pytest.mark.parametrize("spares", [0, 2])
async def test_handler_cannot_say_that_it_was_not_confined(tmp_path, spares):
    """Success: UNAVAILABLE, which is for the pool to say. With no spare the request is there
    before the child is ready, so whether it said so has to be settled before the handler runs."""
    package = write_package(tmp_path / "package", _FIRST_WORDS)

    async def tried(pool):
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(pool.run(Call(package))) for _ in range(6)]
        return {call.result().ending for call in calls}

    assert await _with_one_slot(tried, spares=spares) == {Ending.PROTOCOL}


_RELAUNCHED = """
import asyncio, os, signal, sys
import pyseccomp
from sandbox import Call, Policy, Pool, PoolSettings
async def main():
    pool = Pool(PoolSettings(slots=1))
    await pool.start()
    if not {layer.name: layer for layer in pool.layers()}["landlock"].available:
        return print("no landlock here")
    call = Call(sys.argv[1], policy=Policy(required=frozenset({"landlock"})))
    before = await pool.run(call)
    # From now on the kernel has no memory for it.
    filter_ = pyseccomp.SyscallFilter(pyseccomp.ALLOW)
    filter_.add_rule(pyseccomp.ERRNO(12), "landlock_create_ruleset")
    filter_.load()
    (old,) = pool.server_pids
    os.kill(old, signal.SIGKILL)
    while old in pool.server_pids:
        await asyncio.sleep(0)
    while True:  # until it is the next server that answers
        after = await pool.run(call)
        if after.result or "landlock" in after.message:
            break
    await pool.close()
    print(before.result["output"], (after.result or {}).get("output", "refused"))
asyncio.run(main())
"""
_LANDLOCKED = """
import os
def handle(input, ctx):
    try:
        os.close(os.open("/dev/zero", os.O_WRONLY))
    except PermissionError:
        return "held"
    return "open"
"""


async def test_layer_that_a_later_server_lacks_is_missing(tmp_path):
    """Success: a call that requires a layer runs without it, because it was there at the start."""
    package = write_package(tmp_path / "package", _LANDLOCKED)
    folder = str(Path(__file__).parents[2])
    program = [sys.executable, "-c", _RELAUNCHED, package]
    said = await asyncio.to_thread(
        subprocess.run, program, cwd=folder, capture_output=True, text=True, timeout=30
    )
    assert said.returncode == 0, said.stderr
    if said.stdout.strip() == "no landlock here":
        pytest.skip("no landlock here, so this is NOT tested")
    assert said.stdout.strip() == "held refused"


_HOARD = f"""
import ctypes
kept = []
def handle(input, ctx):
    ctypes.CDLL(None).prctl(15, b"{_NAME}", 0, 0, 0)
    kept.append(bytearray({24 * _MIB}))
    kept[-1][::4096] = b"x" * {24 * _MIB // 4096}
"""


def _held_bytes():
    held = 0
    for pid in survivors(_NAME):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            _size, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
            held += (int(resident) - int(shared)) * 4096
    return held


async def test_kept_processes_hold_no_more_than_one_execution_may(tmp_path):
    """Success: several times the memory limit of a slot, held by tenants that do not run."""
    package = write_package(tmp_path / "package", _HOARD)
    limits = Limits(memory_bytes=32 * _MIB)

    async def tried(pool):
        for number in range(6):
            call = Call(package, limits=limits, tenant_id=f"t{number}", reuse=Reuse())
            assert (await pool.run(call)).ending is Ending.RESULT
        for _ in range(200):  # what was let go of takes its time to end
            if (held := _held_bytes()) < 2 * limits.memory_bytes:
                break
            await asyncio.sleep(0.025)
        return held

    assert await _with_one_slot(tried) < 2 * limits.memory_bytes


_COUNT = "n = []\ndef handle(input, ctx):\n    n.append(1)\n    return len(n)\n"


async def test_process_that_was_idle_for_too_long_does_not_serve_again(tmp_path):
    """Success: a process that was to be gone after a millisecond answers."""
    call = Call(write_package(tmp_path / "package", _COUNT), reuse=Reuse(idle_ms=1))

    async def tried(pool):
        said = []
        for _ in range(2):
            said.append(await _output(pool, call))
            over = asyncio.Event()
            asyncio.get_running_loop().call_later(0.01, over.set)
            await over.wait()
        return said

    assert await _with_one_slot(tried) == [1, 1]


_LOWER = """
const fs = require('fs');
exports.handle = () => {
    try { fs.writeFileSync('/proc/self/oom_score_adj', '0'); } catch (error) { return error.code; }
    return 'lowered';
};
"""


async def test_proc_is_read_only_even_without_landlock(tmp_path):
    """Success: where memory runs out, the kernel kills the daemon before this handler. Node is
    dumpable again after its exec, so /proc/self is its own."""
    package = write_package(tmp_path / "package", "", {"handler.js": _LOWER})

    async def tried(pool):
        if not pool.node:
            pytest.skip("no node here, so this is NOT tested")
        return await _output(pool, Call(package, "handler.js:handle", "node"))

    without = frozenset({"landlock"})
    assert await _with_one_slot(tried, without=without) in ("EROFS", "EACCES")


_FILL = """
def handle(input, ctx):
    try:
        with open("/tmp/x", "wb") as file:
            while file.write(bytes(1 << 20)):
                file.flush()
    except OSError as exc:
        return exc.strerror
"""


async def test_full_temp_leaves_the_fork_server_alive(tmp_path):
    """Success: the kernel kills the slot's fork server, and with it what other tenants keep there,
    because all of them weigh the same and the server has more pages than the handler."""
    package = write_package(tmp_path / "package", _FILL)
    limits = Limits(memory_bytes=32 * _MIB, temp_bytes=512 * _MIB, wall_ms=20_000)

    async def tried(pool):
        if not {layer.name: layer for layer in pool.layers()}["cgroup"].available:
            pytest.skip("no control groups here, so this is NOT tested")
        before = pool.server_pids
        await pool.run(Call(package, limits=limits, policy=Policy(filesystem="temp")))
        return before == pool.server_pids

    assert await _with_one_slot(tried)


_COUNTERS = """
import socket
def handle(input, ctx):
    for _ in range(input):
        with socket.socket() as one:
            one.connect_ex(("93.184.216.34", 80))
    names, values = [x.split() for x in open("/proc/self/net/snmp") if x.startswith("Tcp:")]
    return dict(zip(names, values))["ActiveOpens"]
"""


@pytest.mark.xfail(strict=True, reason="a slot's network namespace outlives an execution")
async def test_counters_of_one_tenants_connections_are_not_the_next_ones(tmp_path):
    """Success: how many connections, bytes and look-ups others of this slot have had so far."""
    package = write_package(tmp_path / "package", _COUNTERS)
    online = Policy(network=Egress())

    async def tried(pool):
        if not {layer.name: layer for layer in pool.layers()}["network"].available:
            pytest.skip("no network here, so this is NOT tested")
        await pool.run(Call(package, input=7, tenant_id="a", policy=online))
        return await _output(pool, Call(package, input=0, tenant_id="b", policy=online))

    assert await _with_one_slot(tried) == "0"


_PUMP = """
import select, socket
def handle(input, ctx):
    sent, sockets = 0, []
    for _ in range(63):
        one = socket.create_connection(("127.0.0.1", input))
        one.setblocking(False)
        sockets.append(one)
    while ready := select.select([], sockets, [], 1)[1]:
        for one in ready:
            try:
                sent += one.send(bytes(65536))
            except BlockingIOError:
                pass
    return sent
"""


async def test_connections_that_nobody_reads_hold_no_more_than_the_memory_limit(tmp_path):
    """Success: nine times its memory limit in the kernel's buffers of TCP, which are the host's."""
    over = asyncio.Event()

    async def never_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.transport.abort()

    server = await asyncio.start_server(never_read, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    package = write_package(tmp_path / "package", _PUMP)
    limits = Limits(memory_bytes=16 * _MIB)
    private = Policy(network=Egress(private=("127.0.0.0/8",), bytes=1 << 30))

    async def tried(pool):
        if not {layer.name: layer for layer in pool.layers()}["network"].available:
            pytest.skip("no network here, so this is NOT tested")
        reply = await pool.run(Call(package, input=port, limits=limits, policy=private))
        assert reply.traffic is not None
        if reply.ending is not Ending.RESULT:
            return 0  # it was ended for it
        assert reply.result is not None
        assert "output" in reply.result, reply
        return reply.result["output"] - reply.traffic.sent_bytes

    try:
        held = await _with_one_slot(tried, ports=(port,))
    finally:
        over.set()
        server.close()
        await server.wait_closed()
    assert held < 3 * limits.memory_bytes


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("handler.py", "def handle(input, ctx):\n    for n in range(input): ctx.emit('e', n)"),
        (
            "handler.js",
            "exports.handle = (input, ctx) => { for (let n = 0; n < input; n++) ctx.emit('e', n) }",
        ),
    ],
)
async def test_events_are_bounded_in_number(tmp_path, file, code):
    """Success: rows and wake-ups without end in one transaction of the daemon's."""
    package = write_package(tmp_path / "package", "", {file: code})
    runtime = "node" if file.endswith("js") else "python"
    call = Call(package, f"{file}:handle", runtime, input=1000)

    async def tried(pool):
        if runtime == "node" and not pool.node:
            pytest.skip("no node here, so this is NOT tested")
        most = await pool.run(call)
        assert most.result is not None
        assert len(most.result["emitted"]) == 1000
        return await pool.run(dataclasses.replace(call, input=1001))

    more = await _with_one_slot(tried)
    assert more.result is not None
    assert "cannot emit more than 1000 events" in more.result["error"]["message"]


async def test_events_beyond_the_bound_that_are_forged_break_the_protocol(tmp_path):
    """Success: the same, past our own ctx."""
    emitted = "[['e', 0]] * 1001"
    code = (
        f"{CHANNEL}\ndef handle(input, ctx):\n"
        f"    send(framed(b'R', {{'outcome': 'success', 'emitted': {emitted}}}))\n"
        "    time.sleep(20)\n"
    )
    package = write_package(tmp_path / "package", code)

    async def tried(pool):
        return (await pool.run(Call(package))).ending

    assert await _with_one_slot(tried) is Ending.PROTOCOL
