"""When what does not survive a boot is removed: with the last container, not a moment earlier."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowmonkeyd.podman.leftovers import remove_run
from flowmonkeyd.podman.libpod import Places

LOST = "ab" * 32


@pytest.fixture
def places(tmp_path: Path) -> Places:
    made = Places(tmp_path / "root", tmp_path / "run")
    for folder in (made.run / "c", made.tmp / "exits", made.storage / "overlay-containers"):
        folder.mkdir(parents=True)
    (made.run / "storage.conf").touch()
    return made


def test_a_late_word_that_one_has_ended_keeps_nothing(places):
    (places.tmp / "exits" / LOST).touch()
    remove_run(places, "")
    assert not places.run.exists()


@pytest.mark.parametrize("what", ["its folder", "its storage"])
def test_a_container_keeps_it(places, what):
    kept = places.run / "c" / "x" if what == "its folder" else None
    (kept or places.storage / "overlay-containers" / LOST).mkdir()
    remove_run(places, "")
    assert (places.run / "storage.conf").exists()
