"""Attacks on files from Node: the host's, the package, the shim, the private temp, /proc.

Each says what a success would look like; harmless to a host that lets it succeed.
"""

from __future__ import annotations

from attacks.attack import TEMP, Attack

from node_attacks.words import tried
from sandbox import Limits

__all__ = ["FILES"]

_SMALL_TEMP = Limits(wall_ms=20_000, temp_bytes=1 << 20)

FILES: tuple[Attack, ...] = (
    Attack(
        "host-passwd",
        "the host's users",
        tried("return fs.readFileSync('/etc/passwd', 'utf8').includes('root')"),
    ),
    Attack("host-home", "a listing of root's folder", tried("return fs.readdirSync('/root')")),
    Attack("host-var", "a listing of /var", tried("return fs.readdirSync('/var')")),
    Attack("host-bin", "a program of the host", tried("return fs.existsSync('/usr/bin/env')")),
    Attack("host-sys", "the host's kernel", tried("return fs.readdirSync('/sys/kernel')")),
    Attack(
        "host-npm",
        "Node's own packages on the host",
        tried("return fs.existsSync('/usr/lib/node_modules') || fs.existsSync('/usr/share/doc')"),
    ),
    Attack(
        "proc-root",
        "the host's files through a process's root",
        tried("return ['self', '1'].some(p => fs.readdirSync(`/proc/${p}/root/`).includes('var'))"),
    ),
    Attack(
        "dot-dot",
        "files above the root",
        tried("process.chdir('../../../../..'); return fs.readdirSync('.').includes('var')"),
    ),
    Attack(
        "other-processes",
        "processes besides itself",
        tried("return fs.readdirSync('/proc').filter(name => /^\\d+$/.test(name)).length > 1"),
    ),
    Attack(
        "machine",
        "what /proc says of the machine",
        tried(
            "return fs.readFileSync('/proc/version').length + fs.readFileSync('/proc/stat').length"
        ),
    ),
    Attack(
        "environment",
        "a variable of whoever started the pool",
        tried(
            "const text = JSON.stringify(process.env) + fs.readFileSync('/proc/self/environ');\n"
            "return text.includes('SECRET')"
        ),
        open=False,
    ),
    Attack(
        "memory-of-the-server",
        "a secret in the memory that it was born with",
        tried(
            "const file = fs.openSync('/proc/self/mem');\n"
            "const needle = 'MEMORY_SECRET';  // it is here too, but nothing like TEST_ before it\n"
            "for (const line of fs.readFileSync('/proc/self/maps', 'utf8').split('\\n')) {\n"
            "    const found = /^(\\w+)-(\\w+) rw/.exec(line);\n"
            "    if (!found) continue;\n"
            "    const [from, to] = found.slice(1).map(text => BigInt('0x' + text));\n"
            "    const bytes = Buffer.alloc(Math.min(Number(to - from), 1 << 24));\n"
            "    try { fs.readSync(file, bytes, 0, bytes.length, from) } catch { continue }\n"
            "    for (let at = 0; (at = bytes.indexOf(needle, at + 1)) > 0;)\n"
            "        if (bytes[at - 1] === 95 && bytes[at - 2] === 84) return true;\n"
            "}"
        ),
        open=False,
    ),
    Attack(
        "descriptors",
        "a file or folder that somebody left open",
        tried(
            "return fs.readdirSync('/proc/self/fd').some(fd => {\n"
            "    let link = ''; try { link = fs.readlinkSync(`/proc/self/fd/${fd}`) } catch {}\n"
            "    return link.startsWith('/') && !/^.(dev.null|proc.*fd)$/.test(link);\n"
            "})"
        ),
        open=False,
    ),
    Attack(
        "write-package",
        "a changed handler, for the next execution to run",
        tried("fs.writeFileSync(__dirname + '/planted.js', ''); return true"),
    ),
    Attack(
        "write-shim",
        "a changed runner, for the next handler to meet",
        tried(
            "Error.stackTraceLimit = 50;\n"
            "const shim = /\\(?(\\/[^(]*)\\/runner.cjs/.exec(new Error().stack)[1];\n"
            "fs.accessSync(shim + '/runner.cjs', fs.constants.W_OK); return true"
        ),
    ),
    Attack(
        "write-node",
        "a changed Node",
        tried("fs.accessSync(fs.readlinkSync('/proc/self/exe'), fs.constants.W_OK);\nreturn true"),
    ),
    Attack(
        "write-root",
        "a new file in the root",
        tried("fs.accessSync('/', fs.constants.W_OK); return true"),
    ),
    Attack(
        "write-without-temp",
        "a file although there is no temp",
        tried(
            "const file = os.tmpdir() + `/x-${process.pid}`;\n"
            "fs.writeFileSync(file, 'x'); fs.unlinkSync(file); return true"
        ),
    ),
    Attack(
        "report-to-disk",
        "a file that Node's diagnostic report writes beside the package",
        tried(
            "const cwd = process.cwd(); process.chdir(__dirname);\n"
            "const name = process.report.writeReport('x-report.json'); process.chdir(cwd);\n"
            "return fs.existsSync(__dirname + '/x-report.json')"
        ),
    ),
    Attack(
        "report-of-the-host",
        "the host's name in the diagnostic report",
        tried("return !['sandbox'].includes(process.report.getReport().header.host)"),
    ),
    Attack(
        "heap-snapshot-to-disk",
        "a heap snapshot beside the package",
        tried("return require('v8').writeHeapSnapshot(__dirname + '/x.heapsnapshot')"),
    ),
    Attack(
        "host-name",
        "the host's own name",
        tried("return os.hostname() !== 'sandbox'"),
    ),
    Attack(
        "devices",
        "the kernel's log or a disk",
        tried(
            "fs.openSync('/dev/kmsg', fs.constants.O_RDONLY | fs.constants.O_NONBLOCK); return true"
        ),
    ),
    Attack(
        "symlink-in-temp",
        "the host's file through a link made in temp",
        tried("fs.symlinkSync('/etc/shadow', '/tmp/x'); return fs.readFileSync('/tmp/x').length"),
        open=False,
        policy=TEMP,
    ),
    Attack(
        "hard-link-in-temp",
        "a file of the package kept in temp",
        tried("fs.linkSync(__filename, '/tmp/x-hard'); return true"),
        open=False,
        policy=TEMP,
    ),
    Attack(
        "temp-race",
        "the host's file while a name in temp changes between a file and a link",
        tried(
            "let done = false;\n"
            "const { symlink, rename, readFile } = fs.promises;\n"
            "const flip = async () => { while (!done) for (const to of ['shadow', 'hosts']) {\n"
            "    await symlink(`/etc/${to}`, '/tmp/new'); await rename('/tmp/new', '/tmp/x');\n"
            "} };\n"
            "const flips = flip();\n"
            "for (let n = 0; n < 300; n++) {\n"
            "    const text = await readFile('/tmp/x', 'utf8').catch(() => '');\n"
            "    if (text.includes('root:')) return true;\n"
            "}\n"
            "done = true; await flips"
        ),
        open=False,
        policy=TEMP,
    ),
    Attack(
        "temp-flood",
        "more bytes in temp than allowed",
        tried(
            "let size = 0; const part = Buffer.alloc(1 << 18, 1);\n"
            "for (let n = 0; n < 64; n++) try {\n"
            "    for (;;) { fs.appendFileSync(`/tmp/x${n}`, part); size += part.length;\n"
            "        if (size > 1 << 21) return true }\n"
            "} catch {}"
        ),
        open=False,
        policy=TEMP,
        limits=_SMALL_TEMP,
    ),
    Attack(
        "temp-inodes",
        "a hundred thousand files",
        tried("for (let n = 0; n < 1e5; n++) fs.writeFileSync(`/tmp/x${n}`, '');\nreturn true"),
        open=False,
        policy=TEMP,
        limits=_SMALL_TEMP,
    ),
    Attack(
        "temp-of-another",
        "a file that an earlier execution left in temp",
        tried(
            "const before = fs.readdirSync('/tmp').length;\n"
            "fs.writeFileSync('/tmp/left-behind', 'x'); return before"
        ),
        open=False,
        policy=TEMP,
    ),
)
