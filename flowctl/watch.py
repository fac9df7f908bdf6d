"""Following one execution until it ends: what `flowctl run` and `execution watch` share.

Reads the execution's event stream, shows its steps on stderr when that is a terminal, says once
for each wait what it waits for, and prints the final execution on stdout. Stopping to watch never
stops the execution, and every way of stopping says how to watch again.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flowctl.client import Answer, Client, Params, segment
from flowctl.options import Session
from flowctl.output import Output, cell, duration, has_colour, neutral, pretty
from flowctl.problems import BadAnswer, Interrupted, NotCompleted, TimedOut, Unreachable

__all__ = ["ENDED", "print_execution", "until_end"]

ENDED = frozenset({"completed", "failed", "cancelled"})

Fields = Mapping[str, Any]


def until_end(session: Session, first: Answer, deadline: float | None) -> None:
    """Follow the execution in `first` to its end and print it.

    Raises NotCompleted when it failed or was cancelled, TimedOut when `deadline` (monotonic)
    passes, Interrupted on Ctrl-C, Unreachable when the daemon goes away.
    """
    client, output = session.client(), session.output
    execution_id = str(first.fields().get("id"))
    again = (
        f"execution {execution_id} goes on; "
        f"watch it with: flowctl execution watch {neutral(execution_id)}"
    )
    progress = _Progress(output)
    try:
        last = _follow(client, first, deadline, progress)
    except KeyboardInterrupt:
        progress.clear()
        raise Interrupted(f"stopped watching: {again}") from None
    except TimedOut:
        progress.clear()
        print_execution(output, client.get(_path(execution_id)))
        raise TimedOut(f"cannot wait any longer: --timeout has passed; {again}") from None
    except (Unreachable, BadAnswer) as exc:
        progress.clear()
        raise type(exc)(f"{exc.message}\n{again}") from exc
    print_execution(output, last)
    status = last.fields()["status"]
    if status != "completed":
        raise NotCompleted(f"execution {execution_id} {status}{_because(last.fields())}")


def print_execution(output: Output, answer: Answer) -> None:
    """One execution: a summary with its context for people, else the API's own form."""

    def summary(execution: dict[str, Any]) -> None:
        error = execution.get("error")
        output.pairs(
            [
                ("execution", execution.get("id")),
                ("flow", f"{execution.get('flowId')}@{execution.get('flowVersion')}"),
                ("status", execution.get("status")),
                ("step", execution.get("currentStepId")),
                ("steps", execution.get("stepCount")),
                ("tenant", execution.get("tenantId")),
                ("priority", execution.get("priority")),
                ("key", execution.get("idempotencyKey")),
                ("parent", execution.get("parentExecutionId")),
                ("waits for", execution.get("waitReason")),
                ("wakes at", execution.get("wakeAt")),
                ("token", execution.get("resumeToken")),
                ("created", execution.get("createdAt")),
                ("started", execution.get("startedAt")),
                ("finished", execution.get("finishedAt")),
                ("metadata", execution.get("metadata") or None),
            ]
        )
        if isinstance(error, dict):
            output.line(f"error at {cell(error.get('stepId'))}: {_error_text(error)}")
            if error.get("details") is not None:
                output.lines(_details_text(error["details"]))
        output.line("context")
        output.lines(pretty(execution.get("context")))

    output.answer(answer, summary)


