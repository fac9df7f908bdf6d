"""The same promises for handlers in JavaScript: results, crashes, pauses, what is kept."""

from __future__ import annotations

import pytest

from tests.stateful.conftest import package

pytestmark = pytest.mark.slow

NODE = """
exports.handle = async (input, ctx) => {
  const state = (await ctx.checkpoint.load('default', null)) ?? { starts: 0, done: [], got: [] };
  state.starts += 1;
  for (const [number, word] of input.do.entries()) {
    if (state.done.includes(number)) continue;
    const [what, more] = word.split(' ');
    if (what === 'nap') await new Promise((done) => setTimeout(done, 1000 * Number(more)));
    if (what === 'save') {
      state.done.push(number);
      await ctx.checkpoint.save(state);
      continue;
    }
    if (what === 'pause') {
      const data = await ctx.pause.wait('waiting', { event: more, checkpoint: state });
      state.got.push(data);
    }
    if (what === 'keep') await ctx.checkpoint.save(Buffer.alloc(Number(more), 7), 'blob');
    if (what === 'blob') state.blob = (await ctx.checkpoint.load('blob')).length;
    if (what === 'die-once' && state.starts === 1) process.kill(process.pid, 'SIGKILL');
    if (what === 'print') console.log(more);
    if (what === 'progress') ctx.progress(Number(more), `at ${more}`);
    state.done.push(number);
  }
  return state;
};
"""


@pytest.fixture(scope="module")
def node(doer):
    handler = {"type": "acme/node", "runtime": "node", "entrypoint": "handler.js:handle"}
    doer.publish(package(doer.folder / "node", NODE, handler=handler))
    return doer


def run(node, *words, **more):
    return node.run(*words, type="acme/node", **more)


def test_a_stateful_step_in_javascript_runs(node):
    ended = run(node, "print hello", "progress 50", "nap 0.1", "save")
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["starts"] == 1
    assert "hello" in node.logs(ended)


def test_it_goes_on_from_its_checkpoint(node):
    ended = run(node, "keep 2000000", "print once", "save", "die-once", "blob")
    assert ended["status"] == "completed", ended["error"]
    assert (ended["context"]["out"]["starts"], ended["context"]["out"]["blob"]) == (2, 2_000_000)
    assert node.logs(ended).count("once") == 1


def test_it_pauses_and_goes_on_with_the_events_data(node):
    begun = run(node, "pause upload", "print after", wait=False)
    node.until(begun, lambda job: job["status"] == "paused")
    node.client.must("POST", "/v1/events", {"name": "upload", "data": {"frame": 7}})
    ended = node.ended(begun)
    assert ended["status"] == "completed", ended["error"]
    assert ended["context"]["out"]["got"] == [{"frame": 7}]
    assert ended["context"]["out"]["starts"] == 1
