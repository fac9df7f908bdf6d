"""The API as one table: method, path, function, request and response model, summary.

The routes and the OpenAPI document are made from it, so what is served and what is described cannot
differ.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd import __version__
from flowmonkeyd.api import (
    billing,
    catalog,
    checkpoints,
    executions,
    images,
    jobs,
    operations,
    pools,
    publishers,
    vault,
    wire,
)
from flowmonkeyd.api.requests import Api, answer

__all__ = ["ROUTES", "Route", "openapi"]

Function = Callable[[Api, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """`path` is as Starlette reads it; `{name:path}` takes slashes."""

    method: str
    path: str
    function: Function
    summary: str
    request: type[BaseModel] | str | None = None
    response: type[BaseModel] | None = None
    query: tuple[str, ...] = ()


async def _describe(api: Api, request: Request) -> Response:
    """This description."""
    return answer(openapi())


PAGE = ("limit", "cursor")
STREAM = ("after", "follow", *PAGE)
E = wire.ExecutionShape
H = wire.HandlerShape
J = jobs.JobShape

ROUTES: tuple[Route, ...] = (
    Route("POST", "/v1/executions", executions.create, "Start an execution",
          wire.ExecutionBody, wire.CreatedShape, ("waitMs",)),
    Route("GET", "/v1/executions/{id}", executions.show, "Show an execution", None, E,
          ("waitMs",)),
    Route("POST", "/v1/executions:batch", executions.create_batch,
          "Start many executions, all or none", "list of ExecutionBody", wire.BatchShape,
          ("view",)),
    Route("GET", "/v1/executions", executions.list_executions, "List executions, newest first",
          None, wire.Page[wire.ListedShape],
          ("status", "flow", "tenant", "since", "parent", *PAGE)),
    Route("GET", "/v1/executions/{id}/history", executions.history_of, "Finished attempts",
          None, wire.Page[wire.HistoryShape], PAGE),
    Route("GET", "/v1/executions/{id}/logs", executions.logs, "Log lines", None,
          wire.Page[wire.LogShape], STREAM),
    Route("GET", "/v1/executions/{id}/events", executions.execution_events,
          "Events of an execution", None, wire.Page[wire.EventShape], STREAM),
    Route("POST", "/v1/executions/{id}/cancel", executions.cancel,
          "Cancel an execution and its children", wire.CancelBody, E),
    Route("POST", "/v1/executions/{id}/resume", executions.resume, "End an execution's wait",
          wire.ResumeBody, E),
    Route("POST", "/v1/executions/{id}/retry", executions.retry,
          "Run a failed or cancelled execution on", wire.RetryBody, E),
    Route("POST", "/v1/events", executions.send_event, "Wake what waits for an event",
          wire.EventBody, wire.SentShape),
    Route("GET", "/v1/events", executions.events, "Everything that happens, in order", None,
          wire.Page[wire.EventShape], STREAM),
    Route("PUT", "/v1/flows", catalog.apply_flow, "Apply a flow document", "a flow document",
          wire.FlowAppliedShape),
    Route("GET", "/v1/flows", catalog.list_flows, "List flow versions", None,
          wire.Page[wire.FlowShape], PAGE),
    Route("GET", "/v1/flows/{id}", catalog.show_flow, "Show the newest version of a flow", None,
          wire.FlowShownShape),
    Route("GET", "/v1/flows/{id}/{version}", catalog.show_flow, "Show a flow version", None,
          wire.FlowShownShape),
    Route("PUT", "/v1/handlers", catalog.publish, "Publish a handler package",
          "a package (application/zip)", wire.PublishedShape),
    Route("GET", "/v1/handlers", catalog.list_handlers, "List handler versions", None,
          wire.Page[H], PAGE),
    Route("POST", "/v1/handlers/{name:path}/yank", catalog.yank, "Yank a handler version", None,
          H),
    Route("POST", "/v1/handlers/{name:path}/deprecate", catalog.deprecate,
          "Say something against a handler version", publishers.DeprecateBody, H),
    Route("GET", "/v1/handlers/{name:path}", catalog.show_handler,
          "Show a handler version (type/version), or a page of all versions (type)", None,
          publishers.HandlerShownShape, PAGE),
    Route("PUT", "/v1/keys", publishers.trust_key, "Trust a publisher's key",
          publishers.KeyBody, publishers.KeyShape),
    Route("GET", "/v1/keys", publishers.list_keys, "List the keys that are or were trusted", None,
          wire.Page[publishers.KeyShape], PAGE),
    Route("POST", "/v1/keys/{id}/revoke", publishers.revoke_key, "Trust a key no more",
          publishers.RevokeBody, publishers.KeyShape),
    Route("GET", "/v1/namespaces", publishers.list_namespaces,
          "List whose the namespaces of handler types are", None,
          wire.Page[publishers.NamespaceShape], PAGE),
    Route("PUT", "/v1/namespaces/{name}", publishers.give_namespace,
          "Hand a namespace over", publishers.GiveBody, publishers.GivenShape),
    Route("GET", "/v1/billing", billing.show, "What was billed, by group", None,
          billing.BillingShape, ("tenant", "since", "until", "groupBy")),
    Route("GET", "/v1/jobs", jobs.list_jobs, "List jobs, newest first", None, wire.Page[J],
          ("status", "flow", "tenant", "execution", *PAGE)),
    Route("GET", "/v1/jobs/{id}", jobs.show_job, "Show a job", None, J),
    Route("POST", "/v1/jobs/{id}/pause", jobs.pause_job, "Freeze a running job",
          jobs.PauseBody, J),
    Route("POST", "/v1/jobs/{id}/resume", jobs.resume_job, "End a job's pause",
          jobs.JobResumeBody, J),
    Route("POST", "/v1/jobs/{id}/cancel", jobs.cancel_job, "Cancel a job's execution",
          wire.CancelBody, J),
    Route("GET", "/v1/jobs/{id}/checkpoints", checkpoints.list_checkpoints,
          "List what a job keeps", None, wire.Page[jobs.CheckpointShape]),
    Route("GET", "/v1/jobs/{id}/checkpoint", checkpoints.download,
          "Download a checkpoint: JSON, or bytes", None, None, ("name",)),
    Route("PUT", "/v1/secrets/{name}", vault.put_secret, "Keep a secret", vault.SecretBody,
          vault.SecretShape, ("tenant",)),
    Route("DELETE", "/v1/secrets/{name}", vault.remove_secret, "Forget a secret", None,
          vault.RemovedShape, ("tenant",)),
    Route("GET", "/v1/secrets", vault.list_secrets, "List secrets: names and dates", None,
          wire.Page[vault.SecretShape], ("tenant", *PAGE)),
    Route("POST", "/v1/secrets:rotateKey", vault.rotate_key,
          "Make a new key and seal every secret anew", None, vault.RotatedShape),
    Route("GET", "/v1/queue", operations.queue, "Depth of the queue", None, wire.QueueShape),
    Route("GET", "/v1/pools", pools.pools, "What runs handlers", None, pools.PoolsShape),
    Route("GET", "/v1/images", images.list_images, "List images of stateful handlers", None,
          wire.Page[images.ImageShape]),
    Route("GET", "/v1/images/{name}/log", images.log_of, "What an image's build prints", None,
          images.LineShape),
    Route("POST", "/v1/images:build", images.build, "Have images built", images.BuildBody,
          wire.Page[images.NamedShape]),
    Route("POST", "/v1/images:prune", images.prune, "Remove images that nothing uses", None,
          images.PrunedShape),
    Route("GET", "/v1/terms/{name:path}", pools.terms,
          "What a handler (type/version, or type) may do here", None, pools.TermsShape),
    Route("GET", "/v1/health", operations.health, "Whether the daemon is ready", None,
          wire.HealthShape),
    Route("GET", "/v1/version", operations.version, "Versions of the daemon and its API", None,
          wire.VersionShape),
    Route("GET", "/v1/openapi.json", _describe, "This description"),
    Route("GET", "/metrics", operations.metrics, "Prometheus text"),
)  # fmt: skip


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document of the table."""
    models: set[type[BaseModel]] = {wire.ProblemShape, wire.ExecutionBody}
    for route in ROUTES:
        models |= {m for m in (route.request, route.response) if isinstance(m, type)}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema(
        [(model, "validation") for model in ordered], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for route in ROUTES:
        path = route.path.replace(":path}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "FlowMonkey", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas["$defs"]},
    }


def _operation(route: Route) -> dict[str, Any]:
    names = [part[1:-1].removesuffix(":path") for part in route.path.split("/") if part[:1] == "{"]
    text = {"type": "string"}
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{route.function.__name__}_{len(names)}",
        "summary": route.summary,
        "parameters": [
            *({"name": n, "in": "path", "required": True, "schema": text} for n in names),
            *({"name": n, "in": "query", "schema": text} for n in route.query),
        ],
        "responses": {
            "2XX": {"description": "done", **_content(route.response)},
            "default": {
                "description": "refused",
                "content": {"application/problem+json": {"schema": _ref(wire.ProblemShape)}},
            },
        },
    }
    if route.request is not None:
        operation["requestBody"] = _request_body(route.request)
    return operation


def _request_body(request: type[BaseModel] | str) -> dict[str, Any]:
    if isinstance(request, type):
        return {"required": True, **_content(request)}
    if request.startswith("list"):
        items = {"type": "array", "items": _ref(wire.ExecutionBody)}
        return {"required": True, "content": {"application/json": {"schema": items}}}
    kind = "application/zip" if "zip" in request else "application/json"
    schema = {} if kind == "application/zip" else {"type": "object"}
    content = {kind: {"schema": schema}}
    if kind == "application/json":
        content["application/yaml"] = {"schema": schema}
    return {"required": True, "description": request, "content": content}


def _content(model: type[BaseModel] | None) -> dict[str, Any]:
    schema = {"type": "object"} if model is None else _ref(model)
    return {"content": {"application/json": {"schema": schema}}}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    name = re.sub(r"\W", "_", model.__name__)  # as pydantic names `Page[FlowShape]` in schemas
    return {"$ref": f"#/components/schemas/{name}"}
