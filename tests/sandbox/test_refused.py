"""Refused system calls, counted: nothing changes for a handler but who answers it.

The filter that asks is held against the one that refuses for every number, by the interpreter of
`test_seccomp`; then every call that is refused is really made, with and without counting.
"""

from __future__ import annotations

import os
import platform
import select
import shutil
import socket
import struct
import subprocess
import sys

import psutil
import pytest
from attacks import write_package
from test_seccomp import (
    ALLOW,
    KILL,
    MACHINES,
    PROFILES,
    TOKENS,
    edges,
    names_of,
    program_of,
    run_bpf,
)

from sandbox import Call, Egress, Ending, Policy, Pool, PoolSettings, Refused, listener
from sandbox.once import Bench
from sandbox.refused import REFUSE, verdict

ASK = 0x7FC00000  # SECCOMP_RET_USER_NOTIF of linux/seccomp.h
native = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86_64's")

MAKE = """
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
def handle(input, ctx):
    found = []
    for words in input:
        result = call(*(ctypes.c_long(word) for word in words))
        found.append(result if result >= 0 else -ctypes.get_errno())
    return found
"""


def data_of(token, number, arguments):
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    return struct.pack("=IIQ6Q", number & 0xFFFFFFFF, token, 0, *padded)


async def answers(package, settings, *inputs, **more):
    """The reply to each input, from a pool of its own."""
    settings = {"slots": 1, "spares": 0, "spares_node": 0, "try_layers": False, **settings}
    async with Pool(PoolSettings(**settings)) as pool:
        return [await pool.run(Call(package, input=one, **more)) for one in inputs]


async def both(package, *inputs, **more):
    """The same without and with counting."""
    first = await answers(package, {}, *inputs, **more)
    return first, await answers(package, {"report_refused": True}, *inputs, **more)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("runtime", "network"), PROFILES)
def test_the_filter_asks_exactly_where_it_would_refuse(machine, runtime, network):
    program, token = program_of(machine, runtime, network), TOKENS[machine]
    asking = listener.reporting(program)
    assert len(asking) == len(program)
    numbers = [*range(1024), 2**20, 2**30 - 1, 2**30, 2**30 + 39, 2**31, 2**32 - 1]
    for number in numbers:
        for arguments in edges(names_of(machine).get(number, "")):
            wanted = run_bpf(program, token, number, arguments)
            asked = run_bpf(asking, token, number, arguments)
            assert asked == (ALLOW if wanted == ALLOW else ASK), (number, arguments)
            assert verdict(program, data_of(token, number, arguments)) == wanted
    for foreign in (0x40000003, 0, 0xFFFFFFFF):
        assert run_bpf(asking, foreign, 39) == ASK
        assert verdict(program, data_of(foreign, 39, ())) == KILL


@pytest.mark.parametrize(
    "program",
    [b"", b"\x20\0\0\0\0\x10\0\0", b"\x05\0\0\0\xff\0\0\0", b"\xff\0\0\0\0\0\0\0"],
    ids=["empty", "beyond the data", "beyond the end", "no instruction"],
)
def test_what_cannot_be_judged_kills(program):
    assert verdict(program, bytes(64)) == KILL


@native
@pytest.mark.parametrize("network", [False, True])
async def test_every_refused_call_gets_the_same_answer_and_is_counted(package, network):
    program, token = program_of("x86_64", "python", network), TOKENS["x86_64"]
    calls = [n for n in range(700) if run_bpf(program, token, n) & 0x7FFF0000 == REFUSE]
    assert len(calls) > 200
    kinds = ("python+network",) if network else ("python",)
    policy = Policy(network=Egress() if network else None)
    given = [[number, 0, 0, 0, 0, 0, 0] for number in calls]
    code = package(MAKE)
    for report in (False, True):
        settings = {"kinds": kinds, "report_refused": report}
        (reply,) = await answers(code, settings, given, policy=policy)
        assert reply.ending is Ending.RESULT, reply
        wanted = [-(run_bpf(program, token, number) & 0xFFFF) for number in calls]
        assert reply.result["output"] == wanted
        if report:
            assert sum(one.count for one in reply.refused) == len(calls)
            told = {one.call: one.answer for one in reply.refused}
            assert told["io_uring_setup"] == "ENOSYS"
            assert told["flock"] == "EPERM"
        else:
            assert reply.refused is None


@native
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([101], "ptrace"),
        ([272, 0x10000000], "unshare"),
        ([400], "0x190"),  # a gap
        ([0x40000000 + 39], "0x40000027"),  # x32
        ([-1], "0xffffffff"),
    ],
)
async def test_a_call_that_kills_ends_it_the_same_way_and_says_its_name(package, words, name):
    code = package(MAKE)
    (before,), (after,) = await both(code, [words], policy=Policy())
    assert before.ending is Ending.CRASH
    assert (after.ending, after.message, after.result) == (before.ending, before.message, None)
    assert "no handler may make" in after.message
    assert after.refused == (Refused(name, "killed"),)


