"""What a handler may do here: its manifest's wishes within what the operator grants. Pure.

The operator's settings only ever take away, but for what is his to give: private networks, the
reuse of processes, and imports ahead of a call. A manifest never gets more than it asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flowmonkeyd.billing import amount, nanos
from flowmonkeyd.containermodel import RESOURCES
from flowmonkeyd.documents.manifest import Manifest, Stateful
from flowmonkeyd.documents.targets import both
from flowmonkeyd.settings import SandboxNetwork, Settings
from sandbox import Egress, Limits, Policy, Reuse

__all__ = ["Terms", "egress_of", "terms_json", "terms_of"]

MIB = 1024 * 1024
CPU_SHARE_MIN = 0.01


@dataclass(frozen=True, slots=True)
class Terms:
    """How the sandbox runs a handler's executions."""

    limits: Limits
    policy: Policy
    reuse: Reuse | None
    preload: bool = False


def terms_of(manifest: Manifest, settings: Settings) -> Terms:
    """The terms of a stateless handler."""
    sandbox = settings.sandbox
    own = settings.handlers.of(manifest.type)
    limits = Limits(
        wall_ms=manifest.timeout_ms,
        memory_bytes=manifest.memory_mib * MIB,
        cpu_share=max(manifest.cpu, CPU_SHARE_MIN),
        output_bytes=sandbox.outputBytesMax,
        log_bytes=sandbox.logBytesMax,
        log_rate=sandbox.logRate,
        temp_bytes=sandbox.tempBytesMax,
    )
    reuse = None
    if own.policy == "reuse":
        reuse = Reuse(own.reuseUses, own.reuseIdleMs, own.reuseAgeMs)
    egress = egress_of(manifest, settings)
    preload = own.preload and egress is None
    return Terms(limits, Policy(manifest.filesystem, egress), reuse, preload)


def egress_of(manifest: Manifest, settings: Settings) -> Egress | None:
    """What a handler may reach, and how much of it an execution, or an attempt of a stateful
    handler's job, may use; None: nothing."""
    if manifest.network is None:
        return None
    asked, network = manifest.network, settings.sandbox.network
    own = settings.handlers.of(manifest.type)
    jobs = network.jobs
    allowed = both(_allowed(network.allow), _allowed(own.network.allow))
    egress = Egress(
        allow=both(asked.allow, allowed),
        deny=tuple(dict.fromkeys((*network.deny, *own.network.deny, *asked.deny))),
        private=own.privateNetworks,
        connections=network.connections,
        at_once=network.connections,
        bytes=network.bytesMax,
        dns_queries=network.dnsQueriesMax,
        connect_ms=network.connectMs,
        idle_ms=network.idleMs,
    )
    if manifest.stateful is None:
        return egress
    return replace(
        egress,
        connections=jobs.connections,
        at_once=jobs.connectionsAtOnce,
        bytes=jobs.bytesMax,
        dns_queries=jobs.dnsQueriesMax,
    )


def terms_json(manifest: Manifest, settings: Settings, image: str | None = None) -> dict[str, Any]:
    """The terms as they are shown: every limit with its unit in its name. `image` is the runtime
    that was chosen for a stateful handler, if one was."""
    egress = egress_of(manifest, settings)
    shown = {
        "type": manifest.type,
        "version": manifest.version,
        "runtime": manifest.runtime,
        "secrets": [one.property for one in manifest.inputs if one.source == "vault"],
        "network": None if egress is None else _network_json(egress, settings.sandbox.network),
    }
    if manifest.stateful is not None:
        return shown | _of_container(manifest, manifest.stateful, settings, image)
    terms = terms_of(manifest, settings)
    limits, reuse = terms.limits, terms.reuse
    return shown | {
        "wallMs": limits.wall_ms,
        "cpuShare": limits.cpu_share,
        "cpuMs": limits.cpu_time_ms,
        "memoryBytes": limits.memory_bytes,
        "threads": limits.threads,
        "openFiles": limits.open_files,
        "outputBytes": limits.output_bytes,
        "logBytes": limits.log_bytes,
        "logRate": limits.log_rate,
        "filesystem": terms.policy.filesystem,
        "tempBytes": limits.temp_bytes if terms.policy.filesystem == "temp" else 0,
        "preload": terms.preload,
        "reuse": None
        if reuse is None
        else {"uses": reuse.uses, "idleMs": reuse.idle_ms, "ageMs": reuse.age_ms},
        "stateful": None,
    }


def _of_container(
    manifest: Manifest, stateful: Stateful, settings: Settings, image: str | None
) -> dict[str, Any]:
    # Here, for it has what only these need: 50 ms of imports.
    from flowmonkeyd.agents import LOG_BURST_BYTES, LOG_BYTES_PER_S
    from flowmonkeyd.agentwire import JSON_MAX_BYTES

    limits, jobs = RESOURCES[stateful.resources], settings.jobs
    return {
        "wallMs": stateful.ttl_hard_ms,
        "cpuShare": limits.cpus,
        "cpuMs": None,
        "memoryBytes": limits.memory_bytes,
        "threads": limits.pids,
        "openFiles": limits.files,
        "outputBytes": JSON_MAX_BYTES,
        "logBytes": LOG_BURST_BYTES,
        "logRate": None,
        "filesystem": "temp",
        "tempBytes": settings.containers.tmpBytes,
        "preload": False,
        "reuse": None,
        "stateful": {
            "resources": stateful.resources,
            "image": image,
            "ttl": {
                "defaultMs": stateful.ttl_default_ms,
                "softMs": stateful.ttl_soft_ms,
                "hardMs": stateful.ttl_hard_ms,
            },
            "checkpoint": {
                "intervalMs": stateful.checkpoint_interval_ms,
                "maxSize": stateful.checkpoint_bytes_max,
                "days": jobs.checkpointDays,
            },
            "pauseMaxMs": stateful.pause_ms_max if stateful.pause_enabled else 0,
            "maxAttempts": jobs.maxAttempts,
            "heartbeatMs": jobs.heartbeatMs,
            "logBytesPerS": LOG_BYTES_PER_S,
            "warm": settings.handlers.of(manifest.type).warm,
            "perSecond": amount(nanos(settings.billing.jobs.of(stateful.resources))),
        },
    }


def _network_json(egress: Egress, network: SandboxNetwork) -> Mapping[str, Any]:
    return {
        "ports": list(network.ports),
        "allow": None if egress.allow is None else list(egress.allow),
        "deny": list(egress.deny),
        "private": list(egress.private),
        "connections": egress.connections,
        "bytes": egress.bytes,
        "dnsQueries": egress.dns_queries,
    }


def _allowed(targets: tuple[str, ...]) -> tuple[str, ...] | None:
    return None if "*" in targets else targets
