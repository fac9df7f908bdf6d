"""One pool for the whole folder (0.2 s to start), and packages written on the spot."""

from __future__ import annotations

import os

import pytest
import pytest_asyncio
from attacks import write_package

from sandbox import Pool, PoolSettings

# What a handler must not find in its environment or its memory.
os.environ["SANDBOX_TEST_SECRET"] = "TEST_MEMORY_SECRET_VALUE"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def pool():
    """A pool with every layer, shared: no test may leave anything in it."""
    pool = Pool(PoolSettings(slots=4))
    await pool.start()
    yield pool
    await pool.close()


@pytest.fixture
def package(tmp_path):
    """`package(code)`: the path of a handler package with that code."""
    return lambda code: write_package(tmp_path / "package", code)
