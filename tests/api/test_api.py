"""The HTTP API: every route's good answer, every kind of bad input, streams, and who asks."""

import asyncio
import json
import os
import shutil
import socket
import subprocess

import pytest

from flowmonkeyd.api.routes import ROUTES, openapi
from flowmonkeyd.documents.archive import pack_files
from tests.api.api_server import SWITCH, Connection, served

JSON = {"content-type": "application/json"}
ZIP = {"content-type": "application/zip"}
HANDLER = {
    "handler.json": json.dumps({"handler": {"type": "acme/add", "version": "1.2.0"}}).encode(),
    "handler.py": b"def handle(input, ctx):\n    return 1\n",
}


@pytest.fixture
async def api(tmp_path):
    async with served(tmp_path) as api:
        yield api


async def started(api, n, **more):
    await api.call("PUT", "/v1/flows", SWITCH)
    body = {"flow": "pick", "context": {"n": n}, **more}
    return await api.call(
        "POST", "/v1/executions?waitMs=5000" if n != 1 else "/v1/executions", body
    )


async def waiting(api):
    """An execution that waits for the event `go`."""
    created = (await started(api, 1)).json
    path = f"/v1/executions/{created['id']}"
    while created["status"] != "waiting":  # on a busy machine it does not get there in one commit
        created = (await api.call("GET", path)).json
    return created


# --- what a good request gets ------------------------------------------------------------------


async def test_a_flow_is_applied_once_and_never_changes(api):
    first = await api.call("PUT", "/v1/flows", SWITCH)
    again = await api.call("PUT", "/v1/flows", json.dumps(SWITCH, indent=3, sort_keys=True))
    other = await api.call("PUT", "/v1/flows", {**SWITCH, "name": "changed"})
    assert (first.status, again.status, other.status) == (201, 200, 409)
    assert first.json["created"] is True
    assert again.json["digest"] == first.json["digest"]
    assert other.json["code"] == "CONFLICT"
    listed = await api.call("GET", "/v1/flows")
    assert [(f["id"], f["version"], f["stepCount"]) for f in listed.json["items"]] == [
        ("pick", "1.0.0", 2)
    ]
    shown = await api.call("GET", "/v1/flows/pick/1.0.0")
    assert shown.json["document"] == SWITCH


async def test_a_flow_may_be_yaml(api):
    text = "id: y\nversion: 1.0.0\ninitialStepId: a\nsteps:\n"
    text += "  a: {id: a, type: delay, config: {ms: 1}}"
    answer = await api.call("PUT", "/v1/flows", text, {"content-type": "application/yaml"})
    assert answer.status == 201


async def test_the_newest_version_is_newest_by_semver(api):
    for version in ("9.0.0", "10.0.0", "2.0.0"):
        await api.call("PUT", "/v1/flows", {**SWITCH, "version": version})
    assert (await api.call("GET", "/v1/flows/pick")).json["version"] == "10.0.0"


async def test_an_execution_runs_and_is_shown_as_the_contract_says(api):
    answer = await started(api, 7, tenantId="t", priority="high", metadata={"m": 1})
    assert answer.status == 201
    shown = answer.json
    assert answer.headers["location"] == f"/v1/executions/{shown['id']}"
    assert shown.pop("createdAt").endswith("Z")
    fixed = {
        "flowId": "pick",
        "flowVersion": "1.0.0",
        "status": "completed",
        "currentStepId": "a",
        "context": {"n": 7},
        "stepCount": 1,
        "tenantId": "t",
        "priority": "high",
        "error": None,
        "cancellation": None,
        "wakeAt": None,
        "waitReason": None,
        "resumeToken": None,
        "parentExecutionId": None,
        "idempotencyKey": None,
        "metadata": {"m": 1},
    }
    assert {key: shown[key] for key in fixed} == fixed
    assert set(shown) == {*fixed, "id", "startedAt", "updatedAt", "finishedAt"}
    history = await api.call("GET", f"/v1/executions/{shown['id']}/history")
    (entry,) = history.json["items"]
    assert set(entry) == {
        "seq", "stepId", "handler", "attempt", "outcome", "output", "error", "startedAt",
        "completedAt", "durationMs", "queuedMs", "workerId", "usage", "billing",
    }  # fmt: skip
    assert entry["handler"] == {"type": "switch", "version": "1.0.0"}


