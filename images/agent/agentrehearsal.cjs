'use strict';
// Tasks of our own, run before there is one: functions are compiled when they are first called,
// which took three quarters of the first task's time. The daemon is played by this very process,
// over a socket without a name in any folder (unix(7), abstract), so that nothing is left out.

const net = require('net');

const { Frames, Line, framed } = require('./agentline.cjs');
const { Logs } = require('./agentlogs.cjs');
const { Run } = require('./agentrun.cjs');

const ROUNDS = 10;

/** A line without a guard; what blocks while it waits for an answer is answered at once. */
class Quiet extends Line {
  watch() {}

  fetchSync() {
    return [{}, Buffer.from('{}')];
  }
}

/** Run agentwarm.cjs as if it were a task, until there is one. */
function rehearse(isOver) {
  const path = `\0flowmonkey-rehearsal-${process.pid}`;
  const server = net.createServer(grant);
  server.on('error', () => {}); // then it is not rehearsed
  server.listen({ path }, async () => {
    for (let n = 0; n < ROUNDS && !isOver(); n++) {
      await play(path);
      delete require.cache[require.resolve('./agentwarm.cjs')];
    }
    server.close();
    if (!isOver()) process.argv.length = 1;
  });
}

function play(path) {
  return new Promise((done) => {
    const line = new Quiet(path, 'rehearsal');
    const logs = new Logs(line);
    const run = new Run(line, logs, done);
    line.onTask = (task) => {
      logs.begin();
      line.begin(task);
      run.execute(task);
    };
    line.open();
  });
}

/** A daemon that grants everything, and goes after the result. */
function grant(socket) {
  const frames = new Frames();
  socket.on('error', () => {});
  socket.on('data', (bytes) => {
    for (const [message] of frames.feed(bytes)) {
      const { type, seq } = message;
      if (type === 'hello') socket.write(framed({ type: 'ping', n: 1 }));
      else if (type === 'pong') socket.write(framed(task()));
      else if (seq) socket.write(framed({ type: 'ok', seq }));
      if (type === 'result') socket.end();
    }
  });
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
