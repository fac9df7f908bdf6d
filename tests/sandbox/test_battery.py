"""The whole battery in a process of its own, as root and as an ordinary user (see `battery`)."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from attacks import GETS_THROUGH
from battery import run_battery

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        shutil.which("setpriv") is None or shutil.which("unshare") is None,
        reason="unshare or setpriv is not installed: leftovers and other users are NOT tested",
    ),
]
_UID = 65534
_PATIENCE_S = 90


@pytest.fixture(scope="module")
def reports():
    """What the battery said of itself, by user id."""
    return run_battery("attacks", (0, _UID), _PATIENCE_S)


@pytest.mark.parametrize("uid", [0, _UID])
def test_nothing_gets_through(reports, uid):
    report = reports[uid]
    assert all(report["layers"].values()), report["layers"]
    succeeded = {n: o for n, o in report["outcomes"].items() if o["succeeded"] is not False}
    assert succeeded.keys() == GETS_THROUGH, succeeded


@pytest.mark.parametrize("uid", [0, _UID])
def test_nothing_is_left(reports, uid):
    left = reports[uid]["left"]
    assert not left, json.dumps(left, indent=1)
