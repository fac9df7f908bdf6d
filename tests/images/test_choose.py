"""Which runtime a handler gets, as a table; what its package tells of its dependencies."""

from __future__ import annotations

import json

import pytest

from images.choose import ORDER, TOLD_BY, Unsuitable, choose, names_in
from images.runtimes import RUNTIMES, lineage

CASES = (
    # language, dependencies, tools, runtime
    ("python", (), (), "python311"),
    ("python", ("requests", "pillow"), (), "python311"),
    ("python", ("ffmpeg-python",), (), "node20-ffmpeg"),
    ("python", ("pydub", "requests"), (), "node20-ffmpeg"),
    ("python", (), ("ffmpeg",), "node20-ffmpeg"),
    ("python", ("sharp",), (), "python311"),
    ("python", ("puppeteer",), (), "python311"),
    ("python", ("puppeteer", "ffmpeg-python"), (), "node20-ffmpeg"),
    ("node", (), (), "node20"),
    ("node", ("undici",), (), "node20"),
    ("node", ("sharp",), (), "node20-sharp"),
    ("node", ("ffmpeg-static",), (), "node20-ffmpeg"),
    ("node", ("fluent-ffmpeg",), (), "node20-ffmpeg"),
    ("node", ("sharp", "fluent-ffmpeg"), (), "node20-ffmpeg"),
    ("node", ("puppeteer",), (), "node20-puppeteer"),
    ("node", ("puppeteer-core", "sharp", "ffmpeg-static"), (), "node20-puppeteer"),
    ("node", (), ("sharp",), "node20-sharp"),
    ("node", (), ("puppeteer",), "node20-puppeteer"),
    ("node", ("puppeteer",), ("ffmpeg",), "node20-ffmpeg"),
    ("node", ("sharp-ish", "my-puppeteer"), (), "node20"),
)


@pytest.mark.parametrize(("language", "names", "tools", "runtime"), CASES)
def test_the_first_need_in_order_decides_then_the_language(language, names, tools, runtime):
    assert choose(language, names, tools) == runtime
    assert language in RUNTIMES[runtime].languages


def test_every_runtime_that_runs_something_is_chosen_by_a_case():
    assert {runtime for *_, runtime in CASES} == {
        name for name, one in RUNTIMES.items() if one.languages
    }


@pytest.mark.parametrize(
    ("language", "tools", "message"),
    [
        ("python", ("sharp",), "no runtime image has python and sharp"),
        ("python", ("puppeteer", "ffmpeg"), "no runtime image has python and puppeteer"),
        ("node", ("sharp", "ffmpeg"), "no runtime image has ffmpeg and sharp together"),
    ],
)
def test_tools_that_no_image_has_are_refused(language, tools, message):
    with pytest.raises(Unsuitable, match=message):
        choose(language, (), tools)


def test_what_a_package_brings_tells_its_dependencies():
    files = (
        "handler.py",
        "requests-2.32.0.dist-info/METADATA",
        "ffmpeg_python-0.2.0.dist-info/RECORD",
        "lib/node_modules/sharp/package.json",
        "node_modules/@ffmpeg-installer/ffmpeg/index.js",
        "node_modules/a/node_modules/b/index.js",
        "not_node_modules/c/index.js",
    )
    assert names_in(files) == {
        "requests",
        "ffmpeg-python",
        "sharp",
        "@ffmpeg-installer/ffmpeg",
        "a",
    }


def test_what_its_documents_name_counts_and_what_is_no_document_does_not():
    package = {"dependencies": {"sharp": "1"}, "optionalDependencies": {"puppeteer": "1"}}
    parts = [{"name": "ffmpeg-static"}, {"group": "@ffmpeg-installer", "name": "ffmpeg"}, 3]
    documents = [
        json.dumps(package).encode(),
        json.dumps({"components": parts}).encode(),
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b'{"dependencies": 3, "components": 4}',
    ]
    assert names_in((), documents) == {
        "sharp",
        "puppeteer",
        "ffmpeg-static",
        "@ffmpeg-installer/ffmpeg",
    }


def test_names_that_tell_lead_to_an_image():
    assert set(TOLD_BY) == set(ORDER) == {x for one in RUNTIMES.values() for x in one.provides}


def test_all_runtimes_share_the_base_and_node_is_shared_by_its_three_children():
    assert {lineage(name)[0].name for name in RUNTIMES} == {"base"}
    children = [name for name, one in RUNTIMES.items() if one.parent == "node20"]
    assert children == ["node20-ffmpeg", "node20-sharp", "node20-puppeteer"]
