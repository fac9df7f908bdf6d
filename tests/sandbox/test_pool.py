"""The pool itself: it heals, it kills, it leaves nothing behind, and it fails closed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import sandbox
from sandbox import ALL_LAYERS, DEFAULT_REQUIRED, Call, Egress, Ending, Policy, Pool, PoolSettings
from tests.sandbox.watching import all_gone, started

pytestmark = pytest.mark.asyncio(loop_scope="session")

_PROJECT = Path(sandbox.__file__).parent.parent
_GOOD = "def handle(input, ctx): return 'good'"
_SLEEP = "import time\ndef handle(input, ctx):\n    print('asleep')\n    time.sleep(60)"


@pytest.fixture
async def own_pool():
    """`await own_pool(**settings)`: a started pool of its own, closed afterwards."""
    pools = []

    async def make(**settings):
        pool = Pool(PoolSettings(**settings))
        pools.append(pool)
        await pool.start()
        return pool

    yield make
    for pool in pools:
        await pool.close()


def _descendants(pool):
    return {
        process.pid
        for pid in pool.server_pids
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    }


async def test_handlers_go_first_when_memory_runs_out(pool):
    for pid in _descendants(pool):
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


@pytest.mark.slow
async def test_hundred_crashes_then_a_good_one(own_pool, package):
    pool = await own_pool(slots=2)
    crash = package("import os\ndef handle(input, ctx): os._exit(1)")
    for _ in range(100):
        assert (await pool.run(Call(crash))).ending is Ending.CRASH
    reply = await pool.run(Call(package(_GOOD)))
    assert reply.result["output"] == "good"


@pytest.mark.slow
async def test_killed_fork_server_is_replaced(own_pool, package):
    pool = await own_pool(slots=1)
    async with asyncio.TaskGroup() as group:
        task = await started(group, pool, Call(package(_SLEEP)))
        before = pool.server_pids
        os.kill(before[0], signal.SIGKILL)
    reply = task.result()
    assert reply.ending is Ending.UNAVAILABLE
    reply = await pool.run(Call(package(_GOOD)))
    assert reply.result["output"] == "good"
    assert pool.server_pids != before


async def test_dead_spares_are_passed_over(own_pool, package):
    pool = await own_pool(slots=1, spares=5)
    server = psutil.Process(pool.server_pids[0]).children()[0]
    spares = server.children()
    assert len(spares) == 5
    for spare in spares:
        spare.kill()
    assert not psutil.wait_procs(spares, timeout=5)[1]
    reply = await pool.run(Call(package(_GOOD)))
    assert reply.result, reply
    assert reply.result["output"] == "good"


async def test_cancelling_the_caller_kills_the_execution(own_pool, package):
    pool = await own_pool(slots=1)
    async with asyncio.timeout(10):
        async with asyncio.TaskGroup() as group:
            task = await started(group, pool, Call(package(_SLEEP)))
            before = _descendants(pool)
            task.cancel()
        assert task.cancelled()
        # the only slot is free again, so the sleeper is dead
        assert (await pool.run(Call(package(_GOOD)))).result["output"] == "good"
    assert len(before - _descendants(pool)) >= 1


async def test_cancelled_while_waiting_for_a_slot_loses_none(own_pool, package):
    pool = await own_pool(slots=1)
    async with asyncio.TaskGroup() as group:
        sleeper = await started(group, pool, Call(package(_SLEEP)))
        waiting = group.create_task(pool.run(Call(package(_GOOD))))
        await asyncio.sleep(0)
        waiting.cancel()
        sleeper.cancel()
    async with asyncio.timeout(5):
        assert (await pool.run(Call(package(_GOOD)))).ending is Ending.RESULT


@pytest.mark.slow
async def test_nothing_is_left_after_close(own_pool, package):
    pool = await own_pool(slots=2)
    async with asyncio.TaskGroup() as group:
        task = await started(group, pool, Call(package(_SLEEP)))
        pids = _descendants(pool)
        assert len(pids) >= 3  # a server is two processes, and there is the sleeper
        await pool.close()
    assert task.result().ending is Ending.UNAVAILABLE
    await all_gone(pids)
    reply = await pool.run(Call(package(_GOOD)))
    assert reply.ending is Ending.UNAVAILABLE


@pytest.mark.slow
async def test_no_descriptor_is_left_after_close(package):
    """In a process of its own, where no other pool opens and closes any."""
    script = f"""
import asyncio, os
from sandbox import Call, Pool, PoolSettings
async def once():
    pool = Pool(PoolSettings(slots=2))
    await pool.start()
    for _ in range(5):
        await pool.run(Call({package(_GOOD)!r}))
    async with asyncio.TaskGroup() as group:
        group.create_task(pool.run(Call({package(_GOOD)!r})))
        await asyncio.sleep(0)
        await pool.close()
async def main():
    await once()
    before = os.listdir("/proc/self/fd")
    await once()
    assert os.listdir("/proc/self/fd") == before, os.listdir("/proc/self/fd")
asyncio.run(main())
"""
    arguments = [sys.executable, "-X", "dev", "-W", "error", "-c", script]
    done = subprocess.run(arguments, capture_output=True, cwd=_PROJECT, timeout=30)
    assert (done.returncode, done.stderr.decode()) == (0, "")


@pytest.mark.slow
async def test_slots_bound_what_runs_at_a_time(own_pool, package):
    pool = await own_pool(slots=2)
    code = """
import time
def handle(input, ctx):
    begin = time.monotonic()
    time.sleep(0.05)
    return [begin, time.monotonic()]