async def test_threads_ask_at_the_same_time(package):
    code = package(
        """
import os, threading
def handle(input, ctx):
    def refuse():
        for _ in range(100):
            try: os.fork()
            except PermissionError: got.append(1)
    got = []
    threads = [threading.Thread(target=refuse) for _ in range(8)]
    for one in threads: one.start()
    for one in threads: one.join()
    return len(got)
"""
    )
    (before,), (after,) = await both(code, None)
    assert before.result["output"] == after.result["output"] == 800
    # libc asks for each thread whether there is clone3
    assert after.refused == (Refused("clone", "EPERM", 800), Refused("clone3", "ENOSYS", 8))


async def test_a_signal_does_not_change_the_answer(package):
    """Linux before 5.19 may interrupt who asks; such a call is made again and counted once."""
    code = package(
        """
import os, signal
def handle(input, ctx):
    signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.siginterrupt(signal.SIGALRM, False)
    seen, got = [], set()
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    for _ in range(2000):
        try: os.fork()
        except OSError as exc: got.add(exc.errno)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return [sorted(got), len(seen) > 3]
"""
    )
    (reply,) = await answers(code, {"report_refused": True}, None)
    assert reply.ending is Ending.RESULT, reply
    assert reply.result["output"] == [[1], True]
    assert reply.refused == (Refused("clone", "EPERM", 2000),)


async def test_kinds_of_calls_without_end_are_counted_within_bounds(package):
    given = [[number] for number in range(1000, 1700)]
    (reply,) = await answers(package(MAKE), {"report_refused": True}, given)
    assert reply.result["output"] == [-38] * 700
    assert len(reply.refused) == 501
    assert reply.refused[0] == Refused("others", "ENOSYS", 200)
    assert sum(one.count for one in reply.refused) == 700


@pytest.mark.skipif(shutil.which("node") is None, reason="NO node: not tested")
async def test_node_is_counted_from_where_the_handler_begins(package, tmp_path):
    code = "exports.handle = () => { try { require('os').setPriority(-1) } catch (e) {} return 1 }"
    place = write_package(tmp_path / "node", "", {"handler.js": code})
    quiet = write_package(tmp_path / "quiet", "", {"handler.js": "exports.handle = () => 1"})
    how = {"entrypoint": "handler.js:handle", "runtime": "node"}
    for package_, wanted in ((place, (Refused("setpriority", "EPERM"),)), (quiet, ())):
        (before,), (after,) = await both(package_, None, **how)
        assert before.result == after.result
        assert after.refused == wanted


async def test_the_trial_of_the_layers_passes_while_calls_are_counted():
    wanted = {}
    for report in (False, True):
        async with Pool(PoolSettings(slots=1, node="", report_refused=report)) as pool:
            wanted[report] = {one.name: one.available for one in pool.layers()}
    assert wanted[True] == wanted[False]
    assert wanted[True]["seccomp"]


async def test_a_pool_has_only_the_kinds_that_it_was_asked_for(package):
    code = package("def handle(input, ctx): return 1")
    (reply,) = await answers(code, {"kinds": ("python+network",)}, None)
    assert reply.ending is Ending.UNAVAILABLE
    assert reply.message == "this pool has no processes for python"


def test_a_bench_leaves_nothing_open(package):
    """Nor does it need a loop: it is for programs that have none."""
    settings = PoolSettings(
        slots=1, spares=0, node="", try_layers=False, report_refused=True, kinds=("python",)
    )
    code, endings = package(MAKE), []
    before = sorted(os.listdir("/proc/self/fd"))
    others = {child.pid for child in psutil.Process().children()}  # of the shared pool
    for _ in range(2):
        with Bench(settings) as bench:
            for given in ([[57]], [[101]]):
                endings.append(bench.run(Call(code, input=given), lambda _line: None).ending)
    assert endings == [Ending.RESULT, Ending.CRASH] * 2
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert {child.pid for child in psutil.Process().children()} <= others


_SECOND = """
import os, socket, sys
from sandbox import linux, listener, seccomp
channel = socket.socket(fileno=int(sys.argv[1]))
allow_all = bytes.fromhex("0600 00 00 0000ff7f".replace(" ", ""))
linux.no_new_privs()
if sys.argv[2] == "taken":
    linux.seccomp(allow_all, linux.SECCOMP_FILTER_FLAG_NEW_LISTENER)
listener.install(seccomp.compile_filter(), channel.fileno())
os.write(1, b"in place ")
try:
    os.setpriority(os.PRIO_PROCESS, 0, -1)
except OSError as exc:
    os.write(1, str(exc.errno).encode())
"""


def test_where_nobody_can_be_asked_the_filter_refuses_by_itself():
    """A process has one listener at most (EBUSY): a container may have taken it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", _SECOND, str(theirs.fileno()), "taken"],
            pass_fds=[theirs.fileno()],
            capture_output=True,
            timeout=30,
        )
        assert done.stdout == b"in place 1", done
        data, fds, *_ = socket.recv_fds(ours, 1000, 1)
    assert fds == []
    assert b"seccomp" in data


def test_a_question_that_nobody_answers_never_returns():
    ours, theirs = socket.socketpair()
    with ours:
        process = subprocess.Popen(
            [sys.executable, "-c", _SECOND, str(theirs.fileno()), "free"],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
        )
        theirs.close()
        _data, (fd,), *_ = socket.recv_fds(ours, 1000, 1)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(20_000)  # it asks
        assert process.poll() is None
        process.kill()
        assert process.communicate()[0] == b"in place "
        os.close(fd)
