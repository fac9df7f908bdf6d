"""What a handler can answer, what its `ctx` offers, and how each limit ends it."""

from __future__ import annotations

import datetime
import json

import pytest

from sandbox import Call, Ending, Limits, Policy

pytestmark = pytest.mark.asyncio(loop_scope="session")

_MIB = 1024 * 1024
_QUIET = {"updates": {}, "emitted": []}

# (name, code, input, the result beside no updates and no events)
ANSWERS = [
    ("a value", "def handle(i, c): return {'sum': sum(i)}", [1, 2], {"output": {"sum": 3}}),
    ("nothing", "def handle(i, c): pass", None, {}),
    ("null on purpose", "def handle(i, c): return c.success(None)", None, {"output": None}),
    ("no value", "def handle(i, c): return c.success()", None, {}),
    ("a list", "def handle(i, c): return [i, 'ä', 1.5, None, True]", 2**70,
     {"output": [2**70, "ä", 1.5, None, True]}),
    ("next step", "def handle(i, c): return c.success(1, next='b')", None,
     {"output": 1, "next": "b"}),
    ("no next step", "def handle(i, c): return c.success(next=None)", None, {"next": None}),
    ("async", "async def handle(i, c):\n import asyncio\n await asyncio.sleep(0)\n return i", 5,
     {"output": 5}),
    ("class, handle", "class handle:\n def handle(self, i, c): return i", 6, {"output": 6}),
    ("class, execute", "class handle:\n async def execute(self, i, c): return i", 7,
     {"output": 7}),
    ("failure", "def handle(i, c): return c.failure('NO', 'sorry', retryable=False, details=[1])",
     None, {"outcome": "failure", "error": {"code": "NO", "message": "sorry", "retryable": False,
                                            "details": [1]}}),
    ("wait for a time", "def handle(i, c): return c.wait(duration_ms=5, reason='r')", None,
     {"outcome": "wait", "wait": {"durationMs": 5, "reason": "r"}}),
    ("wait for an event", "def handle(i, c): return c.wait(event='paid', filter={'id': 1})", None,
     {"outcome": "wait", "wait": {"event": "paid", "filter": {"id": 1}}}),
    ("wait until", "import datetime\ndef handle(i, c):\n"
     " return c.wait(until=datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc))", None,
     {"outcome": "wait", "wait": {"until": "2030-01-01T00:00:00+00:00"}}),
    ("events and updates", "def handle(i, c): c.emit('e', {'n': 1}); c.update('k', [2])", None,
     {"updates": {"k": [2]}, "emitted": [["e", {"n": 1}]]}),
    ("threads", "import threading\ndef handle(i, c):\n r = []\n"
     " t = threading.Thread(target=r.append, args=(1,)); t.start(); t.join()\n return r", None,
     {"output": [1]}),
    ("the standard library", "import sqlite3, ssl, ctypes, hashlib, zoneinfo, decimal, csv\n"
     "def handle(i, c): return sqlite3.connect(':memory:').execute('select 1').fetchone()[0]",
     None, {"output": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("code", "given", "wanted"), [a[1:] for a in ANSWERS],
                         ids=[a[0] for a in ANSWERS])  # fmt: skip
async def test_answer_arrives_as_given(pool, package, code, given, wanted):
    reply = await pool.run(Call(package(code), input=given))
    assert reply.result == {"outcome": "success", **_QUIET, **wanted}, reply
    assert reply.ending is Ending.RESULT


async def test_ctx_tells_everything_about_the_step(pool, package):
    code = """
def handle(input, ctx):
    try:
        ctx.context["new"] = 1
    except TypeError:
        read_only = True
    return [ctx.has_input, ctx.execution_id, ctx.flow_id, ctx.step_id, ctx.attempt, ctx.tenant_id,
            ctx.task_id, ctx.config, dict(ctx.context), ctx.secrets["key"], repr(ctx.secrets),
            "other" in ctx.secrets, read_only]
"""
    call = Call(
        package(code),
        has_input=False,
        config={"a": 1},
        context={"c": [1]},
        secrets={"key": "hidden"},
        execution_id="e1",
        flow_id="f1",
        step_id="s1",
        attempt=3,
        tenant_id="t1",
        task_id="k1",
    )
    reply = await pool.run(call)
    assert reply.result["output"] == [
        *(False, "e1", "f1", "s1", 3, "t1", "k1", {"a": 1}, {"c": [1]}, "hidden"),
        *("<secrets key>", False, True),
    ]
    assert "hidden" not in repr(call)


async def test_context_may_be_json_text_of_any_size(pool, package):
    text = json.dumps({"big": "x" * (12 * _MIB)}).encode()
    code = "def handle(input, ctx): return len(ctx.context['big'])"
    reply = await pool.run(Call(package(code), context=text))
    assert reply.result["output"] == 12 * _MIB


@pytest.mark.slow
async def test_large_input_and_output_pass(pool, package):
    call = Call(package("def handle(i, c): return i"), input="y" * 4 * _MIB)
    reply = await pool.run(call)
    assert reply.ending is Ending.OUTPUT
    reply = await pool.run(
        Call(call.package_dir, input=call.input, limits=Limits(output_bytes=5 * _MIB))
    )
    assert reply.result["output"] == call.input


async def test_handler_imports_its_own_modules_and_nothing_of_ours(pool, package, tmp_path):
    code = """
import importlib.util
import pieces.deep
def handle(input, ctx):
    return [pieces.deep.NAME, [importlib.util.find_spec(n) is None for n in ("pytest", "pip")]]
"""
    folder = package(code)
    (tmp_path / "package" / "pieces").mkdir(mode=0o755)
    (tmp_path / "package" / "pieces" / "deep.py").write_text("NAME = 'mine'")
    reply = await pool.run(Call(folder))
    assert reply.result["output"] == ["mine", [True, True]]


async def test_exception_is_a_failure_with_its_traceback(pool, package):
    code = "def handle(input, ctx):\n    ctx.update('a', 1)\n    raise KeyError('x' * 40000)"
    reply = await pool.run(Call(package(code)))
    error = reply.result["error"]
    assert (reply.result["outcome"], error["code"]) == ("failure", "HANDLER_ERROR")
    assert error["message"].startswith("…")
    assert len(error["details"]["traceback"].encode()) <= 16 * 1024

    reply = await pool.run(Call(package("def handle(input, ctx):\n    return 1 / 0\n")))
    error = reply.result["error"]
    assert error["message"] == "ZeroDivisionError: division by zero"
    assert 'File "/package/handler.py", line 2, in handle' in error["details"]["traceback"]
    assert "sandbox" not in error["details"]["traceback"]


@pytest.mark.parametrize(
    ("entrypoint", "says"),
    [("missing.py:handle", "missing.py"), ("handler.py:absent", "cannot find absent")],
)
async def test_missing_entrypoint_is_a_clear_failure(pool, package, entrypoint, says):
    reply = await pool.run(Call(package("x = 1"), entrypoint))
    assert says in reply.result["error"]["message"]


async def test_missing_package_is_refused_with_the_reason(pool, tmp_path):
    reply = await pool.run(Call(str(tmp_path / "gone")))
    assert (reply.ending, reply.message) == (
        Ending.UNAVAILABLE,
        "cannot attach the package: open_tree: No such file or directory",
    )


async def test_logs_arrive_live_in_order_with_level_and_fields(pool, package):
    code = """
import os, sys
def handle(input, ctx):
    print("one")
    ctx.log.info("two", size=3, odd=object)
    sys.stderr.write("three, no newline")
    ctx.log.warning("fo\\udcffur")
"""
    live = []
    before = datetime.datetime.now(datetime.UTC).timestamp() * 1000
    reply = await pool.run(Call(package(code)), live.append)
    assert tuple(live) == reply.logs
    told = [(line.stream, line.level, line.message) for line in reply.logs]
    assert told == [
        ("stdout", None, "one"),
        ("log", "info", "two"),
        ("log", "warning", "fo?ur"),
        ("stderr", None, "three, no newline"),
    ]
    assert reply.logs[1].fields == {"size": 3, "odd": "<class 'object'>"}
    assert all(before - 1000 < line.at_ms < before + 20_000 for line in reply.logs)


async def test_output_past_python_is_kept_too(pool, package):
    code = "import os\ndef handle(input, ctx):\n    os.write(1, b'raw\\n')\n    os.write(2, b'err')"
    reply = await pool.run(Call(package(code)))
    assert {(line.stream, line.message) for line in reply.logs} == {
        ("stdout", "raw"),
        ("stderr", "err"),
    }


# (name, code, limits, ending, words of the message)
LIMITS = [
    ("wall", "import time\ndef handle(i, c): time.sleep(60)", {"wall_ms": 200}, "timeout",
     "longer than 200 ms"),
    ("wall, busy", "def handle(i, c):\n while True: pass", {"wall_ms": 200}, "timeout", "200 ms"),
    ("wall, signals ignored", "import signal, time\nfor n in range(1, 32):\n"
     " if n not in (9, 19): signal.signal(n, signal.SIG_IGN)\ndef handle(i, c): time.sleep(60)",
     {"wall_ms": 200}, "timeout", "200 ms"),
    ("wall, while importing", "import time; time.sleep(60)", {"wall_ms": 200}, "timeout", ""),
    ("cpu", "def handle(i, c):\n while True: pass", {"cpu_ms": 1000}, "cpu", "CPU time"),
    ("memory, escaping", "def handle(i, c): return len(bytearray(1 << 40))",
     {"memory_bytes": 64 * _MIB}, "memory", ""),
    ("memory, grown", "def handle(i, c):\n x = []\n while True: x.append(bytearray(1 << 20))",
     {"memory_bytes": 64 * _MIB}, "memory", ""),
    ("memory, small pieces kept", "x = []\ndef handle(i, c):\n while True: x.append([1] * 100)",
     {"memory_bytes": 64 * _MIB}, "memory", ""),
    ("memory, mapped", "import mmap\ndef handle(i, c):\n x = []\n"
     " while True:\n  m = mmap.mmap(-1, 1 << 20); m.write(bytes(1 << 20)); x.append(m)",
     {"memory_bytes": 64 * _MIB}, None, "HANDLER_ERROR"),
    ("exit", "import os\ndef handle(i, c): os._exit(0)", {}, "crash", "status 0"),
    ("exit while importing", "import os; os._exit(3)", {}, "crash", "status 3"),
    ("segfault", "import ctypes\ndef handle(i, c): ctypes.string_at(0)", {}, "crash", "SIGSEGV"),
    ("abort", "import os\ndef handle(i, c): os.abort()", {}, "crash", ""),
    ("big output", "def handle(i, c): return 'x' * (3 << 20)", {}, "output", "bytes"),
    ("not JSON", "def handle(i, c): return {1, 2}", {}, "protocol", "not JSON"),
    ("NaN", "def handle(i, c): return float('nan')", {}, "protocol", "not JSON"),
    ("keys that are no text", "def handle(i, c): return {1: 2}", {}, "protocol", "keys"),
    ("lone surrogate", "def handle(i, c): return '\\ud800'", {}, "protocol", "surrogate"),
    ("deep", "def handle(i, c):\n x = []\n for _ in range(5000): x = [x]\n return x", {},
     "protocol", "nested"),
    ("contains itself", "def handle(i, c):\n x = []; x.append(x); return x", {}, "protocol",
     "itself"),
    ("too many threads", "import threading, time\ndef handle(i, c):\n"
     " for _ in range(200): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
     {"threads": 20}, None, "can't start new thread"),
    ("too many descriptors", "def handle(i, c):\n return [open(__file__) for _ in range(300)]",
     {"open_files": 40}, None, "Too many open files"),
    ("recursion", "def handle(i, c): return handle(i, c)", {}, None, "RecursionError"),
    ("exit by exception", "def handle(i, c): raise SystemExit(3)", {}, None, "SystemExit: 3"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "limits", "ending", "says"),
    [
        pytest.param(*x[1:], id=x[0], marks=pytest.mark.slow if x[0] == "cpu" else ())
        for x in LIMITS
    ],
)
async def test_each_limit_has_its_ending(pool, package, code, limits, ending, says):
    """`ending` None: an exception in the handler, with these words."""
    reply = await pool.run(Call(package(code), limits=Limits(**{"wall_ms": 20_000, **limits})))
    if ending is None:
        assert says in str(reply.result["error"]), reply
    else:
        assert (str(reply.ending), says in reply.message) == (ending, True), reply
        assert reply.result is None


async def test_caught_memory_error_is_the_handlers_own_business(pool, package):
    code = "def handle(i, c):\n try: bytearray(1 << 40)\n except MemoryError: return 'small'"
    reply = await pool.run(Call(package(code)))
    assert reply.result["output"] == "small"


@pytest.mark.slow
async def test_log_flood_is_cut_and_marked_and_harms_nobody(pool, package):
    code = """
import os
def handle(input, ctx):
    for _ in range(3000): print("x" * 1000)
    for _ in range(20): os.write(2, b"y" * 50000)
    ctx.log.info("end")
    return "done"
"""
    reply = await pool.run(Call(package(code), limits=Limits(log_bytes=100_000)))
    assert reply.result["output"] == "done"
    assert sum(len(line.message) for line in reply.logs) < 110_000
    assert reply.logs[-1].message == "… truncated"


@pytest.mark.slow
@pytest.mark.parametrize("write", ["os.write(1, b'\\n' * (1 << 20))", "print('\\n' * 20000)"])
async def test_empty_lines_count_too(pool, package, write):
    """A million lines of no bytes would cost the daemon more than a full log of text."""
    call = Call(package(f"import os\ndef handle(i, c): {write}"), limits=Limits(log_bytes=100_000))
    reply = await pool.run(call)
    assert len(reply.logs) == 1001
    assert reply.logs[-1].message == "… truncated"


FORGED = [
    ("two results", "f(b'R', b'{\"outcome\":\"success\",\"output\":1}') * 2", "result"),
    ("half a frame", "b'\\0\\0\\1'", "crash"),
    ("a huge frame", "b'\\xff\\xff\\xff\\xff'", "output"),
    ("a short frame", "b'\\0\\0\\0\\1R'", "protocol"),
    ("no token", "f(b'R', b'{}', bytes(8))", "protocol"),
    ("NaN", "f(b'R', b'{\"outcome\":\"success\",\"output\":NaN}')", "protocol"),
    ("1e999", "f(b'R', b'{\"outcome\":\"success\",\"output\":1e999}')", "protocol"),
    ("invalid UTF-8", "f(b'R', b'{\"outcome\":\"success\",\"output\":\"\\xff\"}')", "protocol"),
    ("deep", "f(b'R', b'[' * 100000)", "protocol"),
    ("wrong shape", "f(b'R', b'{\"outcome\":\"success\",\"updates\":3}')", "protocol"),
    ("unknown outcome", "f(b'R', b'{\"outcome\":\"fine\"}')", "protocol"),
    ("unknown kind", "f(b'Z', b'{}')", "protocol"),
    ("a request", "f(b'Q', b'{}')", "protocol"),
    ("context twice", "f(b'C', b'') * 2", "protocol"),
    ("broken log", "f(b'L', b'[]')", "protocol"),
    ("log flood", "f(b'L', b'{\"stream\":\"log\",\"level\":\"info\",\"message\":\"%s\"}' "
     "% (b'x' * 30000)) * 100", "protocol"),
    ("empty frames", "f(b'L', b'{\"stream\":\"stderr\",\"message\":\"%s\"}' % (b'x' * 200000))"
     " + f(b'L', b'') * 20000", "protocol"),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "ending"), [x[1:] for x in FORGED], ids=[x[0] for x in FORGED])
async def test_forged_frames_end_the_execution(pool, package, raw, ending):
    """The handler writes to the channel itself: at worst it forges its own single result."""
    code = f"""
import os, struct, sys
def handle(input, ctx):
    token = sys._getframe(1).f_locals["channel"]._token
    def f(kind, payload, token=token):
        return struct.pack("!I", 9 + len(payload)) + kind + token + payload
    data = {raw}
    while data:
        data = data[os.write(3, data):]
    os._exit(0)
"""
    reply = await pool.run(Call(package(code), limits=Limits(log_bytes=100_000)))
    assert str(reply.ending) == ending, reply


async def test_closing_the_channel_ends_the_execution(pool, package):
    code = "import os, time\ndef handle(i, c):\n    os.close(3)\n    time.sleep(60)"
    reply = await pool.run(Call(package(code)))
    assert reply.ending is Ending.CRASH


@pytest.mark.parametrize("filesystem", ["none", "readonly", "temp"])
async def test_only_temp_can_be_written_and_it_is_private(pool, package, filesystem):
    code = """
import os
def handle(input, ctx):
    before = os.listdir("/tmp")
    try:
        open("/tmp/file", "w").write("x")
    except OSError as exc:
        return [before, exc.strerror]
    return [before, "written"]
"""
    call = Call(package(code), policy=Policy(filesystem=filesystem))
    wanted = "written" if filesystem == "temp" else "Read-only file system"
    for _ in range(2):
        reply = await pool.run(call)
        assert reply.result["output"] == [[], wanted]


async def test_temp_is_bounded_in_bytes_and_files(pool, package):
    code = """
def handle(input, ctx):
    said = []
    for make in (lambda n: open(f"/tmp/{n}", "w"), lambda n: open("/tmp/0", "ab").write(bytes(9999))):
        try:
            for n in range(100000): make(n)
        except OSError as exc:
            said.append(exc.strerror)
    return said
"""  # noqa: E501
    call = Call(package(code), policy=Policy(filesystem="temp"), limits=Limits(temp_bytes=1 << 20))
    reply = await pool.run(call)
    assert reply.result["output"][0] == "No space left on device"
    assert reply.result["output"][1] in ("No space left on device", "File too large")


@pytest.mark.slow
async def test_usage_is_what_the_kernel_counted(pool, package):
    code = """
import time
def handle(input, ctx):
    data = bytearray(b"x" * (50 << 20))
    end = time.process_time() + 0.1
    while time.process_time() < end: pass
"""
    usage = (await pool.run(Call(package(code)))).usage
    assert 100 <= usage.cpu_ms <= usage.wall_ms + 50
    assert 50 * _MIB < usage.peak_memory_bytes < 200 * _MIB


def check_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


async def test_hard_limits_are_hard():
    check_refused(lambda: Limits(wall_ms=60_001), "wall_ms")
    check_refused(lambda: Limits(memory_bytes=1025 * _MIB), "memory_bytes")
    check_refused(lambda: Policy(filesystem="host"), "filesystem")
    check_refused(lambda: Policy(required=frozenset({"magic"})), "magic")


async def test_input_that_is_not_json_is_refused_before_anything_runs(pool, package):
    reply = await pool.run(Call(package("def handle(i, c): pass"), input={1, 2}))
    assert (reply.ending, reply.message.startswith("cannot send the input")) == (
        Ending.PROTOCOL,
        True,
    )


async def test_a_wait_for_nothing_waits_until_somebody_resumes_it(pool, package):
    reply = await pool.run(Call(package("def handle(i, c): return c.wait(reason='ask')")))
    assert (reply.result or {}).get("wait") == {"reason": "ask"}
