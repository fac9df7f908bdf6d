"""The metrics read back by the format's own parser, and their price."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flowmonkeyd.metrics import Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    return {
        sample.name + "".join(f"|{name}={value}" for name, value in sample.labels.items()): (
            sample.value
        )
        for family in text_string_to_metric_families(metrics.render())
        for sample in family.samples
    }


def test_counts_levels_and_spreads_are_read_back():
    metrics = Metrics()
    steps = metrics.counter("steps", "steps that ended", ["outcome"])
    steps.labels("success").inc()
    steps.labels("success").inc(2)
    steps.labels('od"d\n').inc()
    metrics.gauge("queue", "tasks in the line").set_function(lambda: 7)
    times = metrics.histogram("step_seconds", "time of a step", buckets=(0.1, 1))
    times.observe(0.05)
    times.observe(5)
    read = samples(metrics)
    assert read["flowmonkey_steps_total|outcome=success"] == 3
    assert read['flowmonkey_steps_total|outcome=od"d\n'] == 1
    assert read["flowmonkey_queue"] == 7
    assert read["flowmonkey_step_seconds_bucket|le=0.1"] == 1
    assert read["flowmonkey_step_seconds_bucket|le=+Inf"] == 2
    assert read["flowmonkey_step_seconds_sum"] == 5.05


def test_the_process_is_the_asking_one():
    read = samples(Metrics())
    assert read["process_resident_memory_bytes"] > 1_000_000
    assert read["process_cpu_seconds_total"] > 0
    assert abs(read["process_open_fds"] - len(os.listdir("/proc/self/fd"))) <= 2


def test_two_daemons_in_one_process_do_not_mix():
    one, other = Metrics(), Metrics()
    one.counter("steps", "steps").inc()
    other.counter("steps", "steps")
    assert samples(other)["flowmonkey_steps_total"] == 0


def test_a_name_is_made_once():
    metrics = Metrics()
    metrics.counter("steps", "steps")
    with pytest.raises(ValueError, match="flowmonkey_steps"):
        metrics.gauge("steps_total", "steps")


def test_an_unwatched_daemon_does_not_load_psutil():
    code = "import sys, flowmonkeyd.metrics as m; m.Metrics(); print('psutil' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stdout == "False\n"
