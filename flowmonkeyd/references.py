"""What names mean: flow references, handler references, the versions an execution is pinned to.

Looks only into the catalogue, inside the caller's transaction, and changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from flowmonkeyd import builtin, jsontext
from flowmonkeyd.documents.flow import parse_flow
from flowmonkeyd.documents.versions import newest
from flowmonkeyd.errors import NotFound
from flowmonkeyd.model import Flow, HandlerRef, Lane
from flowmonkeyd.store import Tx, catalog

__all__ = ["BUILTIN_VERSION", "LOCAL_VERSION", "References", "pin_of", "split_ref"]

BUILTIN_VERSION = "1.0.0"
# In-process handlers of the test harness.
LOCAL_VERSION = "0.0.0"
# Parsed flows kept, by the digest of their document.
FLOWS_MAX = 512


class References:
    """Resolves names. `local_types` are handler types that run in process."""

    def __init__(self, local_types: frozenset[str]) -> None:
        self.local_types = local_types
        self._flows: OrderedDict[str, Flow] = OrderedDict()

    def flow(self, tx: Tx, key: int, digest: str) -> Flow:
        """The parsed flow; kept by content, so a rolled-back apply can never leave a wrong one."""
        flow = self._flows.get(digest)
        if flow is None:
            flow, _ = parse_flow(jsontext.loads(catalog.flow_document(tx, key)))
            self._flows[digest] = flow
            if len(self._flows) > FLOWS_MAX:
                self._flows.popitem(last=False)
        else:
            self._flows.move_to_end(digest)
        return flow

    def find_flow(self, tx: Tx, ref: str) -> tuple[int, str, Flow]:
        """(key, digest, flow) of a reference: `order` (the newest version) or `order@1.0.0`."""
        known: tuple[int, str, Flow] | None = tx.memo.get(("flow", ref))
        if known is not None:
            return known
        flow_id, version = split_ref(ref)
        if version is None:
            version = newest(catalog.flow_versions(tx, flow_id), None)
        found = catalog.flow_key(tx, flow_id, version) if version else None
        if found is None:
            message = f"no flow {ref!r}; apply it first, or see `flowctl flow list`"
            raise NotFound(message, code="FLOW_NOT_FOUND")
        flow = self.flow(tx, *found)
        tx.memo["flow", ref] = *found, flow
        return *found, flow

    def resolve(self, tx: Tx, ref: HandlerRef, pins: Mapping[str, str]) -> tuple[Lane, str] | None:
        """The lane and version a handler reference means for an execution with these pins."""
        if ref.type in builtin.TYPES:
            return Lane.BUILTIN, BUILTIN_VERSION
        if ref.type in self.local_types:
            return Lane.SANDBOX, LOCAL_VERSION
        version = pins.get(pin_of(ref)) or _published(tx, ref)
        return (Lane.SANDBOX, version) if version else None

    def why_missing(self, tx: Tx, ref: HandlerRef) -> str:
        """Why `resolve` finds nothing, for an operator."""
        rows = catalog.handler_versions(tx, ref.type)
        if not rows:
            return f"no handler {ref.type!r} is published; see `flowctl handler list`"
        shown = ", ".join(
            row.version + " (yanked)" * (row.yanked_at_ms is not None) for row in rows
        )
        return f"no version of {ref.type!r} fits {pin_of(ref)!r}; there are: {shown}"

    def pins(self, tx: Tx, flow: Flow) -> dict[str, str]:
        known: dict[str, str] | None = tx.memo.get(("pins", flow.id, flow.version))
        if known is not None:
            return known
        pins = tx.memo["pins", flow.id, flow.version] = {}
        for step in flow.steps.values():
            ref = step.handler
            if ref.type not in builtin.TYPES and ref.type not in self.local_types:
                version = _published(tx, ref)
                if version is not None:
                    pins[pin_of(ref)] = version
        return pins


def split_ref(ref: str) -> tuple[str, str | None]:
    """`order@1.0.0` is ("order", "1.0.0"); without a version the second is None."""
    flow_id, at, version = ref.partition("@")
    return flow_id, version if at else None


def pin_of(ref: HandlerRef) -> str:
    return f"{ref.type}@{ref.version_range}" if ref.version_range else ref.type


def _published(tx: Tx, ref: HandlerRef) -> str | None:
    rows = catalog.handler_versions(tx, ref.type)
    found: str | None = newest(
        (row.version for row in rows if row.yanked_at_ms is None), ref.version_range
    )
    return found
