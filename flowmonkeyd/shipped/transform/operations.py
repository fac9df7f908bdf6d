"""What `transform` and `batch` do to a value: pure.

`changed(value, {"operations": […]})` applies operations in order; with `{"code": "…"}` the text is
Python that is run with `input` set and leaves `output`. That code is the flow author's own and has
what any handler has: this sandbox. Paths have dots (`a.b.0`), with or without a leading `$.`.
"""

import operator

MISSING = object()
_TESTS = {
    "eq": operator.eq, "neq": operator.ne, "gt": operator.gt, "gte": operator.ge,
    "lt": operator.lt, "lte": operator.le,
    "in": lambda a, b: a in b, "contains": lambda a, b: b in a,
    "startsWith": lambda a, b: a.startswith(b), "endsWith": lambda a, b: a.endswith(b),
}  # fmt: skip


class Refused(Exception):
    """The settings or the value do not allow it; `code` says which."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def changed(value, settings):
    """The value after what the settings say. Raises Refused."""
    if ("operations" in settings) == ("code" in settings):
        raise Refused("INPUT_VALIDATION_FAILED", "give either operations or code")
    if "code" in settings:
        return _run(value, settings["code"])
    operations = settings["operations"]
    if not isinstance(operations, list):
        raise Refused("INPUT_VALIDATION_FAILED", "operations should be a list")
    for number, one in enumerate(operations):
        try:
            value = _applied(value, one)
        except Refused as exc:
            raise Refused(exc.code, f"operations[{number}]: {exc}") from None
    return value


def _run(value, code):
    if not isinstance(code, str):
        raise Refused("INPUT_VALIDATION_FAILED", "code should be text")
    names = {"input": value}
    try:
        exec(compile(code, "<code>", "exec"), names)
    except SyntaxError as exc:
        raise Refused("INVALID_EXPRESSION", f"code: line {exc.lineno}: {exc.msg}") from None
    except Exception as exc:
        raise Refused("TRANSFORM_ERROR", f"code: {type(exc).__name__}: {exc}") from None
    if "output" not in names:
        raise Refused("INVALID_EXPRESSION", "code: it does not set output")
    return names["output"]


def _applied(value, one):
    if not isinstance(one, dict) or one.get("op") not in _OPERATIONS:
        known = ", ".join(_OPERATIONS)
        raise Refused("INPUT_VALIDATION_FAILED", f"should be an object with op: one of {known}")
    function, needs = _OPERATIONS[one["op"]]
    unknown = sorted(set(one) - {"op", *needs})
    if unknown:
        raise Refused("INPUT_VALIDATION_FAILED", f"unknown setting {unknown[0]!r}")
    return function(value, one)


def _pick(value, one):
    keys = _keys(one)
    return {key: value[key] for key in keys if key in _object(value)}


def _omit(value, one):
    keys = set(_keys(one))
    return {key: found for key, found in _object(value).items() if key not in keys}


def _map(value, one):
    mapping = one.get("to")
    if isinstance(value, list):
        return [_mapped(item, mapping) for item in value]
    return _mapped(value, mapping)


def _mapped(item, mapping):
    if isinstance(mapping, str):
        return at(item, mapping, None)
    if not isinstance(mapping, dict):
        raise Refused("INPUT_VALIDATION_FAILED", "to should be a path or an object of paths")
    return {name: _mapped(item, path) for name, path in mapping.items()}


def _filter(value, one):
    test = one.get("where")
    if not isinstance(test, dict) or test.get("op") not in (*_TESTS, "exists", "notExists"):
        known = ", ".join((*_TESTS, "exists", "notExists"))
        raise Refused(
            "INPUT_VALIDATION_FAILED", f"where should be {{path, op, value}}, op of {known}"
        )
    return [item for item in _list(value) if _holds(item, test)]


def _holds(item, test):
    found = at(item, test.get("path", ""), MISSING)
    if test["op"] in ("exists", "notExists"):
        return (found is not MISSING) == (test["op"] == "exists")
    try:
        return found is not MISSING and bool(_TESTS[test["op"]](found, test.get("value")))
    except (TypeError, AttributeError):
        return False  # of different kinds


def _reduce(value, one):
    how, path = one.get("by"), one.get("path", "")
    found = [at(item, path, MISSING) for item in _list(value)]
    found = [item for item in found if item is not MISSING]
    if how == "count":
        return len(found)
    if how == "join":
        return str(one.get("separator", "")).join(map(str, found))
    if how == "collect":
        return found
    if how not in ("sum", "min", "max", "average"):
        known = "sum, min, max, average, count, join, collect"
        raise Refused("INPUT_VALIDATION_FAILED", f"by should be one of {known}")
    if not all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in found):
        raise Refused("TRANSFORM_ERROR", f"{how} needs numbers")
    if how == "sum":
        return sum(found)
    if not found:
        return None
    return {"min": min, "max": max, "average": lambda all_: sum(all_) / len(all_)}[how](found)


def _merge(value, one):
    with_ = one.get("with")
    if not isinstance(with_, dict):
        raise Refused("INPUT_VALIDATION_FAILED", "with should be an object")
    return _both(_object(value), with_)


def _both(first, second):
    whole = dict(first)
    for key, found in second.items():
        old = whole.get(key)
        whole[key] = (
            _both(old, found) if isinstance(old, dict) and isinstance(found, dict) else found
        )
    return whole


_OPERATIONS = {
    "pick": (_pick, ("keys",)),
    "omit": (_omit, ("keys",)),
    "map": (_map, ("to",)),
    "filter": (_filter, ("where",)),
    "reduce": (_reduce, ("by", "path", "separator")),
    "merge": (_merge, ("with",)),
}


def at(value, path, default):
    if not isinstance(path, str):
        raise Refused("INPUT_VALIDATION_FAILED", "a path should be text")
    path = path.removeprefix("$").removeprefix(".")
    for part in path.split(".") if path else ():
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return value


def _keys(one):
    keys = one.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refused("INPUT_VALIDATION_FAILED", "keys should be a list of texts")
    return keys


def _object(value):
    if not isinstance(value, dict):
        raise Refused("TRANSFORM_ERROR", "the value should be an object")
    return value


def _list(value):
    if not isinstance(value, list):
        raise Refused("TRANSFORM_ERROR", "the value should be a list")
    return value
