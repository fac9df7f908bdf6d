"""Attacks on the limits: memory in all its forms, time, output, logs, and living on afterwards.

Each defines a whole handler; `won` says of the reply whether more was had than allowed. They stay
within the sandbox's own limits, so nothing of them is run without layers.
"""

from __future__ import annotations

from attacks.attack import SURVIVOR, Attack

from node_attacks.words import tried, unshimmed
from sandbox import Ending, Limits, Reply
from sandbox.model import MIB

__all__ = ["LIMITS"]

_SMALL = Limits(wall_ms=20_000, memory_bytes=64 * MIB)
_THREAD = unshimmed(
    "require('v8').setFlagsFromString('--max-old-space-size=4000');\n"
    "const { Worker } = require('worker_threads');\n"
    "const code = `const a = []; while (a.length < 4e5) a.push(Array(99).fill(a.length))`;\n"
    "const worker = new Worker(code, { eval: true,\n"
    "    resourceLimits: { maxOldGenerationSizeMb: 4000 } });\n"
    "return await new Promise(r => worker.on('error', () => r(0)).on('exit', c => r(c === 0)))"
)
_SHORT = Limits(wall_ms=300)
_LOGS = Limits(wall_ms=1000, log_bytes=10_000)
_PEAK_MAX = (64 + 192) * MIB  # the limit; what Node has besides, some of it of files


def _handler(body: str) -> str:
    return f"const fs = require('fs');\nexports.handle = async (input, ctx) => {{\n{body}\n}};\n"


def _had_more_memory(reply: Reply) -> bool:
    return reply.ending is not Ending.MEMORY or reply.usage.peak_memory_bytes > _PEAK_MAX


def _had_more_time(reply: Reply) -> bool:
    return reply.ending is not Ending.TIMEOUT or reply.usage.wall_ms > 5000


def _had_longer_logs(reply: Reply) -> bool:
    return sum(len(line.message) for line in reply.logs) > 2 * _LOGS.log_bytes


def _memory(name: str, success: str, body: str) -> Attack:
    return Attack(name, success, _handler(body), False, limits=_SMALL, won=_had_more_memory)


def _time(name: str, success: str, body: str) -> Attack:
    return Attack(name, success, _handler(body), False, limits=_SHORT, won=_had_more_time)


def _logs(name: str, success: str, body: str) -> Attack:
    return Attack(name, success, _handler(body), False, limits=_LOGS, won=_had_longer_logs)


def _lives_on(name: str, success: str, body: str) -> Attack:
    title = f"process.title = '{SURVIVOR}';\n"
    return Attack(name, success, _handler(title + body), False, won=lambda reply: not reply.result)