async def test_an_idempotency_key_gives_the_first_execution_again(api):
    first = await started(api, 7, idempotencyKey="k")
    second = await started(api, 7, idempotencyKey="k")
    assert (first.status, second.status) == (201, 200)
    assert first.json["id"] == second.json["id"]


async def test_a_batch_is_all_or_nothing(api):
    await api.call("PUT", "/v1/flows", SWITCH)
    good = {"flow": "pick", "context": {"n": 3}}
    refused = await api.call("POST", "/v1/executions:batch", [good, {"flow": "nope"}])
    assert (refused.status, refused.json["code"]) == (404, "FLOW_NOT_FOUND")
    assert "(item 1)" in refused.json["detail"]
    assert (await api.call("GET", "/v1/executions")).json["items"] == []
    made = await api.call("POST", "/v1/executions:batch?view=ids", [good] * 3)
    assert made.status == 201
    listed = (await api.call("GET", "/v1/executions")).json["items"]
    assert {e["id"] for e in listed} == {e["id"] for e in made.json["items"]}


async def test_lists_are_paged_newest_first_and_filtered(api):
    await api.call("PUT", "/v1/flows", SWITCH)
    bodies = [{"flow": "pick", "context": {"n": n}, "tenantId": f"t{n % 2}"} for n in range(5)]
    made = (await api.call("POST", "/v1/executions:batch", bodies)).json["items"]
    ids, path = [], "/v1/executions?limit=2"
    cursor = ""
    while True:
        page = (await api.call("GET", path + cursor)).json
        ids += [e["id"] for e in page["items"]]
        if page["nextCursor"] is None:
            break
        cursor = f"&cursor={page['nextCursor']}"
    assert ids == [e["id"] for e in reversed(made)]
    odd = (await api.call("GET", "/v1/executions?tenant=t1&flow=pick@1.0.0")).json["items"]
    assert {e["tenantId"] for e in odd} == {"t1"}
    assert len(odd) == 2
    none = await api.call("GET", "/v1/executions?flow=other&since=2020-01-01T00:00:00Z")
    assert none.json["items"] == []


async def test_an_event_wakes_what_waits_for_it(api):
    execution = await waiting(api)
    assert execution["resumeToken"]
    missed = await api.call("POST", "/v1/events", {"name": "go", "data": {"k": 2}})
    hit = await api.call("POST", "/v1/events", {"name": "go", "data": {"k": 1, "x": "y"}})
    assert (missed.json["woken"], hit.json["woken"]) == (0, 1)
    assert hit.json["executionIds"] == [execution["id"]]
    shown = (await api.call("GET", f"/v1/executions/{execution['id']}?waitMs=5000")).json
    assert shown["status"] == "completed"
    assert shown["context"] == {"n": 1, "k": 1, "x": "y", "resumeData": {"k": 1, "x": "y"}}


async def test_a_resume_token_works_once(api):
    execution = await waiting(api)
    path = f"/v1/executions/{execution['id']}/resume"
    wrong = await api.call("POST", path, {"token": "x"})
    assert (wrong.status, wrong.json["code"]) == (422, "INVALID_TOKEN")
    body = {"token": execution["resumeToken"], "data": {"ok": True}}
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(api.call("POST", path, body)) for _ in range(5)]
    assert sorted(call.result().status for call in calls) == [200, 422, 422, 422, 422]