class _Progress:
    """The steps as they go, on stderr and only on a terminal: one line each, the last one live."""

    def __init__(self, output: Output) -> None:
        self.output = output
        self._terminal = bool(output.err.isatty())
        self._moves = has_colour(output.err)
        self._pending = False
        self._backs_off = False

    def show(self, event: Fields) -> None:
        """One event of the stream."""
        if not self._terminal:
            return
        data = event.get("data")
        data = data if isinstance(data, dict) else {}
        step = cell(event.get("stepId"))
        match event.get("type"):
            case "step.started":
                self._backs_off = False
                self._begin(step + _attempt(data))
            case "step.completed":
                good = data.get("outcome", "success") in ("success", "wait")
                taken = duration(data.get("durationMs"))
                words = [step + _attempt(data), cell(data.get("outcome", "success"))]
                words += [cell(data["code"])] if data.get("code") else []
                words += [taken] if taken else []
                self._end(good, "  ".join(words))
            case "step.retry":
                self._backs_off = True
                delay = duration(data.get("backoffMs") or None)
                self._end(False, f"{step}  will be tried again" + (f" in {delay}" if delay else ""))
            case "step.timeout":
                self._end(False, f"{step}  ran out of time")
            case "execution.resumed":
                if not self._backs_off:  # the end of a backoff goes without saying
                    self._end(True, "resumed")
                self._backs_off = False
            case "execution.progress" | "job.progress":
                self._begin(f"{step}  {cell(data.get('percent'))} %  {cell(data.get('message'))}")

    def clear(self) -> None:
        """Take the live line away, so that what follows starts on a line of its own."""
        if self._pending:
            self.output.err.write("\r\x1b[2K")
            self.output.err.flush()
            self._pending = False

    def _begin(self, text: str) -> None:
        self.clear()
        if self._moves:
            self.output.err.write(f"\x1b[36m…\x1b[0m {text}")
            self.output.err.flush()
            self._pending = True

    def _end(self, good: bool, text: str) -> None:
        self.clear()
        mark = "✓" if good else "✗"
        if self._moves:
            mark = f"\x1b[{'32' if good else '31'}m{mark}\x1b[0m"
        self.output.err.write(f"{mark} {text}\n")
        self.output.err.flush()


def _follow(client: Client, first: Answer, deadline: float | None, progress: _Progress) -> Answer:
    """Show events until the execution has ended; a stream that ends early is taken up again."""
    path = _path(str(first.fields().get("id")))
    answer, after = first, 0
    told: set[tuple[Any, ...]] = set()
    while answer.fields().get("status") not in ENDED:
        before = after
        params: Params = {"follow": "true", "after": after}
        for _, event in client.lines(f"{path}/events", params, deadline):
            seq = event.get("seq")
            after = seq if isinstance(seq, int) else after + 1
            progress.show(event)
            if event.get("type") == "execution.waiting":
                _tell_wait(event, client.get(path).fields(), told, progress)
            elif str(event.get("type")).rpartition(".")[2] in ENDED:
                progress.clear()
        answer = client.get(path)
        if after == before and answer.fields().get("status") not in ENDED:
            raise Unreachable("cannot go on watching: the daemon ended the stream of events")
        if deadline is not None and time.monotonic() > deadline:
            break
    progress.clear()
    if answer.fields().get("status") not in ENDED:
        raise TimedOut
    return answer


def _tell_wait(
    event: Fields, execution: Fields, told: set[tuple[Any, ...]], progress: _Progress
) -> None:
    """Say once what a wait is for, and how to end it when that is for a person to do."""
    if execution.get("status") != "waiting":
        return  # an older wait, read again from the stream
    step, wake_at = execution.get("currentStepId"), execution.get("wakeAt")
    token = execution.get("resumeToken")
    wait = (step, wake_at, token)
    if wait in told:
        return
    told.add(wait)
    progress.clear()
    reason = execution.get("waitReason")
    text = f"waiting at step {cell(step)}"
    text += f" for {cell(reason)}" if reason else ""
    text += f", until {cell(wake_at)}" if wake_at else ""
    data = event.get("data")
    kind = data.get("kind") if isinstance(data, dict) else None
    if token or kind in ("signal", "event"):
        command = f"flowctl execution resume {cell(execution.get('id'))}"
        text += f"\nresume it with: {command}" + (f" --token {cell(token)}" if token else "")
    progress.output.note(text)


def _because(execution: Fields) -> str:
    error = execution.get("error")
    return f": {_error_text(error)}" if isinstance(error, dict) else ""


def _error_text(error: Fields) -> str:
    return f"{cell(error.get('code'))}: {cell(error.get('message'))}"


def _details_text(details: Any) -> str:
    """A handler's traceback as Python prints it; anything else as JSON."""
    trace = details.get("traceback") if isinstance(details, dict) else None
    if not isinstance(trace, str):
        return pretty(details)
    others = {name: value for name, value in details.items() if name != "traceback"}
    return trace.rstrip("\n") + (f"\n{pretty(others)}" if others else "")


def _attempt(data: Fields) -> str:
    attempt = data.get("attempt")
    return f" (try {attempt + 1})" if isinstance(attempt, int) and attempt > 0 else ""


def _path(execution_id: str) -> str:
    return f"/v1/executions/{segment(execution_id)}"
