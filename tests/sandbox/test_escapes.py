"""Hostile handlers: nothing of `attacks` succeeds.

Each attack is one test; those that would succeed on an open host are shown to, in a second one.
"""

from __future__ import annotations

import os

import pytest
import pytest_asyncio
from attacks import ATTACKS, FATAL, GETS_THROUGH, NEIGHBOURS, run_attack, with_victim

import sandbox
from sandbox import Pool, PoolSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")
_root_only = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def own_pool():
    """A pool with every layer, for attacks that need two slots for themselves."""
    pool = Pool(PoolSettings(slots=2))
    await pool.start()
    yield pool
    await pool.close()


def _parameters(attacks):
    known = pytest.mark.xfail(reason="gets through today")
    marks = dict.fromkeys(GETS_THROUGH, known)
    return [pytest.param(a, id=a.name, marks=marks.get(a.name, ())) for a in attacks]


@pytest.mark.parametrize("attack", _parameters(ATTACKS))
async def test_attack_gets_nothing(pool, tmp_path, attack):
    layers = {layer.name: layer for layer in pool.layers()}
    if attack.policy.network is not None and not layers["network"].available:
        pytest.skip(f"no network here, so this is NOT tested: {layers['network'].detail}")
    outcome = await run_attack(pool, tmp_path, attack)
    assert outcome["succeeded"] is False, f"{attack.success}: {outcome}"


@pytest.mark.parametrize("attack", FATAL, ids=lambda attack: attack.name)
async def test_foreign_system_call_kills(pool, tmp_path, attack):
    outcome = await run_attack(pool, tmp_path, attack)
    assert outcome.get("ending") == "crash", f"{attack.success}: {outcome}"


@pytest.mark.parametrize("attack", NEIGHBOURS, ids=lambda attack: attack.name)
async def test_neighbour_gets_nothing(own_pool, tmp_path, attack):
    async with with_victim(own_pool, tmp_path):
        outcome = await run_attack(own_pool, tmp_path, attack)
    assert outcome["succeeded"] is False, f"{attack.success}: {outcome}"


@_root_only
@pytest.mark.parametrize(
    "attack", [a for a in NEIGHBOURS if a.open], ids=lambda attack: attack.name
)
async def test_neighbour_is_a_real_one(open_pool, tmp_path, attack):
    async with with_victim(open_pool, tmp_path):
        outcome = await run_attack(open_pool, tmp_path, attack)
    assert outcome["succeeded"] is True, outcome


@_root_only
@pytest.mark.parametrize("attack", [a for a in ATTACKS if a.open], ids=lambda attack: attack.name)
async def test_attack_is_a_real_one(open_pool, tmp_path, attack):
    """The same code succeeds where no layer stands in its way."""
    if attack.policy.filesystem == "temp":
        attack = attack._replace(policy=sandbox.Policy())
    outcome = await run_attack(open_pool, tmp_path, attack)
    assert outcome["succeeded"] is True, outcome
