"""`operations` or `code` on each item of the input (or of `items`, a path into it)."""

from operations import MISSING, Refused, at, changed

_ITEMS_MAX = 10_000
_KEYS = {"items", "operations", "code", "stopOnError"}


def handle(input, ctx):
    config = dict(ctx.config)
    unknown = sorted(set(config) - _KEYS)
    if unknown:
        message = f"unknown setting {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}"
        return ctx.failure("INPUT_VALIDATION_FAILED", message, retryable=False)
    items = at(input if ctx.has_input else None, config.pop("items", ""), MISSING)
    stop = config.pop("stopOnError", False)
    if not isinstance(items, list) or len(items) > _ITEMS_MAX:
        message = f"the items should be a list of at most {_ITEMS_MAX}"
        return ctx.failure("INPUT_VALIDATION_FAILED", message, retryable=False)
    results, errors = [], []
    for index, item in enumerate(items):
        try:
            results.append(changed(item, config))
        except Refused as exc:
            if exc.code == "INPUT_VALIDATION_FAILED":
                return ctx.failure(exc.code, str(exc), retryable=False)
            errors.append({"index": index, "code": exc.code, "message": str(exc)})
            results.append(None)
            if stop:
                said = {"index": index, "errors": errors}
                return ctx.failure("ITEM_ERROR", f"item {index}: {exc}", False, said)
    counts = {"total": len(items), "succeeded": len(items) - len(errors), "failed": len(errors)}
    return {**counts, "results": results, "errors": errors}
