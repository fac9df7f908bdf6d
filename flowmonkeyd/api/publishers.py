"""Keys and namespaces: trust, revoke, list, hand over; and a handler version shown with all that
decides whether to trust it.

What is shown of a signature is checked again at that moment, against handler.json as it is on disk.
"""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any, Literal

from pydantic import Field, StrictStr, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd import trust
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
from flowmonkeyd.documents.archive import MANIFEST
from flowmonkeyd.documents.manifest import Manifest, parse_manifest
from flowmonkeyd.documents.permissions import in_words, parts_of
from flowmonkeyd.documents.signing import KEY_ID, KEY_NAME, parse_public, parse_signature
from flowmonkeyd.errors import Invalid, NotFound, Problem
from flowmonkeyd.model import Signed
from flowmonkeyd.store import catalog, publishers

__all__ = [
    "DEPRECATE",
    "DeprecateBody",
    "GiveBody",
    "GivenShape",
    "HandlerShownShape",
    "KeyBody",
    "KeyShape",
    "NamespaceShape",
    "PartShape",
    "PartsShape",
    "RevokeBody",
    "SignatureShape",
    "give_namespace",
    "known",
    "list_keys",
    "list_namespaces",
    "revoke_key",
    "shown_handler",
    "trust_key",
]

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9_.\-]{0,199}")

_Words = Annotated[StrictStr, Field(min_length=1, max_length=1000)]
_Publisher = Annotated[StrictStr, Field(pattern=f"^{KEY_NAME.pattern}$")]


class DeprecateBody(wire.Body):
    message: _Words | None


class KeyBody(wire.Body):
    """`key` is the line of a .pub file; `publisher` wins over the name in it."""

    key: Annotated[StrictStr, Field(max_length=256)]
    publisher: _Publisher | None = None


class RevokeBody(wire.Body):
    reason: _Words | None = None


class GiveBody(wire.Body):
    publisher: _Publisher | None


DEPRECATE = TypeAdapter(DeprecateBody)
_KEY, _REVOKE, _GIVE = TypeAdapter(KeyBody), TypeAdapter(RevokeBody), TypeAdapter(GiveBody)


class KeyShape(wire.Shape):
    """`source`: `configuration` (`trust.keys`) or `operator` (`flowctl key trust`)."""

    id: str
    publisher: str
    key: str
    source: Literal["configuration", "operator"]
    trustedAt: str | None
    revokedAt: str | None
    reason: str | None


class NamespaceShape(wire.Shape):
    name: str
    publisher: str
    boundAt: str


class GivenShape(wire.Shape):
    name: str
    publisher: str | None
    before: str | None


class SignatureShape(wire.Shape):
    """What the signature is worth now, and why."""

    status: Literal["trusted", "revoked", "unknown", "invalid", "unsigned"]
    reason: str
    comment: str | None


class PartShape(wire.Shape):
    name: str
    version: str | None
    licenses: list[str]


class PartsShape(wire.Shape):
    """What is in the package, from its SBOM, the file named here."""

    file: str
    components: list[PartShape]


class HandlerShownShape(wire.HandlerShape):
    """`notAllowed`: what `handlers.allow` would refuse of it now."""

    permissions: list[str]
    notAllowed: list[wire.WarningShape]
    signature: SignatureShape
    sbom: PartsShape | None


async def known(api: Api) -> dict[str, trust.TrustedKey]:
    """Every key that is or was trusted, by id."""
    return trust.known_keys(api.settings.trust.keys, await api.engine.store.read(publishers.keys))


async def shown_handler(api: Api, row: catalog.HandlerRow) -> dict[str, Any]:
    """A handler version with its permissions in words, its signature's worth and its parts."""
    manifest = parse_manifest(row.manifest)
    keys = await known(api)
    text, sbom = await asyncio.to_thread(_of_package, api, row.digest, manifest)
    signed, comment = None, None
    if row.signature is not None:
        signed = Signed(row.publisher or "", row.key_id or "", row.signature)
        comment = parse_signature(row.signature.encode()).comment
    status, reason = trust.standing(signed, text, keys)
    refused = trust.not_allowed(manifest, api.settings.handlers.allow)
    return {
        **wire.handler_json(row),
        "permissions": list(in_words(manifest)),
        "notAllowed": wire.problems_json(refused),
        "signature": {"status": status, "reason": reason, "comment": comment},
        "sbom": sbom,
    }


