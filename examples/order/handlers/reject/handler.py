"""Writes why an order does not go out: `_error` says what failed, else somebody said no."""


def handle(input, ctx):
    error = ctx.context.get("_error")
    if error is not None:
        return {"because": error["code"], "said": error["message"], "details": error["details"]}
    decision = ctx.context.get("resumeData")
    if decision is None:  # the time for a decision was up
        return {"because": "NOT_DECIDED", "said": "nobody decided in time"}
    return {"because": "DECLINED", "said": decision.get("why", "declined"), "by": decision["by"]}