async def test_cancel_and_retry(api):
    execution = await waiting(api)
    path = f"/v1/executions/{execution['id']}"
    cancelled = await api.call("POST", f"{path}/cancel", {"reason": "no more"})
    assert cancelled.json["status"] == "cancelled"
    assert cancelled.json["cancellation"]["reason"] == "no more"
    again = await api.call("POST", f"{path}/cancel")
    assert (again.status, again.json["code"]) == (409, "EXECUTION_ENDED")
    retried = await api.call("POST", f"{path}/retry", {"fromStepId": "a"})
    assert retried.json["status"] == "running"
    unknown = await api.call("POST", f"{path}/retry", {"fromStepId": "zz"})
    assert unknown.status in (404, 409)


async def test_handlers_are_published_listed_and_yanked(api):
    package = pack_files(HANDLER)
    first = await api.call("PUT", "/v1/handlers", package, ZIP)
    again = await api.call("PUT", "/v1/handlers", package, ZIP)
    changed = pack_files({**HANDLER, "handler.py": b"def handle(input, ctx):\n    return 2\n"})
    other = await api.call("PUT", "/v1/handlers", changed, ZIP)
    assert (first.status, again.status, other.status) == (201, 200, 409)
    for path in ("/v1/handlers/acme%2Fadd/1.2.0", "/v1/handlers/acme/add/1.2.0"):
        assert (await api.call("GET", path)).json["digest"] == first.json["digest"]
    versions = await api.call("GET", "/v1/handlers/acme%2Fadd")
    assert [v["version"] for v in versions.json["items"]] == ["1.2.0"]
    yanked = await api.call("POST", "/v1/handlers/acme%2Fadd/1.2.0/yank")
    assert yanked.json["yankedAt"]
    assert (await api.call("POST", "/v1/handlers/acme%2Fadd/9.9.9/yank")).status == 404


async def test_the_queue_shows_depth_by_handler_and_priority(api):
    await api.call("PUT", "/v1/handlers", pack_files(HANDLER), ZIP)
    flow = {
        "id": "q",
        "version": "1.0.0",
        "initialStepId": "a",
        "steps": {"a": {"id": "a", "type": "acme/add", "input": {"type": "full"}}},
    }
    await api.call("PUT", "/v1/flows", flow)
    bodies = [{"flow": "q", "priority": p} for p in ("low", "high", "high")]
    await api.call("POST", "/v1/executions:batch", bodies)  # nobody claims them here
    queue = (await api.call("GET", "/v1/queue")).json
    assert [(i["handlerType"], i["priority"], i["queued"]) for i in queue["items"]] == [
        ("acme/add", "high", 2),
        ("acme/add", "low", 1),
    ]
    assert queue["totals"] == {"queued": 3, "leased": 0}


# --- what a bad request gets -------------------------------------------------------------------

DEEP = b'{"flow": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"

