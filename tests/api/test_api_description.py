"""The OpenAPI document and the answers are held together: what is described is what comes."""

import json
from functools import partial

import pytest

from flowmonkeyd.api.routes import ROUTES, openapi
from flowmonkeyd.documents.archive import pack_files
from flowmonkeyd.documents.signing import PrivateKey
from flowmonkeyd.jobmodel import Progress
from flowmonkeyd.model import StepError
from tests.api.api_server import SWITCH, served
from tests.jobs.instances import ByHand, Machine, publish

HANDLER = {
    "handler.json": json.dumps({"handler": {"type": "add", "version": "1.2.0"}}).encode(),
    "handler.py": b"def handle(input, ctx):\n    return 1\n",
}
ADD = {"id": "a", "type": "add", "input": {"type": "full"}}
MODELS = {(route.method, route.path): route.response for route in ROUTES}


def refs(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for item in value.values():
            yield from refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from refs(item)


def test_every_reference_in_the_description_leads_somewhere():
    document = openapi()
    schemas = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(refs(document)) <= schemas
    assert document["openapi"] == "3.1.0"


def test_every_body_and_answer_is_described():
    plain = {"/v1/openapi.json", "/metrics", "/v1/jobs/{id}/checkpoint"}
    assert [r.path for r in ROUTES if r.response is None and r.path not in plain] == []
    document = openapi()
    for route in ROUTES:
        way = document["paths"][route.path.replace(":path}", "}")][route.method.lower()]
        assert way["summary"] == route.summary
        assert ("requestBody" in way) is (route.request is not None)
        in_query = {p["name"] for p in way["parameters"] if p["in"] == "query"}
        assert in_query == set(route.query)


@pytest.fixture
async def api(tmp_path):
    instances = {}
    async with served(tmp_path, jobs=partial(ByHand, instances=instances)) as api:
        api.instances = instances
        yield api


async def test_every_route_answers_in_the_shape_it_is_described_with(api):
    """The models refuse unknown fields and want all they name, so neither side can drift."""
    seen = set()

    async def check(method, path, body=None, route=None, headers=None):
        answer = await api.call(method, path, body, headers)
        assert answer.status in (200, 201, 202), (method, path, answer.body)
        model = MODELS[method, route or path.partition("?")[0]]
        if model is not None:
            model.model_validate(answer.json)
        seen.add((method, route or path.partition("?")[0]))
        return answer

    await check("PUT", "/v1/flows", SWITCH)
    await check(
        "PUT", "/v1/handlers", pack_files(HANDLER), headers={"content-type": "application/zip"}
    )
    made = (await check("POST", "/v1/executions", {"flow": "pick", "context": {"n": 1}})).json
    large = {"flow": "pick", "context": {"n": 1, "large": "x" * 100_000}}
    await check("POST", "/v1/executions:batch", [large, {"flow": "pick", "context": {"n": 9}}])
    await check("POST", "/v1/executions:batch?view=ids", [large])
    listed = (await check("GET", "/v1/executions")).json["items"]
    assert [item.get("contextPartial", False) for item in listed] == [True, False, True, False]
    one = "/v1/executions/{id}"
    path = f"/v1/executions/{made['id']}"
    await check("GET", path, route=one)
    for part in ("history", "logs", "events"):
        await check("GET", f"{path}/{part}", route=f"{one}/{part}")
    await check("POST", f"{path}/cancel", {}, route=f"{one}/cancel")
    again = await check("POST", f"{path}/retry", {}, route=f"{one}/retry")
    while again.json["status"] != "waiting":
        again = await check("GET", path, route=one)
    await check("POST", f"{path}/resume", {"data": {"k": 1}}, route=f"{one}/resume")
    done = await check("GET", f"{path}/history", route=f"{one}/history")
    assert done.json["items"]
    await check("POST", "/v1/events", {"name": "go", "data": {"k": 1}})
    for path in ("/v1/events", "/v1/flows", "/v1/handlers", "/v1/queue", "/v1/pools", "/v1/health",
                 "/v1/billing", "/v1/version", "/v1/openapi.json", "/metrics"):  # fmt: skip
        await check("GET", path)
    await check("GET", "/v1/flows/pick", route="/v1/flows/{id}")
    await check("GET", "/v1/flows/pick/1.0.0", route="/v1/flows/{id}/{version}")
    named = "/v1/handlers/{name:path}"
    await check("GET", "/v1/handlers/add/1.2.0", route=named)
    await check("GET", "/v1/terms/add/1.2.0", route="/v1/terms/{name:path}")
    await check("GET", "/v1/terms/add", route="/v1/terms/{name:path}")
    old = {"message": "use 2.0.0"}
    await check("POST", "/v1/handlers/add/1.2.0/deprecate", old, route=f"{named}/deprecate")
    flow = {"id": "f", "version": "1.0.0", "initialStepId": "a", "steps": {"a": ADD}}
    await check("PUT", "/v1/flows", flow)
    warned = await check("POST", "/v1/executions", {"flow": "f"})
    assert warned.json["warnings"] == [
        {"path": "$.steps.a.type", "message": "add@1.2.0 is deprecated: use 2.0.0"}
    ]
    await check("POST", "/v1/handlers/add/1.2.0/yank", route=f"{named}/yank")
    key = (await check("PUT", "/v1/keys", {"key": PrivateKey.new().public.line("acme")})).json
    await check("GET", "/v1/keys")
    await check("POST", f"/v1/keys/{key['id']}/revoke", {}, route="/v1/keys/{id}/revoke")
    await check("PUT", "/v1/namespaces/acme", {"publisher": "acme"}, route="/v1/namespaces/{name}")
    assert (await check("GET", "/v1/namespaces")).json["items"]
    secret = "/v1/secrets/{name}"
    await check("PUT", "/v1/secrets/key?tenant=a", {"value": "s3cr3t"}, route=secret)
    assert (await check("GET", "/v1/secrets")).json["items"]
    await check("POST", "/v1/secrets:rotateKey")
    await check("DELETE", "/v1/secrets/key?tenant=a", route=secret)
    await described_jobs(api, check)
    await check("GET", "/v1/images/node20/log", route="/v1/images/{name}/log")
    await check("POST", "/v1/images:build", {"name": "node20"})  # nobody builds it here
    await check("POST", "/v1/images:prune")
    assert (await check("GET", "/v1/images")).json["items"]
    assert seen == set(MODELS)


async def described_jobs(api, check):
    """A job in every state that shows something else."""
    await publish(api, "film")
    flow = {"id": "film", "version": "1.0.0", "initialStepId": "s"}
    film = {"id": "s", "type": "film", "input": {"type": "full"}}
    await check("PUT", "/v1/flows", {**flow, "steps": {"s": film}})
    await check("POST", "/v1/executions", {"flow": "film"})
    machine = Machine(api)
    instance = await machine.start()
    await instance.beat(Progress(50, "half", 1000))
    await instance.save(b"{}")
    one = "/v1/jobs/{id}"
    path = f"/v1/jobs/{instance.job.id}"
    for part in ("", "/checkpoints", "/checkpoint"):
        await check("GET", path + part, route=one + part)
    api.instances[instance.job.id] = instance
    paused = await check("POST", f"{path}/pause", {"reason": "lunch"}, route=f"{one}/pause")
    assert paused.json["pause"]["byHand"]
    await check("POST", f"{path}/resume", {}, route=f"{one}/resume")
    instance = await machine.start()
    await api.engine.lose_instance(instance.fence, None, StepError("JOB_LOST", "gone"))
    assert (await check("GET", path, route=one)).json["error"]["code"] == "JOB_LOST"
    await check("POST", f"{path}/cancel", {}, route=f"{one}/cancel")
    assert (await check("GET", "/v1/jobs")).json["items"]
