"""Attacks on the result channel from Node, and on the shim that a handler shares a process with.

A handler can find the channel's token in its own process, so it can forge its own single result;
a success is anything beyond that: a second answer, one that came too late or is too large, or an
ending that only the pool may tell. Harmless to a host: they write to descriptor 3 only.
"""

from __future__ import annotations

from collections.abc import Callable

from attacks.attack import Attack

from sandbox import Ending, Limits, Reply

__all__ = ["CHANNEL"]

# How a handler gets at the token: Node's own debugger shows the scopes of a function of the shim's.
_FORGE = """
const fs = require('fs');
const { Session } = require('inspector');
async function scope(session, objectId) {
    const { internalProperties } = await session.post('Runtime.getProperties', { objectId });
    const scopes = internalProperties.find(({ name }) => name === '[[Scopes]]').value.objectId;
    const { result } = await session.post('Runtime.getProperties',
        { objectId: scopes, ownProperties: true });
    const found = {};
    for (const { value } of result) if (value?.objectId && value.description !== 'Global') {
        const inner = await session.post('Runtime.getProperties', { objectId: value.objectId });
        for (const { name, value: { objectId } = {} } of inner.result)
            if (objectId) found[name] ??= objectId;
    }
    return found;
}
async function findToken() {
    const { Session } = require('inspector/promises');
    const session = new Session();
    session.connect();
    globalThis.known = process.stdout._write;
    const { result } = await session.post('Runtime.evaluate', { expression: 'known' });
    const { channel } = await scope(session, result.objectId);
    const log = await session.post('Runtime.callFunctionOn',
        { objectId: channel, functionDeclaration: 'function () { return this.log }' });
    const { token } = await scope(session, log.result.objectId);
    await session.post('Runtime.callFunctionOn',
        { objectId: token, functionDeclaration: 'function () { globalThis.token = this }' });
    return Buffer.from(globalThis.token);
}
let token;
const ZEROS = Buffer.alloc(8);
function framed(kind, payload, by = token) {
    const body = Buffer.isBuffer(payload) ? payload : Buffer.from(JSON.stringify(payload));
    const head = Buffer.alloc(5);
    head.writeUInt32BE(9 + body.length);
    head[4] = kind.charCodeAt(0);
    return Buffer.concat([head, by, body]);
}
function send(...frames) {
    const bytes = Buffer.concat(frames);
    for (let at = 0; at < bytes.length;) at += fs.writeSync(3, bytes, at);
}
const won = (output) => ({ outcome: 'success', output });
const forever = () => new Promise((resolve) => setTimeout(resolve, 20000));
"""
_OUTPUT = 2000
_SMALL = Limits(wall_ms=20_000, output_bytes=_OUTPUT)
_SOON = Limits(wall_ms=1000)


def _forged(
    name: str, success: str, body: str, won: Callable[[Reply], object], limits: Limits = _SMALL
) -> Attack:
    handle = f"exports.handle = async (input, ctx) => {{\ntoken = await findToken();\n{body}\n}};"
    code = _FORGE + handle
    return Attack(name, success, code, False, limits=limits, won=won)


def _shim(name: str, success: str, body: str, won: Callable[[Reply], object]) -> Attack:
    code = f"const fs = require('fs');\nexports.handle = async (input, ctx) => {{\n{body}\n}};"
    return Attack(name, success, code, False, limits=_SOON, won=won)


def _second(reply: Reply) -> bool:
    """Not the first result, which shows that the forgery worked at all."""
    return reply.result is None or reply.result.get("output") != "first"


def _any_result(reply: Reply) -> bool:
    return reply.ending is Ending.RESULT


def _pools_words(reply: Reply) -> bool:
    """UNAVAILABLE is for the pool to say: no attempt was made."""
    return reply.ending is Ending.UNAVAILABLE


def _not_a_breach(reply: Reply) -> bool:
    return reply.ending is not Ending.PROTOCOL