BAD = [
    ("GET", "/v1/nothing", None, {}, 404, "NOT_FOUND"),
    ("GET", "/v1/executions/unknown", None, {}, 404, "NOT_FOUND"),
    ("GET", "/v1/executions/unknown/history", None, {}, 404, "NOT_FOUND"),
    ("GET", "/v1/executions/unknown/logs?follow=true", None, {}, 404, "NOT_FOUND"),
    ("POST", "/v1/executions/unknown/cancel", b"", {}, 404, "NOT_FOUND"),
    ("GET", "/v1/flows/unknown", None, {}, 404, "FLOW_NOT_FOUND"),
    ("GET", "/v1/flows/unknown/1.0.0", None, {}, 404, "FLOW_NOT_FOUND"),
    ("GET", "/v1/handlers/unknown", None, {}, 404, "HANDLER_NOT_FOUND"),
    ("DELETE", "/v1/executions", None, {}, 405, "INVALID"),
    ("PATCH", "/v1/flows", b"{}", JSON, 405, "INVALID"),
    ("POST", "/v1/health", b"{}", JSON, 405, "INVALID"),
    ("POST", "/v1/executions", b"", JSON, 400, "INVALID"),
    ("POST", "/v1/executions", b"{", JSON, 400, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": "\xff"}', JSON, 400, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": NaN}', JSON, 400, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": "\\ud800"}', JSON, 400, "INVALID"),
    ("POST", "/v1/executions", DEEP, JSON, 400, "INVALID"),
    ("POST", "/v1/executions", b"{}", {"content-type": "text/csv"}, 415, "INVALID"),
    ("POST", "/v1/executions", b"[]", JSON, 422, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": 7}', JSON, 422, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": "x", "contxt": {}}', JSON, 422, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": "x", "priority": "urgent"}', JSON, 422, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": "x", "context": []}', JSON, 422, "INVALID"),
    ("POST", "/v1/executions", b'{"flow": "nope"}', JSON, 404, "FLOW_NOT_FOUND"),
    ("POST", "/v1/executions?waitMs=-1", b'{"flow": "x"}', JSON, 422, "INVALID"),
    ("POST", "/v1/executions?waitMs=x", b'{"flow": "x"}', JSON, 422, "INVALID"),
    ("POST", "/v1/executions", b" " * 2_000_001, JSON, 413, "TOO_LARGE"),
    ("PUT", "/v1/flows", b'"text"', JSON, 422, "INVALID"),
    ("PUT", "/v1/flows", b"{}", JSON, 422, "INVALID"),
    ("PUT", "/v1/flows", b"a: b: c", {"content-type": "application/yaml"}, 422, "INVALID"),
    ("PUT", "/v1/handlers", b"PK\x03\x04 not a zip", ZIP, 422, "INVALID"),
    ("PUT", "/v1/handlers", b"{}", JSON, 415, "INVALID"),
    ("POST", "/v1/events", b'{"data": 1}', JSON, 422, "INVALID"),
    ("GET", "/v1/executions?limit=0", None, {}, 422, "INVALID"),
    ("GET", "/v1/executions?limit=501", None, {}, 422, "INVALID"),
    ("GET", "/v1/executions?limit=x", None, {}, 422, "INVALID"),
    ("GET", "/v1/executions?cursor=garbage", None, {}, 422, "INVALID"),
    ("GET", "/v1/executions?status=done", None, {}, 422, "INVALID"),
    ("GET", "/v1/executions?since=yesterday", None, {}, 422, "INVALID"),
    ("GET", "/v1/events?after=-3", None, {}, 422, "INVALID"),
    ("GET", "/v1/events?follow=maybe", None, {}, 422, "INVALID"),
]


async def test_bad_input_gets_a_problem_that_names_it_and_changes_nothing(api):
    wrong = []
    for method, path, body, headers, status, code in BAD:
        answer = await api.call(method, path, body, headers)
        kind = answer.headers.get("content-type")
        if (answer.status, kind) != (status, "application/problem+json"):
            wrong.append((method, path, str(body)[:40], answer.status, answer.body[:200]))
            continue
        shown = answer.json
        if (shown["code"], shown["status"]) != (code, status) or not shown["detail"]:
            wrong.append((method, path, str(body)[:40], shown))
    assert wrong == []
    for path in ("/v1/flows", "/v1/handlers", "/v1/executions"):
        assert (await api.call("GET", path)).json["items"] == []


async def test_every_problem_of_a_request_is_named_with_its_path(api):
    body = {"flow": "", "context": 3, "timeouts": {"waitMs": 0}, "x": 1}
    answer = await api.call("POST", "/v1/executions", body)
    assert {e["path"] for e in answer.json["errors"]} == {
        "$.flow",
        "$.context",
        "$.timeouts.waitMs",
        "$.x",
    }


async def test_a_wrong_method_says_which_are_right(api):
    answer = await api.call("DELETE", "/v1/flows")
    assert {m.strip() for m in answer.headers["allow"].split(",")} == {"GET", "PUT"}


async def test_a_body_without_a_length_is_bounded_too(api):
    def send():
        connection = Connection(api.socket)
        try:
            chunks = (b" " * 100_000 for _ in range(200))
            connection.request("POST", "/v1/executions", chunks, JSON, encode_chunked=True)
            return connection.getresponse().status
        except (BrokenPipeError, ConnectionResetError):
            return 413  # refused and closed before all was sent
        finally:
            connection.close()

    assert await asyncio.to_thread(send) == 413


