"""Attacks across time: what one execution leaves for another that must not share its process.

Owns the noun `Haunting`: a handler that leaves something on its first call and looks for it on
its second. With `same`, both calls are alike, and finding it is what an operator has allowed
(that shows that the haunting is a real one); otherwise `second` says how the other call differs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from attacks.attack import SYSCALL, TEMP
from attacks.results import CHANNEL
from attacks.running import write_package
from sandbox import Call, Ending, Limits, Policy, Pool, Reuse

__all__ = ["HAUNTINGS", "STRANGERS", "Haunting", "run_haunting"]


class Haunting(NamedTuple):
    """`leave()` runs in the first call, `found()` in the second, which must not be true."""

    name: str
    success: str
    code: str
    policy: Policy = Policy()
    # Whether the same call again may find it, which shows that there was something to find.
    kept: bool = True


_SPIN = """
import threading, time, sys
def leave():
    sys.beat = 0
    def go():
        while True:
            sys.beat += 1
    threading.Thread(target=go, daemon=True).start()
def found(): return hasattr(sys, "beat")
"""

HAUNTINGS: tuple[Haunting, ...] = (
    Haunting(
        "module-state",
        "a value that the module kept",
        "kept = []\ndef leave(): kept.append(1)\ndef found(): return kept\n",
    ),
    Haunting(
        "builtins",
        "a function that everybody calls, replaced",
        "import builtins\ndef leave(): builtins.sorted = lambda x: 666\n"
        "def found(): return sorted([]) == 666\n",
    ),
    Haunting(
        "patched-json",
        "a codec that reads along",
        "import json\ndef leave():\n    real = json.dumps\n"
        "    json.dumps = lambda *a, **k: real(*a, **k)\n    json.dumps.evil = True\n"
        "def found(): return hasattr(json.dumps, 'evil')\n",
    ),
    Haunting(
        "patched-modules",
        "a module under another's name",
        "import sys, types\ndef leave(): sys.modules['secrets'] = types.ModuleType('evil')\n"
        "def found():\n    import secrets\n    return secrets.__name__ == 'evil'\n",
    ),
    Haunting(
        "patched-os",
        "a system function that reads along",
        "import os\ndef leave(): os.evil = os.read\ndef found(): return hasattr(os, 'evil')\n",
    ),
    Haunting(
        "import-hook",
        "a finder that sees every import",
        "import sys\nclass Finder:\n    evil = True\n"
        "    def find_spec(self, *a): return None\n"
        "def leave(): sys.meta_path.insert(0, Finder())\n"
        "def found(): return any(hasattr(f, 'evil') for f in sys.meta_path)\n",
    ),
    Haunting(
        "import-path",
        "a folder on the path",
        "import sys\ndef leave(): sys.path.insert(0, '/tmp/evil')\n"
        "def found(): return '/tmp/evil' in sys.path\n",
    ),
    Haunting(
        "trace-function",
        "a function that sees every call",
        "import sys, threading\ndef spy(*a): return None\n"
        "def leave(): sys.setprofile(spy); threading.setprofile(spy)\n"
        "def found(): return sys.getprofile() or threading.getprofile()\n",
    ),
    Haunting(
        "audit-hook",
        "a hook that cannot be removed",
        "import sys\ndef hook(event, arguments):\n    if event == 'evil': raise KeyError\n"
        "def leave(): sys.addaudithook(hook)\n"
        "def found():\n    try: sys.audit('evil')\n    except KeyError: return True\n",
    ),
    Haunting(
        "signal-handler",
        "a handler for a signal",
        "import signal\ndef leave(): signal.signal(signal.SIGUSR1, lambda *a: None)\n"
        "def found(): return callable(signal.getsignal(signal.SIGUSR1))\n",
    ),
    Haunting("background-thread", "a thread that runs", _SPIN),
    Haunting(
        "open-descriptor",
        "an open file",
        "import os\ndef leave(): os.dup2(os.open('/dev/null', os.O_RDONLY), 77)\n"
        "def found():\n    try: return os.fstat(77)\n    except OSError: return False\n",
    ),
    Haunting(
        "open-pipe",
        "a pipe with something in it",
        "import os\ndef leave():\n    a, b = os.pipe()\n    os.write(b, b'evil')\n"
        "    os.dup2(a, 78)\n"
        "def found():\n    try: return os.read(78, 4)\n    except OSError: return False\n",
    ),
    Haunting(
        "temp-file",
        "a file in temp",
        "import os\ndef leave(): open('/tmp/evil', 'w').write('x')\n"
        "def found(): return os.path.exists('/tmp/evil')\n",
        TEMP,
    ),
    Haunting(
        "temp-unlinked",
        "a file in temp that has no name any more",
        "import os\ndef leave():\n    f = open('/tmp/evil', 'w+')\n    os.unlink('/tmp/evil')\n"
        "    os.dup2(f.fileno(), 79)\n"
        "def found():\n    try: return os.fstat(79)\n    except OSError: return False\n",
        TEMP,
    ),
    Haunting(
        "secret-in-memory",
        "a secret of the call before",
        "import gc\nclass Held:\n    pass\nheld = Held()\n"
        "def leave(): held.secret = ''.join(['the-', 'earlier-', 'secret'])\n"
        "def found(): return [h for h in gc.get_objects() if getattr(h, 'secret', '')]\n"
        "def getattr(h, name, default): return vars(h).get(name) if type(h) is Held else default\n",
    ),
    Haunting(
        "working-directory",
        "another current folder",
        "import os\ndef leave(): os.chdir('/dev')\ndef found(): return os.getcwd() == '/dev'\n",
    ),
    Haunting(
        "environment",
        "a variable",
        "import os\ndef leave(): os.environ['EVIL'] = '1'\n"
        "def found(): return 'EVIL' in os.environ\n",
    ),
    Haunting(
        "file-mask",
        "another umask",
        "import os\ndef leave(): os.umask(0o123)\n"
        "def found():\n    old = os.umask(0)\n    os.umask(old)\n    return old == 0o123\n",
    ),
    Haunting(
        "thread-name",
        "the process's name",
        f"{SYSCALL}\ndef leave(): libc.prctl(15, b'evil', 0, 0, 0)\n"
        "def found(): return open('/proc/self/comm').read() == 'evil\\n'\n",
    ),
    Haunting(
        "frames-in-advance",
        "an answer written before the question was asked",
        f"{CHANNEL}\n"
        "def leave():\n    framed_now = framed(b'R', won({'succeeded': True}))\n"
        "    threading.Timer(0.01, send, (framed_now,)).start()\n"
        "def found(): return False\n",
        kept=False,
    ),
    Haunting(
        "frames-by-a-thread",
        "an answer by a thread of the call before, with the old call's token",
        f"{CHANNEL}\n"
        "def leave():\n    old = framed(b'R', won({'succeeded': True}))\n"
        "    def go():\n        while True: send(old)\n"
        "    threading.Timer(0.005, go).start()\n"
        "def found():\n    time.sleep(0.05)\n    return False\n",
        kept=False,
    ),
    Haunting(
        "after-an-exception",
        "state of a call that failed",
        "kept = []\ndef leave():\n    kept.append(1)\n    raise KeyError\n"
        "def found(): return kept\n",
    ),
    Haunting(
        "after-two-results",
        "state of a call that broke the protocol",
        f"{CHANNEL}\nkept = []\n"
        "def leave():\n    kept.append(1)\n"
        "    send(framed(b'R', won(1)) + framed(b'R', won(2)))\n    time.sleep(20)\n"
        "def found(): return kept\n",
        kept=False,
    ),
    Haunting(
        "after-a-timeout",
        "state of a call that ran too long",
        "import time\nkept = []\ndef leave():\n    kept.append(1)\n    time.sleep(20)\n"
        "def found(): return kept\n",
        kept=False,
    ),
    Haunting(
        "after-too-much-output",
        "state of a call whose result was too large",
        "kept = []\ndef leave():\n    kept.append(1)\n    return 'x' * 100_000\n"
        "def found(): return kept\n",
        kept=False,
    ),
)

# Who must not get a process that served the first call, as changes to that call.
STRANGERS: dict[str, dict[str, Any]] = {
    "another-tenant": {"tenant_id": "other"},
    "another-package": {"package_dir": "other"},
    "another-entrypoint": {"entrypoint": "handler.py:other"},
    "other-limits": {"limits": Limits(wall_ms=3001, output_bytes=20_000)},
    "another-policy": {"policy": Policy(required=frozenset({"seccomp"}))},
    "another-reuse": {"reuse": Reuse(uses=3)},
    "no-reuse": {"reuse": None},
}

_WRAP = """
def handle(input, ctx):
    if input == "leave":
        return leave()
    return {"succeeded": bool(found())}
other = handle
"""


async def run_haunting(
    pool: Pool, folder: Path, haunting: Haunting, changes: dict[str, Any]
) -> dict[str, object]:
    """What the second call found; the pool must have one slot only."""
    code = haunting.code + _WRAP
    limits = Limits(wall_ms=3000, output_bytes=20_000)
    if haunting.name == "after-a-timeout":
        limits = Limits(wall_ms=200, output_bytes=20_000)
    first = Call(
        write_package(folder / "first", code),
        input="leave",
        limits=limits,
        policy=haunting.policy,
        reuse=Reuse(),
    )
    if "package_dir" in changes:
        changes = {**changes, "package_dir": write_package(folder / "second", code)}
    left = await pool.run(first)
    await pool.idle()
    reply = await pool.run(dataclasses.replace(first, input="find", **changes))
    await pool.idle()
    said: dict[str, object] = {"first": str(left.ending), "second": str(reply.ending)}
    if reply.ending is Ending.PROTOCOL:
        return {"succeeded": False, **said, "message": reply.message}
    if reply.result is None or reply.result["outcome"] != "success":
        return {"succeeded": None, **said, "broken": reply.message or repr(reply.result)}
    return {**said, **reply.result["output"]}
