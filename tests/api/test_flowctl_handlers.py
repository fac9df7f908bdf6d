"""`flowctl handler` and `flowctl key`: the request each sends, and exactly what it prints."""

from __future__ import annotations

import json

import pytest
from flowctl_server import flowctl, serving


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    with serving(str(tmp_path / "d.sock")) as found:
        monkeypatch.setenv("FLOWMONKEY_SOCKET", found.path)
        yield found


HANDLER = {
    "type": "acme/resize",
    "version": "1.2.0",
    "name": "Resize",
    "description": "makes it small",
    "runtime": "python",
    "stateful": False,
    "digest": "sha256:bb",
    "sizeBytes": 321,
    "publishedAt": "2026-11-23T01:00:00.000Z",
    "yankedAt": None,
    "publisher": None,
    "keyId": None,
    "deprecation": None,
    "created": True,
    "warnings": [],
    "manifest": {"handler": {"type": "acme/resize"}},
}

SHOWN = {
    **HANDLER,
    "publisher": "acme",
    "deprecation": "use 2.0.0",
    "permissions": ["may reach the internet", "256 MiB, 1 core, 30 s"],
    "notAllowed": [{"path": "$.execution.memory", "message": "asks for 256 MiB"}],
    "signature": {
        "status": "revoked",
        "reason": "the key 00 was revoked: \x1b[2J",
        "comment": "first",
    },
    "sbom": {
        "file": "sbom.cdx.json",
        "components": [
            {"name": "pillow", "version": "11.0.0", "licenses": ["MIT-CMU"]},
            {"name": "x", "version": None, "licenses": []},
        ],
    },
}

KEY = {
    "id": "00112233aabbccdd",
    "publisher": "acme",
    "key": "ed25519:AAAA",
    "source": "operator",
    "trustedAt": "2026-11-23T01:00:00.000Z",
    "revokedAt": None,
    "reason": None,
}


def page(*items):
    return {"items": list(items), "nextCursor": None}


GET_CASES = [
    (
        "handler list",
        "/v1/handlers?limit=100",
        page(HANDLER),
        "TYPE         VERSION  RUNTIME  STATEFUL  BYTES  PUBLISHER  PUBLISHED                 "
        "YANKED  DEPRECATED\n"
        "acme/resize  1.2.0    python   no        321    -          2026-11-23T01:00:00.000Z  "
        "-       -\n",
    ),
    (
        "handler show acme/resize --no-headers",
        "/v1/handlers/acme%2Fresize?limit=500",
        page(HANDLER),
        "acme/resize  1.2.0  python  no  321  -  2026-11-23T01:00:00.000Z  -  -\n",
    ),
    (
        "handler show acme/resize@1.2.0",
        "/v1/handlers/acme%2Fresize/1.2.0",
        HANDLER,
        "type         acme/resize\nversion      1.2.0\nname         Resize\n"
        "description  makes it small\nruntime      python\nstateful     no\n"
        "digest       sha256:bb\nsizeBytes    321\npublishedAt  2026-11-23T01:00:00.000Z\n"
        'manifest\n{\n  "handler": {\n    "type": "acme/resize"\n  }\n}\n',
    ),
    (
        "handler show acme/resize@1.2.0",
        "/v1/handlers/acme%2Fresize/1.2.0",
        SHOWN,
        "type            acme/resize\nversion         1.2.0\nname            Resize\n"
        "description     makes it small\nruntime         python\nstateful        no\n"
        "digest          sha256:bb\nsizeBytes       321\npublisher       acme\n"
        "signature       revoked: the key 00 was revoked: \\e[2J\nsigned comment  first\n"
        "publishedAt     2026-11-23T01:00:00.000Z\ndeprecated      use 2.0.0\n"
        "permissions\n  may reach the internet\n  256 MiB, 1 core, 30 s\n"
        "not allowed here any more\n  $.execution.memory: asks for 256 MiB\n"
        "parts (sbom.cdx.json): 2\n  pillow 11.0.0 (MIT-CMU)\n  x ? (no licence given)\n"
        'manifest\n{\n  "handler": {\n    "type": "acme/resize"\n  }\n}\n',
    ),
    (
        "key list",
        "/v1/keys?limit=100",
        page(KEY),
        "ID                PUBLISHER  FROM      TRUSTED                   REVOKED  WHY\n"
        "00112233aabbccdd  acme       operator  2026-11-23T01:00:00.000Z  -        -\n",
    ),
    (
        "key namespaces",
        "/v1/namespaces?limit=100",
        page({"name": "acme", "publisher": "acme", "boundAt": "2026-11-23T01:00:00.000Z"}),
        "NAMESPACE  PUBLISHER  SINCE\nacme       acme       2026-11-23T01:00:00.000Z\n",
    ),
]


