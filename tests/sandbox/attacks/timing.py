"""Attacks on time: what would run, or answer, after the deadline or after its own result.

Every one goes by the name of a survivor: its process found on the host afterwards is a success, as
is a result that came after the deadline. Harmless to a host: they only spend their own time.
"""

from __future__ import annotations

from attacks.attack import LIVE_ON, Attack
from sandbox import Ending, Limits, Reply

__all__ = ["TIMING"]

_SOON = Limits(wall_ms=200)
_PRELUDE = f"{LIVE_ON}\nimport os, signal, sys, threading, time\nlive_on()\n"
_PAST = "time.sleep(5)\nreturn 'late'"


def _result(reply: Reply) -> bool:
    return reply.ending is Ending.RESULT


def _no_result(reply: Reply) -> bool:
    return reply.ending is not Ending.RESULT


def _handler(body: str, before: str = "") -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return f"{_PRELUDE}{before}\ndef handle(input, ctx):\n{lines}"


_LATE: tuple[Attack, ...] = tuple(
    Attack(
        name, "a result after the deadline, or a process", code, False, limits=_SOON, won=_result
    )
    for name, code in (
        ("late-asleep", _handler(_PAST)),
        ("late-busy", _handler("while True: pass")),
        ("late-while-importing", _handler("return 'late'", "time.sleep(5)")),
        (
            "late-whatever-is-raised",
            _handler(
                "while True:\n    try:\n        time.sleep(5)\n    except BaseException: pass"
            ),
        ),
        (
            "late-finally",
            _handler("try:\n    1 / 0\nfinally:\n    while True:\n        time.sleep(1)"),
        ),
        (
            "late-signals-ignored",
            _handler(
                "for n in range(1, 65):\n"
                "    try: signal.signal(n, signal.SIG_IGN)\n"
                "    except (OSError, ValueError): pass\n"
                "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n" + _PAST
            ),
        ),
        (
            "late-signals-handled",
            _handler(
                "def again(*_): signal.setitimer(signal.ITIMER_REAL, 0.001)\n"
                "signal.signal(signal.SIGALRM, again)\nagain()\n" + _PAST
            ),
        ),
        (
            "late-in-c",
            _handler("ctypes.PyDLL(None).sleep(5)\nreturn 'late'"),
        ),
        ("late-in-arithmetic", _handler("return str(10 ** 10 ** 8)[:5]")),
        ("late-in-a-pattern", _handler("import re\nre.match('(a|a)*b', 'a' * 60)")),
        ("late-in-a-lock", _handler("lock = threading.Lock()\nlock.acquire()\nlock.acquire()")),
        ("late-at-standard-input", _handler("os.read(0, 1)\nos.read(0, 1)\n" + _PAST)),
        ("late-at-the-channel", _handler("os.read(3, 1)\n" + _PAST)),
        (
            "late-asynchronous",
            "import asyncio\n"
            + _PRELUDE
            + "async def handle(input, ctx):\n    while True: await asyncio.sleep(0)\n",
        ),
        (
            "late-asynchronous-cancelled",
            "import asyncio\n" + _PRELUDE + "async def handle(input, ctx):\n"
            "    while True:\n"
            "        try: await asyncio.sleep(5)\n"
            "        except BaseException: pass\n",
        ),
        (
            "late-in-an-executor",
            "import asyncio\n" + _PRELUDE + "async def handle(input, ctx):\n"
            "    asyncio.get_running_loop().run_in_executor(None, time.sleep, 5)\n"
            "    return 'early'\n",
        ),
        (
            "late-all-threads",
            _handler(
                "def spin():\n    while True: pass\n"
                "for _ in range(20): threading.Thread(target=spin).start()\n" + _PAST
            ),
        ),
        (
            "late-switched-off",
            _handler("sys.setswitchinterval(1e9)\n" + _PAST),
        ),
        (
            "late-main-thread-gone",
            _handler(
                "threading.Thread(target=time.sleep, args=(5,)).start()\n"
                "ctypes.CDLL(None).pthread_exit(None)"
            ),
        ),
        (
            "late-output-not-taken",
            _handler("os.set_blocking(1, True)\nwhile True: os.write(1, b'x' * 65536)"),
        ),
    )
)

_AFTER: tuple[Attack, ...] = tuple(
    Attack(
        name,
        "a process that goes on after its result, or a result that was kept back",
        _handler(body),
        False,
        won=_no_result,
    )
    for name, body in (
        (
            "after-by-thread",
            "def go():\n    while True: time.sleep(0.01)\n"
            "threading.Thread(target=go).start()\nreturn 'done'",
        ),
        (
            "after-by-exit-hook",
            "import atexit\natexit.register(time.sleep, 60)\nreturn 'done'",
        ),
        (
            "after-by-finaliser",
            "class Last:\n    def __del__(self): time.sleep(60)\nsys.keeps = Last()\nreturn 'done'",
        ),
        (
            "after-by-timer",
            "timer = threading.Timer(0.01, time.sleep, (60,))\ntimer.start()\nreturn 'done'",
        ),
        (
            "after-by-alarm",
            "def up(*_): time.sleep(60)\nsignal.signal(signal.SIGALRM, up)\n"
            "signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)\nreturn 'done'",
        ),
        (
            "after-by-patched-exit",
            "os._exit = sys.exit = lambda *a: time.sleep(60)\nreturn 'done'",
        ),
        (
            "after-by-session",
            "for leave in (os.setsid, os.fork, os.setpgrp):\n"
            "    try: leave()\n    except OSError: pass\nreturn 'done'",
        ),
        (
            "after-by-double-fork",
            "try:\n    if os.fork() == 0:\n        if os.fork() == 0:\n            time.sleep(60)\n"
            "        os._exit(0)\nexcept OSError: pass\nreturn 'done'",
        ),
        (
            "after-by-raw-thread",
            "import _thread\n_thread.start_new_thread(time.sleep, (60,))\nreturn 'done'",
        ),
        (
            "after-by-threads-of-c",
            "libc = ctypes.CDLL(None)\nthread = ctypes.c_ulong()\n"
            "libc.pthread_create(ctypes.byref(thread), None, libc.sleep, ctypes.c_void_p(60))\n"
            "return 'done'",
        ),
    )
)

TIMING: tuple[Attack, ...] = _LATE + _AFTER
