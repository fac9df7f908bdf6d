"""The channel of a Node child, one process for several executions, and what the pool asks."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

import pytest
from attacks import write_package
from bare_node import BareNode, request

from sandbox import nodejs, wire


def test_a_reused_process_starts_clean(run, node):
    code = """() => {}; let uses = 0; exports.handle = (input, ctx) => {
        ctx.emit('e', ++uses); ctx.update('u' + uses, 1); process.stdout.write('line ' + uses);
        setTimeout(() => { throw new Error('left over') }, 0);
        return new Promise((resolve) => setTimeout(resolve, 5, uses)) }"""
    code = code.replace("setTimeout(() => { throw", "const t = setTimeout(() => { throw").replace(
        "}, 0);", "}, 20);"
    )
    for use in (1, 2, 3):
        answer = run(code, reuse=True)
        assert answer.output == use
        assert answer.result["emitted"] == [["e", use]]
        assert answer.result["updates"] == {f"u{use}": 1}
        assert answer.lines == [("stdout", f"line {use}")]


def test_each_execution_has_its_own_token_context_and_log_limit(node, tmp_path):
    code = """exports.handle = (i, ctx) => {
        for (let n = 0; n < 9; n++) console.log(''); return ctx.context.n }"""
    folder = write_package(tmp_path / "package", "", {"handler.js": code})
    for n, token in enumerate((b"AAAAAAAA", b"BBBBBBBB")):
        asked = request(folder, reuse=True, log_bytes=450)
        answer = node.run(asked, {"n": n}, token)
        assert answer.output == n
        assert len(answer.logs) == 5


def test_a_reused_process_goes_on_after_every_kind_of_failure(run):
    code = """(what, ctx) => {
        if (what === 1) throw new Error('sync');
        if (what === 2) setTimeout(() => { throw new Error('late') });
        return what === 4 ? 'fine' : new Promise(() => {}) }"""
    assert run(code, input=1, reuse=True).error["message"] == "Error: sync"
    assert run(code, input=2, reuse=True).error["message"] == "Error: late"
    for _ in range(3):
        assert "never settle" in run(code, input=3, reuse=True).error["message"]
    assert run(code, input=4, reuse=True).output == "fine"


def test_what_answers_late_answers_nobody(run):
    """A promise of the first execution that settles during the second changes nothing."""
    code = """(what, ctx) => {
        if (what === 1) {
            exports.first = new Promise((r) => { exports.r = r });
            process.nextTick(() => { throw new Error('first') }); return exports.first }
        exports.r('too late'); return new Promise((r) => setImmediate(r, 'second')) }"""
    assert run(code, input=1, reuse=True).error["message"] == "Error: first"
    assert run(code, input=2, reuse=True).output == "second"


def test_the_ctx_of_an_execution_is_of_no_use_to_the_next(run):
    code = """(first, ctx) => {
        if (first) { exports.old = ctx; setImmediate(() => console.log('between')); return }
        exports.old.log.info('late');
        try { return exports.old.context } catch (error) { return error.message } }"""
    assert run(code, input=True, reuse=True).lines == []
    answer = run(code, input=False, reuse=True)
    assert answer.output == "cannot read the context: the execution has ended"
    assert answer.lines == []


def test_it_waits_to_be_killed_after_its_result_and_ends_with_the_channel(run, node):
    run("() => 1")
    node.close_channel()
    assert node.wait() == 0


def test_it_ends_when_the_pool_goes_away_before_a_request(node):
    node.close_channel()
    assert node.wait() == 0


def test_it_ends_when_the_pool_goes_away_while_it_starts():
    """Where it can say that it is ready to nobody; with no sandbox around it nobody kills it."""
    with BareNode() as node:
        node.close_channel()
        assert node.wait() == 0


def test_nothing_of_the_package_is_read_before_the_word(node, tmp_path):
    folder = tmp_path / "package"
    node.send(wire.frame(wire.REQUEST, b"12345678", wire.encode(request(folder))))
    write_package(folder, "", {"handler.js": "exports.handle = () => 'there'"})
    node.go()
    frame = node.next_frame()
    assert frame.kind == wire.RESULT
    assert wire.decode(frame.payload)["output"] == "there"


@pytest.mark.parametrize(
    "rubbish",
    [
        struct.pack("!I", 2**31) + b"Q" + bytes(8),
        struct.pack("!I", 8) + b"Q" + bytes(8),
        wire.frame(b"R", bytes(8), b"{}"),
        wire.frame(b"Q", bytes(8), b"not json"),
    ],
)
def test_what_is_no_request_ends_the_process(node, rubbish):
    node.send(rubbish)
    with suppress(BrokenPipeError):  # over it, it may have ended already
        node.go()
    assert node.next_frame() is None
    assert node.wait() != 0


def test_patching_what_everybody_uses_does_not_break_the_channel(run):
    code = """(input, ctx) => { const fs = require('fs');
        const bad = () => { throw 1 };
        for (const name of Object.keys(fs)) if (typeof fs[name] === 'function') fs[name] = bad;
        for (const type of [Buffer, String, Array, RegExp, Uint8Array, Promise])
            for (const name of Object.getOwnPropertyNames(type.prototype))
                if (name !== 'constructor' && name !== 'length')
                    try { type.prototype[name] = bad } catch {}
        JSON.stringify = JSON.parse = Object.keys = Array.isArray = Buffer.from = bad;
        process.stdout = process.reallyExit = undefined; process.on = null;
        return {a: ['still', input]} }"""
    assert run(code, input=1).output == {"a": ["still", 1]}


def test_find_says_why_there_is_none(tmp_path):
    script, old = tmp_path / "script", tmp_path / "old"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(OSError, match="switched off"):
        nodejs.find("")
    with pytest.raises(OSError, match="No such file"):
        nodejs.find(str(tmp_path / "none"))
    with pytest.raises(OSError, match="it is no program; name the real one"):
        nodejs.find(str(script))
    old.symlink_to("/bin/true")
    with pytest.raises(OSError, match="older than Node 20"):
        nodejs.find(str(old))


def test_the_files_it_needs_are_all_there(tmp_path):
    files = nodejs.needed_files(nodejs.find(None))
    assert all(os.path.isfile(path) for path in files)
    names = [os.path.basename(path) for path in files]
    assert "libc.so.6" in names
    assert len(set(names)) == len(names)
    assert all(os.path.exists(path) for path in files)
