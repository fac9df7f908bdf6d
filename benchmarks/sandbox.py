"""What the sandbox costs: ratios to `python3 -I -S -c pass`, both sides taken in this run.

Prints a table: result p50 and p99 of a trivial handler in a fresh process each, with spares and
without; the ratio to fork + exec of a bare interpreter, measured in turns; all layers against none
for a fork per execution until dead; executions per second on one slot and on two.
Usage: python benchmarks/sandbox.py [ROUNDS], run from the repository's root.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sandbox import ALL_LAYERS, Call, Ending, Pool, PoolSettings
from sandbox.forkserver import PYTHON_DEFAULT

_HANDLER = "def handle(input, ctx):\n    return sum(input)\n"
_GAP_S = 0.01  # between single executions: an idle daemon, not a queue


@contextlib.asynccontextmanager
async def _pool(**settings):
    pool = Pool(PoolSettings(**settings))
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


async def _once(pool, call):
    started = time.perf_counter()
    reply = await pool.run(call)
    took = (time.perf_counter() - started) * 1000
    assert reply.ending is Ending.RESULT, reply
    return took


async def _until_dead(pool, call):
    """One slot: the next execution's slot is free only once this one is dead."""
    started = time.perf_counter()
    await _once(pool, call)
    async with pool._free:
        return (time.perf_counter() - started) * 1000


def _bare():
    started = time.perf_counter()
    subprocess.run([PYTHON_DEFAULT, "-I", "-S", "-c", "pass"], env={}, check=True)
    return (time.perf_counter() - started) * 1000


async def _per_second(pool, call, count):
    started = time.perf_counter()
    left = iter(range(count))

    async def work():
        for _ in left:
            await pool.run(call)

    async with asyncio.TaskGroup() as group:
        for _ in range(pool.slots):
            group.create_task(work())
    return count / (time.perf_counter() - started)


def _show(what, values):
    p99 = statistics.quantiles(values, n=100)[98]
    p50 = statistics.median(values)
    print(f"{what:<58} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   min {min(values):6.2f} ms")
    return p50


async def main(rounds):
    """Run everything and print it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        Path(folder, "handler.py").write_text(_HANDLER)
        call = Call(folder, input=list(range(100)))
        everything = frozenset(ALL_LAYERS)
        async with (
            _pool(slots=1, spares=2) as warm,
            _pool(slots=1, spares=0) as cold,
            _pool(slots=1, spares=0, required_layers=frozenset(), without=everything) as bare,
        ):
            figures = {name: [] for name in ("exec", "warm", "cold", "dead", "open")}
            for _ in range(rounds):  # in turns, so that the machine's mood is the same for all
                figures["exec"].append(_bare())
                await asyncio.sleep(_GAP_S)
                figures["warm"].append(await _once(warm, call))
                await asyncio.sleep(_GAP_S)
                figures["cold"].append(await _once(cold, call))
                await asyncio.sleep(_GAP_S)
                figures["dead"].append(await _until_dead(cold, call))
                await asyncio.sleep(_GAP_S)
                figures["open"].append(await _until_dead(bare, call))
                await asyncio.sleep(_GAP_S)
        floor = _show("fork + exec python3 -I -S -c pass", figures["exec"])
        ahead = _show("fresh process, spare waiting: result", figures["warm"])
        none = _show("fresh process, no spare: result", figures["cold"])
        dead = _show("fresh process, no spare, all layers: until dead", figures["dead"])
        loose = _show("fresh process, no spare, no layers: until dead", figures["open"])
        print(f"ratio spare waiting / bare exec   {ahead / floor:6.2f}  (goal 0.5)")
        print(f"ratio no spare / bare exec        {none / floor:6.2f}")
        print(f"ratio all layers / no layers      {dead / loose:6.2f}  (goal 1.5)")
        for slots in (1, 2):
            async with _pool(slots=slots, spares=2) as pool:
                rate = await _per_second(pool, call, rounds * 3)
                print(f"executions/s, {slots} slot(s), all layers   {rate:8.0f}")


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100))
