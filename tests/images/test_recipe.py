"""The plans: what names them, the Containerfiles made of them, the machine's archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.archives import sources_of
from images.handler import HandlerPlan
from images.recipe import agent_digest, agent_files, containerfile, digest, plan
from images.runtimes import RUNTIMES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", RUNTIMES)
def test_the_containerfile_is_what_the_facts_make(name):
    kept = (ROOT / f"images/runtime-{name}/Containerfile").read_text()
    assert kept == containerfile(name), "run `python -m images.recipe`"


def test_a_child_is_named_anew_when_its_parent_is():
    assert plan("node20-sharp").above == digest(plan("node20"))
    assert len({digest(plan(name)) for name in RUNTIMES}) == len(RUNTIMES)


def test_the_agent_names_the_last_layer_only(tmp_path):
    (tmp_path / "agent.py").write_text("a = 1\n")
    before = agent_digest("base", tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "agent.pyc").write_bytes(b"x")
    assert agent_digest("base", tmp_path) == before
    assert [path.name for path in agent_files(tmp_path)] == ["agent.py"]
    (tmp_path / "agent.py").write_text("a = 2\n")
    assert agent_digest("base", tmp_path) != before


def test_a_handler_is_named_by_package_runtime_and_what_it_stands_on():
    one = HandlerPlan("a" * 64, "python311", "p")
    others = [
        HandlerPlan("b" * 64, "python311", "p"),
        HandlerPlan("a" * 64, "node20", "p"),
        HandlerPlan("a" * 64, "python311", "q"),
    ]
    assert len({plan.recipe for plan in (one, *others)}) == 4
    assert one.name == f"localhost/flowmonkey/handler:{'a' * 64}"


DEB822 = """\
Types: deb
# a comment
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/debian.gpg
"""
OTHER = """\
Types: deb
URIs: https://example.test/apt
Suites: nodistro
Components: main
"""
DISABLED = DEB822 + "Enabled: no\n"
ONE_LINE = """\
# deb http://commented.test/debian bookworm main
deb-src http://sources.test/debian bookworm main
deb [arch=amd64 signed-by=/keys/a.gpg] http://line.test/debian bookworm-security main contrib
deb https://vendor.test/apt stable main
"""
LINE_FOUND = """\
Types: deb
URIs: http://line.test/debian
Suites: bookworm-security
Components: main contrib
Signed-By: /keys/a.gpg
"""


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ""),
        ({"sources.list.d/debian.sources": DEB822}, DEB822),
        ({"sources.list.d/a.sources": f"{DEB822}\n{OTHER}\n{DISABLED}"}, DEB822),
        ({"sources.list.d/b.sources": OTHER, "sources.list.d/c.sources.off": DEB822}, ""),
        ({"sources.list": ONE_LINE}, LINE_FOUND),
        ({"sources.list": ONE_LINE, "sources.list.d/d.sources": DEB822}, f"{LINE_FOUND}\n{DEB822}"),
    ],
)
def test_the_machines_sources_of_the_release_are_used_and_no_others(tmp_path, files, found):
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert sources_of("bookworm", tmp_path) == found
