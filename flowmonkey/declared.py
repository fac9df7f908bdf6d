"""Class handlers: the inputs that a class declares, taken from an execution and bound to it.

Owns `Handler` and `Input`. A handler of this kind runs only with inputs that keep every declared
rule; otherwise it ends as the failure INPUT_VALIDATION_FAILED, which names all violations and no
value. A default takes the place of a missing value, never of null. Test values are kept for tests
and are never bound.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from flowmonkey.rules import MISSING, described, faults, kind, violations

if TYPE_CHECKING:
    from flowmonkey.context import Context

__all__ = [
    "FAILED",
    "Declared",
    "Handler",
    "Input",
    "bound",
    "declarations",
    "env",
    "manifest_inputs",
    "schemas",
    "test_values",
]

FAILED = "INPUT_VALIDATION_FAILED"
_MESSAGE_MAX = 1000

Source = Literal["input", "config", "context", "vault", "static"]


def env(name: str, fallback: Any = None) -> Any:
    """A test value that `flowctl handler test` takes from its own environment.

    A handler's environment is empty, so `os.environ` in a declaration would find nothing.
    """
    return _Env(name, fallback)


def Input(
    source: Source = "input",
    *,
    property: str | None = None,
    type: str | None = None,
    nullable: bool | None = None,
    required: bool | None = None,
    default: Any = MISSING,
    value: Any = MISSING,
    description: str | None = None,
    secret: bool | None = None,
    min: float | None = None,
    max: float | None = None,
    minLength: int | None = None,
    maxLength: int | None = None,
    pattern: str | None = None,
    email: bool | None = None,
    url: bool | None = None,
    enum: list[Any] | tuple[Any, ...] | None = None,
    items: Mapping[str, Any] | None = None,
    test_value: Any = MISSING,
) -> Any:
    """Declare an input of a `Handler`: `width: int = Input(min=1)`.

    Its type comes from the annotation, `property` is the attribute's name unless given. It is
    required unless it has a default or `required` is false (then a missing one is None).
    `pattern` is JSON Schema's (ECMA-262, found anywhere). What contradicts itself is a TypeError
    when the class is made.
    """
    given = {
        "property": property,
        "type": type,
        "source": source,
        "secret": secret,
        "nullable": nullable,
        "required": required,
        "description": description,
        "min": min,
        "max": max,
        "minLength": minLength,
        "maxLength": maxLength,
        "pattern": pattern,
        "email": email,
        "url": url,
        "enum": None if enum is None else list(enum),
        "items": None if items is None else dict(items),
    }
    declaration = {name: one for name, one in given.items() if one is not None}
    for name, one in (("default", default), ("value", value)):
        if one is not MISSING:
            declaration[name] = one
    return Declared(declaration, test_value)


class Declared:
    """One declared input; `declaration` is its entry of `inputs` in handler.json."""

    __slots__ = ("attribute", "declaration", "test_value")

    def __init__(self, declaration: dict[str, Any], test_value: Any = MISSING) -> None:
        self.attribute = ""
        self.declaration = declaration
        self.test_value = test_value

    def __set_name__(self, owner: type, name: str) -> None:
        self.attribute = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        raise AttributeError(f"{self.attribute} has no value before the handler is executed")

    def complete(self, annotation: Any, where: str) -> None:
        """Add what the annotation says and what follows. Raises TypeError with every fault."""
        declaration = self.declaration
        if annotation is not MISSING and "type" not in declaration:
            for name, one in _typed(annotation, where).items():
                declaration.setdefault(name, one)
        source = declaration["source"]
        declaration.setdefault("property", self.attribute)
        declaration.setdefault("type", "string" if source == "vault" else "any")
        if source == "vault":
            declaration.setdefault("secret", True)
        if source != "static":
            declaration.setdefault("required", "default" not in declaration)
        if wrong := faults(declaration):
            raise TypeError(f"cannot declare {where}: {'; '.join(wrong)}")
        first = ("property", "type", "source")
        self.declaration = {name: declaration.pop(name) for name in first} | declaration


class Handler:
    """A handler as a class: declare inputs with `Input`, write `execute`.

    In handler.json its entrypoint is "handler.py:NameOfTheClass". `execute` may be async. Each
    execution has a new instance; `__init__`, if there is one, takes nothing. `output` in the class
    statement is a JSON Schema of the output, for where the annotation of `execute` says too little.
    """

    _inputs: ClassVar[tuple[Declared, ...]] = ()
    _output: ClassVar[Mapping[str, Any] | None] = None

    def __init_subclass__(cls, *, output: Mapping[str, Any] | None = None, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "handle" in vars(cls):
            raise TypeError(
                f"cannot use {cls.__name__}: handle() checks the inputs; call your method execute"
            )
        inputs = {one.attribute: one for one in cls._inputs}
        for name, one in list(vars(cls).items()):
            if isinstance(one, Declared):
                one.complete(_annotation(cls, name), f"{cls.__name__}.{name}")
                inputs[name] = one
        properties = [one.declaration["property"] for one in inputs.values()]
        for name in properties:
            if properties.count(name) > 1:
                raise TypeError(f"cannot declare {cls.__name__}: {name} is declared twice")
        cls._inputs = tuple(inputs.values())
        if output is not None:
            cls._output = output

    def handle(self, input: Any, ctx: Context) -> Any:
        """What runs a handler calls: bind the inputs and execute, or fail with all violations."""
        values, broken = bound(type(self), input, ctx)
        if broken:
            words = "; ".join(f"{one['property']} {one['message']}" for one in broken)
            message = f"cannot accept the input: {words}"
            if len(message) > _MESSAGE_MAX:
                message = message[: _MESSAGE_MAX - 1] + "…"
            return ctx.failure(FAILED, message, retryable=False, details=broken)
        fresh = type(self)()
        for name, value in values.items():
            setattr(fresh, name, value)
        return fresh.execute(ctx)

    def execute(self, ctx: Any) -> Any:
        """Yours: do the work and return the output. `ctx` is a `Context`, or a `StatefulContext`
        if the manifest says so."""
        raise NotImplementedError(f"{type(self).__name__} has no execute()")


def bound(
    cls: type[Handler], input: Any, ctx: Context
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The values of the declared inputs by attribute, and every violation as {property, rule,
    message}. A missing one without default is None."""
    values: dict[str, Any] = {}
    broken: list[dict[str, str]] = []
    places: dict[str, Callable[[], Any]] = {
        "input": lambda: input if ctx.has_input else {},
        "config": lambda: ctx.config,
        "context": lambda: ctx.context,
        "vault": lambda: ctx.secrets,
    }
    found: dict[str, Any] = {}
    for one in cls._inputs:
        declaration = one.declaration
        source = declaration["source"]
        if source not in found and source in places:
            found[source] = places[source]()
            if source == "input" and not isinstance(found[source], Mapping):
                message = f"must be an object, not {described(input)}"
                broken.append({"property": "$", "rule": "type", "message": message})
                found[source] = MISSING
        if source == "static":
            value = _copied(declaration["value"])
        elif found[source] is MISSING:
            continue  # told once, for all of them
        else:
            value = found[source].get(declaration["property"], MISSING)
            broken += [
                {"property": declaration["property"] + where, "rule": rule, "message": message}
                for where, rule, message in violations(declaration, value)
            ]
        if value is MISSING:
            value = _copied(declaration.get("default"))
        values[one.attribute] = value
    return values, broken


