"""The agent of Python containers: connects to the daemon, runs the one task it is given, and exits.

`/usr/bin/python3 -I /usr/lib/flowmonkey/agent.py [SOCKET]`, with FLOWMONKEY_INSTANCE in the
environment. It may wait for long before there is a task: it is small and sleeps. Exit codes: 0 the
result was taken; 3 there was no daemon for 15 minutes; 4 another instance has the job; 1 anything
else. The standard library only, and little of it: these imports are every container's memory.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from agentline import Line
from agentlogs import Logs
from agentrehearsal import rehearse
from agentrun import Run

del sys.path[0]  # a handler's modules may have any names

__all__ = ["main"]

SOCKET = "/run/flowmonkey/agent.sock"


def main() -> None:
    """Serve the daemon until this process ends."""
    path = sys.argv[1] if len(sys.argv) > 1 else SOCKET
    line = Line(path, os.environ.pop("FLOWMONKEY_INSTANCE"), f"python{sys.version_info[0]}")
    logs = Logs(line)
    run = Run(line, logs)
    line.prepare = run.prepare
    sys.argv[:] = [sys.argv[0]]
    rehearse()
    logs.install()
    task = line.wait_for_task()
    logs.begin()
    line.begin(task)
    run.execute(task)
    os._exit(0)  # threads of the handler do not keep it


if __name__ == "__main__":
    main()
