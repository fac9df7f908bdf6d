"""The sandbox host: what a pool promises holds when another process is the pool.

It dies, it is hung, it lies; its parent dies. Calls come back, the next host comes, nothing stays.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

import sandbox
from sandbox import (
    Call,
    Egress,
    Ending,
    HostedPool,
    JsonText,
    Limits,
    Policy,
    Pool,
    PoolSettings,
    Reuse,
)
from sandbox.host import messages
from sandbox.host.link import Link
from sandbox.wire import ProtocolError
from tests.sandbox.watching import all_gone, lives, started

pytestmark = pytest.mark.asyncio(loop_scope="session")

_PASSWD = Path("/etc/passwd")
_PROJECT = Path(sandbox.__file__).parent.parent
_ECHO = "def handle(input, ctx): return [input, ctx.config, dict(ctx.secrets), ctx.execution_id]"
_SLEEP = "import time\ndef handle(input, ctx):\n    print('asleep')\n    time.sleep(60)"
_SAY = """
import sys
def handle(input, ctx):
    for n in range(input):
        print(n)
        ctx.log.info("line", n=n)
    sys.stderr.write("half")
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hosted():
    """One for the file: no test may leave anything in it."""
    async with HostedPool(PoolSettings(slots=2, spares=1)) as pool:
        yield pool


@pytest_asyncio.fixture(loop_scope="session")
async def own():
    """A hosted pool of the test's own, which may be harmed."""
    async with HostedPool(PoolSettings(slots=2, spares=1)) as pool:
        yield pool


def _family(pid):
    return {pid, *(one.pid for one in psutil.Process(pid).children(recursive=True))}


# --- calls ------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_call_and_its_reply_are_what_they_are_at_home(hosted, package):
    call = Call(
        *(package(_ECHO), "handler.py:handle", "python"),
        input=JsonText(b'{"a": [1.5e3, 123456789012345678901234567890, "\xc3\xbc"]}'),
        config={"b": None},
        secrets={"key": "secret"},
        execution_id="e1",
    )
    async with Pool(PoolSettings(slots=1, spares=1)) as home:
        wanted = await home.run(call)
    found = await hosted.run(call)
    assert found.result == wanted.result
    assert found.text == wanted.text
    assert found.ending is Ending.RESULT
    assert found.usage.peak_memory_bytes > 0


@pytest.mark.parametrize(
    ("code", "limits", "ending"),
    [
        ("import os\ndef handle(input, ctx): os._exit(3)", Limits(), Ending.CRASH),
        ("def handle(input, ctx):\n while 1: pass", Limits(wall_ms=200), Ending.TIMEOUT),
        ("def handle(input, ctx): return 'x' * 9999", Limits(output_bytes=2048), Ending.OUTPUT),
    ],
)
async def test_other_endings_come_with_their_words(hosted, package, code, limits, ending):
    reply = await hosted.run(Call(package(code), limits=limits))
    assert reply.ending is ending
    assert reply.result is None
    assert reply.message


async def test_results_as_large_as_they_may_be_pass(hosted, package):
    folder = package("def handle(input, ctx): return input")
    text = "x" * 3_000_000
    limits = Limits(output_bytes=4_000_000)
    async with asyncio.TaskGroup() as group:
        runs = [group.create_task(hosted.run(Call(folder, input=text, limits=limits)))] * 4
    assert all(run.result().result["output"] == text for run in runs)


async def test_an_input_without_json_text_is_refused_unquoted(hosted, package):
    for wrong in ({1: "secret"}, "\ud800", float("nan"), {"x": object()}):
        reply = await hosted.run(Call(package(_ECHO), input=wrong))
        assert reply.ending is Ending.PROTOCOL
        assert reply.message.startswith("cannot send the input")
    reply = await hosted.run(Call(package(_ECHO), secrets={"key": "top secret \ud800"}))
    assert reply.ending is Ending.PROTOCOL
    assert "top secret" not in reply.message