def declarations(cls: type[Handler]) -> tuple[Declared, ...]:
    """The inputs that a class declares, its bases' first."""
    return cls._inputs


def manifest_inputs(cls: type[Handler]) -> list[dict[str, Any]]:
    """What a class declares, as the `inputs` of handler.json; without test values."""
    return [_copied(one.declaration) for one in cls._inputs]


def schemas(cls: type[Handler]) -> dict[str, Any]:
    """JSON Schemas (2020-12) as `{"input": …, "output": …}`: of what the step's selector has to
    find (inputs from elsewhere are not in it), and of what `execute` returns."""
    from flowmonkey.schemas import input_schema, output_schema

    return {
        "input": input_schema(manifest_inputs(cls)),
        "output": output_schema(cls.execute, cls._output),
    }


def test_values(cls: type[Handler]) -> list[dict[str, Any]]:
    """The test values as [{property, source, value}], or with `env` and `fallback` instead of
    `value` for what the tester's environment gives."""
    found = []
    for one in cls._inputs:
        if one.test_value is MISSING:
            continue
        entry = {name: one.declaration[name] for name in ("property", "source")}
        if isinstance(one.test_value, _Env):
            entry |= {"env": one.test_value.name, "fallback": one.test_value.fallback}
        else:
            entry["value"] = one.test_value
        found.append(entry)
    return found


test_values.__test__ = False  # type: ignore[attr-defined]  # not a test for pytest


class _Env:
    __slots__ = ("fallback", "name")

    def __init__(self, name: str, fallback: Any) -> None:
        self.name = name
        self.fallback = fallback


def _annotation(cls: type, name: str) -> Any:
    annotation = cls.__annotations__.get(name, MISSING)
    if not isinstance(annotation, str):
        return annotation
    names = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    try:
        return eval(annotation, dict(names), dict(vars(cls)))
    except Exception as exc:
        where = f"{cls.__name__}.{name}"
        raise TypeError(f"cannot declare {where}: cannot read its annotation: {exc}") from exc


_PLAIN: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    dict: "object",
}
_PLAIN |= {list: "array", object: "any", Any: "any", type(None): "null", None: "null"}


def _typed(annotation: Any, where: str) -> dict[str, Any]:
    """An annotation as the fields of a declaration. Raises TypeError for what JSON has not."""
    import types
    import typing

    if isinstance(annotation, typing.Hashable) and annotation in _PLAIN:
        return {"type": _PLAIN[annotation]}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType) and type(None) in arguments:
        rest = [one for one in arguments if one is not type(None)]
        if len(rest) == 1:
            return {**_typed(rest[0], where), "nullable": True}
    elif origin is Literal:
        kinds = {kind(one) for one in arguments}
        type_ = kinds.pop() if len(kinds) == 1 else "any"
        return {"type": type_, "enum": list(arguments)}
    elif origin in (list, Sequence):
        items = _typed(arguments[0], where)
        return {"type": "array"} | ({} if items == {"type": "any"} else {"items": items})
    elif origin in (dict, Mapping) or typing.is_typeddict(annotation):
        return {"type": "object"}
    raise TypeError(
        f"cannot declare {where}: {annotation!r} is no type of JSON; use str, int, float, bool, "
        "list[…], dict[str, Any], Literal[…], Any, or one of them | None"
    )


def _copied(value: Any) -> Any:
    """A JSON value of its own, so that no execution changes a declaration."""
    if isinstance(value, Mapping):
        return {name: _copied(one) for name, one in value.items()}
    return [_copied(one) for one in value] if isinstance(value, list | tuple) else value
