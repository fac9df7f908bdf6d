"""An alarm calls when a timer of its own would have, with far fewer timers."""

from __future__ import annotations

import pytest

from sandbox.alarm import Alarm


class _Loop:
    """The two functions of a loop that an alarm uses, with a clock that moves when told."""

    def __init__(self):
        self.now, self.started, self._timers = 0.0, 0, []

    def time(self):
        return self.now

    def call_later(self, delay_s, call):
        self.started += 1
        timer = _Timer(self, self.now + delay_s, call)
        self._timers.append(timer)
        return timer

    def go_to(self, now):
        while due := [timer for timer in self._timers if timer.at <= now + 1e-9]:
            timer = min(due, key=lambda timer: timer.at)
            self._timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.call()
        self.now = now

    @property
    def waiting(self):
        return len(self._timers)


class _Timer:
    def __init__(self, loop, at, call):
        self._loop, self.at, self.call = loop, at, call

    def cancel(self):
        self._loop._timers.remove(self)


@pytest.fixture
def loop():
    return _Loop()


@pytest.fixture
def alarm(loop):
    return Alarm(loop)


def test_what_was_set_last_is_called_once_and_at_its_time(loop, alarm):
    called = []
    for delay_s in (5, 9, 3, 7):
        alarm.set(delay_s, lambda delay_s=delay_s: called.append((delay_s, loop.now)))
    loop.go_to(6.9)
    assert called == []
    loop.go_to(100)
    assert called == [(7, 7)]
    assert loop.waiting == 0


def test_what_is_put_off_all_the_time_needs_a_timer_now_and_then(loop, alarm):
    for turn in range(1000):
        loop.go_to(turn / 1000)
        alarm.set(0.1, lambda: pytest.fail("it was put off"))
    assert loop.started <= 11
    assert loop.waiting == 1


def test_nothing_is_called_after_off(loop, alarm):
    alarm.set(1, lambda: pytest.fail("it was called"))
    alarm.off()
    loop.go_to(10)
    assert loop.waiting == 0


def test_it_can_be_set_from_its_own_call(loop, alarm):
    called = []

    def again():
        called.append(loop.now)
        if len(called) < 3:
            alarm.set(1, again)

    alarm.set(1, again)
    loop.go_to(10)
    assert called == [1, 2, 3]


def test_closed_it_leaves_no_timer(loop, alarm):
    alarm.set(1, lambda: pytest.fail("it was called"))
    alarm.close()
    assert loop.waiting == 0
