"""Writes why an order does not go out: `_error` says what failed, else somebody said no."""


def handle(input, ctx):
    error = ctx.context.get("_error")
    if error is not None:
        return {"because": error["code"], "said": error["message"], "details": error["details"]}
    decision = ctx.context.get("resumeData")
    if decision is None:  # the time for a decision was up
        return {"because": "NOT_DECIDED", "said": "nobody decided in time"}
    said = decision if isinstance(decision, dict) else {"why": decision}
    return {"because": "DECLINED", "said": said.get("why", "declined"), "by": said.get("by")}
