"""Killed before the n-th call of C code while it keeps secrets and rotates, for n = 1, 2, 3 …

After each death every secret that is listed opens, with its value, and one key is left that all of
them are sealed under; then the same can be done to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flowmonkeyd.store import vault as secrets
from flowmonkeyd.vault.keys import OWN_FILE
from tests.vault.parts import opened
from tests.vault.rotation_victim import VALUES, rotate

ROOT = Path(__file__).parents[2]
# More calls than it makes; reaching it means that it never completes.
CALLS_MAX = 3000


@pytest.fixture
def victim():
    command = [sys.executable, "-m", "tests.vault.rotation_victim"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:

        def kill_at(number: int, folder: Path) -> int:
            zygote.stdin.write(f"{number} {folder}\n")
            zygote.stdin.flush()
            return int(zygote.stdout.readline())

        yield kill_at
        zygote.stdin.close()


async def found(folder: Path) -> int:
    """How many secrets the next start finds, all of which it opens."""
    async with opened(folder) as vault:
        names = [kept.name for kept in await vault.listed(None, 0, 10)]
        values = await vault.read("default", names)
        assert {name: value.text for name, value in values.items()} == {
            name: VALUES[name] for name in names
        }
        key_ids = await vault.store.read(secrets.key_ids)
    assert len(key_ids) == (1 if names else 0)
    if names:
        assert len((folder / OWN_FILE).read_text().split()) == 1
    assert {OWN_FILE, f"{OWN_FILE}.new"} >= {n for n in os.listdir(folder) if n[:5] == "vault"}
    return len(names)


@pytest.mark.slow
async def test_a_vault_opens_whenever_the_rotation_of_its_key_died(victim, memory_path):
    deaths = dict.fromkeys(range(len(VALUES) + 1), 0)
    for number in range(1, CALLS_MAX):
        with tempfile.TemporaryDirectory(dir=memory_path) as name:
            folder = Path(name)
            code = victim(number, folder)
            count = await found(folder)
            if code == 0:
                assert count == len(VALUES)
                break
            assert code == -9
            deaths[count] += 1
            if number % 20 == 0:
                await rotate(folder)
                assert await found(folder) == len(VALUES)
    else:
        pytest.fail(f"it has not completed after {CALLS_MAX} calls")
    assert all(deaths.values()), deaths
    # Between the second secret and the third lies the rotation.
    assert deaths[2] > 50, deaths
