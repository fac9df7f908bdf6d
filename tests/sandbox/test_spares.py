"""Processes made ahead: how many, and that one of them has the package that is expected."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import time
from pathlib import Path

import psutil
import pytest
from attacks import write_package

from sandbox import Call, Ending, Limits, Policy, Pool, PoolSettings
from sandbox.child import Fitting
from sandbox.demand import IDLE_S, Demand

_A, _B = (Fitting(f"/{name}", 1, 1, 1, 1, 0, 1, "h.py:f", False, False) for name in "ab")
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


def _spares(pool):
    return psutil.Process(pool.server_pids[0]).children()[0].children()


def _packages(pool):
    """What is mounted as the package of each process that waits, as the kernel tells."""
    found = []
    for spare in _spares(pool):
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
    for spare in _spares(pool):
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


_IMPORTED = """
import os, time
print('nobody hears this')
AT = time.monotonic()
DATA = b'x' * (40 << 20)  # so that it shows from outside
def handle(input, ctx):
    print('called')
    return [AT < input, os.getpid()]
"""


async def test_what_is_expected_is_imported_ahead_if_the_operator_says_so(pool, tmp_path):
    package = write_package(tmp_path / "ahead", _IMPORTED)
    for preload in (False, True):
        call = Call(package, preload=preload, input=0)
        await _twice(pool, call)
        await _waits(pool, package)
        if preload:
            await _grown(pool, 40 << 20)
        reply = await pool.run(dataclasses.replace(call, input=time.monotonic()))
        assert reply.result, reply
        assert reply.result["output"][0] is preload
        assert [line.message for line in reply.logs if line.message == "called"] == ["called"]
        assert len(reply.logs) == (1 if preload else 2)


async def _grown(pool, size_bytes):
    """Until one of those that wait holds that much memory: not one whose call is over."""
    await pool.idle()
    async with asyncio.timeout(10):
        while all(  # noqa: ASYNC110  no event to await
            spare.memory_info().rss < size_bytes for spare in _spares(pool)
        ):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("code", "ending", "says"),
    [
        ("raise ValueError('at import')", Ending.RESULT, "ValueError: at import"),
        ("import os; os._exit(3)", Ending.CRASH, "exited with status 3"),
        ("while True: pass", Ending.TIMEOUT, "ran longer"),
        ("import sys\nsys.modules.clear()\nraise SystemExit", Ending.RESULT, "SystemExit"),
    ],
)
async def test_an_import_that_fails_ahead_fails_the_call_as_it_would(
    pool, tmp_path, code, ending, says
):
    package = write_package(tmp_path / "bad", code)
    call = Call(package, preload=True, limits=Limits(wall_ms=300))
    for _ in range(6):
        reply = await pool.run(call)
        assert reply.ending is ending, reply
        assert says in f"{reply.message} {reply.result}"
        await asyncio.sleep(0.05)
    good = write_package(tmp_path / "good", "def handle(input, ctx): return 'good'")
    assert (await pool.run(Call(good, preload=True))).result["output"] == "good"


_NODE = """
const at = Date.now();
const data = Buffer.alloc(150 << 20, 1); // so that it shows from outside
console.log('nobody hears this');
exports.handle = (input) => at < input;
"""
_MODULE = """
const at = await Promise.resolve(Date.now());
const data = Buffer.alloc(150 << 20, 1);
export const handle = (input) => at < input;
"""


@pytest.mark.parametrize(("file", "code"), [("handler.js", _NODE), ("handler.mjs", _MODULE)])
@pytest.mark.parametrize("preload", [False, True])
async def test_node_imports_ahead_too(pool, tmp_path, file, code, preload):
    package = write_package(tmp_path / "node", "", {file: code})
    call = Call(package, f"{file}:handle", "node", input=0, preload=preload)
    await _twice(pool, call)
    if preload:
        await _grown(pool, 150 << 20)
    reply = await pool.run(dataclasses.replace(call, input=time.time() * 1000))
    assert reply.ending is Ending.RESULT, reply
    assert reply.result["output"] is True or not preload
    heard = [line.message for line in reply.logs]
    assert heard == (["nobody hears this"] if file == "handler.js" and not preload else [])


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("throw new Error('at import')", "Error: at import"),
        ("exports.handle = 1", "cannot find handle"),
        ("export const handle = await new Promise(() => {})", "never settle"),
    ],
)
async def test_an_import_of_node_that_fails_ahead_fails_the_call_as_it_would(
    pool, tmp_path, code, says
):
    file = "handler.mjs" if "await" in code else "handler.js"
    package = write_package(tmp_path / "node", "", {file: code})
    call = Call(package, f"{file}:handle", "node", preload=True)
    for _ in range(4):
        reply = await pool.run(call)
        assert says in f"{reply.message} {reply.result}", reply
        await asyncio.sleep(0.1)
