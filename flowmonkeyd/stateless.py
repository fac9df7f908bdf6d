"""Runs stateless handlers in the sandbox: Task to Call, Reply to TaskResult.

Resolves the input, takes the lower limits of manifest and step, hands log lines over while the
handler runs. `terms` says what a handler may do, `replies` what a reply amounts to. This is a hot
path: what is the same for every task of a package is made once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flowmonkeyd import jsontext
from flowmonkeyd.billing import Tier, charge_for, nanos
from flowmonkeyd.clock import Clock
from flowmonkeyd.dispatcher import Finished, Log, OnLogs
from flowmonkeyd.documents import selectors
from flowmonkeyd.documents.manifest import parse_manifest
from flowmonkeyd.engine import Engine
from flowmonkeyd.loglines import Lines, last_lines
from flowmonkeyd.masking import Masks
from flowmonkeyd.model import NO_VALUE, Charge, Outcome, StepError, Task, TaskResult
from flowmonkeyd.packages import Packages
from flowmonkeyd.replies import masked, result_of
from flowmonkeyd.settings import BillingSection, Settings
from flowmonkeyd.terms import Terms, terms_of
from flowmonkeyd.vault import Value, Vault
from flowmonkeyd.vault.access import Wanted, wanted_of
from flowmonkeyd.vault.access import given as given_secrets
from sandbox import Call, Ending, HostedPool, JsonText, Limits, LogLine, Reply, Traffic

__all__ = ["Stateless"]

PACKAGES_MAX = 512
STEP_LIMITS_MAX = 64
# A fork server that is lost three times while one task runs is lost because of that task.
TRIES_MAX = 3
TASKS_PER_SLOT = 2
AHEAD_PER_SLOT = 8
_NO_SECRETS: Mapping[str, Value] = {}


@dataclass(slots=True)
class _Package:
    """What is the same for every task of a package."""

    folder: str
    entrypoint: str
    runtime: Any
    terms: Terms
    secrets: Wanted | None
    charge: Charge  # for each attempt
    # By a step's own time limit: one object for all, which is quicker to compare.
    limits: dict[int | None, Limits] = field(default_factory=dict)

    def limits_of(self, timeout_ms: int | None) -> Limits:
        found = self.limits.get(timeout_ms)
        if found is None:
            whole = self.terms.limits
            wall_ms = whole.wall_ms if timeout_ms is None else min(whole.wall_ms, timeout_ms)
            if len(self.limits) >= STEP_LIMITS_MAX:
                self.limits.clear()
            found = self.limits[timeout_ms] = replace(whole, wall_ms=wall_ms)
        return found


class Stateless:
    """The executor of the sandbox lane. The numbers count since the start."""

    def __init__(
        self,
        pool: HostedPool,
        packages: Packages,
        engine: Engine,
        clock: Clock,
        settings: Settings,
        vault: Vault | None = None,
    ) -> None:
        self._pool = pool
        self._packages = packages
        self._engine = engine
        self._clock = clock
        self._settings = settings
        self._vault = vault
        self._tiers = _tiers(settings.billing)
        self._known: OrderedDict[str, _Package] = OrderedDict()
        self.denials = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def slots(self) -> int:
        """More than the pool's: while one step's result is committed, the next one runs."""
        return self._pool.slots * TASKS_PER_SLOT

    @property
    def ahead(self) -> int:
        """So many that results can share a commit while others run."""
        return self._pool.slots * AHEAD_PER_SLOT

    async def run(self, task: Task, on_logs: OnLogs) -> Finished:
        """Run a task in a sandboxed process."""
        if task.manifest is None or task.package_digest is None:
            name = f"{task.handler_type}@{task.handler_version}"
            return _failed("HANDLER_NOT_FOUND", f"the package of {name} is gone", fatal=True)
        package = self._known.get(task.package_digest)
        if package is None:
            package = self._package(task.package_digest, task.manifest)
        secrets = _NO_SECRETS
        if package.secrets is not None:
            found = await given_secrets(task, package.secrets, self._vault, self._engine)
            if isinstance(found, StepError):
                return Finished(TaskResult(Outcome.ERROR, error=found))
            secrets = found
        try:
            given = selectors.resolve(task.step.input, task.context)
        except Exception as exc:
            message = f"cannot resolve the input of step {task.step.id!r}: {exc}"
            return _failed("INPUT_ERROR", message, fatal=True)
        context: Mapping[str, Any] | bytes = task.context
        if not task.context_complete:
            context = await self._engine.context_text(task.key)
        call = _call(task, package, given, context)
        masks = None
        if secrets:
            call = replace(call, secrets={name: one.text for name, one in secrets.items()})
            masks = Masks(secrets)
        async with asyncio.TaskGroup() as group:
            lines = Lines(group, on_logs, masks)
            try:
                reply = await self._run(call, lines)
            finally:
                lines.end()
        if masks is not None:
            reply = masked(reply, masks)
        now_ms = self._clock.now_ms()
        if reply.traffic is not None:
            self._count(reply.traffic)
        result = result_of(reply, now_ms, package.charge)
        return Finished(result, [*lines.waiting, *last_lines(result, reply.traffic, now_ms)])

    async def _run(self, call: Call, lines: Lines) -> Reply:
        """Run the call; anew when its fork server was lost, which is no fault of the handler's."""

        def add(line: LogLine) -> None:
            lines.add(_line(line))

        for _ in range(TRIES_MAX - 1):
            reply = await self._pool.run(call, add)
            if reply.ending is not Ending.UNAVAILABLE or self._missing_layers():
                return reply
        return await self._pool.run(call, add)

    def _missing_layers(self) -> bool:
        layers = self._pool.layers()
        return not layers or any(layer.required and not layer.available for layer in layers)

    def _package(self, digest: str, text: str) -> _Package:
        manifest = parse_manifest(text)
        package = self._known[digest] = _Package(
            str(self._packages.path(digest)),
            manifest.entrypoint,
            manifest.runtime,
            terms_of(manifest, self._settings),
            wanted_of(manifest),
            charge_for(self._tiers, manifest.memory_mib, manifest.cpu),
        )
        if len(self._known) > PACKAGES_MAX:
            self._known.popitem(last=False)
        return package

    def _count(self, traffic: Traffic) -> None:
        self.denials += sum(denial.count for denial in traffic.denials)
        self.sent_bytes += traffic.sent_bytes
        self.received_bytes += traffic.received_bytes


