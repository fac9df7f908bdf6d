"""What tenants may start and spend, kept in the transaction that starts or spends it.

Counts in a table of its own, so that a start costs two look-ups however much there was before; at
the daemon's start they are counted anew, because quotas may be new. A tenant without a quota is not
counted. What is in flight goes on when a quota is used up: only new work is refused, and the
children of an execution that runs are counted and not refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from flowmonkeyd.billing import Quota, amount, periods
from flowmonkeyd.errors import TooMany
from flowmonkeyd.store import Tx, billing

__all__ = ["Quotas"]


class Quotas:
    """The quotas of all tenants: `general`, and by name what holds for one instead."""

    def __init__(
        self, general: Quota = Quota(), by_tenant: Mapping[str, Quota] | None = None
    ) -> None:
        self._general = general
        self._by_tenant = dict(by_tenant or {})
        self._unlimited = Quota()

    @property
    def are_set(self) -> bool:
        """Whether anybody has a quota."""
        return any(q != self._unlimited for q in (self._general, *self._by_tenant.values()))

    def of(self, tenant: str) -> Quota | None:
        """A tenant's quota, if it has one."""
        found = self._by_tenant.get(tenant, self._general)
        return None if found == self._unlimited else found

    def recount(self, tx: Tx) -> None:
        """Once, before anything is started."""
        if self.are_set:
            day, month = periods(tx.now_ms)
            billing.recount(tx, day, _from_ms(day), month, _from_ms(f"{month}-01"))

    def started(self, tx: Tx, tenant: str, is_child: bool) -> None:
        """An execution is about to be made. Raises TooMany, and then nothing is counted."""
        quota = self.of(tenant)
        if quota is None:
            return
        day, month = periods(tx.now_ms)
        if not is_child:
            self._check(tx, tenant, quota, day, month)
        billing.count(tx, tenant, day, 1, 0)

    def spent(self, tx: Tx, tenant: str, nanos: int) -> None:
        """So much was billed."""
        if self.of(tenant) is not None:
            billing.count(tx, tenant, periods(tx.now_ms)[1], 0, nanos)

    def _check(self, tx: Tx, tenant: str, quota: Quota, day: str, month: str) -> None:
        most, spend = quota.executions_per_day, quota.nanos_per_month
        if most is not None and billing.used(tx, tenant, day)[0] >= most:
            again = _from_ms(day) + _DAY_MS
            raise TooMany(
                f"cannot start an execution: tenant {tenant!r} has had its {most} of this day "
                f"(quotas.executionsPerDay); it may again from {_text(again)}",
                code="QUOTA_EXCEEDED",
            )
        if spend is not None and billing.used(tx, tenant, month)[1] >= spend:
            next_month = datetime.fromisoformat(f"{month}-01").replace(tzinfo=UTC) + timedelta(32)
            again = _from_ms(f"{next_month:%Y-%m}-01")
            raise TooMany(
                f"cannot start an execution: tenant {tenant!r} has spent its {amount(spend)} $ of "
                f"this month (quotas.spendPerMonth); it may again from {_text(again)}",
                code="QUOTA_EXCEEDED",
            )


_DAY_MS = 24 * 3600 * 1000


def _from_ms(day: str) -> int:
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1000


def _text(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