"""
    call = Call(package(code))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pool.run(call)) for _ in range(6)]
    spans = [task.result().result["output"] for task in tasks]
    assert max(sum(a <= at < b for a, b in spans) for at, _ in spans) <= 2


async def test_every_layer_of_this_host_was_tried(pool):
    layers = {layer.name: layer for layer in pool.layers()}
    assert list(layers) == list(ALL_LAYERS)
    missing = {layer.name: layer.detail for layer in layers.values() if not layer.available}
    assert set(missing) <= {"cgroup", "landlock"}, missing  # not every kernel has them


_LEFT_OUT = set(ALL_LAYERS) - {"user-namespace", "pid-namespace", "mount-namespace"}


@pytest.mark.parametrize("layer", sorted(_LEFT_OUT))
async def test_missing_layer_that_is_required_runs_nothing(own_pool, package, tmp_path, layer):
    """A host without the layer, played by leaving it out; a call asks for it."""
    pool = await own_pool(
        slots=1, required_layers=DEFAULT_REQUIRED - {layer}, without=frozenset({layer})
    )
    folder = package("print('ran')\n" + _GOOD)
    policy = Policy(required=frozenset({layer}))
    lines = []
    reply = await pool.run(Call(folder, policy=policy), lines.append)
    assert reply.ending is Ending.UNAVAILABLE
    assert f"layer {layer} cannot be had" in reply.message
    assert lines == []


async def test_required_layer_that_cannot_be_had_closes_the_pool(own_pool, package):
    pool = await own_pool(slots=1, required_layers=frozenset({"network"}), ports=())
    reply = await pool.run(Call(package(_GOOD)))
    assert (reply.ending, "layer network" in reply.message) == (Ending.UNAVAILABLE, True)


async def test_network_is_refused_without_a_gateway(own_pool, package):
    pool = await own_pool(slots=1, ports=())
    reply = await pool.run(Call(package(_GOOD), policy=Policy(network=Egress())))
    assert (reply.ending, "layer network" in reply.message) == (Ending.UNAVAILABLE, True)


@pytest.mark.slow
async def test_interpreter_that_does_not_start_is_a_refusal(own_pool, package):
    pool = await own_pool(slots=1, python="/bin/false")
    reply = await pool.run(Call(package(_GOOD)))
    assert reply.ending is Ending.UNAVAILABLE
    assert not any(layer.available for layer in pool.layers())


async def _good_again(pool, package):
    """The first result; a new server may still be on its way, and the patience is short here."""
    async with asyncio.timeout(20):
        while (reply := await pool.run(Call(package(_GOOD)))).ending is Ending.UNAVAILABLE:
            pass
    return reply.result["output"] == "good"


@pytest.mark.slow
async def test_hung_fork_server_is_replaced(own_pool, package):
    pool = await own_pool(slots=1, patience_ms=1000)
    psutil.Process(pool.server_pids[0]).children()[0].suspend()
    reply = await pool.run(Call(package(_GOOD)))
    assert (reply.ending, reply.message) == (
        Ending.UNAVAILABLE,
        "the fork server ended during the execution",
    )
    assert await _good_again(pool, package)


@pytest.mark.slow
async def test_a_loop_that_stood_still_blames_no_fork_server(own_pool, package):
    """As a process that was stopped, or a machine without time for it: what came meanwhile counts,
    however much is before it."""
    pool = await own_pool(slots=1, patience_ms=2000)
    servers = pool.server_pids
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(pool.run(Call(package(_GOOD)))) for _ in range(3)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        time.sleep(2.2)  # noqa: ASYNC251  the end of the first process is on its way
    assert [call.result().ending for call in calls] == [Ending.RESULT] * 3
    await pool.idle()
    assert pool.server_pids == servers


@pytest.mark.slow
async def test_fork_server_that_hangs_during_an_execution_costs_no_slot(own_pool, package):
    pool = await own_pool(slots=1, patience_ms=1000)
    code = "import time\ndef handle(input, ctx):\n    print('asleep')\n    time.sleep(0.1)"
    async with asyncio.TaskGroup() as group:
        task = await started(group, pool, Call(package(code)))
        psutil.Process(pool.server_pids[0]).children()[0].suspend()
    assert task.result().ending is Ending.RESULT
    assert await _good_again(pool, package)


@pytest.mark.slow
async def test_cancelled_while_waiting_for_a_process_leaves_none_behind(own_pool, package):
    """Not even in the turn of the loop in which the process comes."""
    pool = await own_pool(slots=1, spares=0)
    call = Call(package(_GOOD))
    await pool.run(call)
    await pool.idle()
    before = sorted(os.listdir("/proc/self/fd"))
    for number in range(200):
        async with asyncio.TaskGroup() as group:
            task = group.create_task(pool.run(call))
            asyncio.get_running_loop().call_later(number % 50 / 5000, task.cancel)
    await pool.run(call)
    await pool.idle()
    assert sorted(os.listdir("/proc/self/fd")) == before


async def test_no_open_file_is_shared_with_the_next_execution(pool, package):
    """The flags of an open file belong to all who inherited it, whoever they are."""
    code = """
import fcntl, os
def handle(input, ctx):
    seen = [fcntl.fcntl(fd, fcntl.F_GETFL) for fd in range(4)]
    for fd, flags in enumerate(seen):
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
    return seen
"""
    call = Call(package(code))
    replies = [await pool.run(call) for _ in range(6)]  # more than there are servers
    assert len({tuple(reply.result["output"]) for reply in replies}) == 1, replies


async def test_two_executions_share_nothing(pool, package):
    code = """
import sys
def handle(input, ctx):
    before = getattr(sys, "left_behind", None)
    sys.left_behind = input
    return [before]
"""
    for number in range(4):
        reply = await pool.run(Call(package(code), input=number))
        assert reply.result["output"] == [None]
