"""The process that dies: runs a scenario (that of test_nth_commit) and kills itself at the n-th
commit.

Started once, it imports everything and then forks a child for each line `N WHEN PATH` on
stdin, so that a death costs milliseconds. It answers with how the child ended. The engine is used
as it is: the statement trace of the connection tells it before a commit, `Store.on_commit` after.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flowmonkeyd.errors import Conflict
from flowmonkeyd.model import ExecutionStatus
from flowmonkeyd.store import Committed, Tx, executions
from flowmonkeyd.testing import FlowHarness
from tests.flows import doc, step, sub_flow, wait_for_event

__all__ = ["DOCUMENTS", "drive", "harness", "serve"]

Harness = Callable[[Path, int], FlowHarness]
Drive = Callable[[FlowHarness], Awaitable[None]]

DOCUMENTS = [
    doc(
        step("a", "flaky", retry={"maxAttempts": 2, "backoffMs": 100}, out="a", next="w"),
        wait_for_event("w", "by-token", next="s"),
        sub_flow("s", "kid", out="kid", next="c"),
        step("c", "work", out="big"),
        id="order",
    ),
    doc(
        step("k", "flaky", retry={"maxAttempts": 2}, out="k", next="w"),
        wait_for_event("w", "go", next="d"),
        step("d", "delay", config={"ms": 50}),
        id="kid",
    ),
    doc(sub_flow("s", "leaf", config={"forEach": "items"}, out="r"), id="fan"),
    doc(step("t", "work", out="t"), id="leaf"),
    doc(step("n", "no", fail="m"), step("m", "work", out="saw"), id="routed"),
    doc(sub_flow("s", "stuck"), id="unwanted"),
    doc(wait_for_event("never", "never"), id="stuck"),
]
ROOTS = ["order", "fan", "routed", "unwanted"]


def harness(path: Path, start_ms: int) -> FlowHarness:
    """A harness whose handlers write each call to a file beside the database, and are otherwise
    functions of what they are given."""
    tally = os.open(path.with_suffix(".tally"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def work(given: Any, ctx: Any) -> Any:
        os.write(tally, f"{ctx.task_id} {ctx.step_id} {ctx.attempt}\n".encode())
        return {"text": "x" * 700, "step": ctx.step_id, "saw": sorted(given)}

    def flaky(given: Any, ctx: Any) -> Any:
        done = work(given, ctx)
        return done if ctx.attempt == 2 else ctx.failure("FLAKY", "not yet")

    def no(given: Any, ctx: Any) -> Any:
        work(given, ctx)
        return ctx.failure("NO", "no", retryable=False)

    handlers = {"work": work, "flaky": flaky, "no": no}
    fm = FlowHarness(handlers, path=path, start_ms=start_ms)
    fm.close_tally = lambda: os.close(tally)  # type: ignore[attr-defined]
    return fm


async def drive(fm: FlowHarness) -> None:
    """A client that knows nothing of deaths: asks for what it wants until it has it."""
    for document in DOCUMENTS:
        await fm.engine.apply_flow(document)
    for flow_id in ROOTS:
        try:
            await fm.create(flow_id, {"items": [1, 2]}, id=flow_id, idempotency_key="once")
        except Conflict:
            raise AssertionError("the key was forgotten but the execution was not") from None
    while True:
        await fm.settle()
        waiting = await live(fm)
        if not waiting:
            return
        for run in waiting:
            if run.id == "unwanted":
                await fm.cancel(run.id, reason="nobody wants it")
            elif run.flow_id == "order" and run.resume_token:
                await fm.resume_token(run.resume_token, {"by": "token"})
            elif run.flow_id == "kid" and run.resume_token:
                await fm.send_event("go", {"n": 1})
        fm.advance(100)


async def live(fm: FlowHarness) -> list[Any]:
    page = executions.Page(limit=1000, statuses=(ExecutionStatus.WAITING.value,))
    return [r.execution for r in await fm.store.read(lambda conn: executions.list_page(conn, page))]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def run_and_die(n: int, when: str, path: Path, harness: Harness, drive: Drive) -> None:
    """The scenario, dead before or after its n-th commit if it has so many."""
    left = n

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    def traced(statement: str) -> None:
        if statement == "COMMIT":
            count()

    def told(_: Committed) -> None:
        count()

    def trace(tx: Tx) -> None:
        tx.execute.__self__.set_trace_callback(traced)  # the writer's connection

    async with harness(path, 1_700_000_000_000) as fm:
        fm.store.before_commit = fm.engine.run_ready  # as the daemon does
        if when == "before":
            await fm.store.write(trace)
        else:
            fm.store.on_commit = told
        await drive(fm)


def serve(harness: Harness, drive: Drive) -> None:
    for line in sys.stdin:
        n, when, path = line.rstrip("\n").split(" ", 2)
        child = os.fork()
        if child == 0:
            asyncio.run(run_and_die(int(n), when, Path(path), harness, drive))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(harness, drive)
