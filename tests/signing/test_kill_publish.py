"""Killed before the n-th call of C code while it publishes, for n = 1, 2, 3 … until it completes.

After each death the next start finds the whole version, signed, with its namespace bound and every
byte of its package there, or nothing of it at all; and then it can be published.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from flowmonkeyd.clock import SystemClock
from flowmonkeyd.documents.archive import SIGNATURE, content_digest, read_archive
from flowmonkeyd.packages import Packages
from flowmonkeyd.store import Store, catalog, publishers
from tests.signing.publish_victim import PACKAGE, publish

ROOT = Path(__file__).parents[2]
FILES = {name: data for name, data in read_archive(PACKAGE).items() if name != SIGNATURE}
# More calls than publishing makes; reaching it means that it never completes.
CALLS_MAX = 2000


@pytest.fixture
def victim():
    command = [sys.executable, "-m", "tests.signing.publish_victim"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as zygote:

        def kill_at(number: int, folder: Path) -> int:
            zygote.stdin.write(f"{number} {folder}\n")
            zygote.stdin.flush()
            return int(zygote.stdout.readline())

        yield kill_at
        zygote.stdin.close()


async def started(folder: Path):
    """What a start finds: the version's row, whose its namespace is, the packages on disk. As
    `main` does it."""
    store, packages = Store(folder / "fm.db", SystemClock()), Packages(folder / "packages")
    await store.open()
    try:
        packages.open()
        packages.remove_unused(await store.read(catalog.digests))
        row = await store.read(lambda c: catalog.handler_row(c, "acme/echo", "1.0.0"))
        owner = await store.read(lambda c: publishers.owner(c, "acme"))
    finally:
        await store.close()
    return row, owner, sorted(os.listdir(folder / "packages"))


def whole(folder: Path, row, owner, on_disk) -> None:
    digest = content_digest(FILES)
    assert (row.digest, row.publisher, owner, on_disk) == (digest, "acme", "acme", [digest])
    assert row.signature
    place = folder / "packages" / digest
    found = {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in place.rglob("*")
        if path.is_file()
    }
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}


async def test_a_death_at_any_moment_leaves_the_whole_version_or_none(victim, memory_path):
    deaths = {"none": 0, "whole": 0}
    for number in range(1, CALLS_MAX):
        with tempfile.TemporaryDirectory(dir=memory_path) as name:
            folder = Path(name)
            code = victim(number, folder)
            found = await started(folder)
            if code == 0:
                whole(folder, *found)
                break
            assert code == -9
            if found[0] is None:
                assert found[1:] == (None, [])
                deaths["none"] += 1
            else:
                whole(folder, *found)
                deaths["whole"] += 1
            if number % 20 == 0:
                await publish(folder)
                whole(folder, *await started(folder))
    else:
        pytest.fail(f"not published after {CALLS_MAX} calls")
    # Both kinds were met: deaths before the commit, and after it.
    assert deaths["none"] > 100, deaths
    assert deaths["whole"] > 0, deaths