async def test_log_lines_come_while_it_runs_and_in_order(hosted, package):
    lines = []
    reply = await hosted.run(Call(package(_SAY), input=500), lines.append)
    numbers = [line.fields["n"] for line in lines if line.stream == "log"]
    assert numbers == list(range(500))
    assert [line.message for line in lines if line.stream == "stdout"] == [str(n) for n in numbers]
    assert lines[-1].message == "half"
    assert list(reply.logs) == lines


async def test_the_context_is_sent_when_it_is_read_and_not_before(hosted, package):
    asked = []

    def ask(answer):
        asked.append(answer)
        answer(b'{"k": "v"}')

    unread = package("def handle(input, ctx): return 1")
    assert (await hosted.run(Call(unread, context=ask))).ending is Ending.RESULT
    assert not asked
    reads = Call(package("def handle(input, ctx): return ctx.context['k']"), context=ask)
    assert (await hosted.run(reads)).result["output"] == "v"
    assert len(asked) == 1
    for context in ({"k": "w"}, b'{"k": "w"}'):
        reads = Call(reads.package_dir, context=context)
        assert (await hosted.run(reads)).result["output"] == "w"


async def test_a_context_that_comes_too_late_goes_nowhere(hosted, package):
    """The process may be another call's by then."""
    answers = []
    folder = package("def handle(input, ctx):\n if input: ctx.context\n return input")
    late = Call(folder, input=1, context=answers.append, limits=Limits(wall_ms=200), reuse=Reuse())
    assert (await hosted.run(late)).ending is Ending.TIMEOUT
    answers[0](b"{}")
    again = Call(folder, input=0, limits=late.limits, reuse=late.reuse)
    assert (await hosted.run(again)).result["output"] == 0


async def test_calls_with_different_terms_do_not_meet(hosted, package):
    folder = package("runs = 0\ndef handle(input, ctx):\n global runs; runs += 1\n return runs")
    reuse, limits, policy = Reuse(), Limits(), Policy()
    for tenant in ("a", "b"):
        call = Call(folder, tenant_id=tenant, reuse=reuse, limits=limits, policy=policy)
        assert [(await hosted.run(call)).result["output"] for _ in range(3)] == [1, 2, 3]
    fresh = Call(folder, limits=limits, policy=policy)
    assert [(await hosted.run(fresh)).result["output"] for _ in range(2)] == [1, 1]


async def test_more_terms_than_are_remembered_are_told_again(hosted, package, monkeypatch):
    monkeypatch.setattr(messages, "TERMS_MAX", 2)
    folder = package("def handle(input, ctx): return ctx.tenant_id")
    for _ in range(2):
        for tenant in ("a", "b", "c"):
            reply = await hosted.run(Call(folder, tenant_id=tenant))
            assert reply.result["output"] == tenant


async def test_statistics_are_those_of_the_pool(own, package):
    call = Call(package("def handle(input, ctx): return 1"), reuse=Reuse())
    for _ in range(2):
        await own.run(call)
    found = await own.statistics()
    assert found.keys() == Pool(PoolSettings()).statistics().keys()
    assert (found["slots"], found["started"], found["reused"]) == (2, 2, 1)  # one is the trial


async def test_what_a_handler_did_with_its_network_is_told(hosted, package):
    if not all(one.available for one in hosted.layers() if one.name == "network"):
        pytest.skip("NO gateway on this host")
    code = (
        "import socket\ndef handle(input, ctx):\n"
        " try: socket.create_connection(('127.0.0.1', 80), 2)\n except OSError: return 1"
    )
    reply = await hosted.run(Call(package(code), policy=Policy(network=Egress())))
    assert reply.traffic is not None
    assert [one.target for one in reply.traffic.denials] == ["127.0.0.1:80"]


# --- ends -------------------------------------------------------------------------------------


