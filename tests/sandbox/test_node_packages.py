"""Which code of a package Node runs, what it may load, and what it is refused."""

from __future__ import annotations

import json

import pytest
from attacks import write_package


@pytest.mark.parametrize(
    ("files", "entrypoint"),
    [
        ({"handler.js": "exports.handle = () => 7"}, "handler.js:handle"),
        ({"handler.cjs": "exports.handle = () => 7"}, "handler.cjs:handle"),
        ({"handler.js": "module.exports = async () => 7"}, "handler.js:handle"),
        ({"handler.mjs": "export async function handle() { return 7 }"}, "handler.mjs:handle"),
        ({"handler.mjs": "export default () => 7"}, "handler.mjs:handle"),
        (
            {"handler.mjs": "export default { n: 7, handle() { return this.n } }"},
            "handler.mjs:handle",
        ),
        (
            {"handler.js": "export const other = () => 7", "package.json": '{"type": "module"}'},
            "handler.js:other",
        ),
        (
            {
                "src/deep/h.js": "export const handle = () => 7",
                "src/package.json": '{"type": "module"}',
            },
            "src/deep/h.js:handle",
        ),
        (
            {"handler.js": "exports.n = 7; exports.handle = function () { return this.n }"},
            "handler.js:handle",
        ),
        (
            {"handler.js": "exports.Resize = class { #n = 7; handle() { return this.#n } }"},
            "handler.js:Resize",
        ),
        (
            {"handler.js": "exports.Resize = class { async execute() { return 7 } }"},
            "handler.js:Resize",
        ),
        ({"handler.mjs": "export default class { handle() { return 7 } }"}, "handler.mjs:handle"),
        (
            {"handler.js": "function A() {} A.prototype.handle = () => 7; exports.A = A"},
            "handler.js:A",
        ),
        (
            {
                "handler.js": "exports.handle = () => require('./lib').n",
                "lib/index.js": "exports.n = 7",
            },
            "handler.js:handle",
        ),
        (
            {
                "handler.js": "exports.handle = () => require('dep').n",
                "node_modules/dep/index.js": "exports.n = 7",
            },
            "handler.js:handle",
        ),
        (
            {
                "handler.js": "exports.handle = async () => (await import('dep')).n",
                "node_modules/dep/index.mjs": "export const n = 7",
                "node_modules/dep/package.json": '{"exports": "./index.mjs"}',
            },
            "handler.js:handle",
        ),
        (
            {
                "handler.mjs": "import { n } from './n.mjs'; import fs from 'node:fs'; "
                "export const handle = () => fs.existsSync('/') && n",
                "n.mjs": "export const n = await Promise.resolve(7)",
            },
            "handler.mjs:handle",
        ),
    ],
)
def test_entrypoints(run, files, entrypoint):
    assert run(files=files, entrypoint=entrypoint).output == 7


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"handler.js": "exports.other = () => 7"}, "cannot find handle in handler.js: a function"),
        ({"handler.js": "exports.handle = 7"}, "cannot find handle in handler.js: a function"),
        ({"other.js": ""}, "ENOENT: no such file or directory, open"),
        ({"handler.js": "syntax error here"}, "SyntaxError"),
        ({"handler.js": "throw new RangeError('at load')"}, "RangeError: at load"),
        ({"handler.js": "await 1", "package.json": '{"type": "module"'}, "JSON"),
        (
            {"handler.js": "await new Promise(() => {})", "package.json": '{"type": "module"}'},
            "never settle",
        ),
        (
            {"handler.js": "exports.handle = () => require('nothing')"},
            "Cannot find module 'nothing'",
        ),
    ],
)
def test_what_cannot_be_loaded_is_a_handler_error(run, files, says):
    error = run(files=files).error
    assert error["code"] == "HANDLER_ERROR"
    assert says in error["message"]


@pytest.mark.parametrize("way", ["require", "require.resolve", "createRequire"])
@pytest.mark.parametrize(
    "name", ["/etc/x-outside.js", "../outside.js", "./link.js", "./folder/x.js"]
)
def test_require_finds_nothing_outside_the_package(run, tmp_path, way, name):
    outside = tmp_path / "outside.js"
    outside.write_text("exports.leaked = true")
    name = name.replace("/etc/x-outside.js", str(outside))
    write_package(tmp_path / "package", "")
    (tmp_path / "package" / "link.js").symlink_to(outside)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.js").write_text("")
    (tmp_path / "package" / "folder").symlink_to(tmp_path / "elsewhere")
    code = f"() => {way}({json.dumps(name)})"
    if way == "createRequire":
        code = f"() => require('module').createRequire(__filename)({json.dumps(name)})"
    error = run(code).error
    assert "is outside the handler's package; put it into the package" in error["message"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            "process.exit(0)",
            "cannot call process.exit(): handlers may not; return a value, or throw an error",
        ),
        ("process.abort()", "cannot call process.abort()"),
        ("process.reallyExit(1)", "cannot call process.reallyExit()"),
        ("process.kill(process.pid, 'SIGTERM')", "cannot send signals"),
        ("process.dlopen({exports: {}}, '/x.node')", "cannot load a native addon"),
        ("require('./addon.node')", "cannot load a native addon"),
        ("process.binding('fs')", "cannot use process.binding()"),
        (
            "setInterval(() => {}, 10)",
            "cannot use setInterval(): handlers may not; await a setTimeout() in a loop",
        ),
        ("require('timers').setInterval(() => {}, 10)", "cannot use setInterval()"),
        ("require('timers/promises').setInterval(10)", "cannot use setInterval()"),
        ("require('child_process').spawn('true')", "cannot start a program"),
        ("require('child_process').execSync('true')", "cannot start a program"),
        ("require('child_process').exec('true')", "cannot start a program"),
        ("require('child_process').fork('x.js')", "cannot start a program"),
        ("require('cluster').fork()", "cannot start a program"),
        (
            "new (require('worker_threads').Worker)('1', {eval: true})",
            "cannot start a worker thread",
        ),
        ("require('inspector').open(0)", "cannot start a debugger"),
        (
            "require('v8').setFlagsFromString('--max-old-space-size=9999')",
            "cannot change flags of V8",
        ),
    ],
)
def test_refusals_say_what_to_do_instead(run, code, says):
    files = {"handler.js": f"exports.handle = async () => {{ {code} }}", "addon.node": b"\x7fELF"}
    error = run(files=files).error
    assert says in error["message"]
    assert "handler.js:1" in error["details"]["traceback"]


@pytest.mark.parametrize(
    "code",
    ["import { Worker } from 'worker_threads'; const f = () => new Worker('1', {eval: true})",
     "import { exit } from 'node:process'; const f = () => exit(0)",
     "import { spawnSync } from 'node:child_process'; const f = () => spawnSync('true')",
     "import { setInterval } from 'node:timers'; const f = () => setInterval(() => {}, 1)",
     "const f = async () => (await import('node:v8')).setFlagsFromString('--x')"],
)  # fmt: skip
def test_es_modules_are_refused_the_same(run, code):
    files = {"handler.mjs": f"{code}; export const handle = async () => {{ await f() }}"}
    assert "handlers may not" in run(files=files, entrypoint="handler.mjs:handle").error["message"]
