"""A list of operations on the input, or code that the flow's author wrote."""

from operations import Refused, changed


def handle(input, ctx):
    try:
        return ctx.success(changed(input if ctx.has_input else None, ctx.config))
    except Refused as exc:
        return ctx.failure(exc.code, str(exc), retryable=False)
