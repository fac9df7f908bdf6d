"""Attacks by what a package carries or finds: shadowed modules, start-up hooks, code that is data.

A handler may do what it likes inside its own process; a success is code of its that ran outside of
the confinement, or something of the daemon that it could reach. Harmless to a host.
"""

from __future__ import annotations

from attacks.attack import SYSCALL, TEMP, Attack, call, tried
from sandbox import Ending, Reply

__all__ = ["FATAL_CODE", "IMPORTS"]

# What a shadowing module does when somebody imports it: it remembers what it saw of the host.
_PLANT = """
import builtins, posix
seen = "var" in posix.listdir("/")
builtins.planted = getattr(builtins, "planted", []) + [(__name__, seen)]
"""
_SHADOWS = (
    "json os sys io abc codecs encodings site posixpath struct socket threading traceback mmap "
    "importlib marshal select typing types random gc resource signal ctypes asyncio "
    "sitecustomize usercustomize sandbox flowmonkeyd wire runner warm"
).split()
_PLANTED: dict[str, str | bytes] = {f"{name}.py": _PLANT for name in _SHADOWS}
_PLANTED["sandbox/__init__.py"] = _PLANT
_PLANTED["sandbox/runner.py"] = _PLANT
_PLANTED["hook.pth"] = "import handler\n"
_PLANTED["pyvenv.cfg"] = "home = /package\n"
_PLANTED["__pycache__/json.cpython-311.pyc"] = b"\xa7\r\r\n" + bytes(12) + b"\xff" * 50
_OUTSIDE = tried(
    "import asyncio, ctypes, json, socket\n"
    "return [name for name, outside in getattr(builtins, 'planted', []) if outside]",
    "builtins",
)
_UNCHECKED = b"\xa7\r\r\n\1\0\0\0" + bytes(8)


def _of_the_pool(reply: Reply) -> bool:
    return reply.ending in (Ending.UNAVAILABLE, Ending.TIMEOUT)


# In the machine's own words (x86-64): memory that can be executed is what a compiler needs.
_MACHINE = f"""{SYSCALL}
import mmap
def machine(code):
    memory = mmap.mmap(-1, 4096, prot=7)
    memory.write(code)
    where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return ctypes.CFUNCTYPE(ctypes.c_long)(where)()
"""

IMPORTS: tuple[Attack, ...] = (
    Attack(
        "shadowed-modules",
        "a module of the package that the fork server or the pool imported",
        _OUTSIDE,
        open=False,
        files=_PLANTED,
    ),
    Attack(
        "shadowed-event-loop",
        "an execution that the pool has to answer for, by the shim's own late import",
        "async def handle(input, ctx): return 1\n",
        open=False,
        files={"asyncio.py": "import os\nos.closerange(0, 100)\nraise SystemExit\n"},
        won=_of_the_pool,
    ),
    Attack(
        "compiled-garbage",
        "an execution that the pool has to answer for, by code that is none",
        "def handle(input, ctx): return 1\n",
        open=False,
        files={"__pycache__/handler.cpython-311.pyc": _UNCHECKED + b"\xe3" + b"\xff" * 400},
        won=_of_the_pool,
    ),
    Attack(
        "compiled-bomb",
        "memory of the pool, by a code object that claims to be large",
        "def handle(input, ctx): return 1\n",
        open=False,
        files={"__pycache__/handler.cpython-311.pyc": _UNCHECKED + b"s\xff\xff\xff\x7f"},
        won=_of_the_pool,
    ),
    Attack(
        "import-the-daemon",
        "a module of the daemon, or a package installed on the host",
        tried(
            "found = []\n"
            "for name in ('flowmonkeyd', 'flowctl', 'sandbox.pool', 'sandbox.forkserver', "
            "'pyseccomp', 'yaml', 'pip', 'psutil', 'apt', 'setuptools'):\n"
            "    try: found.append(importlib.import_module(name))\n"
            "    except ImportError: pass\n"
            "return found",
            "importlib",
        ),
        open=False,
    ),
    Attack(
        "import-from-the-host",
        "a package of the host, by a path put into sys.path",
        tried(
            "for path in ('/usr/lib/python3/dist-packages', '/usr/local/lib/python3.11/"
            "dist-packages', '/usr/lib/python3.11/site-packages', '/root', '/opt'):\n"
            "    if os.path.isdir(path) and os.listdir(path): return path\n",
            "os",
        ),
    ),
    Attack(
        "import-from-a-zip",
        "an archive of the host on sys.path that can be read",
        tried(
            "return [p for p in sys.path if p.endswith('.zip') and os.path.exists(p)]", "os, sys"
        ),
        open=False,
    ),
    Attack(
        "import-broken-extension",
        "an extension module that is none, loaded all the same",
        tried("import broken\nreturn True", "os"),
        open=False,
        files={"broken.abi3.so": b"\x7fELF" + b"\xff" * 500},
    ),
    Attack(
        "the-sandboxs-own-tools",
        "a mount, with the fork server's functions, which are in memory",
        tried(
            "frame = sys._getframe()\n"
            "while frame:\n"
            "    linux = frame.f_globals.get('linux')\n"
            "    if linux is not None and hasattr(linux, 'mount'):\n"
            "        linux.mount('x', '/package', 'tmpfs', 0, '')\n"
            "        return True\n"
            "    frame = frame.f_back",
            "sys",
        ),
        open=False,
    ),
    Attack(
        "the-servers-own-spawn",
        "another child, made by the fork server's method from within a child",
        tried(
            "frame = sys._getframe()\n"
            "while frame:\n"
            "    server = frame.f_locals.get('self')\n"
            "    if hasattr(server, '_spawn'):\n"
            "        server._spawn(memoryview(struct.pack('=cIBH', b'S', 999, 0, 0)))\n"
            "        return True\n"
            "    frame = frame.f_back",
            "sys, struct",
        ),
        open=False,
    ),
    Attack(
        "pickle-that-runs",
        "a program, started by a pickle",
        tried("return pickle.loads(b\"cos\\nsystem\\n(S'true'\\ntR.\") == 0", "pickle"),
    ),
    Attack(
        "fork-in-machine-code",
        "a second process, made without any library",
        _MACHINE
        + """
def attack():
    pid = machine(b"\\xb8\\x39\\0\\0\\0\\x0f\\x05\\xc3")  # mov eax, 57; syscall; ret
    if pid == 0:
        os._exit(0)
    return pid > 0 and os.waitpid(pid, 0)[0] == pid
""",
    ),
    Attack(
        "execute-what-was-written",
        "code in a file of temp, executed",
        tried(
            "open('/tmp/x.so', 'wb').write(open('/proc/self/exe', 'rb').read(64))\n"
            "ctypes.CDLL('/tmp/x.so')\nreturn True",
            "ctypes",
        ),
        open=False,
        policy=TEMP,
    ),
    Attack(
        "loader-as-program",
        "a program, started by the loader",
        call("libc.execl(b'/lib64/ld-linux-x86-64.so.2', b'ld', b'/usr/bin/true', None)"),
        open=False,
    ),
)

# 32-bit calls are judged by no table: they must kill.
FATAL_CODE: tuple[Attack, ...] = (
    Attack(
        "int-80",
        "a result of the 32-bit getpid",
        _MACHINE
        + "def attack():\n    return machine(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3') >= 0\n",
        open=False,
    ),
)
