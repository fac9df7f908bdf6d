'use strict';
// A task of our own, run before there is one: functions are compiled when they are first called,
// which took three quarters of the first task's time. There is no daemon yet: a line of its own
// answers at once.

const { Line } = require('./agentline.cjs');
const { Logs } = require('./agentlogs.cjs');
const { Run } = require('./agentrun.cjs');

const ROUNDS = 10;

/** A line whose daemon grants everything. */
class Echo extends Line {
  write(frames, remember) {
    remember?.();
    const [seqs, asks] = this.questions;
    for (const seq of seqs) this.take(framed({ type: 'ok', seq }));
    for (const ask of asks) {
      this.take(framed({ type: 'context', ask, size: 2 }));
      this.take(Buffer.from('\0\0\0\x03B{}', 'latin1'));
    }
    return true;
  }

  watch() {}
}

function framed(message) {
  const body = Buffer.from(JSON.stringify(message));
  const bytes = Buffer.alloc(5 + body.length);
  bytes.writeUInt32BE(1 + body.length, 0);
  bytes[4] = 0x4a; // J
  body.copy(bytes, 5);
  return bytes;
}

/** Run agentwarm.cjs as if it were a task, until there is one. */
async function rehearse(isOver) {
  for (let n = 0; n < ROUNDS; n++) {
    await new Promise((done) => {
      const line = new Echo('', 'rehearsal');
      const logs = new Logs(line);
      const run = new Run(line, logs, done);
      line.onTask = (task) => {
        logs.begin();
        line.begin(task);
        run.execute(task);
      };
      line.take(framed(task()));
    });
    delete require.cache[require.resolve('./agentwarm.cjs')];
    if (isOver()) return;
    process.argv.length = 1;
  }
}

function task() {
  const names = ['executionId', 'flowId', 'stepId', 'tenantId', 'taskId', 'jobId'];
  return {
    ...Object.fromEntries(names.map((name) => [name, 'rehearsal'])),
    type: 'task',
    attempt: 1,
    package: __dirname,
    entrypoint: 'agentwarm.cjs:handle',
    hasInput: true,
    input: [1, 2.5, 'three', null, { four: true }],
    config: {},
    secrets: {},
    stepAttempt: 0,
    heartbeatMs: 1000,
    checkpoint: { intervalMs: 1, maxSize: 1000, names: {} },
    ttl: { ttlMs: 1, softMs: 1, hardMs: 1, activeMs: 0 },
    pauseMaxMs: 0,
    resume: null,
  };
}

module.exports = { rehearse };
