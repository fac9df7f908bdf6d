"""The same promises for handlers in JavaScript: results, crashes, pauses, what is kept."""

from __future__ import annotations

import json
import shutil
import subprocess

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


THUMB = """
const sharp = require('sharp');
exports.handle = async (input, ctx) => {
  const made = sharp({ create: { width: 40, height: 30, channels: 3, background: '#f00' } });
  const png = await made.png().toBuffer();
  await ctx.checkpoint.save(png, 'thumb');
  return (await sharp(png).metadata()).width;
};
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="NO package of npm is built: no npm")
def test_what_an_image_brings_is_left_out_of_a_bundle_and_found(node):
    handler = {"type": "acme/thumb", "runtime": "node", "entrypoint": "handler.js:handle"}
    folder = package(node.folder / "thumb", THUMB, handler=handler)
    named = {"name": "thumb", "version": "1.0.0", "dependencies": {"sharp": "0.34.5"}}
    (folder / "package.json").write_text(json.dumps(named))
    lock = ["npm", "install", "--package-lock-only", "--ignore-scripts", "--no-audit", "--no-fund"]
    subprocess.run(lock, cwd=folder, check=True, capture_output=True)
    built = node.folder / "thumb.afh"
    done = node.daemon.flowctl("handler", "build", str(folder), "-o", str(built))
    assert done.returncode == 0, done.stderr
    assert built.stat().st_size < 100_000
    node.publish(built)
    ended = node.run(type="acme/thumb")
    assert (ended["status"], ended["context"]["out"]) == ("completed", 40), ended["error"]
    images = node.client.must("GET", "/v1/images")["items"]
    assert any(one["runtime"] == "node20-sharp" for one in images if one["kind"] == "handler")
