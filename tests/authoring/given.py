"""What a Python handler is given, without a process around it: the sandbox's own `ctx`."""

from __future__ import annotations

from sandbox.ctx import Context


def context(**given) -> Context:
    request = {"has_input": True, "config": {}, "secrets": {}, "attempt": 0, **given}
    for name in ("execution_id", "flow_id", "step_id", "tenant_id", "task_id"):
        request[name] = name
    return Context(request, lambda *_: None, dict)
