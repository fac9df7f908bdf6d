"""One core, or the two that the large tier may have: seen from inside, with the time they give."""

from __future__ import annotations

import os

import pytest
from attacks import write_package

from sandbox import Call, Ending, Limits, Pool, PoolSettings, Reuse

_CPUS = """
import os, time
def handle(input, ctx):
    if input:
        threads = [__import__("threading").Thread(target=spin) for _ in range(2)]
        for one in threads: one.start()
        for one in threads: one.join()
    return sorted(os.sched_getaffinity(0))
def spin():
    import hashlib
    until = time.thread_time() + 0.3
    while time.thread_time() < until: hashlib.sha256(bytes(1 << 20))
"""


@pytest.fixture
async def pool():
    async with Pool(PoolSettings(slots=2, spares=2)) as pool:
        yield pool


@pytest.mark.parametrize("times", [1, 4])  # also in one that waited with the package
async def test_a_handler_has_as_many_cores_as_it_may(pool, tmp_path, times):
    package = write_package(tmp_path / "package", _CPUS)
    all_of_them = len(os.sched_getaffinity(0))
    for share, cores in (
        (0.5, 1),
        (1.0, 1),
        (1.5, min(2, all_of_them)),
        (2.0, min(2, all_of_them)),
    ):
        for _ in range(times):
            reply = await pool.run(Call(package, limits=Limits(cpu_share=share)))
            assert reply.ending is Ending.RESULT, reply
            assert len(reply.result["output"]) == cores


_SPINS = """
import time
def handle(input, ctx):
    begun = time.monotonic()
    while time.process_time() < 0.2:
        pass
    return time.monotonic() - begun
"""


@pytest.mark.slow
@pytest.mark.parametrize("reuse", [None, Reuse()])
async def test_a_share_of_one_core_is_what_it_gets(pool, tmp_path, reuse):
    """Of a quarter of the time, 200 ms take 0.7 s at least: the first period may be used whole."""
    if not {layer.name: layer for layer in pool.layers()}["cgroup"].available:
        pytest.skip("no control groups here, so shares below one core are NOT tested")
    package = write_package(tmp_path / "package", _SPINS)
    for share, least_s in ((0.25, 0.5), (1.0, 0.0)):
        call = Call(package, limits=Limits(cpu_share=share, wall_ms=20_000), reuse=reuse)
        reply = await pool.run(call)
        assert reply.ending is Ending.RESULT, reply
        assert reply.result["output"] >= least_s


async def test_two_cores_give_the_time_of_two(pool, tmp_path):
    """600 ms of CPU in 400 ms of wall: with one core this is a TIMEOUT."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor here, so this is NOT tested")
    package = write_package(tmp_path / "package", _CPUS)
    limits = Limits(cpu_share=2.0, wall_ms=20_000)
    reply = await pool.run(Call(package, input=True, limits=limits))
    assert reply.ending is Ending.RESULT, reply
    assert reply.usage.cpu_ms >= 500
    assert limits.cpu_time_ms == 41_000


@pytest.mark.parametrize("share", [0, 2.01, -1])
def test_what_is_no_share_is_refused(share):
    with pytest.raises(ValueError, match="cpu_share"):
        Limits(cpu_share=share)
