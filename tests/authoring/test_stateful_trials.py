"""`flowctl handler test` of stateful handlers: the agent's own ctx, without a daemon."""

from __future__ import annotations

import json
import shutil

import pytest

PYTHON = """
def handle(input, ctx):
    before = ctx.checkpoint.load(default="none")
    ctx.checkpoint.save({"n": 1})
    ctx.checkpoint.save(b"bytes", name="b")
    ctx.progress(50, "half")
    got = ctx.pause.wait("a file", event="up", checkpoint="paused")
    again = ctx.pause.wait("a hand")
    saved = [ctx.checkpoint.load(), len(ctx.checkpoint.load("b")), ctx.checkpoint.names()]
    ctx.checkpoint.clear("b")
    ctx.emit("done", 1)
    ctx.update("k", ctx.context["c"])
    left = ctx.extend_ttl(1000) > 3_600_000
    return ctx.success([input, before, got, again, ctx.pause.by, saved, left], next="there")
def fails(input, ctx):
    raise ValueError("on purpose")
def waits(input, ctx):
    return ctx.wait(event="go", duration_ms=5)
def too_large(input, ctx):
    ctx.checkpoint.save("x" * 100, name="small")
    import os
    ctx.checkpoint.save(os.urandom(2000))
async def later(input, ctx):
    return ctx.cancelled
"""
NODE = """
const { randomBytes } = require('crypto');
exports.handle = async (input, ctx) => {
  const before = await ctx.checkpoint.load('default', 'none');
  await ctx.checkpoint.save({ n: 1 });
  await ctx.checkpoint.save(Buffer.from('bytes'), 'b');
  ctx.progress(50, 'half');
  const got = await ctx.pause.wait('a file', { event: 'up', checkpoint: 'paused' });
  const again = await ctx.pause.wait('a hand');
  const { checkpoint } = ctx;
  const saved = [await checkpoint.load(), (await checkpoint.load('b')).length, checkpoint.names()];
  await checkpoint.clear('b');
  ctx.emit('done', 1);
  ctx.update('k', ctx.context.c);
  const left = (await ctx.extendTtl(1000)) > 3_600_000;
  return ctx.success([input, before, got, again, ctx.pause.by, saved, left], { next: 'there' });
};
exports.fails = () => { throw new Error('on purpose'); };
exports.waits = (input, ctx) => ctx.wait({ event: 'go', durationMs: 5 });
exports.too_large = async (input, ctx) => {
  await ctx.checkpoint.save('x'.repeat(100), 'small');
  await ctx.checkpoint.save(randomBytes(2000));
};
exports.later = async (input, ctx) => ctx.cancelled;
"""
CODE = {"python": ("handler.py", PYTHON), "node": ("handler.js", NODE)}


@pytest.fixture(params=CODE)
def tried(request, flowctl, tmp_path):
    """`tried(name, *options)`: what the command printed as JSON."""
    if request.param == "node" and shutil.which("node") is None:
        pytest.skip("NO node here: handlers in JavaScript are not tried")
    file, code = CODE[request.param]
    place = tmp_path / "handler"
    place.mkdir()
    (place / file).write_text(code)

    def run(name, *options):
        manifest = {
            "handler": {
                "type": "acme/it",
                "version": "1.0.0",
                "runtime": request.param,
                "entrypoint": f"{file}:{name}",
                "stateful": True,
            },
            "execution": {
                "ttl": {"soft": 3600000, "hard": 86400000, "default": 3600000},
                "checkpoint": {"intervalMs": 30000, "maxSize": 2048},
                "pause": {"enabled": True, "maxPauseDuration": 3600000},
            },
        }
        (place / "handler.json").write_text(json.dumps(manifest))
        done = flowctl("handler", "test", str(place), *options, "-o", "json", check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.mark.slow
def test_checkpoints_live_in_memory_and_pauses_end_with_what_is_given(tried):
    options = ["--input", "7", "--context", '{"c": 2}', "--resume", '{"f": 1}', "--resume", "5"]
    said = tried("handle", *options)
    saved = ["paused", 5, ["b", "default"]]
    assert said["output"] == [7, "none", {"f": 1}, 5, "hand", saved, True]
    assert (said["next"], said["updates"], said["emitted"]) == ("there", {"k": 2}, [["done", 1]])
    told = [(one["message"], one["fields"]) for one in said["logs"]]
    assert ("progress", {"percent": 50, "message": "half"}) in told
    assert ("pause", {"reason": "a file", "event": "up", "by": "event"}) in told
    assert [one for one, _ in told].count("checkpoint") == 3


@pytest.mark.slow
def test_without_data_a_pause_ends_by_hand(tried):
    said = tried("handle", "--context", '{"c": 2}')
    assert said["output"][2:5] == [None, None, "hand"]


@pytest.mark.slow
def test_it_ends_as_in_a_container(tried):
    error = tried("fails")["error"]
    assert error["code"] == "HANDLER_ERROR"
    assert "on purpose" in error["details"]["traceback"]
    assert tried("waits")["wait"] == {"event": "go", "durationMs": 5}
    assert tried("too_large")["error"]["code"] == "CHECKPOINT_TOO_LARGE"
    assert tried("later")["output"] is False
