"""How many children of one kind to keep waiting, and what for: pure.

Sizes follow demand between a floor and a ceiling: a kind that was called lately keeps spares, more
the faster the calls come, and none once nobody has asked for a while. What was called twice in a
row is expected to be called again.
"""

from __future__ import annotations

from sandbox.child import Fitting

__all__ = ["IDLE_S", "Demand"]

IDLE_S = 60.0
_HALF_LIFE_S = 5.0
# What is called once in a while gets one spare; one more for every so many calls a second.
_PER_SPARE = 10.0


class Demand:
    """The calls of one kind of child; times are seconds of one monotonic clock."""

    __slots__ = ("_ceiling", "_expected", "_fitting", "_floor", "_last", "_rate")

    def __init__(self, floor: int, ceiling: int) -> None:
        self._floor, self._ceiling = floor, max(floor, ceiling)
        self._last, self._rate = float("-inf"), 0.0
        self._fitting: Fitting | None = None
        self._expected: Fitting | None = None

    def called(self, now: float, fitting: Fitting) -> None:
        """A child of this kind was asked for."""
        if fitting == self._fitting:
            self._expected = fitting
        self._fitting = fitting
        self._rate = self._decayed(now) + 1 / _HALF_LIFE_S
        self._last = now

    def spares(self, now: float) -> int:
        """How many should wait."""
        if self.is_idle(now):
            return self._floor
        wanted = 1 + int(self._decayed(now) / _PER_SPARE) + (self._expected is not None)
        return max(self._floor, min(self._ceiling, wanted))

    def disappoint(self) -> None:
        """What was expected did not live to be called: that must show anew."""
        self._fitting = self._expected = None

    def expected(self, now: float) -> Fitting | None:
        """What one of them should be given ahead of the next call."""
        return self._expected if now - self._last <= IDLE_S else None

    def is_idle(self, now: float) -> bool:
        """Whether nobody asks for them any more; a kind with a floor is never idle."""
        return self._floor == 0 and now - self._last > IDLE_S

    def _decayed(self, now: float) -> float:
        if self._rate == 0.0:
            return 0.0
        return self._rate * float(0.5 ** ((now - self._last) / _HALF_LIFE_S))
