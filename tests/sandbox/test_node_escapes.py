"""Hostile Node handlers: nothing of `node_attacks` succeeds, as root or as an ordinary user."""

from __future__ import annotations

import os

import pytest
from node_attacks import NODE_ATTACKS, run_node_attack

import sandbox

pytestmark = pytest.mark.asyncio(loop_scope="session")
_root_only = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


@pytest.mark.parametrize("attack", NODE_ATTACKS, ids=lambda attack: attack.name)
async def test_attack_gets_nothing(pool, tmp_path, attack):
    outcome = await run_node_attack(pool, tmp_path, attack)
    assert outcome["succeeded"] is False, f"{attack.success}: {outcome}"


@_root_only
@pytest.mark.parametrize(
    "attack", [a for a in NODE_ATTACKS if a.open], ids=lambda attack: attack.name
)
async def test_attack_is_a_real_one(open_pool, tmp_path, attack):
    """The same code succeeds where no layer stands in its way."""
    if attack.policy.filesystem == "temp":
        attack = attack._replace(policy=sandbox.Policy())
    outcome = await run_node_attack(open_pool, tmp_path, attack)
    assert outcome["succeeded"] is True, outcome
