"""How an attempt is given the secrets that its handler declares, and nothing else.

They are read when it is about to start. What is missing ends the attempt before a process is taken;
what is given is in the ledger before the handler has it, under the lease of the attempt: whose
lease is over gets nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from flowmonkeyd.documents.manifest import Manifest
from flowmonkeyd.errors import FlowMonkeyError
from flowmonkeyd.model import StepError, Task
from flowmonkeyd.vault.provider import Value, Vault

__all__ = ["Ledger", "Wanted", "given", "wanted_of"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The names that a manifest declares, and those without which the handler is not started."""

    names: tuple[str, ...]
    required: tuple[str, ...]


class Ledger(Protocol):
    """The verb of the engine that keeps who was given what."""

    async def note_secrets(
        self, key: int, lease_id: int, names: tuple[str, ...], provider: str
    ) -> None: ...


def wanted_of(manifest: Manifest) -> Wanted | None:
    """None for a handler that declares none."""
    declared = [one for one in manifest.inputs if one.source == "vault"]
    if not declared:
        return None
    required = tuple(one.property for one in declared if one.required)
    return Wanted(tuple(one.property for one in declared), required)


async def given(
    task: Task, wanted: Wanted, vault: Vault | None, ledger: Ledger
) -> Mapping[str, Value] | StepError:
    """The values for one attempt, or why it cannot have them."""
    try:
        values = await vault.read(task.tenant_id, wanted.names) if vault is not None else {}
        for name in wanted.required:
            if name not in values:
                message = f"no secret {name!r} for tenant {task.tenant_id!r}"
                return StepError("SECRET_NOT_FOUND", message, retryable=False)
        if values and vault is not None:
            names = tuple(name for name in wanted.names if name in values)
            await ledger.note_secrets(task.key, task.lease_id, names, vault.provider)
    except FlowMonkeyError as exc:  # the disk is full, the lease is over: nobody gets anything
        return StepError(exc.code, exc.message)
    return values