CHANNEL: tuple[Attack, ...] = (
    _forged(
        "result-twice",
        "the second of two results",
        "send(framed('R', won('first')), framed('R', won('second'))); await forever()",
        _second,
    ),
    _forged(
        "result-and-return",
        "what the handler returned after it had sent a result",
        "send(framed('R', won('first'))); return 'second'",
        _second,
    ),
    _forged(
        "result-and-problem",
        "a result taken back",
        "send(framed('R', won('first')), framed('X', { ending: 'memory' })); await forever()",
        _second,
    ),
    _forged(
        "result-and-unconfined",
        "a result that becomes a failure of the sandbox",
        "send(framed('R', won('first')), framed('U', { layer: 'seccomp' }, ZEROS))",
        _second,
    ),
    _forged(
        "result-and-a-log",
        "a log line that came after the result",
        "send(framed('R', won('first')), framed('L',\n"
        "    { stream: 'log', level: 'info', message: 'after', fields: {} })); await forever()",
        lambda reply: _second(reply) or any(line.message == "after" for line in reply.logs),
    ),
    _forged(
        "result-without-token",
        "a result that anything could have written",
        "send(framed('R', won('forged'), ZEROS)); await forever()",
        _any_result,
    ),
    _forged(
        "half-a-result",
        "a result that never came whole",
        "send(framed('R', won('forged')).subarray(0, 20)); await forever()",
        _any_result,
        _SOON,
    ),
    _forged(
        "half-a-result-and-return",
        "a result of two halves",
        "send(framed('R', won('forged')).subarray(0, 20)); return 'mine'",
        _any_result,
    ),
    _forged(
        "huge-frame",
        "a frame that the pool makes room for",
        "const head = Buffer.alloc(13); head.writeUInt32BE(2 ** 31); send(head); await forever()",
        lambda reply: reply.ending is not Ending.OUTPUT,
    ),
    _forged(
        "large-result",
        "a result beyond the limit",
        f"send(framed('R', won('x'.repeat({_OUTPUT})))); await forever()",
        lambda reply: reply.ending is not Ending.OUTPUT,
    ),
    _forged(
        "unconfined",
        "a failure of the sandbox that is none",
        "send(framed('U', { layer: 'seccomp', reason: 'none' }, ZEROS)); await forever()",
        _pools_words,
    ),
    _forged(
        "ready-for-ever",
        "a pool that is kept busy",
        "const many = Buffer.concat(Array(5000).fill(framed('Y', Buffer.alloc(0), ZEROS)));\n"
        "for (;;) send(many)",
        lambda reply: reply.ending not in (Ending.PROTOCOL, Ending.OUTPUT),
        _SOON,
    ),
    _forged(
        "context-for-ever",
        "a context sent again and again",
        "for (;;) send(framed('C', Buffer.alloc(0)))",
        _not_a_breach,
    ),
    _forged(
        "not-json",
        "a result that is none",
        'send(framed(\'R\', Buffer.from(\'{"outcome":"success","output":NaN}\'))); await forever()',
        _not_a_breach,
    ),
    _forged(
        "not-utf-8",
        "a text that is none",
        "send(framed('R', Buffer.from([0x22, 0xff, 0x22]))); await forever()",
        _not_a_breach,
    ),
    _forged(
        "deep-json",
        "a parser without a stack",
        "send(framed('R', Buffer.from('['.repeat(900) + ']'.repeat(900)))); await forever()",
        _not_a_breach,
    ),
    _forged(
        "late-result",
        "a result past the deadline",
        "for (const end = Date.now() + 1500; Date.now() < end;);\n"
        "send(framed('R', won('late'))); await forever()",
        _any_result,
        _SOON,
    ),
    # the shim
    _shim(
        "closed-channel",
        "an execution without an end",
        "fs.closeSync(3); return 1",
        lambda reply: reply.ending not in (Ending.CRASH, Ending.TIMEOUT),
    ),
    _shim(
        "channel-taken",
        "an execution without an end",
        "new (require('net').Socket)({ fd: 3 }).on('error', () => {}).resume(); return ctx.context",
        _pools_words,
    ),
    _shim(
        "polluted-prototype",
        "an ending that is not its own to tell",
        "for (const [name, value] of Object.entries({ then: (r) => r('x'), toJSON: () => 'x',\n"
        "    outcome: 'wait', ending: 'unavailable', reuse: true, output_bytes: 1e9 }))\n"
        "    Object.prototype[name] = value;\nreturn {}",
        _pools_words,
    ),
    _shim(
        "polluted-setters",
        "the token, by a setter that the shim runs into",
        "const seen = [];\n"
        "for (const name of ['0', 'token', 'log', 'root', 'fields', 'stream'])\n"
        "    Object.defineProperty(Object.prototype, name, { set(v) { seen.push(v) },\n"
        "        get() { seen.push(this) }, configurable: true });\n"
        "ctx.log.info('x', {}); console.log('y'); ctx.context;\n"
        "for (const name of ['0', 'token', 'log', 'root', 'fields', 'stream'])\n"
        "    delete Object.prototype[name];\n"
        "return { seen: seen.some((v) => Buffer.isBuffer(v) && v.length === 8) }",
        lambda reply: reply.result is not None and reply.result.get("output") == {"seen": True},
    ),
    _shim(
        "patched-everything",
        "an ending that is not its own to tell",
        'JSON.stringify = () => \'{"outcome":"success","output":1}{}\';\n'
        "Buffer.prototype.utf8Write = Promise.prototype.then = () => 7;\n"
        "fs.writeSync = fs.readSync = () => 0; Array.prototype.push = () => {};\n"
        "process.reallyExit = () => {}; return { a: [1] }",
        lambda reply: reply.result is None or reply.result.get("output") != {"a": [1]},
    ),
    _shim(
        "output-replaced",
        "an ending that is not its own to tell",
        "process.stdout = process.stderr = null; globalThis.console = null;\n"
        "Object.defineProperty(process, 'stdout', { get() { throw new Error('x') } }); return 1",
        lambda reply: reply.result is None or reply.result.get("output") != 1,
    ),
    _shim(
        "swallowed-errors",
        "a success in the place of an error",
        "process.on('uncaughtException', () => {});\n"
        "process.setUncaughtExceptionCaptureCallback?.(() => {});\n"
        "setTimeout(() => { throw new Error('x') });\n"
        "await new Promise((resolve) => setTimeout(resolve, 50)); return 1",
        _pools_words,
    ),
    _shim(
        "evil-getters",
        "an ending that is not its own to tell",
        "throw new Proxy(new Error('x'), { get() { throw new Error('y') } })",
        lambda reply: reply.ending is not Ending.RESULT,
    ),
)
