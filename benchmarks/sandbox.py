"""What the sandbox costs: ratios to baselines, every pair taken in turns in this run.

Prints one row a goal with p50 and p99: fresh Python and Node processes against bare interpreters,
all layers against none, kept processes against a bare socket pair, an HTTP GET through the gateway
against a direct one, a megabyte against its JSON. Rows that this host cannot measure say why.
Usage: python benchmarks/sandbox.py [ROUNDS], run from the repository's root.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sandbox import ALL_LAYERS, Call, Egress, Ending, Limits, Policy, Pool, PoolSettings, Reuse
from sandbox.forkserver import PYTHON_DEFAULT

_PYTHON = "def handle(input, ctx):\n    return sum(input)\n"
_ECHO = "def handle(input, ctx):\n    return input\n"
_NODE = "exports.handle = async (input, ctx) => input.reduce((a, b) => a + b, 0)\n"
# Times a GET inside, so that only the gateway is between client and server.
_GET = """
import socket, time
def handle(port, ctx):
    took = []
    for _ in range(20):
        started = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            while s.recv(65536): pass
        took.append((time.perf_counter() - started) * 1000)
    return took
"""
_GAP_S = 0.01  # between single executions: an idle daemon, not a queue
_NUMBERS = list(range(100))
_MEGABYTE = [{"id": n, "name": f"row {n}", "value": n / 7} for n in range(20_000)]
_NO_LAYERS = {"required_layers": frozenset[str](), "without": frozenset(ALL_LAYERS)}
_ENDLESS = Reuse(uses=1_000_000)


@contextlib.asynccontextmanager
async def _pool(**settings):
    pool = Pool(PoolSettings(**settings))
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


@contextlib.contextmanager
def _package(file, code):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, file).write_text(code)
        yield folder


async def _once(pool, call):
    started = time.perf_counter()
    reply = await pool.run(call)
    took = (time.perf_counter() - started) * 1000
    assert reply.ending is Ending.RESULT, reply
    return took


async def _until_dead(pool, call):
    """Until the execution's process has been reaped."""
    started = time.perf_counter()
    await _once(pool, call)
    await pool.idle()
    return (time.perf_counter() - started) * 1000


