"""How many warm containers there should be: the sizes of the findings, and what they decay to."""

from __future__ import annotations

import random
from datetime import UTC, datetime

import pytest

from flowmonkeyd.poolsize import Demand, Window, floor_at, wrong_cron


def asked(*at_s: float, refill_s: float | None = None) -> Demand:
    demand = Demand()
    for one in at_s:
        demand.arrived(one)
    if refill_s is not None:
        demand.refill_s = refill_s
    return demand


def test_nobody_asked_nothing_is_warm_but_what_was_declared():
    assert Demand().target(1000.0, 0, 8, 600.0) == 0
    assert Demand().target(1000.0, 2, 8, 600.0) == 2
    assert Demand().target(1000.0, 20, 8, 600.0) == 8


@pytest.mark.parametrize(
    ("rate", "size"), [(0.1, 1), (1.0, 2), (4.0, 4)], ids=["0.1/s", "1/s", "4/s"]
)
def test_steady_demand_is_served_by_the_square_root_rule(rate, size):
    chance = random.Random(7)
    at_s, times = 0.0, []
    while at_s < 600:
        at_s += chance.expovariate(rate)
        times.append(at_s)
    demand = asked(*times, refill_s=0.18)
    assert rate / 2 < demand.rate(at_s) < rate * 2 + 0.4  # one arrival is 1/6 in the quick rate
    assert demand.target(at_s, 0, 8, 600.0) >= size


def test_a_burst_is_expected_again_and_less_after_hours():
    demand = asked(*(100.0 + n / 100 for n in range(6)))
    assert demand.target(101.0, 0, 8, 1e9) == 6
    assert demand.target(101.0 + 3600, 0, 8, 1e9) == 3
    assert demand.target(101.0 + 10 * 3600, 0, 8, 1e9) == 1
    assert demand.target(101.0, 0, 4, 1e9) == 4


def test_a_smaller_burst_does_not_hide_a_larger_one_of_late():
    demand = asked(*(100.0 + n / 100 for n in range(6)), 200.0, 200.1)
    assert demand.target(201.0, 0, 8, 1e9) == 6


def test_it_scales_to_zero_when_idle():
    demand = asked(100.0, 100.1, 100.2)
    assert demand.target(699.0, 0, 8, 600.0) == 3
    assert demand.target(700.2, 0, 8, 600.0) == 0
    assert demand.target(700.2, 1, 8, 600.0) == 1


def test_a_slow_refill_wants_more():
    times = [n * 1.0 for n in range(120)]
    assert asked(*times, refill_s=0.18).target(120, 0, 50, 600) < asked(
        *times, refill_s=5.0
    ).target(120, 0, 50, 600)


def test_windows_open_at_their_cron_times_and_overlap_by_the_larger():
    office = Window("0 8 * * 1-5", 600, 3)
    rush = Window("0 9 * * *", 60, 5)
    monday = datetime(2026, 11, 30, tzinfo=UTC)
    assert [
        floor_at(1, [office, rush], monday.replace(hour=hour, minute=minute))
        for hour, minute in ((7, 59), (8, 0), (9, 30), (10, 0), (17, 59), (18, 0))
    ] == [1, 3, 5, 3, 3, 1]
    assert floor_at(1, [office], datetime(2026, 11, 29, 9, tzinfo=UTC)) == 1  # a Sunday


def test_a_wrong_cron_expression_is_told():
    assert wrong_cron("0 8 * * 1-5") is None
    assert "is no cron expression" in (wrong_cron("every day") or "")
    assert "is no cron expression" in (wrong_cron("99 * * * *") or "")
