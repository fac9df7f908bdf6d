"""The whole battery for Node, by a pool that an ordinary user started (see `battery`)."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from battery import run_battery

from sandbox import DEFAULT_REQUIRED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root"),
    pytest.mark.skipif(
        shutil.which("setpriv") is None or shutil.which("unshare") is None,
        reason="unshare or setpriv is not installed: Node for an ordinary user is NOT tested",
    ),
]
_UID = 65534
_PATIENCE_S = 150


@pytest.fixture(scope="module")
def report():
    """What the battery says."""
    return run_battery("node_attacks", (_UID,), _PATIENCE_S)[_UID]


def test_nothing_gets_through(report):
    assert all(report["layers"][name] for name in DEFAULT_REQUIRED), report["layers"]
    got = {n: o for n, o in report["outcomes"].items() if o["succeeded"] is not False}
    assert not got, json.dumps(got, indent=1)


def test_nothing_is_left(report):
    assert not report["left"], json.dumps(report["left"], indent=1)
