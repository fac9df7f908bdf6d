"""Input at its edges: what is still taken, what is no longer, and that it is said which."""

import asyncio
import json
import shutil
import subprocess
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from flowmonkeyd.documents.archive import pack_files
from tests.api.api_server import SWITCH, Connection, served


@pytest.fixture
async def api(tmp_path):
    async with served(tmp_path) as api:
        await api.call("PUT", "/v1/flows", SWITCH)
        yield api


RUN = {"flow": "pick", "context": {"n": 9}}
BEYOND_64_BITS = "azk5OTk5OTk5OTk5OTk5OTk5OTk5"  # k99999999999999999999
REFUSED = [
    ("/v1/executions?statsu=failed", "?statsu"),
    ("/v1/flows/pick?limit=3", "?limit"),
    ("/v1/executions?status=failed,dnoe", "?status"),
    ("/v1/executions?limit=1e2", "?limit"),
    ("/v1/executions?limit=%D9%A3", "?limit"),  # an Arabic three
    ("/v1/executions?limit=", "?limit"),
    (f"/v1/executions?cursor={BEYOND_64_BITS}", "?cursor"),
    ("/v1/executions?cursor=ay01", "?cursor"),  # k-5
    ("/v1/executions?cursor=%ff", "?cursor"),
    ("/v1/events?after=99999999999999999999", "?after"),
    ("/v1/executions?since=2026-01-31T08:00:00", "?since"),  # no time zone
    ("/v1/executions?since=2026-13-31T08:00:00Z", "?since"),
    ("/v1/executions?parent=", None),
]


@pytest.mark.parametrize(("path", "named"), REFUSED)
async def test_a_wrong_query_is_refused_by_name(api, path, named):
    answer = await api.call("GET", path)
    if named is None:
        assert answer.status == 404
    else:
        assert (answer.status, answer.json["code"]) == (422, "INVALID")
        assert [error["path"] for error in answer.json["errors"]] == [named]


async def test_since_is_exact_to_the_millisecond(api):
    made = (await api.call("POST", "/v1/executions", RUN)).json
    at = datetime.fromisoformat(made["createdAt"])
    first = datetime.min.replace(tzinfo=UTC)
    for moment, count in ((at, 1), (at + timedelta(milliseconds=1), 0), (first, 1)):
        text = moment.isoformat().replace("+00:00", "Z")
        listed = await api.call("GET", f"/v1/executions?since={text}")
        assert len(listed.json["items"]) == count, text


async def test_statuses_may_be_a_list_or_be_repeated(api):
    bodies = [RUN, {"flow": "pick", "context": {"n": 1}}]
    made = (await api.call("POST", "/v1/executions:batch", bodies)).json["items"]
    await api.call("GET", f"/v1/executions/{made[0]['id']}?waitMs=5000")
    while (await api.call("GET", f"/v1/executions/{made[1]['id']}")).json["status"] != "waiting":
        pass
    for query in ("status=completed,waiting", "status=completed&status=waiting"):
        assert len((await api.call("GET", f"/v1/executions?{query}")).json["items"]) == 2
    assert len((await api.call("GET", "/v1/executions?status=waiting")).json["items"]) == 1


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 201),
        ("Application/JSON; charset=utf-8", 201),
        ("application/x-www-form-urlencoded", 201),  # `curl -d` without a header
        ("text/plain", 415),
        ("application/zip", 415),
        ("application/jsonx", 415),
    ],
)
async def test_json_is_taken_by_its_media_type(api, kind, status):
    body = json.dumps(RUN)
    assert (await api.call("POST", "/v1/executions", body, {"content-type": kind})).status == status


