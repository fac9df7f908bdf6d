"""`/v1/secrets` and `flowctl secret`: what is taken, what is refused; nothing tells a value."""

from __future__ import annotations

import base64
import json

import pytest

from tests.api.api_server import served
from tests.api.flowctl_server import flowctl, problem, serving

VALUE = "s3cr3t-value"


@pytest.fixture
async def api(tmp_path):
    async with served(tmp_path) as api:
        yield api


async def put(api, name="key", tenant="", **body):
    query = f"?tenant={tenant}" if tenant else ""
    return await api.call("PUT", f"/v1/secrets/{name}{query}", {"value": VALUE, **body})


async def test_a_secret_is_kept_listed_changed_and_forgotten(api):
    made = await put(api)
    assert made.status == 201
    shown = made.json
    assert shown.pop("createdAt") == shown.pop("updatedAt")
    assert shown == {"name": "key", "tenantId": "default", "version": 1, "encoding": "text"}
    again = await put(api, value=base64.b64encode(b"bytes").decode(), encoding="base64")
    assert (again.status, again.json["version"], again.json["encoding"]) == (200, 2, "base64")
    await put(api, tenant="acme%2Fprod")
    listed = await api.call("GET", "/v1/secrets")
    places = [(one["tenantId"], one["name"]) for one in listed.json["items"]]
    assert places == [("acme/prod", "key"), ("default", "key")]
    page = (await api.call("GET", "/v1/secrets?limit=1")).json
    assert page["items"][0]["tenantId"] == "acme/prod"
    rest = (await api.call("GET", f"/v1/secrets?limit=1&cursor={page['nextCursor']}")).json
    assert ([one["tenantId"] for one in rest["items"]], rest["nextCursor"]) == (["default"], None)
    of_one = (await api.call("GET", "/v1/secrets?tenant=default")).json
    assert [one["tenantId"] for one in of_one["items"]] == ["default"]
    gone = await api.call("DELETE", "/v1/secrets/key")
    assert (gone.status, gone.json) == (200, {"name": "key", "tenantId": "default"})
    again = await api.call("DELETE", "/v1/secrets/key")
    assert (again.status, again.json["code"]) == (404, "NOT_FOUND")


async def test_a_new_key_seals_everything_anew(api):
    await put(api)
    before = (api.directory / "vault.key").read_text()
    answer = await api.call("POST", "/v1/secrets:rotateKey")
    assert (answer.status, answer.json["secrets"]) == (200, 1)
    after = (api.directory / "vault.key").read_text()
    assert before != after
    for text in (before, after):
        assert text.strip().encode() not in answer.body


@pytest.mark.parametrize(
    ("name", "query", "body", "status", "words"),
    [
        ("key", "", {"value": "abc"}, 422, "$.value: it has less than 4 characters"),
        ("key", "", {"value": "  \n abc "}, 422, "less than 4 characters"),
        ("key", "", {"value": "x" * 65_537}, 422, "more than 65536 bytes"),
        ("key", "", {"value": "ä" * 40_000}, 422, "more than 65536 bytes"),
        ("key", "", {"value": "x" * 200_000}, 422, "$.value"),
        ("key", "", {"value": "n0t base64", "encoding": "base64"}, 422, "it is not base64"),
        ("key", "", {"value": 12345678}, 422, "$.value"),
        ("key", "", {"value": ["s3cr3t-value"]}, 422, "$.value"),
        ("key", "", {"value": VALUE, "encoding": "hex"}, 422, "$.encoding"),
        ("key", "", {"value": VALUE, "s3cr3t-value": 1}, 422, "s3cr3t-value"),
        ("key", "", {}, 422, "$.value"),
        ("key", "", b'{"value": "s3cr3t-value', 400, "not JSON"),
        ("key", "", b'{"value": "s3cr3t-\\ud800value"}', 400, "not JSON"),
        ("key", "?tenant=", {"value": VALUE}, 422, "tenant must have 1 to 256"),
        ("key", "?tennant=a", {"value": VALUE}, 422, "is not a parameter of this route"),
        (".hidden", "", {"value": VALUE}, 422, "its name has 1 to 128"),
        ("a%20b", "", {"value": VALUE}, 422, "its name has 1 to 128"),
        ("a%0A", "", {"value": VALUE}, 422, "its name has 1 to 128"),
        ("x" * 129, "", {"value": VALUE}, 422, "its name has 1 to 128"),
        ("..", "", {"value": VALUE}, 422, "its name has 1 to 128"),
    ],
)
async def test_what_is_refused_is_refused_in_words_without_the_value(
    api, caplog, name, query, body, status, words
):
    answer = await api.call("PUT", f"/v1/secrets/{name}{query}", body)
    assert answer.status == status
    told = json.dumps(answer.json)
    assert words in told.replace('", "message": "', ": ")
    if "s3cr3t-value" not in words:
        assert "s3cr3t" not in told
    for text in ("n0t base64", "12345678"):
        assert text not in told
    assert "s3cr3t" not in caplog.text
    assert (await api.call("GET", "/v1/secrets")).json["items"] == []


