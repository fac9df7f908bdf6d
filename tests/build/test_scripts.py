"""TypeScript and JavaScript: checked, stripped, bundled. The tools are real; npm installs them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile

import pytest

from flowctl.build import build
from flowctl.problems import Rejected
from flowctl.trial import Given, run
from flowmonkeyd.documents.archive import read_archive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("npm") is None, reason="NO npm: nothing of Node is built"),
]
MANIFEST = {
    "handler": {
        "type": "acme/hi", "version": "1.0.0", "runtime": "node", "entrypoint": "handler.ts:Hello",
    },
}  # fmt: skip
CLASS = """\
import { Context, Handler, Input, Min, TestValue, env } from 'flowmonkey';
import { greet } from './lib/greet';

const SAMPLE = 'sample-value-77'; // of a customer

@Handler()
export class Hello {
  @Input({ type: 'string' })
  @TestValue('tested-name') // for tests
  name!: string;

  @Input({ source: 'vault' }) @TestValue(env('HI_KEY', 'fallback-value'))
  key!: string;

  @Input({ type: 'number', default: 2 }) @Min(1) @TestValue(7654321) count!: number;

  @Input({ type: 'string', required: false, testValue: SAMPLE }) other?: string;

  execute(ctx: Context) {
    return { hello: greet(this.name).repeat(this.count) };
  }
}
"""
GREET = "export const greet = (name: string): string => `hello ${name} `;\n"
FUNCTION = "exports.handle = async (input, ctx) => ({ twice: require('./two').two * input.n });\n"
JS = {"handler": {**MANIFEST["handler"], "entrypoint": "handler.js:handle"}}


FUNCTION_IN_TS = {"handler": {**MANIFEST["handler"], "entrypoint": "handler.js:handle"}}


@pytest.fixture
def typescript(folder):
    """Makes the folder of a handler in TypeScript."""

    def make(files=None, name="hi"):
        whole = {"handler.json": MANIFEST, "handler.ts": CLASS, "lib/greet.ts": GREET}
        made = folder({**whole, **(files or {})}, name)
        (made / "handler.py").unlink()
        return made

    return make


def ran(built, tmp_path, given):
    place = tmp_path / "unpacked"
    for name, content in read_archive(built.data).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return run(str(place), given, lambda *_: None).result


def test_a_class_in_typescript_is_built_without_its_test_values_and_runs(typescript, tmp_path):
    built = build(typescript({"table.csv": "a,b\n", "handler.test.ts": "not TypeScript at all ("}))
    files = read_archive(built.data)
    assert sorted(files) == ["handler.js", "handler.json", "sbom.cdx.json", "table.csv"]
    everything = b"".join(files.values())
    for gone in (b"tested-name", b"fallback-value", b"sample-value-77", b"7654321", b"HI_KEY"):
        assert gone not in everything
    document = json.loads(files["handler.json"])
    assert document["handler"]["entrypoint"] == "handler.js:Hello"
    assert [one["property"] for one in document["inputs"]] == ["name", "key", "count", "other"]
    assert document["schemas"]["input"]["required"] == ["name"]
    given = Given({"name": "Ada"}, True, secrets={"key": "k"})
    assert ran(built, tmp_path, given)["output"] == {"hello": "hello Ada hello Ada "}


def test_the_same_sources_make_the_same_bytes_in_another_place(typescript):
    assert build(typescript(name="one")).data == build(typescript(name="deeper/two")).data


def test_a_function_in_javascript_is_bundled_and_runs(typescript, tmp_path):
    place = typescript({"handler.json": JS, "handler.js": FUNCTION, "two.js": "exports.two = 2;\n"})
    (place / "handler.ts").unlink()
    shutil.rmtree(place / "lib")
    built = build(place)
    assert sorted(read_archive(built.data)) == ["handler.js", "handler.json", "sbom.cdx.json"]
    assert ran(built, tmp_path, Given({"n": 21}, True))["output"] == {"twice": 42}


@pytest.mark.parametrize(
    ("files", "line", "why"),
    [
        ({"lib/greet.ts": "export const greet = (a: string): string => a.size;\n"},
         "lib/greet.ts:1", "Property 'size' does not exist"),
        ({"handler.ts": "export function handle( {\n"}, "handler.ts:2", "expected"),
        ({"handler.ts": "import { a } from './nosuch';\nexport const handle = () => a;\n"},
         "handler.ts:1", "Cannot find module './nosuch'"),
        ({"handler.ts": "import x from 'left-pad';\nexport const handle = () => x;\n"},
         "handler.ts:1", "Cannot find module 'left-pad'"),
        ({"handler.ts": CLASS.replace("name!: string", "name!: number")}, "handler.ts:8",
         ": the field's type is number, and what is declared of it lets through string"),
        ({"handler.ts": CLASS.replace("{ greet }", "{ greeted }")},
         "handler.ts:2", """'"./lib/greet"' has no exported member named 'greeted'"""),
        ({"handler.ts": CLASS.replace("'tested-name'", "greet('a')")}, "handler.ts:9",
         "cannot tell what this test value is"),
        ({"handler.ts": CLASS.replace("return {", "console.log(SAMPLE);\n    return {")},
         "handler.ts:4", "used in line 20 too"),
        ({"handler.ts": CLASS.replace("TestValue,", "TestValue as T,").replace("@TestValue", "@T")
          + "export const again = T;\n"}, "handler.ts:1", "cannot resolve TestValue"),
        ({"handler.ts": "import test from 'node:test';\ntest('a', () => {});\n" + CLASS},
         "handler.ts:1", "node:test is for tests, and line 2 uses it"),
        ({"tsconfig.json": '{"compilerOptions": {"targt": "es2022"}}'}, "tsconfig.json:", "targt"),
    ],
)  # fmt: skip
def test_what_does_not_compile_or_resolve_is_refused_with_its_line(typescript, files, line, why):
    with pytest.raises(Rejected) as caught:
        build(typescript(files))
    told = [one for one in caught.value.lines if one.startswith(line) and why in one]
    assert told, caught.value.message


def test_json_can_be_imported_and_read(typescript, tmp_path):
    source = (
        "import data from './lib/data.json';\nexport const handle = () => data.words.join(' ');\n"
    )
    data = {"lib/data.json": '{"words": ["from", "json"]}'}
    built = build(typescript({"handler.ts": source, "handler.json": FUNCTION_IN_TS, **data}))
    assert "lib/data.json" in read_archive(built.data)
    assert ran(built, tmp_path, Given())["output"] == "from json"


def test_a_secret_in_a_source_is_told_at_its_own_line(typescript):
    key = "AKIA" + "QYLPMN5HHHFPZAM2"
    with pytest.raises(Rejected) as caught:
        build(typescript({"lib/greet.ts": f"{GREET}\nexport const K = '{key}';\n"}))
    assert caught.value.lines[0].startswith("lib/greet.ts:3: aws access key")


def test_packages_of_npm_need_a_lock(typescript):
    with pytest.raises(Rejected, match=r"there is no package-lock\.json"):
        build(typescript({"package.json": {"dependencies": {"left-pad": "1.3.0"}}}))


def test_dependencies_of_node_are_not_the_manifest_s(typescript):
    with pytest.raises(Rejected, match=r"list them in package\.json"):
        build(typescript({"handler.json": {**MANIFEST, "dependencies": {"left-pad": "1.3.0"}}}))


def test_a_package_of_npm_is_bundled_listed_and_its_scripts_are_not_run(typescript, tmp_path):
    """A package of this disk; npm packs and locks it as it would one of the registry."""
    mark = tmp_path / "was-run"
    package = {
        "name": "twice", "version": "1.2.3", "license": "ISC", "main": "index.js",
        "scripts": {"install": f"touch {mark}", "postinstall": f"touch {mark}"},
    }  # fmt: skip
    lock = {
        "name": "hi", "lockfileVersion": 3, "packages": {
            "": {"dependencies": {"twice": "file:./vendored"}},
            "node_modules/twice": {"resolved": "vendored", "link": True},
            "vendored": {"name": "twice", "version": "1.2.3", "hasInstallScript": True},
        },
    }  # fmt: skip
    place = typescript(
        {
            "handler.json": JS,
            "handler.js": "const twice = require('twice');\nexports.handle = (i) => twice(i.n);\n",
            "vendored/index.js": "module.exports = (n) => 2 * n;\n",
            "vendored/package.json": package,
            "package.json": {"dependencies": {"twice": "file:./vendored"}},
            "package-lock.json": lock,
        }
    )
    (place / "handler.ts").unlink()
    built = build(place)
    assert ran(built, tmp_path, Given({"n": 21}, True))["output"] == 42
    assert not mark.exists()


def test_a_package_of_npm_without_types_is_told_by_its_name(typescript):
    code, package = (
        io.BytesIO(b"module.exports = 2;\n"),
        io.BytesIO(b'{"name": "two", "version": "1.0.0"}'),
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as out:
        for name, stream in (("index.js", code), ("package.json", package)):
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(stream.getvalue())
            out.addfile(entry, stream)
    needs = {"dependencies": {"two": "file:two.tgz"}}
    locked = {"": needs, "node_modules/two": {"version": "1.0.0", "resolved": "file:two.tgz"}}
    files = {
        "handler.ts": "import two from 'two';\nexport const handle = () => two;\n",
        "two.tgz": packed.getvalue(),
        "package.json": needs,
        "package-lock.json": {"lockfileVersion": 3, "packages": locked},
    }
    with pytest.raises(Rejected) as caught:
        build(typescript(files))
    said = "Could not find a declaration file for module 'two'. 'node_modules/two/index.js'"
    assert caught.value.lines[0].startswith(f"handler.ts:1: {said}")
