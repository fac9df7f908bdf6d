"""Says everything that is wrong with an order at once, or hands it on tidied up."""


def handle(input, ctx):
    if not ctx.has_input:
        return ctx.failure("INVALID_ORDER", "there is no order", retryable=False)
    problems = [f"{name} is missing" for name in ("id", "address", "lines") if not input.get(name)]
    lines = []
    for number, line in enumerate(input.get("lines") or [], 1):
        sku = str(line.get("sku", "")).strip().upper()
        count = line.get("count")
        if not sku:
            problems.append(f"line {number} has no sku")
        if type(count) is not int or count < 1:
            problems.append(f"line {number} wants {count!r} pieces")
        lines.append({"sku": sku, "count": count})
    if problems:
        # Trying again would not help, so the flow goes straight to onFailure.
        message = "the order cannot be taken"
        return ctx.failure("INVALID_ORDER", message, retryable=False, details=problems)
    ctx.log.info("the order is fine", order=input["id"], lines=len(lines))
    return {"id": input["id"], "address": input["address"], "lines": lines}
