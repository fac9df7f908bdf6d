"""The whole battery for Node in a process of its own, by a pool that an ordinary user started.

As `test_battery`: in namespaces where nobody else makes anything, so that what there is more of
afterwards was left by the sandbox.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import dns
import pyseccomp
import pytest

import sandbox
from sandbox import DEFAULT_REQUIRED
from sandbox.forkserver import PYTHON_DEFAULT

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
_PREPARE = """
for place in /tmp /dev/shm /sys/fs/cgroup; do mount -t tmpfs -o mode=1777 tmpfs $place; done
"$@"
exit $?  # so that it stays, and reaps whoever has lost its parent
"""


@pytest.fixture(scope="module")
def report():
    """What the battery says."""
    folder = Path("/run") / f"node-battery-{os.getpid()}"
    try:
        shutil.copytree(Path(sandbox.__file__).parent, folder / "sandbox")
        for name in ("attacks", "node_attacks"):
            shutil.copytree(Path(__file__).with_name(name), folder / name)
        shutil.copytree(Path(dns.__file__).parent, folder / "dns")
        shutil.copy(pyseccomp.__file__, folder / "pyseccomp.py")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        namespaces = ["--pid", "--fork", "--mount-proc", "--mount", "--net", "--ipc"]
        account = [f"--reuid={_UID}", f"--regid={_UID}", "--clear-groups"]
        battery = [PYTHON_DEFAULT, "-B", "-m", "node_attacks"]
        prepared = ["sh", "-ec", _PREPARE, "sh", "setpriv", *account]
        done = subprocess.run(
            ["unshare", *namespaces, "--kill-child", *prepared, *battery],
            cwd=folder,
            env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
            capture_output=True,
            timeout=_PATIENCE_S,
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_nothing_gets_through(report):
    assert all(report["layers"][name] for name in DEFAULT_REQUIRED), report["layers"]
    got = {n: o for n, o in report["outcomes"].items() if o["succeeded"] is not False}
    assert not got, json.dumps(got, indent=1)


def test_nothing_is_left(report):
    assert not report["left"], json.dumps(report["left"], indent=1)
