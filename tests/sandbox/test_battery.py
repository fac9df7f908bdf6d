"""The whole battery in a process of its own, as root and as an ordinary user.

It runs in PID, mount, network and IPC namespaces where nobody else makes anything, so that what
there is more of afterwards was left by the sandbox: it must be nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import IO

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
def reports(tmp_path_factory):
    """What the battery said of itself, by user id. Both run at once: they mostly wait."""
    # Every account may read this folder; what is below /tmp is hidden from the battery.
    folder = Path("/run") / f"sandbox-battery-{os.getpid()}"
    printed = {uid: tmp_path_factory.mktemp(str(uid)) / "printed" for uid in (0, _UID)}
    try:
        _copy_project(folder)
        with contextlib.ExitStack() as stack:
            started = {
                uid: stack.enter_context(
                    _battery(folder, uid, stack.enter_context(path.open("wb")))
                )
                for uid, path in printed.items()
            }
            for process in started.values():
                stack.callback(process.kill)  # of a battery that hangs
            for uid, process in started.items():
                _, errors = process.communicate(timeout=_PATIENCE_S)
                assert process.returncode == 0, f"{uid}: {errors.decode()}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {uid: json.loads(path.read_text()) for uid, path in printed.items()}


def _copy_project(folder: Path) -> None:
    shutil.copytree(Path(sandbox.__file__).parent, folder / "sandbox")
    shutil.copytree(Path(__file__).with_name("attacks"), folder / "attacks")
    shutil.copytree(Path(dns.__file__).parent, folder / "dns")
    shutil.copy(pyseccomp.__file__, folder / "pyseccomp.py")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _battery(folder: Path, uid: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    account = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    namespaces = ["--pid", "--fork", "--mount-proc", "--mount", "--net", "--ipc", "--kill-child"]
    prepared = ["sh", "-ec", _PREPARE, "sh", "setpriv", *account]
    return subprocess.Popen(
        ["unshare", *namespaces, *prepared, PYTHON_DEFAULT, "-B", "-m", "attacks"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        stdout=output,
        stderr=subprocess.PIPE,
    )


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