async def test_every_wrong_item_of_a_batch_is_named_up_to_a_hundred(api):
    two = await api.call("POST", "/v1/executions:batch", [RUN, {"flow": 7}, RUN, {"x": 1}])
    assert {e["path"] for e in two.json["errors"]} == {"$[1].flow", "$[3].flow", "$[3].x"}
    many = await api.call("POST", "/v1/executions:batch", [{"flow": 7}] * 2000)
    assert (many.status, len(many.json["errors"])) == (422, 100)
    over = await api.call("POST", "/v1/executions:batch", [1] * 10_001)
    assert (over.status, over.json["code"]) == (413, "TOO_LARGE")
    none = await api.call("POST", "/v1/executions:batch", [])
    assert (none.status, none.json) == (201, {"items": []})
    assert (await api.call("GET", "/v1/executions")).json["items"] == []


async def test_free_json_comes_back_as_it_went_in(api):
    free = {"n": 9, "big": 10**30, "e": 1.5e300, "t": "\u0000 \U0001f435 \u2028", "": [None, {}]}
    body = {"flow": "pick", "context": free, "metadata": {"a": {"b": [1, 2.0]}}}
    made = (await api.call("POST", "/v1/executions", body)).json
    shown = (await api.call("GET", f"/v1/executions/{made['id']}")).json
    assert (shown["context"], shown["metadata"]) == (free, {"a": {"b": [1, 2.0]}})


async def test_a_body_that_is_refused_by_its_length_is_never_asked_for(api):
    def ask():
        with closing(Connection(api.socket)) as connection:
            connection.putrequest("PUT", "/v1/handlers")
            for name, value in (
                ("content-type", "application/zip"),
                ("content-length", str(20 * 1024 * 1024)),
                ("expect", "100-continue"),
            ):
                connection.putheader(name, value)
            connection.endheaders()
            return connection.getresponse().status

    assert await asyncio.to_thread(ask) == 413


async def test_versions_of_a_handler_are_paged_newest_first(api):
    for version in ("9.0.0", "10.0.0", "1.0.0"):
        about = json.dumps({"handler": {"type": "acme/v", "version": version}}).encode()
        code = b"def handle(input, ctx):\n    return 1\n"
        package = pack_files({"handler.json": about, "handler.py": code})
        kind = {"content-type": "application/zip"}
        assert (await api.call("PUT", "/v1/handlers", package, kind)).status == 201
    first = (await api.call("GET", "/v1/handlers/acme%2Fv?limit=2")).json
    rest = (await api.call("GET", f"/v1/handlers/acme/v?cursor={first['nextCursor']}")).json
    versions = [item["version"] for page in (first, rest) for item in page["items"]]
    assert versions == ["10.0.0", "9.0.0", "1.0.0"]
    assert rest["nextCursor"] is None


async def test_a_request_id_comes_back_with_refusals_too(api):
    for method, path in (("GET", "/v1/nothing"), ("PATCH", "/v1/flows"), ("POST", "/v1/events")):
        answer = await api.call(method, path, None, {"x-request-id": "r1"})
        assert answer.status >= 400
        assert answer.headers["x-request-id"] == "r1"


async def test_a_bug_is_told_without_its_text_and_logged_once(api, caplog, monkeypatch):
    async def broken(fn):
        raise RuntimeError("the inside of the daemon")

    monkeypatch.setattr(api.store, "read", broken)
    answer = await api.call("GET", "/v1/flows")
    assert (answer.status, answer.json["code"]) == (500, "INTERNAL")
    assert "inside" not in answer.body.decode()
    assert [r.exc_info is not None for r in caplog.records if r.levelname == "ERROR"] == [True]
    caplog.clear()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_starts_an_execution_and_follows_it(api):
    base = ["curl", "-sS", "--fail-with-body", "--unix-socket", str(api.socket)]
    start = [*base, "-d", json.dumps(RUN), "http://localhost/v1/executions?waitMs=5000"]
    done = await asyncio.to_thread(subprocess.run, start, capture_output=True, check=True)
    made = json.loads(done.stdout)
    follow = [*base, "-N", f"http://localhost/v1/executions/{made['id']}/events?follow=true"]
    done = await asyncio.to_thread(subprocess.run, follow, capture_output=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1]["type"] == "execution.completed"
