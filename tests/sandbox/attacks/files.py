"""Attacks on files: the host's, the package, the libraries, the private temp.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import TEMP, Attack, call, tried
from sandbox import Limits

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
    # what the kernel shows and lets write
    Attack(
        "core-pattern",
        "the program that the host runs when something crashes",
        tried("return os.access('/proc/sys/kernel/core_pattern', os.W_OK)"),
    ),
    Attack(
        "host-proc",
        "the host's memory, messages, symbols or emergency key",
        tried(
            "names = ('kcore', 'kmsg', 'kallsyms', 'sysrq-trigger', 'keys', 'cpuinfo', 'cmdline')\n"
            "return [n for n in names if os.path.exists('/proc/' + n)]"
        ),
    ),
    Attack(
        "host-mounts",
        "a place of the host that the table of mounts names, and that can be opened",
        tried(
            "for line in open('/proc/self/mountinfo').read().splitlines():\n"
            "    root, point = line.split()[3:5]\n"
            "    source = line.split(' - ')[1].split()[1]\n"
            "    if source.startswith('/') and os.path.exists(source): return source\n"
            "    if point == '/package' and os.path.exists(root): return root\n"
        ),
    ),
    Attack(
        "host-devices",
        "a device that gives away or keeps something",
        tried(
            "names = ('mem', 'kmsg', 'tty', 'ptmx', 'shm', 'fuse', 'kvm', 'vsock', 'net/tun')\n"
            "return [n for n in names if os.path.exists('/dev/' + n)]"
        ),
    ),
    Attack(
        "writable-folder",
        "any folder that can be written without asking for a temp",
        tried(
            "found = []\n"
            "for top, folders, _ in os.walk('/'):\n"
            "    folders[:] = [f for f in folders if top + f not in ('/proc', '/sys')]\n"
            "    if os.access(top, os.W_OK):\n"
            "        return top\n"
        ),
    ),
    Attack(
        "writable-file",
        "any file beside the devices, and /proc of its own, that opens for writing",
        tried(
            "for top, folders, names in os.walk('/'):\n"
            "    folders[:] = [f for f in folders if top + f not in ('/proc', '/sys', '/dev')]\n"
            "    for name in names:\n"
            "        try:\n"
            "            os.close(os.open(f'{top}/{name}', os.O_WRONLY | os.O_NONBLOCK))\n"
            "            return f'{top}/{name}'\n"
            "        except OSError:\n"
            "            pass\n"
        ),
        open=False,
    ),
    Attack(
        "library-through-memory",
        "a page of a library that all share, changed through a mapping",
        tried(
            "f = open(os.__file__, 'r+b')\n"
            "m = mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)\n"
            "m[0] = m[0]\nreturn True",
            "os, mmap",
        ),
        open=False,
    ),
    Attack(
        "channel-through-proc",
        "the channel opened a second time",
        tried("return os.open('/proc/self/fd/3', os.O_RDWR) >= 0"),
        open=False,
    ),
    Attack(
        "own-memory-through-proc",
        "the right to change what cannot be written, a library's code, through /proc",
        tried(
            "fd = os.open('/proc/self/mem', os.O_RDWR)\n"
            "where = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p).value\n"
            "os.pwrite(fd, os.pread(fd, 1, where), where)\nreturn True",
            "ctypes, os",
        ),
    ),
    # temp
    Attack(
        "temp-of-others",
        "something in a temp that should be empty",
        tried("return os.listdir('/tmp')"),
        policy=TEMP,
    ),
    Attack(
        "temp-device",
        "a device node in temp",
        tried(
            "os.mknod('/tmp/x-null', 0o20666, os.makedev(1, 3))\nos.unlink('/tmp/x-null')\n"
            "return True"
        ),
        policy=TEMP,
    ),
    Attack(
        "temp-sparse",
        "a file that claims more than the temp has",
        tried("f = open('/tmp/x-sparse', 'wb')\nf.truncate(1 << 40)\nreturn True"),
        policy=TEMP,
        open=False,
    ),
    Attack(
        "temp-fill",
        "more bytes than the limit",
        tried(
            "total = 0\n"
            "try:\n"
            "    for number in range(64):\n"
            "        with open(f'/tmp/x-fill-{number}', 'wb', 0) as f:\n"
            "            total += f.write(bytes(100_000))\n"
            "except OSError:\n"
            "    pass\n"
            "for number in range(64):\n"
            "    if os.path.exists(f'/tmp/x-fill-{number}'): os.unlink(f'/tmp/x-fill-{number}')\n"
            "return total > 1_000_000"
        ),
        policy=TEMP,
        limits=Limits(temp_bytes=1_000_000, wall_ms=20_000),
    ),
    Attack(
        "temp-inodes",
        "more files than pages of the limit",
        tried(
            "made = 0\n"
            "os.mkdir('/tmp/x-inodes')\n"
            "try:\n"
            "    for made in range(1000):\n"
            "        os.symlink('x', f'/tmp/x-inodes/{made}')\n"
            "except OSError:\n"
            "    pass\n"
            "shutil.rmtree('/tmp/x-inodes')\n"
            "return made >= 512",
            "os, shutil",
        ),
        policy=TEMP,
        limits=Limits(temp_bytes=1_000_000, wall_ms=20_000),
    ),
    Attack(
        "temp-link-to-package",
        "a package's file with a second name that can be written",
        tried("os.link(__file__, '/tmp/x-hard')\nreturn True"),
        policy=TEMP,
        open=False,
    ),
    Attack(
        "temp-swapped",
        "another folder where the temp was",
        tried("os.rename('/tmp', '/tmp2')\nreturn True"),
        policy=TEMP,
        open=False,
    ),
    Attack(
        "temp-race",
        "the host's file, by a link that is swapped while it is opened",
        tried(
            "open('/tmp/x-a', 'w').write('a')\n"
            "os.symlink('/proc/1/root/etc/shadow', '/tmp/x-b')\n"
            "def swap():\n"
            "    for _ in range(200):\n"
            "        os.rename('/tmp/x-a', '/tmp/x-c')\n"
            "        os.rename('/tmp/x-b', '/tmp/x-a')\n"
            "        os.rename('/tmp/x-c', '/tmp/x-b')\n"
            "thread = threading.Thread(target=swap)\nthread.start()\n"
            "seen = set()\n"
            "while thread.is_alive():\n"
            "    try:\n        seen.add(open('/tmp/x-a').read())\n"
            "    except OSError:\n        pass\n"
            "thread.join()\nreturn seen - {'a'}",
            "os, threading",
        ),
        policy=TEMP,
        open=False,
    ),
)