@pytest.mark.parametrize(("line", "path", "body", "text"), GET_CASES)
def test_read_command_asks_once_and_prints_the_table(daemon, line, path, body, text):
    raw = daemon.on("GET", path, body)
    result = flowctl(*line.split())
    assert (result.code, result.err, result.out) == (0, "", text)
    assert flowctl(*line.split(), "-o", "json").out == raw.decode() + "\n"
    assert daemon.asked() == [f"GET {path}"] * 2


POST_CASES = [
    (
        ["handler", "yank", "acme/resize@1.2.0"],
        "/v1/handlers/acme%2Fresize/1.2.0/yank",
        {},
        {**HANDLER, "yankedAt": "2026-11-23T02:00:00.000Z"},
        "acme/resize@1.2.0: yanked\n",
    ),
    (
        ["handler", "deprecate", "acme/resize@1.2.0", "use 2.0.0"],
        "/v1/handlers/acme%2Fresize/1.2.0/deprecate",
        {"message": "use 2.0.0"},
        {**HANDLER, "deprecation": "use 2.0.0"},
        "acme/resize@1.2.0: deprecated\n",
    ),
    (
        ["handler", "deprecate", "acme/resize@1.2.0", "--undo"],
        "/v1/handlers/acme%2Fresize/1.2.0/deprecate",
        {"message": None},
        HANDLER,
        "acme/resize@1.2.0: deprecated no more\n",
    ),
    (
        ["key", "revoke", "00112233aabbccdd", "--reason", "lost"],
        "/v1/keys/00112233aabbccdd/revoke",
        {"reason": "lost"},
        {**KEY, "revokedAt": "2026-11-23T02:00:00.000Z"},
        "00112233aabbccdd: revoked\n",
    ),
]


@pytest.mark.parametrize(("args", "path", "sent", "body", "text"), POST_CASES)
def test_change_command_sends_what_was_given_and_no_more(daemon, args, path, sent, body, text):
    daemon.on("POST", path, body, status=201)
    result = flowctl(*args)
    assert (result.code, result.err, result.out) == (0, "", text)
    [request] = daemon.requests
    assert (request.method, request.path) == ("POST", path)
    assert json.loads(request.body) == sent


@pytest.mark.parametrize("command", [["show"], ["yank"], ["deprecate"]])
@pytest.mark.parametrize("reference", ["acme/x@^1", "acme/x@", "acme/x@1.2", "acme/x@1.2.0/yank"])
def test_a_range_is_no_version(daemon, command, reference):
    said = ["old"] if command == ["deprecate"] else []
    result = flowctl("handler", *command, reference, *said)
    assert (result.code, result.out, daemon.requests) == (2, "", [])
    assert "name one version of it, like acme/resize@1.2.0" in result.err


def test_a_namespace_is_handed_over(daemon):
    daemon.on("PUT", "/v1/namespaces/acme", {"name": "acme", "publisher": "b", "before": "a"})
    assert flowctl("key", "give", "acme", "b").out == "acme: b, before a\n"
    daemon.on("PUT", "/v1/namespaces/x", {"name": "x", "publisher": None, "before": None})
    assert flowctl("key", "give", "x", "--nobody").out == "x: nobody, before nobody\n"
    assert [json.loads(one.body) for one in daemon.requests] == [
        {"publisher": "b"},
        {"publisher": None},
    ]


def test_run_tells_what_is_said_against_its_handlers(daemon):
    warning = {"path": "$.steps.a.type", "message": "x@1.0.0 is deprecated: use\x1b[2J 2"}
    execution = {"id": "01", "flowId": "f", "status": "completed", "warnings": [warning]}
    daemon.on("POST", "/v1/executions", execution, status=201)
    result = flowctl("run", "f", "--no-wait")
    said = "warning: $.steps.a.type: x@1.0.0 is deprecated: use\\e[2J 2\n"
    assert (result.code, result.err) == (0, said)
