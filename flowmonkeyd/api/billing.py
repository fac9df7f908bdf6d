"""The function behind `/v1/billing`: what was billed, by group, in exact decimal text."""

from __future__ import annotations

from functools import partial
from typing import cast

from starlette.requests import Request
from starlette.responses import Response

from flowmonkeyd.api.requests import Api, answer, instant
from flowmonkeyd.api.wire import Shape
from flowmonkeyd.billing import amount
from flowmonkeyd.errors import Invalid, Problem
from flowmonkeyd.store import billing

__all__ = ["BillingShape", "GroupShape", "TotalShape", "show"]


class GroupShape(Shape):
    """`key`: the handler (type@version), flow, tenant or UTC day; `amount` in dollars."""

    key: str
    executions: int
    amount: str


class TotalShape(Shape):
    executions: int
    amount: str


class BillingShape(Shape):
    items: list[GroupShape]
    total: TotalShape
    groupBy: str
    currency: str


async def show(api: Api, request: Request) -> Response:
    """What was billed, grouped by handler, flow, tenant or day, the dearest first; `since` counts,
    `until` does not."""
    by = request.query_params.get("groupBy", "handler")
    if by not in billing.GROUPS:
        message = f"must be one of {', '.join(billing.GROUPS)}"
        raise Invalid("cannot read the query", problems=(Problem("groupBy", message),))
    groups = await api.engine.store.read(
        partial(
            billing.grouped,
            by=cast(billing.GroupBy, by),
            tenant=request.query_params.get("tenant"),
            since_ms=instant(request, "since"),
            until_ms=instant(request, "until"),
        )
    )
    return answer(
        {
            "items": [
                {"key": one.key, "executions": one.count, "amount": amount(one.nanos)}
                for one in groups
            ],
            "total": {
                "executions": sum(one.count for one in groups),
                "amount": amount(sum(one.nanos for one in groups)),
            },
            "groupBy": by,
            "currency": "USD",
        }
    )