async def _in_blocks(rounds, pool, call, peer):
    """In turns of 50: one by one each would find the processor as the other has left it."""
    ours, bare = [], []
    for _ in range(max(2, rounds // 10)):
        bare += [_round_trip(peer) for _ in range(50)]
        ours += [await _once(pool, call) for _ in range(50)]
    return ours, bare


def _bare(*command):
    started = time.perf_counter()
    subprocess.run(command, env={}, check=True)
    return (time.perf_counter() - started) * 1000


async def _per_second(pool, call, count):
    started = time.perf_counter()
    left = iter(range(count))

    async def work():
        for _ in left:
            await _once(pool, call)

    async with asyncio.TaskGroup() as group:
        for _ in range(pool.slots):
            group.create_task(work())
    return count / (time.perf_counter() - started)


def _row(what, ours, against, floor, goal):
    """`ours` and `against` are lists of milliseconds."""
    p50, p99 = statistics.median(ours), statistics.quantiles(ours, n=100)[98]
    base = statistics.median(against)
    ratio = p50 / base
    _print(what, f"{p50:8.3f} {p99:8.3f}", f"{floor} {base:.3f} ms", ratio, "<=", goal)


def _print(what, figures, floor, ratio, sign, goal):
    met = ratio <= goal if sign == "<=" else ratio >= goal
    verdict = "" if met else "  NOT MET"
    print(f"{what:<44} {figures:<18} {floor:<34} {ratio:7.3f} {sign} {goal}{verdict}", flush=True)


# --- rows ------------------------------------------------------------------------------------


async def fresh_python(rounds):
    """A new process for each execution, against fork and exec of a bare interpreter."""
    with _package("handler.py", _PYTHON) as folder:
        call = Call(folder, input=_NUMBERS)
        async with (
            _pool(slots=1, spares=2) as warm,
            _pool(slots=1, spares=0) as cold,
            _pool(slots=1, spares=0, **_NO_LAYERS) as bare,
        ):
            figures = {name: [] for name in ("exec", "warm", "cold", "dead", "open")}
            # In turns, so that the machine's mood is the same for all, and in turns of ten, so that
            # no two find the processor as the other has left it.
            for _ in range(max(2, rounds // 10)):
                for name, measured in (
                    ("exec", lambda: _bare(PYTHON_DEFAULT, "-I", "-S", "-c", "pass")),
                    ("warm", lambda: _once(warm, call)),
                    ("cold", lambda: _once(cold, call)),
                    ("dead", lambda: _until_dead(cold, call)),
                    ("open", lambda: _until_dead(bare, call)),
                ):
                    for _ in range(10):
                        took = measured()
                        figures[name].append(took if isinstance(took, float) else await took)
                        await asyncio.sleep(_GAP_S)
        floor = "exec python3 -I -S -c pass"
        _row("fresh Python, forked ahead: result", figures["warm"], figures["exec"], floor, 0.12)
        _row("fresh Python, no spare: result", figures["cold"], figures["exec"], floor, 0.3)
        _row("fresh Python: until dead", figures["dead"], figures["open"], "no layers", 1.4)
        rates = {"all": [], "none": []}
        for _ in range(3):
            for name, settings in (("all", {}), ("none", _NO_LAYERS)):
                async with _pool(slots=2, spares=2, **settings) as pool:
                    rates[name].append(await _per_second(pool, call, rounds * 2))
        ours, none = statistics.median(rates["all"]), statistics.median(rates["none"])
        shown = f"{ours:8.0f}/s"
        _print(
            "fresh Python on two slots", shown, f"no layers {none:.0f}/s", ours / none, ">=", 0.65
        )


async def kept_python(rounds):
    """A kept process, against a bare round trip over a socket pair with the same bytes."""
    with _package("handler.py", _PYTHON) as folder:
        call = Call(folder, input=_NUMBERS, reuse=_ENDLESS)
        with _echo_process() as peer:
            async with _pool(slots=1, spares=1) as pool:
                ours, bare = await _in_blocks(rounds, pool, call, peer)
        _row("kept Python: result", ours[5:], bare, "socket pair", 4)


async def node(rounds):
    """Node, started ahead and kept, against `node -e 0` and a bare round trip."""
    with _package("handler.js", _NODE) as folder, _echo_process() as peer:
        call = Call(folder, "handler.js:handle", "node", input=_NUMBERS)
        kept = Call(folder, "handler.js:handle", "node", input=_NUMBERS, reuse=_ENDLESS)
        async with _pool(slots=1, spares=1, spares_node=2) as pool:
            program = shutil.which("node")
            reply = await pool.run(call)
            if program is None or reply.ending is not Ending.RESULT:
                print(f"Node: not measured: {reply.message or 'no node in PATH'}")
                return
            fresh, bare = [], []
            for _ in range(max(20, rounds // 2)):
                bare.append(_bare(program, "-e", "0"))
                await asyncio.sleep(0.1)  # a process is started ahead meanwhile
                fresh.append(await _once(pool, call))
            again, pair = await _in_blocks(rounds, pool, kept, peer)
        _row("fresh Node, started ahead: result", fresh, bare, "node -e 0", 0.05)
        _row("kept Node: result", again[5:], pair, "socket pair", 5)


async def gateway(rounds):
    """An HTTP GET on a new connection through the gateway, against a direct one."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-length: 1000\r\n\r\n" + bytes(1000))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with _package("handler.py", _GET) as folder:
        policy = Policy(network=Egress(private=("127.0.0.0/8",)))
        call = Call(folder, input=port, policy=policy)
        program = f"{_GET}\nimport json\nprint(json.dumps(handle({port}, None)))"
        async with server, _pool(slots=1, ports=(80, 443, port)) as pool:
            ours, direct = [], []
            for _ in range(max(5, rounds // 10)):
                reply = await pool.run(call)
                if reply.ending is not Ending.RESULT or reply.result["outcome"] != "success":
                    print(f"gateway: not measured: {reply.message or reply.result}")
                    return
                ours.extend(reply.result["output"])
                process = await asyncio.create_subprocess_exec(
                    PYTHON_DEFAULT, "-I", "-S", "-c", program, stdout=subprocess.PIPE
                )
                output, _ = await process.communicate()
                direct.extend(json.loads(output))
    _row("HTTP GET through the gateway", ours, direct, "direct on loopback", 2.5)


async def megabyte(rounds):
    """A megabyte in and out, against encoding and decoding it once each way."""
    text = json.dumps(_MEGABYTE)
    with _package("handler.py", _ECHO) as folder:
        limits = Limits(output_bytes=4 * len(text))
        call = Call(folder, input=_MEGABYTE, limits=limits)
        async with _pool(slots=1, spares=2) as pool:
            ours, bare = [], []
            for _ in range(max(20, rounds // 4)):
                started = time.perf_counter()
                json.loads(json.dumps(_MEGABYTE))
                json.loads(json.dumps(_MEGABYTE))
                bare.append((time.perf_counter() - started) * 1000)
                ours.append(await _once(pool, call))
                await asyncio.sleep(_GAP_S)
    what = f"{len(text) / 1e6:.1f} MB in and out: result"
    _row(what, ours, bare, "its JSON, both ways", 4)


@contextlib.contextmanager
def _echo_process():
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        while data := theirs.recv(65536):
            theirs.sendall(data)
        os._exit(0)
    theirs.close()
    with ours:
        yield ours
    os.waitpid(pid, 0)


def _round_trip(peer):
    payload = json.dumps(_NUMBERS).encode()
    started = time.perf_counter()
    peer.sendall(payload)
    peer.recv(65536)
    return (time.perf_counter() - started) * 1000


async def main(rounds, names):
    """Run the rows of these names, or all."""
    print(f"{'':<44} {'p50 ms':>8} {'p99 ms':>8}   {'against':<33} {'ratio':>8} goal")
    for row in (fresh_python, kept_python, node, gateway, megabyte):
        if not names or row.__name__ in names:
            await row(rounds)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100, sys.argv[2:]))