async def test_a_client_that_goes_away_changes_nothing(api):
    def vanish():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(api.socket))
            head = b"PUT /v1/flows HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            sock.sendall(head + b"content-length: 1000\r\n\r\n" + json.dumps(SWITCH).encode())

    await asyncio.to_thread(vanish)
    assert (await api.call("GET", "/v1/flows")).json["items"] == []


async def test_a_request_id_comes_back(api):
    answer = await api.call("GET", "/v1/version", None, {"x-request-id": "abc"})
    assert answer.headers["x-request-id"] == "abc"


async def test_the_uid_of_who_asks_is_in_the_audit_log(api):
    await api.call("PUT", "/v1/flows", SWITCH)
    events = (await api.call("GET", "/v1/events?limit=500")).json["items"]
    applied = [e for e in events if e["type"] == "flow.applied"]
    assert [e["data"]["by"] for e in applied] == [f"uid:{os.geteuid()}"]


# --- streams -----------------------------------------------------------------------------------


async def test_a_stream_of_an_execution_ends_with_it_and_resumes_after_a_seq(api):
    execution = await waiting(api)
    path = f"/v1/executions/{execution['id']}/events?follow=true"

    async def follow(after):
        answer = await api.call("GET", f"{path}&after={after}")
        return [json.loads(line) for line in answer.body.splitlines() if line]

    async with asyncio.TaskGroup() as group:
        following = group.create_task(follow(0))
        await api.call("POST", "/v1/events", {"name": "go", "data": {"k": 1}})
    events = following.result()
    assert events[0]["type"] == "execution.created"
    assert events[-1]["type"] == "execution.completed"
    assert [e["seq"] for e in events] == sorted({e["seq"] for e in events})
    middle = events[3]["seq"]
    assert await follow(middle) == events[4:]


async def test_a_reader_that_leaves_a_stream_frees_it(api):
    def open_and_leave():
        connection = Connection(api.socket)
        connection.request("GET", "/v1/events?follow=true&after=0")
        response = connection.getresponse()
        assert response.readline()
        connection.close()

    await asyncio.to_thread(open_and_leave)
    await api.call("PUT", "/v1/flows", SWITCH)  # wakes the follower, who finds nobody there
    assert (await api.call("GET", "/v1/health")).status == 200


# --- the description ---------------------------------------------------------------------------


async def test_the_openapi_document_describes_every_route(api):
    document = (await api.call("GET", "/v1/openapi.json")).json
    described = {
        (method.upper(), path) for path, ways in document["paths"].items() for method in ways
    }
    assert described == {(r.method, r.path.replace(":path}", "}")) for r in ROUTES}
    names = {way["operationId"] for ways in document["paths"].values() for way in ways.values()}
    assert len(names) == len(ROUTES)


async def test_answers_have_the_shape_the_document_promises(api):
    schemas = openapi()["components"]["schemas"]
    execution = (await started(api, 7)).json
    assert set(execution) == set(schemas["ExecutionShape"]["properties"])
    flow = (await api.call("GET", "/v1/flows")).json["items"][0]
    assert set(flow) == set(schemas["FlowShape"]["properties"])
    await api.call("PUT", "/v1/handlers", pack_files(HANDLER), ZIP)
    handler = (await api.call("GET", "/v1/handlers")).json["items"][0]
    assert set(handler) == set(schemas["HandlerShape"]["properties"])
    health = (await api.call("GET", "/v1/health")).json
    assert set(health) == set(schemas["HealthShape"]["properties"])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_can_speak_to_it(api):
    command = ["curl", "-sS", "--unix-socket", str(api.socket), "http://localhost/v1/version"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=True)
    assert json.loads(done.stdout)["apiVersions"] == ["v1"]
