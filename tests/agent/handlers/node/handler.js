'use strict';
// What the tests have an agent run; `python/handler.py` has the same by the same names.

const { randomBytes } = require('crypto');

const { Handler } = require('flowmonkey');

const STARTED = Date.now() / 1000;
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

exports.echo = (input) => input;
exports.nothing = () => {};

exports.later = async () => {
  await sleep(1);
  return { waited: true };
};

exports.Plain = class Plain {
  calls = 0;

  execute() {
    this.calls += 1;
    return { calls: this.calls };
  }
};

exports.Declared = Handler({
  inputs: {
    width: { type: 'integer', min: 1 },
    name: { type: 'string', source: 'config', default: 'none' },
  },
})(
  class Declared {
    async execute() {
      return { width: this.width, name: this.name };
    }
  },
);

exports.about = (input, ctx) => {
  const names = ['executionId', 'flowId', 'stepId', 'attempt', 'tenantId', 'taskId', 'hasInput'];
  return {
    told: names.map((name) => ctx[name]),
    input,
    config: ctx.config,
    context: ctx.context,
    secret: ctx.secrets.key,
    shown: String(ctx.secrets),
    cancelled: ctx.cancelled,
    left: ctx.ttlLeftMs,
  };
};

exports.answers = (input, ctx) => {
  ctx.update('seen', 1);
  ctx.emit('thing', { n: 1 });
  if (input === 'success') return ctx.success({ a: 1 }, { next: 'there' });
  if (input === 'failure') {
    return ctx.failure('NO_GOOD', 'it is bad', { retryable: false, details: { why: 'so' } });
  }
  return ctx.wait({ event: 'go', durationMs: 5, reason: 'for it' });
};

exports.fails = () => _fails();

function _fails() {
  throw new Error('on purpose');
}

exports.unjson = () => ({ bad: NaN });
exports.huge = () => 'x'.repeat(2_000_000);

exports.speaks = (input, ctx) => {
  ctx.log.info('first', { n: 1, odd: Symbol('odd') });
  console.log('second');
  console.error('third');
  ctx.log.warn('fourth');
  process.stdout.write('x'.repeat(20_000) + '\n');
  process.stdout.write('half');
};

exports.floods = (input, ctx) => {
  for (let n = 0; n < 30_000; n++) ctx.log.info(`line ${n}`);
  return 'done';
};

exports.checkpoints = async (input, ctx) => {
  const { checkpoint } = ctx;
  await checkpoint.save({ n: [1, null, 'ä'] });
  await checkpoint.save(Buffer.from([0, 255]), 'bytes');
  await checkpoint.save('y'.repeat(100_000), 'compressed');
  await checkpoint.save(randomBytes(input), 'big');
  const names = checkpoint.names();
  const big = (await checkpoint.load('big')).length;
  const loaded = [await checkpoint.load(), [...(await checkpoint.load('bytes'))]];
  const compressed = (await checkpoint.load('compressed')) === 'y'.repeat(100_000);
  await checkpoint.clear('big');
  const left = checkpoint.names();
  await checkpoint.clear();
  const none = [(await checkpoint.load()) ?? null, await checkpoint.load('bytes', 7)];
  return [names, big, loaded, compressed, left, checkpoint.names(), none];
};

exports.too_large = async (input, ctx) => {
  let caught = [];
  try {
    await ctx.checkpoint.save(randomBytes(200_000), 'a');
    await ctx.checkpoint.save(randomBytes(200_000), 'b');
  } catch (error) {
    if (!(error instanceof ctx.checkpoint.TooLarge)) throw error;
    caught = [error.code, ctx.checkpoint.names()];
  }
  if (input) await ctx.checkpoint.save(randomBytes(400_000));
  return caught;
};

exports.refused = (input, ctx) => ctx.checkpoint.save(1, 'refused');

exports.counts = async (input, ctx) => {
  let n = await ctx.checkpoint.load('default', 0);
  const begun = n;
  while (n < input) {
    n += 1;
    await ctx.checkpoint.save(n);
    ctx.progress((100 * n) / input, `at ${n}`);
  }
  return [begun, n];
};

exports.pauses = async (input, ctx) => {
  const options = { maxWaitMs: 1000, event: 'up', filter: { a: 1 } };
  const got = await ctx.pause.wait('for the file', options);
  return { got: got ?? null, by: ctx.pause.by, left: ctx.ttlLeftMs };
};

exports.pauses_with = async (input, ctx) => {
  const at = await ctx.checkpoint.load('default', 'begin');
  const got = await ctx.pause.wait('for the file', { event: 'up', checkpoint: 'here' });
  await ctx.checkpoint.save('after', 'after');
  return [at, await ctx.checkpoint.load(), got ?? null, ctx.pause.by];
};

exports.progresses = async (input, ctx) => {
  for (let n = 0; n < input; n++) {
    ctx.progress((100 * n) / input);
    if (n === Math.floor(input / 2)) await sleep(200);
  }
  ctx.progress(250, 'over');
};

exports.extends = async (input, ctx) => [await ctx.extendTtl(5000), ctx.ttlWarned];

exports.waits_for_cancel = async (input, ctx) => {
  await ctx.checkpoint.save('waiting');
  while (!ctx.cancelled) await sleep(5);
  return 'gave up';
};

exports.waits_for_ttl = async (input, ctx) => {
  await ctx.checkpoint.save('waiting');
  while (!ctx.ttlWarned) await sleep(5);
  return 'warned';
};

/** Never lets go of the processor. */
exports.computes = async (input, ctx) => {
  await ctx.checkpoint.save('computing');
  const end = performance.now() + 1000 * input;
  while (performance.now() < end);
  await ctx.checkpoint.save('computed');
  return 'computed';
};

exports.started = () => STARTED;

exports.dies = async (input, ctx) => {
  await ctx.checkpoint.save('about to die');
  process.reallyExit(7);
};

exports.never_settles = () => new Promise(() => {});
exports.throws_later = () =>
  new Promise(() => setTimeout(() => _fails(), 1));
exports.exits = () => process.exit(0);

exports.settles = async (input, ctx) => {
  await ctx.checkpoint.save(1);
  await ctx.pause.wait('for the file', { event: 'up' });
  await ctx.checkpoint.save(2);
};

exports.may_pause = async (input, ctx) => {
  const caught = [];
  for (const maxWaitMs of [-1, 1e9]) {
    try {
      await ctx.pause.wait('too long', { maxWaitMs });
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      caught.push(error.message.slice(0, 12));
    }
  }
  return caught;
};
