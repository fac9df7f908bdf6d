"""One pool for the whole folder (0.2 s to start), an open one, and packages written on the spot."""

from __future__ import annotations

import os

import pytest
import pytest_asyncio
from attacks import write_package
from bare_node import BareNode, request

from sandbox import ALL_LAYERS, Pool, PoolSettings

# What a handler must not find in its environment or its memory.
os.environ["SANDBOX_TEST_SECRET"] = "TEST_MEMORY_SECRET_VALUE"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pool():
    """A pool with every layer, shared: no test may leave anything in it."""
    pool = Pool(PoolSettings(slots=4, idle_ms=86_400_000))  # attacks ask whether a server died
    await pool.start()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def open_pool():
    """A pool without any layer: here attacks succeed."""
    everything = frozenset(ALL_LAYERS)
    settings = PoolSettings(slots=2, required_layers=frozenset(), without=everything)
    pool = Pool(settings)
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
def package(tmp_path):
    """`package(code)`: the path of a handler package with that code."""
    return lambda code: write_package(tmp_path / "package", code)


@pytest.fixture
def node():
    """A Node with our shim, ready; for one execution, or for several with `reuse`."""
    with BareNode() as started:
        started.wait_ready()
        yield started


@pytest.fixture
def run(node, tmp_path):
    """`run(code, …)`: an execution of `exports.handle = …`, or of whole files by their names."""

    def once(code="", files=None, context=None, **asked):
        files = files or {"handler.js": f"exports.handle = {code}"}
        folder = write_package(tmp_path / "package", "", files)
        return node.run(request(folder, **asked), context)

    return once