def _call(task: Task, package: _Package, given: Any, context: Mapping[str, Any] | bytes) -> Call:
    has_input = given is not NO_VALUE
    return Call(
        package_dir=package.folder,
        entrypoint=package.entrypoint,
        runtime=package.runtime,
        input=JsonText(jsontext.encode(given)) if has_input else None,
        has_input=has_input,
        config=JsonText(jsontext.encode(dict(task.step.config))),
        context=context,
        execution_id=task.execution_id,
        flow_id=task.flow_id,
        step_id=task.step.id,
        attempt=task.attempt,
        tenant_id=task.tenant_id,
        task_id=task.id,
        limits=package.limits_of(task.step.timeout_ms),
        policy=package.terms.policy,
        reuse=package.terms.reuse,
        preload=package.terms.preload,
    )


def _tiers(section: BillingSection) -> tuple[Tier, ...]:
    named = (("small", section.small), ("medium", section.medium), ("large", section.large))
    return tuple(Tier(name, one.memory, one.cpu, nanos(one.price)) for name, one in named)


def _failed(code: str, message: str, fatal: bool = False) -> Finished:
    error = StepError(code, message, retryable=False)
    return Finished(TaskResult(Outcome.ERROR, error=error, fatal=fatal))


def _line(line: LogLine) -> Log:
    message = line.message.encode(errors="replace").decode()
    return (line.at_ms, line.stream, line.level, message, line.fields or None)
