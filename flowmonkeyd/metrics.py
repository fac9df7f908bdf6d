"""What the daemon counts, as Prometheus text; the only door to prometheus_client and psutil.

One `Metrics` for each daemon, with a registry of its own: two daemons in one process do not mix,
and nothing is global. Names start with `flowmonkey_`; the process's own with `process_`. It decides
nothing and nobody reads a number back from here: tables are the truth, these are for graphs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

__all__ = ["Metrics"]

# Seconds, from a built-in step (under a millisecond) to the longest stateless step (60 s).
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)


class Metrics:
    """The daemon's metrics. Each name is made once; a second time is ValueError."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Process())

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows; shown as `flowmonkey_NAME_total`."""
        return Counter(f"flowmonkey_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down; `set_function` asks for it only when it is read."""
        return Gauge(f"flowmonkey_{name}", text, labels, registry=self._registry)

    def histogram(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = _BUCKETS_S,
    ) -> Histogram:
        """How values spread; the buckets are upper bounds, by default seconds up to a minute."""
        return Histogram(
            f"flowmonkey_{name}", text, labels, buckets=tuple(buckets), registry=self._registry
        )

    def render(self) -> str:
        """All metrics in the Prometheus text format 0.0.4."""
        return generate_latest(self._registry).decode()


class _Process(Collector):
    """The daemon's process now, under the names all Prometheus clients use."""

    def collect(self) -> Iterable[Metric]:
        # Imported at the first scrape: an unwatched daemon does not pay for it.
        import psutil

        process = psutil.Process()
        with process.oneshot():
            cpu = process.cpu_times()
            yield GaugeMetricFamily(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
                process.memory_info().rss,
            )
            yield CounterMetricFamily(
                "process_cpu_seconds",
                "Total user and system CPU time spent in seconds.",
                cpu.user + cpu.system,
            )
            yield GaugeMetricFamily(
                "process_open_fds", "Number of open file descriptors.", process.num_fds()
            )
            yield GaugeMetricFamily(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                process.create_time(),
            )
