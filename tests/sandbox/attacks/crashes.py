"""Attacks that break their own interpreter, to take the fork server or the pool along.

After each of them the servers must be the same and the next attack must run; what a reply may not
say is that the pool could not. Harmless to a host: only the process itself is broken.
"""

from __future__ import annotations

from attacks.attack import LIVE_ON, Attack
from sandbox import Ending, Limits, Reply

__all__ = ["CRASHES"]


_LIMITS = Limits(wall_ms=2000, memory_bytes=32 << 20)


def _of_the_pool(reply: Reply) -> bool:
    return reply.ending is Ending.UNAVAILABLE


CRASHES: tuple[Attack, ...] = tuple(
    Attack(
        f"crash-{name}",
        "an execution that the pool answers for, a server that dies with it, a process that stays",
        f"{LIVE_ON}\nimport os, signal, sys, threading\nlive_on()\n"
        "def handle(input, ctx):\n" + "".join(f"    {line}\n" for line in body.splitlines()),
        False,
        limits=_LIMITS,
        won=_of_the_pool,
    )
    for name, body in (
        ("null", "ctypes.string_at(0)"),
        ("abort", "os.abort()"),
        ("exit-half-way", "print('x', end='')\nos._exit(0)"),
        ("recursion", "sys.setrecursionlimit(10**9)\ndef f(): return f()\nf()"),
        (
            "stack-of-c",
            "sys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\n"
            "repr(A())",
        ),
        ("deep-tuple", "x = ()\nfor _ in range(10**6): x = (x,)\nhash(x)"),
        ("faulthandler", "import faulthandler\nfaulthandler._sigsegv()"),
        (
            "stack-unmapped",
            "where = ctypes.c_void_p(id(sys) & ~4095)\n"
            "ctypes.CDLL(None).munmap(where, ctypes.c_size_t(1 << 24))",
        ),
        ("own-none", "ctypes.memset(id(None), 0, 16)"),
        (
            "bad-bytecode",
            "exec((lambda: 0).__code__.replace(co_code=b'\\xff' * 200, co_stacksize=9))",
        ),
        ("bad-marshal", "import marshal\nmarshal.loads(b'c' + b'\\xff' * 400)"),
        (
            "double-free",
            "libc = ctypes.CDLL(None)\nlibc.malloc.restype = ctypes.c_void_p\n"
            "p = ctypes.c_void_p(libc.malloc(64))\nlibc.free(p)\nlibc.free(p)\nlibc.free(p)",
        ),
        ("all-descriptors", "os.closerange(0, 300)\nprint('x')"),
        (
            "standard-output-swapped",
            "os.dup2(3, 1)\nos.dup2(3, 2)\nprint('x')\nos.write(1, b'x' * 9)",
        ),
        ("modules-gone", "sys.modules.clear()\nreturn 1"),
        ("builtins-gone", "import builtins\nvars(builtins).clear()"),
        ("stop-oneself", "signal.raise_signal(signal.SIGSTOP)\nreturn 1"),
        ("kill-oneself", "signal.raise_signal(signal.SIGKILL)\nreturn 1"),
        (
            "kill-by-timer",
            "signal.setitimer(signal.ITIMER_PROF, 0.01)\nfor _ in range(10**6): pass",
        ),
        ("exit-in-thread", "t = threading.Thread(target=os._exit, args=(0,))\nt.start()\nt.join()"),
        ("streams-gone", "sys.stdout.close()\nsys.stderr.detach()\nsys.stdout = None\nreturn 1"),
        ("raises-itself", "class E(BaseException):\n    def __str__(self): raise self\nraise E"),
        ("cause-in-a-ring", "e = ValueError()\ne.__cause__ = e\ne.__context__ = e\nraise e"),
        ("text-of-megabytes", "raise ValueError('x' * (8 << 20))"),
        ("group-of-errors", "raise BaseExceptionGroup('x', [KeyError(n) for n in range(20000)])"),
    )
)
