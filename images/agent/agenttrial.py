"""A stateful handler tried without a daemon or a container: a handler of the sandbox around it.

`flowctl handler test` adds the agent's files to the package and calls `handle`, which runs the
other handler with the agent's own `ctx`, as in a container. What a daemon would keep is kept in
memory, and told in the log; a pause ends at once, with what is given for it.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from agentjson import encode
from agentline import Line
from agentlogs import Logs
from agentrun import Run

del sys.path[0]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["handle"]


def handle(input: Any, ctx: Any) -> Any:
    """`input` is {task, resumes}: the task without what `ctx` knows, and the data of the events
    that its pauses end with, the last one again and again."""
    line = _Memory(ctx, input["resumes"], input["task"]["ttl"]["ttlMs"])
    names = {
        "package": os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        "executionId": ctx.execution_id,
        "flowId": ctx.flow_id,
        "stepId": ctx.step_id,
        "stepAttempt": ctx.attempt,
        "tenantId": ctx.tenant_id,
        "taskId": ctx.task_id,
    }
    task = {**input["task"], **names, "config": ctx.config, "secrets": dict(ctx.secrets)}
    Run(line, _Told(line, ctx)).execute({**task, "resume": None})
    return _answer(line.result, ctx)


def _answer(result: dict[str, Any], ctx: Any) -> Any:
    for event, data in result.get("emitted", ()):
        ctx.emit(event, data)
    for key, value in result.get("updates", {}).items():
        ctx.update(key, value)
    match result["outcome"]:
        case "success":
            more = {"next": result["next"]} if "next" in result else {}
            return ctx.success(*([result["output"]] if "output" in result else []), **more)
        case "failure":
            return ctx.failure(**result["error"])
        case "wait":
            wait = result["wait"]
            duration_ms = wait.pop("durationMs", None)
            return ctx.wait(duration_ms=duration_ms, **wait)
    return ctx.failure("INVALID_RESULT", result["message"], retryable=False)


class _Told(Logs):
    """The log of the sandbox, which has its own streams and limits."""

    def __init__(self, line: Line, ctx: Any) -> None:
        super().__init__(line)
        self._log = ctx.log

    def add(
        self,
        stream: str,
        level: str | None,
        message: str,
        fields: dict[str, Any] | None = None,
        say: Any = None,
    ) -> None:
        self._log._write(level or "info", message, fields or {})


class _Memory(Line):
    """A line whose daemon is this object."""

    def __init__(self, ctx: Any, resumes: list[Any], ttl_ms: int) -> None:
        super().__init__("", "trial", "")
        self.result: dict[str, Any] = {}
        self._ctx, self._resumes = ctx, resumes
        self._saved: dict[str, tuple[dict[str, Any], bytes]] = {}
        self._ttl_ms = ttl_ms

    def send(self, message: dict[str, Any]) -> None:
        about = {"percent": round(message["percent"], 1)}
        if message["message"] is not None:
            about["message"] = message["message"]
        self._tell("info", "progress", about)

    def ask(self, message: dict[str, Any], blob: bytes | None = None) -> dict[str, Any]:
        match message["type"]:
            case "checkpoint":
                self._save(message["name"], message, blob or b"")
            case "clear":
                for name in [message["name"]] if message["name"] else list(self._saved):
                    self._saved.pop(name, None)
            case "extend":
                self._ttl_ms += message["ms"]
                return {"type": "ok", "ttlMs": self._ttl_ms}
            case "pause":
                return self._pause(message, blob)
            case "result":
                self.result = message["answer"]
        return {"type": "ok"}

    def fetch(self, message: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if message["type"] == "context":
            return {}, encode(dict(self._ctx.context))
        head, blob = self._saved.get(message["name"], ({}, b""))
        return {**head, "found": bool(head)}, blob

    def _tell(self, level: str, message: str, fields: dict[str, Any]) -> None:
        self._ctx.log._write(level, message, fields)

    def _save(self, name: str, head: dict[str, Any], blob: bytes) -> None:
        self._saved[name] = (head, blob)
        self._tell("debug", "checkpoint", {"name": name, "bytes": len(blob)})

    def _pause(self, message: dict[str, Any], blob: bytes | None) -> dict[str, Any]:
        if message["checkpoint"] is not None:
            self._save("default", message["checkpoint"], blob or b"")
        data, by = None, "hand"
        if self._resumes:
            by = "event" if message["event"] else "hand"
            data = self._resumes.pop(0) if len(self._resumes) > 1 else self._resumes[0]
        about = {"reason": message["reason"], "event": message["event"], "by": by}
        self._tell("info", "pause", about)
        return {"type": "resume", "by": by, "data": data, "pausedMs": 0}
