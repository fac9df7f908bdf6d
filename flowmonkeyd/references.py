"""What names mean: flow references, handler references, the versions an execution is pinned to.

Looks only into the catalogue, inside the caller's transaction, and changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

from flowmonkeyd import builtin, jsontext
from flowmonkeyd.documents.flow import parse_flow
from flowmonkeyd.documents.versions import is_version, newest
from flowmonkeyd.errors import NotFound, Problem
from flowmonkeyd.model import Execution, Flow, HandlerRef, Lane
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
        version = pins.get(pin_of(ref))
        if version is None and (row := _published(tx, ref)) is not None:
            version = row.version
        if version is None:
            return None
        package = catalog.package_of(tx, ref.type, version)
        is_stateful = package is not None and package.is_stateful
        return Lane.CONTAINER if is_stateful else Lane.SANDBOX, version

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
        notes: list[Problem] = []
        for step in flow.steps.values():
            ref = step.handler
            if ref.type not in builtin.TYPES and ref.type not in self.local_types:
                row = _published(tx, ref)
                if row is not None:
                    pins[pin_of(ref)] = row.version
                    notes += _notes(f"$.steps.{step.id}.type", row)
        if notes:
            tx.memo["notes", flow.id, flow.version] = tuple(notes)
        return pins

    def notes(self, tx: Tx, used_by: Flow | Execution) -> tuple[Problem, ...]:
        """What the publishers of its handlers say against them; `pins` was asked before."""
        if isinstance(used_by, Flow):
            key = ("notes", used_by.id, used_by.version)
        else:
            key = ("notes", used_by.flow_id, used_by.flow_version)
        notes: tuple[Problem, ...] = tx.memo.get(key, ())
        return notes


def split_ref(ref: str) -> tuple[str, str | None]:
    """`order@1.0.0` is ("order", "1.0.0"); without a version the second is None."""
    flow_id, at, version = ref.partition("@")
    return flow_id, version if at else None


def pin_of(ref: HandlerRef) -> str:
    return f"{ref.type}@{ref.version_range}" if ref.version_range else ref.type


def _published(tx: Tx, ref: HandlerRef) -> catalog.HandlerRow | None:
    """A yanked version is taken by who names it exactly, and fits no range."""
    wanted = ref.version_range
    is_pin = wanted is not None and is_version(wanted.removeprefix("="))
    rows = {
        row.version: row
        for row in catalog.handler_versions(tx, ref.type)
        if is_pin or row.yanked_at_ms is None
    }
    version = newest(rows, wanted)
    return None if version is None else rows[version]


def _notes(path: str, row: catalog.HandlerRow) -> Iterator[Problem]:
    name = f"{row.type}@{row.version}"
    if row.deprecation is not None:
        yield Problem(path, f"{name} is deprecated: {row.deprecation}", "warning")
    if row.yanked_at_ms is not None:
        yield Problem(path, f"{name} was yanked; name another version", "warning")