def _of_package(api: Api, digest: str, manifest: Manifest) -> tuple[bytes, dict[str, Any] | None]:
    """handler.json as it is on disk, and the package's parts. What is gone is empty."""
    place = api.packages.path(digest)
    name = manifest.package.sbom if manifest.package else None
    try:
        text = (place / MANIFEST).read_bytes()
        sbom = None
        if name is not None:
            sbom = {"file": name, "components": parts_of((place / name).read_bytes())}
    except OSError:
        return b"", None
    return text, sbom


async def trust_key(api: Api, request: Request) -> Response:
    """Signatures of a key count as a publisher's: 201 new, 200 unchanged, 409 revoked."""
    operators_only(request, "trust a key")
    body = decode(_KEY, await read_json(request, api))
    public, name = parse_public(body.key)
    publisher = body.publisher or name
    if publisher is None:
        why = "it has no name; say whose it is"
        raise Invalid(f"cannot trust the key: {why}", problems=(Problem("$.publisher", why),))
    root = (await known(api)).get(public.id)
    if root is not None and root.is_root and root.publisher != publisher:
        why = f"trust.keys says that it is {root.publisher!r}'s"
        raise Invalid(f"cannot trust the key {public.id} as {publisher!r}'s: {why}")
    created = await api.engine.trust_key(public.id, public.text, publisher, peer(request))
    return answer(await _shown_key(api, public.id), 201 if created else 200)


async def list_keys(api: Api, request: Request) -> Response:
    """All of them: the configuration's and the operator's, with those revoked."""
    found = (await known(api)).values()
    keys = sorted(found, key=lambda key: (key.publisher, key.public.id))
    start = page_of(request) or 0  # from two places and in no table's order: a place in the list
    end = start + bounded(request)
    more = cursor(end) if len(keys) > end else None
    return answer({"items": [_key_json(key) for key in keys[start:end]], "nextCursor": more})


async def revoke_key(api: Api, request: Request) -> Response:
    """Nothing more is published with the key; what was published stays."""
    operators_only(request, "revoke a key")
    key_id = request.path_params["id"]
    body = decode(_REVOKE, await read_json(request, api, empty={}))
    key = (await known(api)).get(key_id) if KEY_ID.fullmatch(key_id) else None
    if key is None:
        raise NotFound(f"no key {key_id[:64]!r}; see `flowctl key list`")
    by = peer(request)
    await api.engine.revoke_key(key_id, key.public.text, key.publisher, body.reason, by)
    return answer(await _shown_key(api, key_id))


async def list_namespaces(api: Api, request: Request) -> Response:
    """Whose the namespaces are, by name."""
    limit, start = bounded(request), page_of(request) or 0
    rows = await api.engine.store.read(lambda c: publishers.namespaces(c, start, limit + 1))
    shown = [
        {"name": row.name, "publisher": row.publisher, "boundAt": wire.rfc3339(row.bound_at_ms)}
        for row in rows[:limit]
    ]
    more = cursor(start + limit) if len(rows) > limit else None
    return answer({"items": shown, "nextCursor": more})


async def give_namespace(api: Api, request: Request) -> Response:
    """The namespace is the publisher's from now on; null: whoever publishes there next signed."""
    operators_only(request, "hand a namespace over")
    name = request.path_params["name"]
    if not _NAMESPACE.fullmatch(name):
        raise NotFound(f"no namespace {name[:64]!r}: it is the first part of a type, in lower case")
    body = decode(_GIVE, await read_json(request, api))
    before = await api.engine.give_namespace(name, body.publisher, peer(request))
    return answer({"name": name, "publisher": body.publisher, "before": before})


async def _shown_key(api: Api, key_id: str) -> dict[str, Any]:
    return _key_json((await known(api))[key_id])


def _key_json(key: trust.TrustedKey) -> dict[str, Any]:
    return {
        "id": key.public.id,
        "publisher": key.publisher,
        "key": key.public.text,
        "source": "configuration" if key.is_root else "operator",
        "trustedAt": wire.rfc3339(key.trusted_at_ms),
        "revokedAt": wire.rfc3339(key.revoked_at_ms),
        "reason": key.reason,
    }
