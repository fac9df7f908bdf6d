"""Prices an order from a price list that answers badly at first, as networks do.

Handlers have no network in this version, so the bad answers are acted: the first `config.outages`
attempts fail with HTTP_ERROR. What is real is what follows: the daemon waits, doubles the wait and
tries again, and it would go on doing so after a power cut in between.
"""

import asyncio

CENTS = {"KETTLE": (3490, 1200), "TEAPOT": (2990, 900), "OVEN": (89900, 18000)}  # price, grams


async def handle(input, ctx):
    await asyncio.sleep(0)  # an async function may wait like any other
    if ctx.attempt < ctx.config.get("outages", 0):
        ctx.log.warning("the price list does not answer", attempt=ctx.attempt)
        return ctx.failure("HTTP_ERROR", "503 from the price list", details={"status": 503})
    unknown = sorted({line["sku"] for line in input["lines"]} - set(CENTS))
    if unknown:
        message = f"not for sale: {', '.join(unknown)}"
        return ctx.failure("UNKNOWN_SKU", message, retryable=False, details=unknown)
    lines = []
    for line in input["lines"]:
        cents, grams = CENTS[line["sku"]]
        lines.append({**line, "cents": cents * line["count"], "gramsEach": grams})
    total = sum(line["cents"] for line in lines)
    ctx.emit("priced", {"orderId": input["id"], "totalCents": total})
    return {"lines": lines, "totalCents": total}
