"""How the daemon is, for those who ask: health with the sandbox's layers, its pool, metrics.

Reads the parts and the tables at the moment it is asked; it keeps nothing and changes nothing.
"""

from __future__ import annotations

import time
from functools import cached_property
from typing import Any

from flowmonkeyd import __version__
from flowmonkeyd.dispatcher import Dispatcher
from flowmonkeyd.fleet import Fleet
from flowmonkeyd.jobmodel import JobState
from flowmonkeyd.model import ExecutionStatus
from flowmonkeyd.stateless import Stateless
from flowmonkeyd.store import Store, executions, jobs, tasks
from sandbox import HostedPool
from sandbox.standins import described

__all__ = ["Vitals"]


class Vitals:
    """The parts, looked at. `phase` is "starting", "ready" or "draining"; main sets it."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        pool: HostedPool,
        stateless: Stateless,
        fleet: Fleet | None = None,
    ) -> None:
        self.phase = "starting"
        self._fleet = fleet
        self._store = store
        self._dispatcher = dispatcher
        self._pool = pool
        self._stateless = stateless
        self._started_s = time.monotonic()

    async def health(self) -> dict[str, Any]:
        """What `GET /v1/health` answers."""
        sandbox = self._sandbox()
        pool = await self._pool.statistics()
        refusal = self._store.refusal
        status = "ok" if sandbox["status"] == "ok" and refusal is None else "degraded"
        return {
            "status": status if self.phase == "ready" else self.phase,
            "version": __version__,
            "uptimeS": round(time.monotonic() - self._started_s, 3),
            "checks": {
                "store": {
                    "status": "ok" if refusal is None else "failed",
                    "detail": refusal or f"boot {self._store.boot}, {self._store.commits} commits",
                },
                "sandbox": sandbox,
                "containers": self._containers(),
                "dispatcher": {
                    "status": "ok",
                    "detail": f"{pool['busy']} of {pool['slots']} slots busy",
                },
            },
        }

    async def pools(self) -> dict[str, Any]:
        """What runs handlers: the sandbox's pool, and warm containers by their kind with how long
        jobs have waited for theirs."""
        fleet = self._fleet
        return {
            "items": [{"name": "sandbox", **await self._pool.statistics()}],
            "warm": fleet.pool.statistics() if fleet is not None else [],
            "starts": fleet.pool.starts() if fleet is not None else {"warm": {}, "cold": {}},
        }

    async def metrics(self) -> str:
        """Prometheus text."""
        counts, depth, by_state = await self._store.read(
            lambda c: (executions.counts(c), tasks.depth(c), jobs.counts(c))
        )
        warm = self._fleet.pool.statistics() if self._fleet is not None else []
        pool = await self._pool.statistics()
        return self._numbers.render(counts, depth, by_state, warm, pool)

    def _sandbox(self) -> dict[str, Any]:
        layers = self._pool.layers()
        missing = [one for one in layers if not one.available]
        failed = [one.name for one in missing if one.required]
        if (problem := self._pool.problem) is not None:
            detail = problem
        elif failed:
            detail = f"missing: {', '.join(failed)}"
        else:
            names = ", ".join(one.name for one in missing)
            detail = "every required layer holds" + (f"; not there: {names}" if names else "")
        return {
            "status": "ok" if problem is None and not failed else "failed",
            "detail": detail,
            "layers": [described(one) for one in layers],
        }

    def _containers(self) -> dict[str, Any]:
        fleet = self._fleet
        if fleet is None or not fleet.is_open:
            return {"status": "ok", "detail": "not used: no stateful handler was published"}
        if fleet.problem is not None:
            return {"status": "failed", "detail": fleet.problem}
        facts = fleet.facts
        detail = (
            f"Podman {facts['podman']} with {facts['runtime']}, control groups of version "
            f"{facts['cgroups']}, {'without' if facts['rootless'] else 'as'} root; "
            f"{len(facts['proved'])} walls and limits proved"
        )
        return {"status": "ok", "detail": detail}

    @cached_property
    def _numbers(self) -> _Numbers:
        return _Numbers(self._store, self._dispatcher, self._pool, self._stateless)


class _Numbers:
    """The metrics, made at the first scrape: 25 ms that a daemon nobody scrapes does not pay."""

    def __init__(
        self, store: Store, dispatcher: Dispatcher, pool: HostedPool, stateless: Stateless
    ) -> None:
        from flowmonkeyd.metrics import Metrics

        metrics = self._metrics = Metrics()
        running = metrics.gauge("tasks_running", "Tasks running now")
        running.set_function(lambda: dispatcher.running)
        metrics.gauge("sandbox_slots", "Steps that can run at a time").set(pool.slots)
        commits = metrics.gauge("store_commits", "Commits since the start")
        commits.set_function(lambda: store.commits)
        writes = metrics.gauge("store_writes", "Writes since the start; many share a commit")
        writes.set_function(lambda: store.writes)
        denials = metrics.gauge("network_denials", "Targets refused to handlers since the start")
        denials.set_function(lambda: stateless.denials)
        moved = metrics.gauge(
            "network_bytes", "Bytes of handlers over the network since the start", ["direction"]
        )
        moved.labels("sent").set_function(lambda: stateless.sent_bytes)
        moved.labels("received").set_function(lambda: stateless.received_bytes)
        self._processes = metrics.gauge(
            "sandbox_processes",
            "Processes of the sandbox: spare or kept now; started, reused, crashed since the start",
            ["state"],
        )
        self._executions = metrics.gauge("executions", "Executions by status", ["status"])
        self._jobs = metrics.gauge("jobs", "Jobs of stateful handlers by status", ["status"])
        self._warm = metrics.gauge(
            "warm_containers", "Warm containers: ready now; hits, misses since the start", ["state"]
        )
        self._queue = metrics.gauge(
            "queue_tasks", "Tasks by handler type, priority, state", ["type", "priority", "state"]
        )

    def render(
        self,
        counts: dict[str, int],
        depth: list[dict[str, Any]],
        jobs_by_state: dict[str, int],
        warm: list[dict[str, Any]],
        pool: dict[str, Any],
    ) -> str:
        for job_state in JobState:
            self._jobs.labels(job_state.value).set(jobs_by_state.get(job_state.value, 0))
        for found in ("hits", "misses"):
            self._warm.labels(found).set(sum(row[found] for row in warm))
        self._warm.labels("ready").set(sum(row["size"] for row in warm))
        for status in ExecutionStatus:
            self._executions.labels(status.value).set(counts.get(status.value, 0))
        for state in ("kept", "started", "reused", "crashed"):
            self._processes.labels(state).set(pool[state])
        self._processes.labels("spare").set(sum(pool["spares"].values()))
        self._queue.clear()
        for row in depth:
            for state in ("queued", "leased"):
                labels = (row["handler_type"], row["priority"], state)
                self._queue.labels(*labels).set(row[state])
        return self._metrics.render()
