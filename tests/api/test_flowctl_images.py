"""flowctl image: what it asks the daemon for, what it says of the answers."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from flowctl_server import flowctl, serving


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


def image(name, **changed):
    return {
        "name": name,
        "kind": "runtime",
        "runtime": name,
        "handlers": [],
        "state": "ready",
        "imageId": "f" * 64,
        "sizeBytes": 170_456_576,
        "ownBytes": 38_000_000,
        "builtAt": (datetime.now(UTC) - timedelta(hours=26, seconds=30)).isoformat(),
        "usedAt": None,
        "images": 2,
        "jobs": 0,
        "log": None,
        **changed,
    }


def test_list_says_how_big_how_old_and_used_by_what(daemon):
    films = [{"type": "a/b", "version": version, "yanked": False} for version in "12"]
    made = {"kind": "handler", "runtime": "python311", "handlers": films, "jobs": 1, "images": 0}
    none = {"state": "absent", "sizeBytes": 0, "ownBytes": 0, "builtAt": None, "images": 0}
    items = [image("python311"), image("node20", **none), image("a" * 64, **made)]
    raw = daemon.on("GET", "/v1/images", {"items": items, "nextCursor": None})
    assert flowctl("image", "list").out == (
        "IMAGE         KIND     RUNTIME    STATE   SIZE      OWN LAYER  AGE       USED BY\n"
        "python311     runtime  python311  ready   170.5 MB  38.0 MB    26 h 0 m  2 images\n"
        "node20        runtime  node20     absent  -         -          -         -\n"
        "a/b@1, a/b@2  handler  python311  ready   170.5 MB  38.0 MB    26 h 0 m  1 job\n"
    )
    assert flowctl("image", "list", "-o", "json").out == raw.decode() + "\n"


def test_build_shows_what_the_build_prints_and_how_it_ended(daemon):
    daemon.on("POST", "/v1/images:build", {"items": [{"name": "python311"}]}, 202)
    ended = {"state": "ready", "imageId": "abc"}
    daemon.stream("/v1/images/python311/log", [{"line": "apt \x1b[31mred"}, ended])
    result = flowctl("image", "build", "python311")
    assert result.code == 0
    assert result.err == "python311: apt \\e[31mred\n"
    assert result.out == "IMAGE      STATE  ID\npython311  ready  abc\n"
    assert json.loads(daemon.requests[0].body) == {"name": "python311", "again": False}


def test_a_build_that_fails_ends_with_1_after_all_were_followed(daemon):
    names = ["python311", "node20"]
    daemon.on("POST", "/v1/images:build", {"items": [{"name": one} for one in names]}, 202)
    failed = [{"line": "cannot build: no route"}, {"state": "failed", "imageId": None}]
    daemon.stream("/v1/images/python311/log", failed)
    daemon.stream("/v1/images/node20/log", [{"state": "ready", "imageId": "abc"}])
    result = flowctl("image", "build", "--all", "--again")
    assert result.code == 1
    assert result.err == (
        "python311: cannot build: no route\nflowctl: could not be built: python311\n"
    )
    assert json.loads(daemon.requests[0].body) == {"name": "all", "again": True}


@pytest.mark.parametrize("words", [(), ("python311", "--all")])
def test_build_wants_a_name_or_all(daemon, words):
    result = flowctl("image", "build", *words)
    assert result.code == 2
    assert "give a NAME or --all" in result.err
    assert daemon.requests == []


def test_prune_says_what_went(daemon):
    daemon.on("POST", "/v1/images:prune", {"removed": ["node20"], "bytes": 231_000_000})
    result = flowctl("image", "prune")
    assert (result.out, result.err) == ("node20\n", "1 removed, 231.0 MB freed\n")
