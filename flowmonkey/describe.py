"""A handler that describes another one: run in the sandbox, for whoever has only its package.

To read what a class declares its file must be run, and that is a stranger's code. So this runs as
the handler of a package that carries the library (`flowmonkey/describe.py:handle`), with the
other's entrypoint as input, and what it returns is data like any handler's output.
"""

from __future__ import annotations

import importlib
from typing import Any

from flowmonkey.declared import Handler, manifest_inputs, schemas, test_values
from flowmonkey.schemas import output_schema

__all__ = ["handle"]


def handle(input: Any, ctx: Any) -> dict[str, Any]:
    """`{"entrypoint": "handler.py:Resize"}` to {isClass, inputs, schemas, testValues}.

    A function, or a class that is no `Handler`, declares nothing: `inputs` is null and there is
    no schema of its input.
    """
    file, _, name = input["entrypoint"].rpartition(":")
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    target = getattr(module, name)
    if isinstance(target, type) and issubclass(target, Handler):
        return {
            "isClass": True,
            "inputs": manifest_inputs(target),
            "schemas": schemas(target),
            "testValues": test_values(target),
        }
    if isinstance(target, type):
        target = getattr(target, "handle", None) or getattr(target, "execute", None)
    found = {"output": output_schema(target)}
    return {"isClass": False, "inputs": None, "schemas": found, "testValues": []}
