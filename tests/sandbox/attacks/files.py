"""Attacks on files: the host's, the package, the libraries, the private temp.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import TEMP, Attack, call, tried

__all__ = ["FILES"]

FILES: tuple[Attack, ...] = (
    # files of the host
    Attack("host-passwd", "the host's users", tried("return 'root' in open('/etc/passwd').read()")),
    Attack("host-home", "a listing of root's folder", tried("return os.listdir('/root')")),
    Attack("host-var", "a listing of /var", tried("return os.listdir('/var')")),
    Attack("host-bin", "a program of the host", tried("return os.path.exists('/usr/bin/env')")),
    Attack("host-sys", "the host's kernel objects", tried("return os.listdir('/sys')")),
    Attack(
        "proc-root",
        "the host's files through another process's root",
        tried("return any('var' in os.listdir(f'/proc/{p}/root/') for p in ('self', '1'))"),
    ),
    Attack(
        "dot-dot",
        "files above the root",
        tried("os.chdir('/')\nos.chdir('../../..')\nreturn 'var' in os.listdir('.')"),
    ),
    Attack(
        "open-by-handle",
        "a file opened by its inode, past every path",
        call("syscall(304, -100, b'\\0' * 64, os.O_RDONLY)"),
        open=False,
    ),
    Attack(
        "symlink-in-temp",
        "the host's file through a link made in temp",
        tried("os.symlink('/etc/shadow', '/tmp/x-link')\nreturn open('/tmp/x-link').read()"),
        open=False,
        policy=TEMP,
    ),
    Attack(
        "execute-from-temp",
        "a program written to temp and mapped executable",
        tried(
            "open('/tmp/x-map', 'wb').write(bytes(4096))\n"
            "f = open('/tmp/x-map', 'rb')\n"
            "m = mmap.mmap(f.fileno(), 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)\n"
            "os.unlink('/tmp/x-map')\nreturn m is not None",
            "os, mmap",
        ),
        policy=TEMP,
    ),
    Attack(
        "write-package",
        "a changed handler, for the next execution to run",
        tried("open(os.path.dirname(__file__) + '/planted.py', 'w').write('x = 1')\nreturn True"),
    ),
    Attack(
        "write-library",
        "a changed standard library",
        tried("p = os.path.dirname(os.__file__)\nreturn os.access(p, os.W_OK)"),
    ),
    Attack("write-root", "a new file in the root", tried("return os.access('/', os.W_OK)")),
    Attack(
        "remount", "a writable root", call("libc.mount(0, b'/package', 0, 0x1020, 0)"), open=False
    ),
)
