"""What a handler may ask for here, in words and as refusals; deprecated and yanked versions."""

from __future__ import annotations

import json

import pytest

from flowmonkeyd.documents.manifest import parse_manifest
from flowmonkeyd.documents.permissions import in_words
from tests.api.api_server import served
from tests.signing.parts import built, package

ZIP = {"content-type": "application/zip"}
ASKING = {
    "execution": {
        "memory": 512,
        "cpu": 1,
        "sandbox": {
            "network": {"allow": ["api.example.com:443", "EVIL.org", "10.0.0.0/8"]},
            "filesystem": "temp",
        },
    },
    "inputs": [
        {"property": "shop-key", "source": "vault", "secret": True},
        {"property": "admin", "source": "vault", "secret": True},
    ],
}
STRICT = {
    "handlers__allow__network": "*.example.com:443",
    "handlers__allow__filesystem": "none",
    "handlers__allow__secrets": "shop-*",
    "handlers__allow__memory": "256",
    "handlers__allow__cpu": "0.5",
}


def manifest(**parts):
    return parse_manifest({"handler": {"type": "acme/x", "version": "1.0.0"}, **parts})


async def test_all_that_is_not_allowed_is_named_at_once_with_its_setting(tmp_path):
    async with served(tmp_path, **STRICT) as api:
        answer = await api.call("PUT", "/v1/handlers", package(built(**ASKING)), ZIP)
        assert (answer.status, answer.json["code"]) == (422, "PERMISSION_NOT_ALLOWED")
        assert "asks for 6 things" in answer.json["detail"]
        assert [(one["path"], one["message"]) for one in answer.json["errors"]] == [
            (
                "$.execution.sandbox.network.allow",
                'asks to reach EVIL.org: add "EVIL.org" to handlers.allow.network to allow it',
            ),
            (
                "$.execution.sandbox.network.allow",
                'asks to reach 10.0.0.0/8: add "10.0.0.0/8" to handlers.allow.network to allow it',
            ),
            (
                "$.execution.sandbox.filesystem",
                "asks the filesystem 'temp': add \"temp\" to handlers.allow.filesystem to allow it",
            ),
            ("$.inputs", "asks to read the secret 'admin': add it to handlers.allow.secrets"),
            ("$.execution.memory", "asks for 512 MiB: raise handlers.allow.memory from 256"),
            ("$.execution.cpu", "asks for 1 cores: raise handlers.allow.cpu from 0.5"),
        ]
        assert (await api.call("GET", "/v1/handlers")).json["items"] == []


@pytest.mark.parametrize(
    ("network", "allow", "ok"),
    [
        (True, "*", True),
        (True, "*.example.com", False),
        (True, "", False),
        (False, "", True),
        ({"allow": []}, "", True),
        ({"allow": ["a.example.com:443"]}, "*.example.com:443", True),
        ({"allow": ["A.Example.com:443"]}, "a.example.com", True),
        ({"allow": ["a.example.com"]}, "a.example.com:443", False),
        ({"allow": ["a.example.com"]}, "a.example.com:443,a.example.com:80", False),
        ({"allow": ["*.example.com"]}, "a.example.com", False),
        ({"allow": ["1.2.3.4"]}, "1.2.3.0/24", True),
        ({"allow": ["1.2.0.0/16"]}, "1.2.3.0/24", False),
    ],
)
async def test_all_of_a_target_must_be_allowed(tmp_path, network, allow, ok):
    asking = {"execution": {"sandbox": {"network": network}}}
    async with served(tmp_path, handlers__allow__network=allow) as api:
        answer = await api.call("PUT", "/v1/handlers", package(built(**asking)), ZIP)
        assert answer.status == (201 if ok else 422), answer.json


async def test_what_is_allowed_no_more_is_shown_of_what_was_published(tmp_path):
    async with served(tmp_path) as api:
        published = await api.call("PUT", "/v1/handlers", package(built(**ASKING)), ZIP)
        assert published.status == 201
        found = (await api.call("GET", "/v1/handlers/acme/echo/1.0.0")).json
        assert found["notAllowed"] == []
    async with served(tmp_path, **STRICT) as api:
        found = (await api.call("GET", "/v1/handlers/acme/echo/1.0.0")).json
        assert len(found["notAllowed"]) == 6
        assert found["permissions"] == [
            "may reach 3 places: api.example.com:443, EVIL.org, 10.0.0.0/8",
            "may read 2 secrets: shop-key, admin",
            "may read its own package, and write a private /tmp that vanishes with each run",
            "512 MiB, 1 core, 30 s",
        ]


