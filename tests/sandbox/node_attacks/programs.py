"""Attacks with programs, threads, signals, identities, native code and Node's own tools.

Each says what a success would look like; harmless to a host that lets it succeed: programs do
nothing, signals are number 0, identities and priorities are what they are already.
"""

from __future__ import annotations

from attacks.attack import Attack

from node_attacks.words import tried, unshimmed
from sandbox import Limits

__all__ = ["PROGRAMS"]

_LIMITS = Limits(wall_ms=20_000)
_FEW_THREADS = Limits(wall_ms=20_000, threads=4)


_ADDON = {"addon.node": b"\x7fELF\x02\x01\x01" + bytes(57)}


def _hidden(
    name: str, success: str, body: str, open: bool = True, limits: Limits = _LIMITS
) -> Attack:
    code, files = unshimmed(body)
    return Attack(name, success, code, open, limits=limits, files={**files, **_ADDON})


PROGRAMS: tuple[Attack, ...] = (
    # programs
    _hidden(
        "spawn-itself",
        "a second Node",
        "const { spawnSync } = require('child_process');\n"
        "return spawnSync('/proc/self/exe', ['-e', '0']).status === 0",
    ),
    _hidden(
        "spawn-shell",
        "a shell",
        "return require('child_process').execSync('echo yes').length",
        open=False,  # whether there is one depends on PATH
    ),
    _hidden(
        "spawn-async",
        "a process that runs beside",
        "const child = require('child_process').spawn('/proc/self/exe', ['-e', '0']);\n"
        "return await new Promise(r => child.on('error', () => r(0)).on('exit', c => r(c === 0)))",
    ),
    _hidden(
        "spawn-detached",
        "a daemon",
        "const child = require('child_process').spawn('/proc/self/exe', ['-e', '0'],\n"
        "    { detached: true, stdio: 'ignore' });\n"
        "return await new Promise(r => child.on('error', () => r(0)).on('spawn', () => r(1)))",
    ),
    _hidden(
        "spawn-by-descriptor",
        "whatever a descriptor that is still open can be executed",
        "const { spawnSync } = require('child_process');\n"
        "for (let fd = 0; fd < 1100; fd++)\n"
        "    if (spawnSync(`/proc/self/fd/${fd}`, ['-e', '0'], { timeout: 100 }).status === 0)\n"
        "        return true",
        open=False,
    ),
    _hidden(
        "fork",
        "a second Node with a channel to the first",
        "const child = require('child_process').fork('/nonexistent.js', { stdio: 'ignore' });\n"
        "return await new Promise(r => child.on('error', () => r(0)).on('exit', () => r(1)))",
        open=False,
    ),
    _hidden(
        "cluster",
        "a worker of a cluster",
        "const worker = require('cluster').fork();\n"
        "return await new Promise(r => worker.on('error', () => r(0)).on('online', () => r(1)))",
        open=False,
    ),
    _hidden(
        "binding-spawn",
        "a program by the binding below child_process",
        "const { spawn } = process.binding('spawn_sync');\n"
        "return spawn({ file: '/proc/self/exe', args: ['node', '-e', '0'] }).status === 0",
        open=False,
    ),
    Attack(
        "descriptor-1000",
        "a descriptor with the number of the one that Node was executed by",
        tried("for (let n = 0; n < 1100; n++) if (fs.openSync('/dev/null') >= 1000) return true"),
        open=False,  # depends on the limit of who runs this
    ),
    Attack(
        "descriptor-flood",
        "more descriptors than allowed",
        tried("for (let n = 0; n < 300; n++) fs.openSync('/dev/null'); return true"),
    ),
    # threads
    _hidden(
        "thread-flood",
        "fifty threads where four are allowed",
        "const { Worker } = require('worker_threads'); let online = 0;\n"
        "const workers = [];\n"
        "try { for (let n = 0; n < 50; n++) {\n"
        "    const worker = new Worker('setInterval(() => {}, 1000)', { eval: true });\n"
        "    workers.push(worker);\n"
        "    await new Promise((r, j) => worker.on('online', r).on('error', j));\n"
        "    online++;\n"
        "} } catch {}\n"
        "for (const worker of workers) worker.terminate();\n"
        "return online === 50",
        open=False,
        limits=_FEW_THREADS,
    ),
    # signals
    Attack(
        "signal-binding",
        "a signal to another process",
        tried(
            "const kill = Object.getOwnPropertyNames(process).filter(name => /kill/i.test(name));\n"
            "for (const name of kill) for (const pid of [-1, 1, 2, 3, process.ppid])\n"
            "    try { if (process[name](pid, 0) === 0 && pid !== 1) return true } catch {}"
        ),
        open=False,
    ),
    _hidden(
        "signal-all",
        "a signal to everybody",
        "return process.kill(-1, 0)",
    ),
    _hidden(
        "signal-others",
        "a signal to some other process",
        "for (let pid = 2; pid < 400; pid++)\n"
        "    try { if (pid !== process.pid && process.kill(pid, 0)) return true } catch {}",
    ),
    _hidden(
        "debug-server",
        "the debugger of another Node started",
        "process._debugProcess(1); return true",
        open=False,
    ),
    _hidden(
        "inspector-by-signal",
        "an open port of the debugger",
        "process.kill(process.pid, 'SIGUSR1');\n"
        "const { setTimeout } = require('timers/promises');\n"
        "const net = require('net');\n"
        "for (let n = 0; n < 20; n++) { await setTimeout(50);\n"
        "    const open = await new Promise(r => net.connect(9229, '127.0.0.1', () => r(1))\n"
        "        .on('error', () => r(0)));\n"
        "    if (open) return true }",
        open=False,
    ),
    Attack(
        "inspector",
        "an open port of the debugger",
        tried("const it = require('inspector'); it.open(0, '127.0.0.1'); return it.url()"),
        open=False,
    ),
    # identities
    Attack(
        "become-root",
        "the user root",
        tried("process.setuid(0); return process.getuid() === 0"),
    ),
    Attack(
        "become-group",
        "the group root",
        tried("process.setgid(0); process.setgroups([0]); return process.getgid() === 0"),
    ),
    Attack(
        "priority",
        "more of the machine's time than others",
        tried("os.setPriority(-1); return os.getPriority() < 0"),
    ),
    Attack(
        "capabilities",
        "a privilege in its own status",
        tried(
            "const status = fs.readFileSync('/proc/self/status', 'utf8');\n"
            "return /^Cap(Prm|Eff|Bnd):\\s*0*[1-9a-f]/m.test(status)"
        ),
    ),
    # native code
    _hidden(
        "dlopen",
        "a library of the host loaded as an addon",
        "try { process.dlopen({ exports: {} }, 'libc.so.6') }\n"
        "catch (error) { return /self-register/.test(error.message) }",
        open=False,
    ),
    Attack(
        "native-addon",
        "native code of the package",
        tried("return require('./addon.node')"),
        open=False,
        files=_ADDON,
    ),
    _hidden(
        "native-addon-without-shim",
        "native code of the package",
        "require('./addon.node'); return true",
        open=False,
    ),
    # Node's own doors
    Attack(
        "internals",
        "a module of Node's inside",
        tried(
            "process.env.NODE_OPTIONS = '--expose-internals';\n"
            "process.execArgv.push('--expose-internals');\n"
            "return ['internal/test/binding', 'internal/bootstrap/realm'].some(name => {\n"
            "    try { return require(name) } catch {} })"
        ),
        open=False,
    ),
    Attack(
        "module-load",
        "a file of the host by Node's own loader",
        tried("return require('module')._load('/etc/hostname.js') || true"),
        open=False,
    ),
    Attack(
        "node-path",
        "a module that NODE_PATH names",
        tried(
            "process.env.NODE_PATH = '/usr/lib/node_modules:/usr/share/nodejs';\n"
            "const Module = require('module'); Module._initPaths();\n"
            "return require('npm')"
        ),
        open=False,
    ),
    Attack(
        "import-outside",
        "a file of the host imported",
        tried("return await import('file:///etc/os-release')"),
        open=False,
    ),
    Attack(
        "import-by-http",
        "code from the network",
        tried("return await import('https://127.0.0.1/x.mjs')"),
        open=False,
    ),
)
