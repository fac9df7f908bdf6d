"""Processes made ahead: how many, and that one of them has the package that is expected."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import psutil
import pytest
from attacks import write_package

from sandbox import Call, Ending, Limits, Policy, Pool, PoolSettings
from sandbox.child import Fitting
from sandbox.demand import IDLE_S, Demand

_A, _B = (Fitting(f"/{name}", 1, 1, 1, 1, 0) for name in "ab")
_READS = """
import os
def handle(input, ctx):
    name = '/tmp/left'
    found = os.path.exists(name)
    if input == 'temp':
        open(name, 'w').write('x')
    return [open('/package/name').read(), found, os.getpid()]
"""


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        ([], None),
        ([_A], None),
        ([_A, _A], _A),
        ([_A, _B, _A, _B], None),
        ([_A, _A, _B], _A),
        ([_A, _A, _B, _B], _B),
        ([_A, _A, _B, _A, _B], _A),
    ],
)
def test_what_was_called_twice_in_a_row_is_expected(called, expected):
    demand = Demand(2, 2)
    for fitting in called:
        demand.called(100.0, fitting)
    assert demand.expected(100.0 + IDLE_S) is expected
    assert demand.expected(100.1 + IDLE_S) is None


@pytest.mark.parametrize(
    ("floor", "ceiling", "calls", "spares"),
    [(0, 2, [], 0), (0, 2, [_A], 1), (0, 2, [_A, _A], 2), (0, 1, [_A, _A], 1), (3, 3, [_A], 3)],
)
def test_how_many_wait(floor, ceiling, calls, spares):
    demand = Demand(floor, ceiling)
    for fitting in calls:
        demand.called(100.0, fitting)
    assert demand.spares(100.0) == spares
    assert demand.spares(101.0 + IDLE_S) == floor


@pytest.fixture
async def pool():
    pool = Pool(PoolSettings(slots=1, spares=2))
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
def named(tmp_path):
    """`named(name)`: a package whose handler says that name."""

    def write(name):
        return write_package(tmp_path / name, "", {"handler.py": _READS, "name": name})

    return write


def _packages(pool):
    """What is mounted as the package of each process that waits, as the kernel tells."""
    found = []
    for spare in psutil.Process(pool.server_pids[0]).children()[0].children():
        try:
            text = Path(f"/proc/{spare.pid}/mountinfo").read_text()
        except OSError:
            continue  # one that has just ended
        mounts = [line.split() for line in text.splitlines()]
        found.append([mount[3] for mount in mounts if mount[4] == "/package"])
    return found


async def _waits(pool, package):
    """Until two processes wait, and this package is mounted in exactly one of them."""
    async with asyncio.timeout(10):
        while True:
            found = [Path(mount[0]).name for mount in _packages(pool) if mount]
            if found == [Path(package).name] and sum(pool.statistics()["spares"].values()) == 2:
                return
            await asyncio.sleep(0.01)


async def _twice(pool, call):
    for _ in range(2):
        reply = await pool.run(call)
        assert reply.ending is Ending.RESULT, reply
    return reply.result["output"]


async def test_the_expected_package_waits_in_one_spare_and_no_other_call_gets_it(pool, named):
    first, second = named("first"), named("second")
    assert (await _twice(pool, Call(first)))[0] == "first"
    await _waits(pool, first)
    for call, name in ((Call(second), "second"), (Call(first), "first"), (Call(second), "second")):
        reply = await pool.run(call)
        assert reply.result["output"][0] == name
    assert (await _twice(pool, Call(second)))[0] == "second"
    await _waits(pool, second)


async def test_limits_and_temp_are_those_of_the_call(pool, named):
    package = named("one")
    temp = Call(package, input="temp", policy=Policy(filesystem="temp"))
    assert not (await _twice(pool, temp))[1]
    await _waits(pool, package)
    assert not (await pool.run(temp)).result["output"][1]
    await _waits(pool, package)
    # The same package with less of everything is another thing.
    bound = Call(package, input="temp", limits=Limits(memory_bytes=128 << 20))
    reply = await pool.run(bound)
    assert "Read-only file system" in str(reply.result), reply


async def test_a_spare_that_dies_with_its_package_is_passed_over(pool, named):
    package = named("one")
    await _twice(pool, Call(package))
    await _waits(pool, package)
    for spare in psutil.Process(pool.server_pids[0]).children()[0].children():
        os.kill(spare.pid, 9)
    reply = await pool.run(Call(package))
    assert reply.ending is Ending.RESULT, reply


async def test_a_package_that_goes_away_is_named_and_others_go_on(pool, named):
    gone, other = named("gone"), named("other")
    await _twice(pool, Call(gone))
    shutil.rmtree(gone)
    async with asyncio.timeout(10):
        reply = await pool.run(Call(gone))  # it may wait in a spare already
        while reply.ending is not Ending.UNAVAILABLE:
            reply = await pool.run(Call(gone))
            await asyncio.sleep(0.01)
    assert "cannot attach the package: open_tree: No such file" in reply.message
    assert (await pool.run(Call(other))).result["output"][0] == "other"
