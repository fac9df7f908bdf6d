"""The whole battery in a process of its own, as root and as an ordinary user.

It runs in PID, mount, network and IPC namespaces where nobody else makes anything, so that what
there is more of afterwards was left by the sandbox: it must be nothing.
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
from attacks import GETS_THROUGH

import sandbox
from sandbox.forkserver import PYTHON_DEFAULT

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
# Control groups are kept out: they are the host's, and this /proc does not show who else has some.
_PREPARE = """
for place in /tmp /dev/shm /sys/fs/cgroup; do mount -t tmpfs -o mode=1777 tmpfs $place; done
"$@"
exit $?  # so that it stays, and reaps whoever has lost its parent
"""


@pytest.fixture(scope="module")
def project():
    """The sandbox and the attacks, in a folder that every account may read."""
    folder = Path("/run") / f"sandbox-battery-{os.getpid()}"
    try:
        shutil.copytree(Path(sandbox.__file__).parent, folder / "sandbox")
        shutil.copy(pyseccomp.__file__, folder / "pyseccomp.py")
        shutil.copytree(Path(__file__).with_name("attacks"), folder / "attacks")
        shutil.copytree(Path(dns.__file__).parent, folder / "dns")
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("uid", [0, _UID])
def test_nothing_gets_through_and_nothing_is_left(project, uid):
    account = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    namespaces = ["--pid", "--fork", "--mount-proc", "--mount", "--net", "--ipc", "--kill-child"]
    prepared = ["sh", "-ec", _PREPARE, "sh", "setpriv", *account]
    done = subprocess.run(
        ["unshare", *namespaces, *prepared, PYTHON_DEFAULT, "-B", "-m", "attacks"],
        cwd=project,
        env={"PYTHONPATH": str(project), "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=_PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads(done.stdout)
    assert all(report["layers"].values()), report["layers"]
    succeeded = {n: o for n, o in report["outcomes"].items() if o["succeeded"] is not False}
    assert succeeded.keys() == GETS_THROUGH, succeeded
    assert not report["left"], json.dumps(report["left"], indent=1)
