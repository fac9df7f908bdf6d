"""A handler that depends on others is tried without a build, as it will run after one."""

from __future__ import annotations

import json
import shutil

import pytest

from flowctl.build import build, wheels
from flowctl.problems import Rejected
from flowctl.trial import Given, Trial, terms
from flowmonkeyd.documents.archive import read_archive
from tests.build.conftest import MANIFEST, wheel

pytestmark = pytest.mark.slow
NEEDS_NPM = pytest.mark.skipif(shutil.which("npm") is None, reason="NO npm: nothing is bundled")
CODE = "import twice\ndef handle(input, ctx): return twice.VERSION\n"
NODE = {"handler": {"type": "acme/n", "version": "1.0.0", "runtime": "node"}}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/flowmonkey/wheels"


def ran(folder):
    with Trial(str(folder)) as trial:
        return trial.run(Given(), lambda *_: None).result


def test_wheels_are_there_when_a_handler_is_tried_and_fetched_once(
    folder, index, cache, monkeypatch
):
    wheel(index, "twice", "1.2.0")
    wheel(index, "twice", "2.0.0")
    place = folder(
        {"handler.json": {**MANIFEST, "dependencies": {"twice": "<2"}}, "handler.py": CODE}
    )
    assert ran(place)["output"] == "1.2.0"
    (kept,) = cache.iterdir()
    (index / "twice-1.2.0-py3-none-any.whl").unlink()
    assert ran(place)["output"] == "1.2.0"
    monkeypatch.setattr(wheels, "KEPT_S", -1)  # the day after
    with pytest.raises(Rejected, match="cannot get the dependency twice"):
        ran(place)
    assert not kept.exists()


def test_a_lock_holds_when_a_handler_is_tried(folder, index, cache):
    for version in ("1.2.0", "1.3.0"):
        wheel(index, "twice", version)
    needs = {"handler.json": {**MANIFEST, "dependencies": {"twice": "*"}}, "handler.py": CODE}
    assert ran(folder({**needs, "requirements.lock": "twice==1.2.0\n"}))["output"] == "1.2.0"
    assert ran(folder(needs, "other"))["output"] == "1.3.0"


def test_to_explain_a_handler_nothing_is_fetched(folder, index, cache):
    place = folder({"handler.json": {**MANIFEST, "dependencies": {"nosuch": "==1"}}})
    assert terms(str(place))["type"] == "acme/hello"
    with pytest.raises(Rejected, match="the package index has no such version"):
        ran(place)


def test_a_package_that_was_built_has_its_dependencies(folder, index, cache, tmp_path):
    wheel(index, "twice", "1.2.0")
    place = folder(
        {"handler.json": {**MANIFEST, "dependencies": {"twice": "*"}}, "handler.py": CODE}
    )
    for name, content in read_archive(build(place).data).items():
        (tmp_path / "built" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "built" / name).write_bytes(content)
    shutil.rmtree(index)
    assert ran(tmp_path / "built")["output"] == "1.2.0"
    assert not cache.exists()


@NEEDS_NPM
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("handler.js", "const n = require('twice');\nexports.handle = () => n(21);\n"),
        ("handler.ts", "import n from 'twice';\nexport const handle = () => n(21);\n"),
    ],
)
def test_packages_of_npm_are_taken_from_where_npm_puts_them(folder, name, code):
    installed = {
        "node_modules/twice/index.js": "module.exports = (n) => 2 * n;\n",
        "node_modules/twice/package.json": {"name": "twice", "version": "1.0.0"},
        # of tools for development there are thousands
        **{f"node_modules/tool/{number}.js": "" for number in range(1001)},
    }
    manifest = {"handler": {**NODE["handler"], "entrypoint": "handler.js:handle"}}
    npm = {"dependencies": {"twice": "1.0.0"}, "devDependencies": {"tool": "1.0.0"}}
    files = {"handler.json": manifest, name: code, "package.json": npm}
    place = folder({**files, **installed})
    (place / "handler.py").unlink()
    (place / "node_modules/.bin").mkdir()
    (place / "node_modules/.bin/twice").symlink_to("../twice/index.js")
    assert ran(place)["output"] == 42
    shutil.rmtree(place / "node_modules/twice")
    with pytest.raises(Rejected, match=r"twice of package\.json is not there; run npm install in"):
        ran(place)


def test_links_that_npm_makes_are_no_part_of_a_handler(folder):
    code = "exports.handle = () => require('twice');\n"
    manifest = {"handler": {**NODE["handler"], "entrypoint": "handler.js:handle"}}
    files = {
        "handler.json": manifest,
        "handler.js": code,
        "node_modules/twice.js": "module.exports = 2;",
    }
    place = folder(files)
    (place / "node_modules/.bin").mkdir()
    (place / "node_modules/.bin/twice").symlink_to("../twice.js")
    assert ran(place)["output"] == 2
    assert json.loads((place / "handler.json").read_text()) == manifest
