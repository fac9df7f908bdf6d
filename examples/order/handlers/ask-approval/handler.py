"""Parks the execution until somebody decides on this very order.

The filter is compared with the event's data, so a decision on another order wakes nobody. While it
waits, the execution costs nothing: no process, no memory, one row in the database.
"""


def handle(input, ctx):
    order_id, euros = input["id"], input["totalCents"] / 100
    return ctx.wait(
        event="order.decided",
        filter={"orderId": order_id},
        duration_ms=ctx.config["hoursAtMost"] * 3600 * 1000,
        reason=f"somebody to decide on order {order_id} ({euros:.2f} EUR)",
    )
