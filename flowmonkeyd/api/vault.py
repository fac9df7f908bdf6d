"""Secrets: keep, forget, list what there is, a new key. No answer and no error has a value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictStr, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd.api import wire
from flowmonkeyd.api.requests import (
    Api,
    answer,
    bounded,
    cursor,
    decode,
    operators_only,
    page_of,
    peer,
    read_json,
)
from flowmonkeyd.errors import Invalid, Problem, Unavailable
from flowmonkeyd.model import DEFAULT_TENANT
from flowmonkeyd.vault import NAME, VALUE_BYTES_MAX, Kept, Vault, value_of

__all__ = [
    "RemovedShape",
    "RotatedShape",
    "SecretBody",
    "SecretShape",
    "list_secrets",
    "put_secret",
    "remove_secret",
    "rotate_key",
]

TENANT_CHARS_MAX = 256


class SecretBody(wire.Body):
    """`encoding` base64: the value is bytes, and so is what a handler gets: their base64."""

    value: Annotated[StrictStr, Field(max_length=2 * VALUE_BYTES_MAX, repr=False)]
    encoding: Literal["text", "base64"] = "text"


class SecretShape(wire.Shape):
    """All that is ever told of a secret."""

    name: str
    tenantId: str
    version: int
    encoding: Literal["text", "base64"]
    createdAt: str
    updatedAt: str


class RemovedShape(wire.Shape):
    name: str
    tenantId: str


class RotatedShape(wire.Shape):
    keyId: str
    secrets: int


_SECRET = TypeAdapter(SecretBody)


async def put_secret(api: Api, request: Request) -> Response:
    """Keep a value: 201 for a new name, 200 for a new value."""
    tenant, name = _tenant(request), request.path_params["name"]
    if not NAME.fullmatch(name):
        why = "has 1 to 128 letters, digits, `_`, `-` and dots, and begins with no `-` or dot"
        problem = Problem("$.name", f"{name[:200]!r}: a secret's name {why}")
        raise Invalid(f"cannot keep the secret: its name {why}", problems=(problem,))
    body = decode(_SECRET, await read_json(request, api))
    value = value_of(name, body.value, body.encoding == "base64")
    kept, is_new = await _vault(api).put(tenant, name, value, peer(request))
    return answer(_shown(kept), 201 if is_new else 200)


async def remove_secret(api: Api, request: Request) -> Response:
    """Forget a value."""
    tenant, name = _tenant(request), request.path_params["name"]
    await _vault(api).remove(tenant, name, peer(request))
    return answer({"name": name, "tenantId": tenant})


async def list_secrets(api: Api, request: Request) -> Response:
    """Names and dates, by tenant and name; of one tenant when it is named."""
    limit, start = bounded(request), page_of(request) or 0
    tenant = request.query_params.get("tenant")
    found = await _vault(api).listed(tenant, start, limit + 1)
    more = cursor(start + limit) if len(found) > limit else None
    return answer({"items": [_shown(one) for one in found[:limit]], "nextCursor": more})


async def rotate_key(api: Api, request: Request) -> Response:
    """A new key, and everything sealed anew under it."""
    operators_only(request, "make a new key")
    key_id, count = await _vault(api).rotate(peer(request))
    return answer({"keyId": key_id, "secrets": count})


def _vault(api: Api) -> Vault:
    if api.vault is None:
        raise Unavailable("cannot keep secrets: there is no vault")
    return api.vault


def _tenant(request: Request) -> str:
    tenant = request.query_params.get("tenant", DEFAULT_TENANT)
    if 1 <= len(tenant) <= TENANT_CHARS_MAX:
        return tenant
    message = f"must have 1 to {TENANT_CHARS_MAX} characters"
    problem = Problem("?tenant", message)
    raise Invalid(f"cannot take the request: tenant {message}", problems=(problem,))


def _shown(kept: Kept) -> dict[str, Any]:
    return {
        "name": kept.name,
        "tenantId": kept.tenant,
        "version": kept.version,
        "encoding": "base64" if kept.is_binary else "text",
        "createdAt": wire.rfc3339(kept.created_at_ms),
        "updatedAt": wire.rfc3339(kept.updated_at_ms),
    }