async def test_there_is_no_way_to_ask_for_a_value(api):
    await put(api)
    for method, path in (
        ("GET", "/v1/secrets/key"),
        ("POST", "/v1/secrets/key"),
        ("HEAD", "/v1/secrets/key"),
        ("GET", "/v1/secrets?value=true"),
        ("GET", "/v1/secrets?tenant=default"),
    ):
        answer = await api.call(method, path)
        assert VALUE.encode() not in answer.body
        assert answer.status in (200, 405, 422)


# --- flowctl -----------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    place = str(tmp_path / "s")
    monkeypatch.setenv("FLOWMONKEY_SOCKET", place)
    with serving(place) as daemon:
        yield daemon


KEPT = {
    "name": "apiKey",
    "tenantId": "default",
    "version": 1,
    "encoding": "text",
    "createdAt": "2026-01-01T00:00:00.000Z",
    "updatedAt": "2026-01-02T00:00:00.000Z",
}


@pytest.mark.parametrize(
    ("given", "args", "sent"),
    [
        (b"v4lue\n", (), ("v4lue", "text")),
        (b"v4lue\r\n", (), ("v4lue", "text")),
        (b"v4lue\r", (), ("v4lue\r", "text")),
        (b"v4lue\n\n", (), ("v4lue\n", "text")),
        (b"two\nlines", (), ("two\nlines", "text")),
        ("pässwörd".encode(), (), ("pässwörd", "text")),
        (b"v4lue\n", ("--binary",), ("djRsdWUK", "base64")),
        (b"\xff\0\n", ("--binary",), ("/wAK", "base64")),
    ],
)
def test_set_sends_what_came_in_and_prints_no_value(daemon, given, args, sent):
    daemon.on("PUT", "/v1/secrets/apiKey?tenant=default", KEPT, 201)
    done = flowctl("secret", "set", "apiKey", *args, stdin=given)
    assert (done.code, done.out, done.err) == (0, "apiKey: kept (version 1)\n", "")
    assert json.loads(daemon.requests[-1].body) == {"value": sent[0], "encoding": sent[1]}


def test_set_refuses_bytes_that_are_no_text_with_what_to_do(daemon):
    done = flowctl("secret", "set", "apiKey", stdin=b"\xff\xfe")
    assert done.code == 2
    assert "say --binary" in done.err
    assert daemon.asked() == []


def test_a_value_is_never_an_argument(daemon):
    assert flowctl("secret", "set", "apiKey", "v4lue").code == 2
    assert flowctl("secret", "set", "apiKey", "--value", "v4lue").code == 2
    assert daemon.asked() == []


def test_list_rm_and_rotate_key(daemon):
    daemon.on("GET", "/v1/secrets?limit=100", {"items": [KEPT], "nextCursor": None})
    done = flowctl("secret", "list")
    assert done.out.split()[:6] == ["TENANT", "NAME", "VERSION", "ENCODING", "CREATED", "UPDATED"]
    assert "apiKey" in done.out
    daemon.on("DELETE", "/v1/secrets/apiKey?tenant=acme", {"name": "apiKey", "tenantId": "acme"})
    done = flowctl("secret", "rm", "apiKey", "--tenant", "acme")
    assert (done.code, done.out) == (0, "apiKey: removed\n")
    daemon.on("POST", "/v1/secrets:rotateKey", {"keyId": "ab12", "secrets": 3})
    refused = problem(409, "CONFLICT", "cannot manage secrets here")
    daemon.on("POST", "/v1/secrets:rotateKey", refused, 409)
    done = flowctl("secret", "rotate-key")
    assert (done.code, done.out) == (0, "sealed under the new key ab12: 3\n")
    assert flowctl("secret", "rotate-key").code == 5