async def test_a_cancelled_call_is_killed(own, package):
    async with asyncio.TaskGroup() as group:
        running = await started(group, own, Call(package(_SLEEP)))
        running.cancel()
    assert running.cancelled()
    async with asyncio.timeout(5):
        while (await own.statistics())["busy"]:  # noqa: ASYNC110  no event to await
            await asyncio.sleep(0.01)
    assert (await own.run(Call(package("def handle(i, c): return 1")))).ending is Ending.RESULT


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_lost_host_costs_its_calls_and_is_replaced(package, end):
    settings = PoolSettings(slots=2, spares=1, patience_ms=1000 if end is signal.SIGSTOP else 9000)
    async with HostedPool(settings) as pool, asyncio.TaskGroup() as group:
        running = await started(group, pool, Call(package(_SLEEP)))
        await pool.statistics()  # a count that goes on
        before = _family(pool.host_pid)
        assert len(before) > 3
        os.kill(pool.host_pid, end)
        async with asyncio.timeout(5):
            reply = await running
        pool._patience_s = 30.0  # a busy machine takes its time over a new host
        assert reply.ending is Ending.UNAVAILABLE
        assert "lost" in reply.message
        assert "lost" in pool.problem
        assert pool.layers()  # what this machine has does not change with it
        call = Call(package("def handle(i, c): return 1"))
        assert (await pool.run(call)).result["output"] == 1  # it waits for the next one
        assert pool.problem is None
        assert pool.host_pid not in before
        assert (await pool.statistics())["started"] == 4  # two are trials of the layers
        await all_gone(before)


