"""One task: the handler loaded and called, its result sent.

What a handler is and what its answers look like is as in the sandbox: a function or a class with
handle() or execute(), plain or async; an exception is the failure HANDLER_ERROR.
"""

from __future__ import annotations

import importlib.machinery
import sys
from types import ModuleType

from agentblobs import Refused
from agentctx import Context
from agentjson import encode
from agentline import Line
from agentlogs import Logs

TYPE_CHECKING = False  # typing itself would cost 0.6 MiB
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    _Handler = Callable[[Any, Context], Any]

__all__ = ["Run"]

RESULT_MAX_BYTES = 1024 * 1024 + 63 * 1024  # a message has 1 KiB more
TRACEBACK_MAX_BYTES = 16 * 1024
_TRACEBACK_FRAMES_MAX = 100  # the last ones: formatting a million takes seconds


class Run:
    """What this agent runs."""

    def __init__(self, line: Line, logs: Logs) -> None:
        self._line = line
        self._logs = logs
        self._handler: _Handler | None = None

    def prepare(self, package: str, entrypoint: str) -> str | None:
        """Import the handler ahead; if that fails, return why, and it is tried again with the
        task."""
        loaded, path = set(sys.modules), list(sys.path)
        try:
            self._handler = _load(package, entrypoint)
        except BaseException as exc:
            sys.path[:] = path
            for name in set(sys.modules) - loaded:
                del sys.modules[name]
            message: str = _describe(exc)["message"]
            return message
        return None

    def execute(self, task: dict[str, Any]) -> None:
        """Run the task to its end, and return once the daemon has its result."""
        context = Context(task, self._line, self._logs)
        answer: dict[str, Any]
        try:
            if self._handler is None:
                self._handler = _load(task["package"], task["entrypoint"])
            given = task["input"] if task["hasInput"] else None
            answer = context.finished(_await(self._handler(given, context)))
        except MemoryError:
            answer = _problem("memory", "the handler ran out of memory")
        except BaseException as exc:
            answer = context.collected({"outcome": "failure", "error": _describe(exc)})
        self._logs.finish()
        context.progress.flush()
        self._line.ask({"type": "result", "answer": _sendable(answer)})


def _sendable(answer: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(encode(answer))
    except (TypeError, ValueError) as exc:
        return _problem("protocol", f"the handler's result is not JSON: {exc}")
    if size > RESULT_MAX_BYTES:
        limit = RESULT_MAX_BYTES
        return _problem("output", f"the result has {size} bytes, {limit} are allowed")
    return answer


def _problem(ending: str, message: str) -> dict[str, Any]:
    return {"outcome": "problem", "ending": ending, "message": _cut(message, 2000)}


def _load(root: str, entrypoint: str) -> _Handler:
    file, _, name = entrypoint.rpartition(":")
    sys.path.insert(0, root)
    module_name = file.removesuffix(".py").replace("/", ".")
    if module_name in sys.modules:
        module_name = f"handler_{module_name}"  # its file may be named like a loaded module
    path = f"{root}/{file}"
    loader = importlib.machinery.SourceFileLoader(module_name, path)
    module = sys.modules[module_name] = ModuleType(module_name)
    spec = importlib.machinery.ModuleSpec(module_name, loader, origin=path)
    spec.has_location = True
    module.__file__, module.__spec__, module.__loader__ = path, spec, loader
    module.__package__ = spec.parent
    loader.exec_module(module)
    target: Any = getattr(module, name, None)
    if isinstance(target, type):
        instance = target()
        target = getattr(instance, "handle", None) or getattr(instance, "execute", None)
    if not callable(target):
        raise ImportError(f"cannot find {name} in {file}: a function, or a class with handle()")
    handler: _Handler = target
    return handler


def _await(value: Any) -> Any:
    if not hasattr(value, "__await__"):
        return value
    import asyncio  # only for those who need it

    async def main() -> Any:
        return await value

    return asyncio.run(main())


def _describe(exc: BaseException) -> dict[str, Any]:
    """An exception as an error value; what the handler's own __str__ does stays its problem."""
    refused = exc if isinstance(exc, Refused) else None
    try:
        import traceback  # 1 MiB: only for those who need it

        text = f"{type(exc).__name__}: {exc}"
        limit = -_TRACEBACK_FRAMES_MAX
        trace = "".join(traceback.format_exception(type(exc), exc, _theirs(exc), limit=limit))
    except BaseException:
        text, trace = type(exc).__name__, ""
    return {
        "code": refused.code if refused else "HANDLER_ERROR",
        "message": _cut(text, 2000),
        "retryable": refused is None or refused.is_retryable,
        "details": {"traceback": _cut(trace, TRACEBACK_MAX_BYTES)},
    }


def _theirs(exc: BaseException) -> Any:
    """Its traceback without the frames of this file at the beginning."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    return trace


def _cut(text: str, size_bytes: int) -> str:
    """At most that many bytes of UTF-8; of a longer text the end, where a traceback's news is."""
    data = text.encode("utf-8", "replace")
    if len(data) <= size_bytes:
        return data.decode()
    return "…" + data[-size_bytes + 3 :].decode("utf-8", "ignore")
