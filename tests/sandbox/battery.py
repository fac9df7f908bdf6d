"""A battery of attacks in a process of its own, in PID, mount, network and IPC namespaces.

Nobody else makes anything in there, so that what there is more of afterwards was left by the
sandbox. Owns the copy of the project that any account may read, and how the process is started;
what is tried, and what may come of it, is the battery's and the test's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import dns
import pyseccomp

import sandbox
from sandbox.forkserver import PYTHON_DEFAULT

__all__ = ["run_battery"]

# Control groups are kept out: they are the host's, and this /proc does not show who else has some.
_PREPARE = """
for place in /tmp /var/tmp /dev/shm /sys/fs/cgroup; do
    mount -t tmpfs -o mode=1777 tmpfs $place
done
"$@"
exit $?  # so that it stays, and reaps whoever has lost its parent
"""


def run_battery(module: str, uids: Iterable[int], patience_s: float) -> dict[int, Any]:
    """What `python -m MODULE` prints (JSON), by user id; all run at once: they mostly wait.

    One that fails or takes longer than `patience_s` is an error, with what it said.
    """
    # Every account may read this folder; what is below /tmp is hidden from the battery.
    folder = Path("/run") / f"battery-of-{module}-{os.getpid()}"
    try:
        _copy_project(folder)
        with contextlib.ExitStack() as stack:
            printed = {uid: stack.enter_context(tempfile.TemporaryFile()) for uid in uids}
            started = {
                uid: stack.enter_context(_started(folder, module, uid, output))
                for uid, output in printed.items()
            }
            for process in started.values():
                stack.callback(process.kill)  # of a battery that hangs
            for uid, process in started.items():
                _, errors = process.communicate(timeout=patience_s)
                assert process.returncode == 0, f"{uid}: {errors.decode()}"
            for output in printed.values():
                output.seek(0)
            return {uid: json.load(output) for uid, output in printed.items()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_project(folder: Path) -> None:
    shutil.copytree(Path(sandbox.__file__).parent, folder / "sandbox")
    for name in ("attacks", "node_attacks"):
        shutil.copytree(Path(__file__).with_name(name), folder / name)
    shutil.copytree(Path(dns.__file__).parent, folder / "dns")
    shutil.copy(pyseccomp.__file__, folder / "pyseccomp.py")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _started(folder: Path, module: str, uid: int, output: IO[bytes]) -> subprocess.Popen[bytes]:
    account = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    namespaces = ["--pid", "--fork", "--mount-proc", "--mount", "--net", "--ipc", "--kill-child"]
    prepared = ["sh", "-ec", _PREPARE, "sh", "setpriv", *account]
    return subprocess.Popen(
        ["unshare", *namespaces, *prepared, PYTHON_DEFAULT, "-B", "-m", module],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": os.environ["PATH"]},
        stdout=output,
        stderr=subprocess.PIPE,
    )