def test_permissions_in_words():
    assert in_words(manifest()) == (
        "may not reach the network",
        "may read no secrets",
        "may read its own package, and write nothing",
        "512 MiB, 1 core, 30 s",
    )
    one = manifest(
        inputs=[{"property": "apiKey", "source": "vault"}],
        execution={"memory": 256, "cpu": 0.5, "ttl": 1500, "sandbox": {"network": True}},
    )
    assert in_words(one)[:2] == ("may reach the internet", "may read 1 secret: apiKey")
    assert in_words(one)[-1] == "256 MiB, 0.5 cores, 1.5 s"
    bounded = {"network": {"allow": ["a.org"], "deny": ["b.a.org"]}}
    assert in_words(manifest(execution={"sandbox": bounded}))[:2] == (
        "may reach 1 place: a.org",
        "may not reach b.a.org",
    )
    nowhere = manifest(execution={"sandbox": {"network": {"allow": []}}})
    assert in_words(nowhere)[0] == "may not reach the network"
    many = manifest(inputs=[{"property": f"s{n}", "source": "vault"} for n in range(20)])
    assert in_words(many)[1].endswith("s7 and 12 more")


def test_a_stateful_handler_in_words():
    stateful = parse_manifest(
        {
            "handler": {"type": "a", "version": "1.0.0", "stateful": True},
            "execution": {"ttl": {"hard": 7_200_000}, "resources": "heavy"},
        }
    )
    assert in_words(stateful)[-1] == (
        "runs in a container of the size 'heavy', keeps state, up to 2 h"
    )


def flow(type_, version="1.0.0"):
    step = {"id": "a", "type": type_, "input": {"type": "full"}}
    return {"id": "f", "version": version, "initialStepId": "a", "steps": {"a": step}}


async def test_a_deprecated_version_is_told_of_at_apply_and_at_run(tmp_path):
    async with served(tmp_path) as api:
        await api.call("PUT", "/v1/handlers", package(built()), ZIP)
        path = "/v1/handlers/acme/echo/1.0.0/deprecate"
        said = await api.call("POST", path, {"message": "loses colours"})
        assert (said.status, said.json["deprecation"]) == (200, "loses colours")
        expected = [
            {
                "path": "$.steps.a.type",
                "message": "acme/echo@1.0.0 is deprecated: loses colours",
            }
        ]
        applied = await api.call("PUT", "/v1/flows", flow("acme/echo"))
        assert (applied.status, applied.json["warnings"]) == (201, expected)
        started = await api.call("POST", "/v1/executions", {"flow": "f"})
        assert (started.status, started.json["warnings"]) == (201, expected)
        await api.call("POST", path, {"message": None})
        assert "warnings" not in (await api.call("POST", "/v1/executions", {"flow": "f"})).json
        missing = await api.call("POST", "/v1/handlers/acme/echo/9.9.9/deprecate", {"message": "x"})
        assert (missing.status, missing.json["code"]) == (404, "HANDLER_NOT_FOUND")
        for body in ({}, {"message": ""}, {"message": 1}, {"message": "x", "more": 1}):
            assert (await api.call("POST", path, body)).status == 422


async def test_a_yanked_version_serves_who_names_it_exactly_and_fits_no_range(tmp_path):
    async with served(tmp_path) as api:
        for version in ("1.0.0", "1.1.0"):
            await api.call("PUT", "/v1/handlers", package(built(version=version)), ZIP)
        await api.call("POST", "/v1/handlers/acme/echo/1.1.0/yank")

        async def taken(type_, version):
            applied = await api.call("PUT", "/v1/flows", flow(type_, version))
            run = await api.call("POST", "/v1/executions", {"flow": f"f@{version}"})
            pins = await api.store.read(
                lambda conn: conn.execute(
                    "SELECT pins FROM executions WHERE id = ?", (run.json["id"],)
                ).fetchone()[0]
            )
            warnings = [one["message"] for one in applied.json["warnings"]]
            return list(json.loads(pins or "{}").values()), warnings

        assert await taken("acme/echo", "1.0.0") == (["1.0.0"], [])
        assert await taken("acme/echo@^1", "1.0.1") == (["1.0.0"], [])
        assert await taken("acme/echo@1.1.0", "1.0.2") == (
            ["1.1.0"],
            ["acme/echo@1.1.0 was yanked; name another version"],
        )
        assert (await taken("acme/echo@>=1.1", "1.0.3"))[0] == []