LIMITS: tuple[Attack, ...] = (
    # memory
    _memory(
        "heap-bomb", "a heap beyond the limit", "for (const a = [];;) a.push(Array(99).fill(0))"
    ),
    _memory(
        "buffer-bomb",
        "memory outside the heap beyond the limit",
        "for (const a = [];;) a.push(Buffer.alloc(1 << 22, 1))",
    ),
    _memory(
        "string-bomb",
        "strings beyond the limit",
        "for (const a = [];;) a.push(Buffer.alloc(1 << 20, 97 + a.length % 9).toString('latin1'))",
    ),
    _memory(
        "wasm-bomb",
        "WebAssembly's memory beyond the limit",
        "const memory = new WebAssembly.Memory({ initial: 1, maximum: 65536 });\n"
        "try { for (;;) new Uint8Array(memory.buffer).fill(1, memory.grow(16) << 16) }\n"
        "catch { for (const a = [];;) a.push(Array(99).fill(0)) }",
    ),
    _memory(
        "slow-bomb",
        "a leak that no single allocation shows",
        "for (const a = [];;) { a.push(Buffer.alloc(1e6, 1)); await new Promise(setImmediate) }",
    ),
    _memory("reservation", "a terabyte at once", "return new ArrayBuffer(2 ** 40).byteLength"),
    _memory(
        "heap-flag",
        "a larger heap by a flag of V8",
        "try { require('v8').setFlagsFromString('--max-old-space-size=4000') } catch {}\n"
        "for (const a = [];;) a.push(Array(99).fill(0))",
    ),
    Attack(
        "heap-of-a-thread",
        "300 MB of heap in a thread that asks for a larger one",
        _THREAD[0],
        open=False,
        limits=_SMALL,
        files=_THREAD[1],
    ),
    # time
    _time("endless-loop", "time past the deadline", "for (;;);"),
    _time("endless-microtasks", "time past the deadline", "for (;;) await null"),
    _time(
        "endless-ticks",
        "time past the deadline",
        "(function again() { process.nextTick(again) })(); return new Promise(() => {})",
    ),
    _time(
        "endless-immediates",
        "time past the deadline",
        "(function again() { setImmediate(again) })(); return new Promise(() => {})",
    ),
    _time(
        "endless-pattern",
        "time past the deadline",
        "return /^(a+)+$/.test('a'.repeat(40) + 'b')",
    ),
    _time(
        "wait-for-ever",
        "time past the deadline",
        "Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)",
    ),
    _time(
        "deaf-to-signals",
        "time past the deadline",
        "for (const name of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGXCPU', 'SIGALRM', 'SIGQUIT'])\n"
        "    process.on(name, () => {});\n"
        "return new Promise(r => setTimeout(r, 20000))",
    ),
    _time(
        "hooks-that-never-end",
        "time past the deadline",
        "process.prependListener('beforeExit', () => { for (;;); }); return new Promise(() => {})",
    ),
    # living on
    _lives_on(
        "exit-hook",
        "code that runs after the result",
        "process.on('exit', () => { for (;;); }); return 1",
    ),
    _lives_on(
        "timer-left",
        "a timer that fires after the result",
        "setTimeout(() => { for (;;); }, 1); return 1",
    ),
    _lives_on(
        "timer-unref",
        "a timer that nobody waits for",
        "setTimeout(() => { for (;;); }, 1).unref(); return 1",
    ),
    _lives_on(
        "reading-left",
        "a read that never ends, in libuv's threads",
        "fs.read(1, Buffer.alloc(1), () => {}); fs.readFile('/dev/zero', () => {}); return 1",
    ),
    # output
    Attack(
        "huge-result",
        "a result beyond the limit",
        _handler("return 'x'.repeat(1 << 23)"),
        False,
        won=lambda reply: reply.ending is not Ending.OUTPUT,
    ),
    Attack(
        "deep-result",
        "a result that no parser can read",
        _handler("let a = []; for (let n = 0; n < 1e5; n++) a = [a]; return a"),
        False,
        won=lambda reply: reply.ending is not Ending.PROTOCOL,
    ),
    Attack(
        "many-events",
        "events beyond the limit",
        _handler("for (let n = 0; n < 3e5; n++) ctx.emit('event', n)"),
        False,
        won=lambda reply: (
            reply.result is None
            or reply.result["outcome"] != "failure"
            or len(reply.result["emitted"]) > 1000
        ),
    ),
    _logs("log-flood", "more log than allowed", "for (;;) console.log('x'.repeat(100))"),
    _logs(
        "log-of-ctx", "more log than allowed", "for (;;) ctx.log.info('x', { y: 'x'.repeat(100) })"
    ),
    _logs("raw-flood", "more log than allowed", "for (;;) fs.writeSync(1, 'x'.repeat(1 << 16))"),
    _logs(
        "log-of-one-line",
        "more log than allowed",
        "for (;;) process.stdout.write('x'.repeat(1 << 16))",
    ),
    Attack(
        "log-after-result",
        "a line after the result",
        tried("process.stdout.write('x'); setTimeout(() => console.log('after'), 1)"),
        False,
    ),
)
