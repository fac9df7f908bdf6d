"""What a Node handler prints and logs: in order, bounded, never a breach of the protocol."""

from __future__ import annotations


def test_every_way_of_writing_is_a_log_line_in_order(run):
    code = """(i, ctx) => {
        console.log('a', {n: 1}); ctx.log.info('b', {size: 3}); console.error('c');
        process.stdout.write('d\\ne'); ctx.log.warning('f');
        process.stdout.write(Buffer.from('g\\n'));
        console.warn('%s-%d', 'h', 5); ctx.log.debug(1); ctx.log.error(new Error('i').message);
        console.log(); process.stderr.write('6a0a', 'hex'); process.stdout.write('k') }"""
    answer = run(code)
    assert answer.lines == [
        ("stdout", "a { n: 1 }"), ("info", "b"), ("stderr", "c"), ("stdout", "d"), ("warning", "f"),
        ("stdout", "eg"), ("stderr", "h-5"), ("debug", "1"), ("error", "i"), ("stdout", ""),
        ("stderr", "j"), ("stdout", "k"),
    ]  # fmt: skip
    assert answer.logs[1]["fields"] == {"size": 3}


def test_console_keeps_its_other_methods(run):
    code = """() => {
        console.group('g'); console.info('in'); console.groupEnd(); console.table([[1]]);
        console.assert(false, 'no'); console.dir({a: 1}); console.count() }"""
    lines = run(code).lines
    assert lines[:2] == [("stdout", "g"), ("stdout", "  in")]
    assert ("stderr", "Assertion failed: no") in lines
    assert lines[-2:] == [("stdout", "{ a: 1 }"), ("stdout", "default: 1")]


def test_bytes_of_one_character_may_come_one_by_one(run):
    code = (
        "() => { for (const byte of Buffer.from('ä🐒')) process.stdout.write(Buffer.from([byte])) }"
    )
    assert run(code).lines == [("stdout", "ä🐒")]


def test_long_lines_are_cut_into_several(run):
    lines = run(
        "() => { console.log('🐒'.repeat(10000)); process.stdout.write('x'.repeat(40000)) }"
    ).lines
    assert all(len(text.encode()) <= 16 * 1024 for _, text in lines)
    assert "".join(text for _, text in lines) == "🐒" * 10000 + "x" * 40000
    assert len(lines) == 6


def test_fields_that_are_not_json_are_shown(run):
    code = """(i, ctx) => {
        const a = {}; a.a = a; let deep = []; for (let n = 0; n < 300; n++) deep = [deep];
        ctx.log.info('x', {big: 10n, nan: NaN, fine: [1], cycle: a, deep, bad: '\\ud800', f() {},
            '\\ud800': 1});
        ctx.log.info('y', 5); ctx.log.info({a: 1});
        ctx.log.info('z', {huge: 'x'.repeat(99999)}) }"""
    logs = run(code).logs
    fields = logs[0]["fields"]
    assert fields["big"] == "10n"
    assert fields["nan"] == "NaN"
    assert fields["fine"] == [1]
    assert fields["cycle"] == "<ref *1> { a: [Circular *1] }"
    assert fields["f"] == "[Function: f]"
    assert {"deep", "bad", "\ufffd"} <= fields.keys()
    assert logs[1]["fields"] == {"value": 5}
    assert logs[2]["message"] == "{ a: 1 }"
    assert logs[3]["fields"] == {"truncated": True}


def test_the_limit_of_the_log_ends_the_lines_and_not_the_handler(run):
    answer = run(
        "() => { for (let n = 0; n < 1e5; n++) console.log('ä🐒'); return 1 }", log_bytes=10_200
    )
    assert answer.output == 1
    assert len(answer.logs) == 101  # 102 characters' worth each, as the pool counts; one too many


def test_streams_cannot_be_closed(run):
    code = """async () => { process.stdout.destroy(); process.stderr.destroy(new Error('x'));
        process.stderr.on('error', () => {}); await new Promise(setImmediate);
        console.log('still') }"""
    assert ("stdout", "still") in run(code).lines
