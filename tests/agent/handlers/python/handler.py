"""What the tests have an agent run; `node/handler.js` has the same by the same names."""

import asyncio
import os
import subprocess
import sys
import time

from flowmonkey import Handler, Input

STARTED = time.time()


def echo(input, ctx):
    return input


def nothing(input, ctx):
    pass


async def later(input, ctx):
    await asyncio.sleep(0.001)
    return {"waited": True}


class Plain:
    def __init__(self):
        self.calls = 0

    def execute(self, input, ctx):
        self.calls += 1
        return {"calls": self.calls}


class Declared(Handler):
    width: int = Input(min=1)
    name: str = Input("config", default="none")

    async def execute(self, ctx):
        return {"width": self.width, "name": self.name}


def about(input, ctx):
    names = ("execution_id", "flow_id", "step_id", "attempt", "tenant_id", "task_id", "has_input")
    told = [getattr(ctx, name) for name in names]
    return {
        "told": told,
        "input": input,
        "config": ctx.config,
        "context": dict(ctx.context),
        "secret": ctx.secrets["key"],
        "shown": str(ctx.secrets),
        "cancelled": ctx.cancelled,
        "left": ctx.ttl_left_ms,
    }


def answers(input, ctx):
    ctx.update("seen", 1)
    ctx.emit("thing", {"n": 1})
    if input == "success":
        return ctx.success({"a": 1}, next="there")
    if input == "failure":
        return ctx.failure("NO_GOOD", "it is bad", retryable=False, details={"why": "so"})
    return ctx.wait(event="go", duration_ms=5, reason="for it")


def fails(input, ctx):
    return _fails()


def _fails():
    raise ValueError("on purpose")


def unjson(input, ctx):
    return {"bad": float("nan")}


def huge(input, ctx):
    return "x" * 2_000_000


def speaks(input, ctx):
    ctx.log.info("first", n=1, odd={1, 2} and object)
    print("second")
    print("third", file=sys.stderr)
    ctx.log.warning("fourth")
    sys.stdout.write("x" * 20_000 + "\n")
    sys.stdout.write("half")


def programs(input, ctx):
    subprocess.run(["echo", "from a program"], check=True)
    pid = os.fork()
    if pid == 0:
        print("from a child")
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(pid, 0)


def floods(input, ctx):
    for n in range(30_000):
        ctx.log.info(f"line {n}")
    return "done"


def checkpoints(input, ctx):
    ctx.checkpoint.save({"n": [1, None, "ä"]})
    ctx.checkpoint.save(b"\x00\xff", name="bytes")
    ctx.checkpoint.save("y" * 100_000, name="compressed")
    ctx.checkpoint.save(os.urandom(input), name="big")
    names = ctx.checkpoint.names()
    big = len(ctx.checkpoint.load("big"))
    loaded = [ctx.checkpoint.load(), list(ctx.checkpoint.load("bytes"))]
    compressed = ctx.checkpoint.load("compressed") == "y" * 100_000
    ctx.checkpoint.clear("big")
    left = ctx.checkpoint.names()
    ctx.checkpoint.clear()
    none = ctx.checkpoint.load(), ctx.checkpoint.load("bytes", default=7)
    return [names, big, loaded, compressed, left, ctx.checkpoint.names(), list(none)]


def too_large(input, ctx):
    caught = []
    try:
        ctx.checkpoint.save(os.urandom(200_000), name="a")
        ctx.checkpoint.save(os.urandom(200_000), name="b")
    except ctx.checkpoint.TooLarge as exc:
        caught = [exc.code, ctx.checkpoint.names()]
    if input:
        ctx.checkpoint.save(os.urandom(400_000))
    return caught


def refused(input, ctx):
    ctx.checkpoint.save(1, name="refused")


def counts(input, ctx):
    """Goes on where it was, a checkpoint for each step."""
    n = ctx.checkpoint.load(default=0)
    begun = n
    while n < input:
        n += 1
        ctx.checkpoint.save(n)
        ctx.progress(100 * n / input, f"at {n}")
    return [begun, n]


def pauses(input, ctx):
    got = ctx.pause.wait("for the file", max_wait_ms=1000, event="up", filter={"a": 1})
    return {"got": got, "by": ctx.pause.by, "left": ctx.ttl_left_ms}


def pauses_with(input, ctx):
    at = ctx.checkpoint.load(default="begin")
    got = ctx.pause.wait("for the file", event="up", checkpoint="here")
    ctx.checkpoint.save("after", name="after")
    return [at, ctx.checkpoint.load(), got, ctx.pause.by]


def progresses(input, ctx):
    for n in range(input):
        ctx.progress(100 * n / input)
        if n == input // 2:
            time.sleep(0.2)
    ctx.progress(250, "over")


def extends(input, ctx):
    return [ctx.extend_ttl(5000), ctx.ttl_warned]


def waits_for_cancel(input, ctx):
    ctx.checkpoint.save("waiting")
    while not ctx.cancelled:
        time.sleep(0.005)
    return "gave up"


def waits_for_ttl(input, ctx):
    ctx.checkpoint.save("waiting")
    while not ctx.ttl_warned:
        time.sleep(0.005)
    return "warned"


def computes(input, ctx):
    """Never lets go of the processor."""
    ctx.checkpoint.save("computing")
    end = time.monotonic() + input
    n = 0
    while time.monotonic() < end:
        n += 1
    ctx.checkpoint.save("computed")
    return "computed"


def started(input, ctx):
    return STARTED


def dies(input, ctx):
    ctx.checkpoint.save("about to die")
    os._exit(7)


def settles(input, ctx):
    ctx.checkpoint.save(1)
    ctx.pause.wait("for the file", event="up")
    ctx.checkpoint.save(2)


def may_pause(input, ctx):
    caught = []
    for ms in (-1, 10**9):
        try:
            ctx.pause.wait("too long", max_wait_ms=ms)
        except ValueError as exc:
            caught.append(str(exc)[:12])
    return caught


def forks(input, ctx):
    """Children that ask, and that return as if they were the handler."""
    codes = []
    for does in ("asks", "returns"):
        pid = os.fork()
        if pid == 0:
            if does == "returns":
                return "from the child"
            try:
                ctx.checkpoint.save(1)
            except RuntimeError:
                os._exit(9)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    ctx.checkpoint.save(2)
    return codes


def closes(input, ctx):
    """As what makes a daemon of itself does."""
    os.closerange(3, 256)
    ctx.checkpoint.save(3)
    return "closed"
