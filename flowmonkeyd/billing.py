"""What an execution of a handler costs: pure, and exact in integers.

An amount is a number of nano-dollars (10^-9 $) inside and decimal text outside: no float ever
holds one.

Stateless handlers are billed "per execution": every attempt in an execution's history whose handler
was started, whatever came of it. Attempts that never reached a handler are ours, and free: a
sandbox that cannot be had, a missing secret, an input that cannot be resolved, built-in steps, and
what was lost with the daemon or cancelled before it had ended.

Stateful handlers are billed per second of active time, to the nanosecond: from when an instance has
accepted its task to the commit of its pause, its result or its loss. What nobody saw (between the
last heartbeat and a crash) is free, and so are pauses, starts, images and warm containers. A job's
price is rounded up once, whatever number of lines it is billed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from flowmonkeyd.model import Charge

__all__ = [
    "NANOS",
    "Quota",
    "Tier",
    "amount",
    "charge_for",
    "job_nanos",
    "nanos",
    "periods",
    "segment_start_ns",
]

NANOS = 10**9
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class Tier:
    """A price for an execution of a handler that declares at most so much memory and CPU."""

    name: str
    memory_mib: int
    cpu: float
    nanos: int


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant may start in a UTC day and spend in a UTC month; None: without limit."""

    executions_per_day: int | None = None
    nanos_per_month: int | None = None


def charge_for(tiers: Sequence[Tier], memory_mib: int, cpu: float) -> Charge:
    """The charge for one attempt: of the cheapest tier that covers what the handler declares, and
    of the largest if none does."""
    ordered = sorted(tiers, key=lambda tier: (tier.nanos, tier.memory_mib))
    covering = [t for t in ordered if memory_mib <= t.memory_mib and cpu <= t.cpu]
    tier = covering[0] if covering else ordered[-1]
    return Charge(tier.name, tier.nanos)


def job_nanos(active_ns: int, nanos_per_s: int) -> int:
    """What a job has cost so far that was active for so long: rounded up to a nano-dollar."""
    return -(-active_ns * nanos_per_s // NANOS)


def segment_start_ns(at_ns: int, boot: str, last_boot: str | None, last_ns: int) -> int:
    """Where a segment begins that is asked for at `at_ns` of `boot`: never before the end of the
    last one within the same boot, so that no moment is billed twice."""
    return max(at_ns, last_ns) if boot == last_boot else at_ns


def nanos(text: str) -> int:
    """Decimal text of dollars ("0.0003") as nano-dollars; ValueError for anything else."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError('should be dollars as text, such as "0.0003"') from None
    scaled = value * NANOS if value.is_finite() else Decimal(-1)
    if scaled != scaled.to_integral_value() or not 0 <= scaled < 10**15:
        raise ValueError(f"should be from 0 to 999999 dollars with at most {_DIGITS} decimals")
    return int(scaled)


def amount(value: int) -> str:
    """Nano-dollars as decimal text with nine decimals: exactly that, however large."""
    whole, part = divmod(value, NANOS)
    return f"{whole}.{part:0{_DIGITS}d}"


def periods(at_ms: int) -> tuple[str, str]:
    """The UTC day and month of a time, as "2026-01-31" and "2026-01"."""
    day = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d")
    return day, day[:7]
