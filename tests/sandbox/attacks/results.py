"""Attacks on the result channel: forged, doubled, late, broken and endless answers.

A handler can find the channel's token in its own process, so it can forge its own single result;
a success is anything beyond that: a second answer, one that came too late or is too large, or
an ending that only the pool may tell. Harmless to a host: they write to descriptor 3 only.
"""

from __future__ import annotations

import json

from attacks.attack import LIVE_ON, Attack
from sandbox import Ending, Limits, Reply

__all__ = ["CHANNEL", "RESULTS"]

# How a handler gets at the channel: it walks the frames below its own.
CHANNEL = """
import json, os, struct, sys, threading, time
def channel():
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if type(value).__name__ == "_Channel":
                return value
        frame = frame.f_back
def framed(kind, payload, token=None):
    token = channel()._token if token is None else token
    payload = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return struct.pack("!I", 9 + len(payload)) + kind + token + payload
def send(data):
    while data:
        data = data[os.write(3, data):]
def won(output):
    return {"outcome": "success", "output": output}
"""
_ZEROS = "bytes(8)"
_SOON = Limits(wall_ms=300)
_OUTPUT = 2000
_SMALL = Limits(wall_ms=20_000, output_bytes=_OUTPUT)


def _handler(body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    live_on = LIVE_ON if "live_on" in body else ""
    return f"{CHANNEL}{live_on}\ndef handle(input, ctx):\n{lines}"


def _second(reply: Reply) -> bool:
    return reply.result is not None and reply.result.get("output") != "first"


def _not_the_first(reply: Reply) -> bool:
    return reply.result is None or reply.result.get("output") != "first"


def _any_result(reply: Reply) -> bool:
    return reply.ending is Ending.RESULT


def _pools_words(reply: Reply) -> bool:
    """UNAVAILABLE is for the pool to say: no attempt was made."""
    return reply.ending is Ending.UNAVAILABLE


def _not_at_once(reply: Reply) -> bool:
    return reply.ending is not Ending.PROTOCOL


def _too_large(reply: Reply) -> bool:
    return reply.result is not None and len(json.dumps(reply.result)) > 2 * _OUTPUT


def _long_message(reply: Reply) -> bool:
    return len(reply.message) > 3000


RESULTS: tuple[Attack, ...] = tuple(
    Attack(name, success, _handler(body), False, limits=limits, won=won)
    for name, success, body, limits, won in (
        (
            "result-twice",
            "the second of two results",
            "send(framed(b'R', won('first')) + framed(b'R', won('second')))\ntime.sleep(20)",
            _SMALL,
            _second,
        ),
        (
            "result-and-return",
            "what the handler returned after it had sent a result",
            "send(framed(b'R', won('first')))\nreturn 'second'",
            _SMALL,
            _second,
        ),
        (
            "result-and-problem",
            "a result taken back",
            "send(framed(b'R', won('first')) + framed(b'X', {'ending': 'memory'}))\nos._exit(1)",
            _SMALL,
            _not_the_first,
        ),
        (
            "result-and-unconfined",
            "a result that becomes a failure of the sandbox",
            "send(framed(b'R', won('first')) + framed(b'U', {'layer': 'seccomp'}, bytes(8)))",
            _SMALL,
            _not_the_first,
        ),
        (
            "result-and-logs",
            "a log line that came after the result",
            "send(framed(b'R', won('first'))\n"
            " + framed(b'L', {'stream': 'log', 'level': 'info', 'message': 'after'}))",
            _SMALL,
            lambda reply: [line for line in reply.logs if line.message == "after"],
        ),
        (
            "result-without-token",
            "a result that anything could have written",
            f"send(framed(b'R', won('forged'), {_ZEROS}))\ntime.sleep(20)",
            _SMALL,
            _any_result,
        ),
        (
            "result-with-another-token",
            "a result of another execution",
            "send(framed(b'R', won('forged'), os.urandom(8)))\ntime.sleep(20)",
            _SMALL,
            _any_result,
        ),
        (
            "unconfined-after-the-request",
            "the pool says that it could not confine a handler which has run",
            "send(framed(b'U', {'layer': 'seccomp', 'reason': 'forged'}, bytes(8)))\n"
            "time.sleep(20)",
            _SMALL,
            _pools_words,
        ),
        (
            "unconfined-without-a-layer",
            "an error inside the pool, from a frame of the wrong shape",
            "send(framed(b'U', [], bytes(8)))\ntime.sleep(20)",
            _SMALL,
            _pools_words,
        ),
        (
            "ready-for-ever",
            "frames that mean nothing, read until the deadline",
            "some = framed(b'Y', b'', bytes(8)) * 1000\nwhile True: send(some)",
            Limits(wall_ms=500),
            _not_at_once,
        ),
        (
            "ready-again",
            "a child that says twice that it is ready",
            "send(framed(b'Y', b'', bytes(8)))\nreturn 'again'",
            _SMALL,
            _any_result,
        ),
        (
            "request-to-the-pool",
            "a request of the handler's own",
            "send(framed(b'Q', {'entrypoint': 'x'}))\nreturn 'asked'",
            _SMALL,
            _any_result,
        ),
        (
            "context-again",
            "the context sent a second time, and a third",
            "send(framed(b'C', b'') * 3)\nreturn 'asked'",
            _SMALL,
            _any_result,
        ),
        (
            "problem-of-the-pool",
            "an ending that only the pool may tell",
            "send(framed(b'X', {'ending': 'unavailable', 'message': 'x'}))\ntime.sleep(20)",
            _SMALL,
            _pools_words,
        ),
        (
            "problem-as-a-book",
            "a message of a million characters",
            "send(framed(b'X', {'ending': 'memory', 'message': 'x' * 60000}))\ntime.sleep(20)",
            _SMALL,
            _long_message,
        ),
        (
            "problem-of-many-lines",
            "a message that looks like several lines of a log, or moves a terminal's cursor",
            "send(framed(b'X', {'ending': 'memory', 'message': 'a\\n\\x1b[2Jb'}))\ntime.sleep(20)",
            _SMALL,
            lambda reply: [c for c in reply.message if ord(c) < 32],
        ),
        (
            "result-half",
            "half a result taken for one",
            "send(framed(b'R', won('half'))[:-1])\nos._exit(0)",
            _SMALL,
            _any_result,
        ),
        (
            "result-too-late",
            "a result that was begun in time and ended after the deadline",
            "data = framed(b'R', won('late'))\nsend(data[:-1])\ntime.sleep(2)\nsend(data[-1:])",
            _SOON,
            _any_result,
        ),
        (
            "result-by-drops",
            "a deadline that begins anew with every byte",
            "for byte in framed(b'R', won('late')):\n    time.sleep(0.1)\n    send(bytes([byte]))",
            _SOON,
            _any_result,
        ),
        (
            "frame-of-gigabytes",
            "a pool that waits for four gigabytes",
            "send(b'\\xff\\xff\\xff\\xff' + bytes(1000))\ntime.sleep(20)",
            _SMALL,
            lambda reply: reply.ending is not Ending.OUTPUT,
        ),
        (
            "frames-of-nothing",
            "frames that cost the pool more than the handler",
            "some = framed(b'L', b'{}') * 1000\nwhile True: send(some)",
            Limits(wall_ms=500),
            _not_at_once,
        ),
        (
            "output-past-the-shim",
            "a result larger than allowed, sent by the handler itself",
            "send(framed(b'R', won('x' * 30000)))\ntime.sleep(20)",
            _SMALL,
            _too_large,
        ),
        (
            "output-past-a-patched-shim",
            "a result larger than allowed, sent by the shim",
            "sys._getframe(1).f_locals['request']['output_bytes'] = 1 << 30\nreturn 'x' * 30000",
            _SMALL,
            _too_large,
        ),
        (
            "output-by-events",
            "events beside the result, past its limit",
            "for n in range(1000): ctx.emit('event', 'x' * 100)\n"
            "for n in range(1000): ctx.update(f'key{n}', 'x' * 100)",
            _SMALL,
            _any_result,
        ),
        (
            "output-not-json",
            "a result that is no JSON value, by a patched encoder",
            "sys._getframe(1).f_globals['wire'].encode = lambda value: "
            'b\'{"outcome":"success","output":NaN}\'',
            _SMALL,
            _any_result,
        ),
        (
            "output-that-lies",
            "a result whose parts are other types than they seem",
            "class Text(str):\n    def __eq__(self, other): return True\n"
            "    __hash__ = str.__hash__\n"
            "return {Text('a'): float('inf')}",
            _SMALL,
            _any_result,
        ),
        (
            "threads-on-the-channel",
            "a result that is mixed of two",
            "data = framed(b'R', won('first' * 20))\n"
            "def spray():\n    for _ in range(50): os.write(3, data)\n"
            "threads = [threading.Thread(target=spray) for _ in range(4)]\n"
            "for thread in threads: thread.start()\n"
            "for thread in threads: thread.join()\n"
            "return 'second'",
            _SMALL,
            lambda r: r.result is not None and r.result.get("output") != "first" * 20,
        ),
        (
            "channel-closed",
            "a life beyond the channel",
            "live_on()\nthreading.Thread(target=time.sleep, args=(20,)).start()\nos.close(3)\n"
            "time.sleep(20)",
            _SMALL,
            lambda reply: reply.ending is not Ending.CRASH,
        ),
        (
            "channel-shut-down",
            "a channel that can be written but is never at its end",
            "import socket\nsocket.socket(fileno=os.dup(3)).shutdown(socket.SHUT_RD)\n"
            "time.sleep(20)",
            _SOON,
            _any_result,
        ),
        (
            "channel-not-read",
            "a pool that waits until somebody reads what it writes",
            "for _ in range(3): send(framed(b'C', b''))\ntime.sleep(20)",
            _SOON,
            lambda reply: reply.ending not in (Ending.TIMEOUT, Ending.PROTOCOL),
        ),
        (
            "traced-shim",
            "an unclear ending, by a trace function that fails in every call of the shim",
            "def trace(*a): raise KeyError\n"
            "sys._getframe(1).f_trace = trace\nthreading.settrace(trace)\nsys.settrace(trace)\n"
            "return 1",
            _SMALL,
            _pools_words,
        ),
        (
            "profiled-shim",
            "the same by a profile function",
            "def profile(*a): raise KeyError\nsys.setprofile(profile)\nreturn 1",
            _SMALL,
            _pools_words,
        ),
        (
            "audited-shim",
            "the same by an audit hook that never goes away",
            "def hook(*a): raise KeyError\nsys.addaudithook(hook)\nopen('/dev/null')\nreturn 1",
            _SMALL,
            _pools_words,
        ),
    )
)