@pytest.mark.slow
async def test_a_host_that_never_stays_is_said_to(own, package, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(own, "_patience_s", 0.3)
    os.kill(own.host_pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while own.problem is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    reply = await own.run(Call(package(_ECHO)))
    assert reply.ending is Ending.UNAVAILABLE
    assert "lost" in reply.message


async def test_a_host_that_cannot_start_its_pool_says_why(package):
    pool = HostedPool(PoolSettings(slots=1, python="/nowhere/python"))
    with pytest.raises(OSError, match="/nowhere/python"):
        await pool.start()
    assert "/nowhere/python" in pool.problem
    reply = await pool.run(Call(package(_ECHO)))
    assert reply.ending is Ending.UNAVAILABLE
    await pool.close()


@pytest.mark.slow
async def test_close_leaves_nothing(package):
    async with HostedPool(PoolSettings(slots=2, spares=1)) as pool:
        async with asyncio.TaskGroup() as group:
            running = await started(group, pool, Call(package(_SLEEP)))
            host = pool.host_pid
            family = _family(host)
            await pool.close()
            assert (await running).ending is Ending.UNAVAILABLE
        assert not lives(host)
        await all_gone(family)
    reply = await pool.run(Call(package(_ECHO)))
    assert reply.message == "the pool is closed"


_PARENT = """
import asyncio, sys
from sandbox import HostedPool, PoolSettings
async def main():
    async with HostedPool(PoolSettings(slots=1, spares=1)) as pool:
        print(pool.host_pid, flush=True)
        await asyncio.sleep(60)
asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_the_parents_death_ends_the_host_and_all_below(end):
    environment = {**os.environ, "PYTHONPATH": str(_PROJECT)}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, env=environment
    ) as parent:
        family = _family(int(await asyncio.to_thread(parent.stdout.readline)))
        assert len(family) > 2
        parent.send_signal(end)
        await all_gone(family)


async def test_a_stop_for_the_whole_group_is_the_parents_to_judge(own, package):
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(own.host_pid, number)
    assert (await own.run(Call(package(_ECHO)))).ending is Ending.RESULT


# --- what it has, and what it is believed ------------------------------------------------------


@pytest.mark.slow
async def test_the_host_has_nothing_of_the_parents(own):
    """conftest.py has put a secret into this process's environment."""
    process = psutil.Process(own.host_pid)
    assert process.environ().keys() <= {"PATH"}
    with _PASSWD.open("rb"):
        async with HostedPool(PoolSettings(slots=1, spares=0)) as other:
            kinds = [one.path for one in psutil.Process(other.host_pid).open_files()]
    assert kinds == []
    assert process.cwd() == "/"


_LIES = {
    "an unknown kind": messages.message(b"?", 1),
    "a length beyond the limit": b"\xff\xff\xff\xffR\0\0\0\1",
    "layers that are none": messages.message(messages.READY, 0, b'[["x",true,true,""]]'),
    "statistics of text": messages.message(messages.STATISTICS, 1, b'{"slots":"many"}'),
    "statistics that are no JSON": messages.message(messages.STATISTICS, 1, b"{"),
    "a short reply": messages.message(messages.REPLY, 1, b"\0"),
    "an unknown ending": messages.message(messages.REPLY, 1, b"\xff" + bytes(29)),
    "a result that is none": messages.message(messages.REPLY, 1, b"\0\1" + bytes(28) + b"[]"),
    "a result that is no JSON": messages.message(messages.REPLY, 1, b"\0\1" + bytes(28) + b"{"),
    "a result of another ending": messages.message(messages.REPLY, 1, b"\1\1" + bytes(28) + b"{}"),
    "a result that is too large": messages.message(
        messages.REPLY, 1, b"\0\1" + bytes(28), b'"%s"' % bytes(2048)
    ),
    "log lines that are none": messages.message(messages.LOGS, 1, b'[[1,"log","info",2,{}]]'),
    "a log line from nowhere": messages.message(messages.LOGS, 1, b'[[1,"net","info","",{}]]'),
    "a flood of lines": messages.message(messages.LOGS, 1, b" " * 2_000_000 + b"[]"),
    "traffic that is none": messages.message(
        messages.REPLY, 1, b"\1\0" + bytes(24) + b"\0\0\0\x14" + b'["",[[["a"]],[],1,1,1]'[:20]
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("lie", _LIES)
async def test_a_host_that_breaks_the_protocol_is_lost(package, lie):
    """The calling process goes on, with another host."""
    limits = Limits(output_bytes=1024, log_bytes=0)
    async with HostedPool(PoolSettings(slots=1, spares=0)) as pool, asyncio.TaskGroup() as group:
        call = Call(package(_SLEEP.replace("print('asleep')", "pass")), limits=limits)
        running = group.create_task(pool.run(call))
        await asyncio.sleep(0)  # it is number 1
        assert list(pool._flights) == [1]
        before = _family(pool.host_pid)
        ours, theirs = socket.socketpair()
        with theirs:  # it speaks in the host's place
            pool._link.close()
            pool._link = Link(ours, messages.FROM_HOST_MAX_BYTES, pool._on_message, pool._lost)
            theirs.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(theirs, _LIES[lie])
            async with asyncio.timeout(5):
                assert (await running).ending is Ending.UNAVAILABLE
        assert "protocol" in pool.problem
        assert (await pool.run(Call(package(_ECHO)))).ending is Ending.RESULT
        await all_gone(before)


async def test_a_number_that_nobody_has_changes_nothing(hosted, package):
    for kind in (messages.REPLY, messages.LOGS, messages.CONTEXT, messages.FAILED):
        hosted._on_message(messages.Message(kind, 4_000_000_000, b"?"))
    assert (await hosted.run(Call(package(_ECHO)))).ending is Ending.RESULT


async def test_messages_come_whole_however_they_are_cut():
    sent = [(b"R", 1, b"abc"), (b"L", 2, b""), (b"C", 2**32 - 1, bytes(300))]
    stream = b"".join(messages.message(*one) for one in sent)
    for size in (1, 7, 100, len(stream)):
        reader = messages.Reader(300)
        cut = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [tuple(one) for part in cut for one in reader.feed(part)] == sent
    with pytest.raises(ProtocolError):
        messages.Reader(299).feed(stream)


async def test_settings_and_terms_arrive_as_they_were():
    settings = PoolSettings(slots=3, ports=(80, 8443), kinds=("python",), node="", family=7)
    assert messages.settings_of(messages.settings_text(settings)) == settings
    network = Egress(allow=("a:443",), deny=("b",), private=("10.0.0.0/8",))
    policy = Policy("temp", network, frozenset({"cgroup"}))
    for call in (
        Call("/p", "a.js:run", "node", policy=policy, tenant_id="t", reuse=Reuse(), preload=True),
        Call("/p", limits=Limits(wall_ms=7, cpu_ms=9, cpu_share=0.5)),
    ):
        assert messages.terms_of(messages.terms_text(call)) == call
