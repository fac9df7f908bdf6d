'use strict';
// A stateful handler tried without a daemon or a container: agenttrial.py in the words of Node.

const path = require('path');

const { Line } = require('./agentline.cjs');
const { Run } = require('./agentrun.cjs');

/**
 * `input` is {task, resumes}: the task without what `ctx` knows, and the data of the events that
 * its pauses end with, the last one again and again.
 */
exports.handle = async ({ task, resumes }, ctx) => {
  const line = new Memory(ctx, resumes, task.ttl.ttlMs);
  const logs = { add: (_stream, level, message, fields) => ctx.log[level](message, fields) };
  const { executionId, flowId, stepId, tenantId, taskId, config } = ctx;
  const about = { executionId, flowId, stepId, tenantId, taskId, config, resume: null };
  const own = { package: path.dirname(__dirname), stepAttempt: ctx.attempt };
  const given = { ...task, ...about, ...own, secrets: { ...ctx.secrets } };
  await new Promise((done) => {
    new Run(line, { ...logs, finish() {} }, done).execute(given);
  });
  return answer(line.result, ctx);
};

function answer(result, ctx) {
  for (const [event, data] of result.emitted ?? []) ctx.emit(event, data);
  for (const [key, value] of Object.entries(result.updates ?? {})) ctx.update(key, value);
  switch (result.outcome) {
    case 'success':
      return ctx.success(result.output, 'next' in result ? { next: result.next } : {});
    case 'failure': {
      const { code, message, retryable, details } = result.error;
      return ctx.failure(code, message, { retryable, details });
    }
    case 'wait':
      return ctx.wait(result.wait);
    default:
      return ctx.failure('INVALID_RESULT', result.message, { retryable: false });
  }
}

/** A line whose daemon is this object. */
class Memory extends Line {
  result;
  #ctx;
  #resumes;
  #saved = new Map();
  #ttlMs;

  constructor(ctx, resumes, ttlMs) {
    super('', 'trial');
    this.#ttlMs = ttlMs;
    this.#ctx = ctx;
    this.#resumes = resumes;
  }

  send({ percent, message }) {
    const about = { percent: Math.round(10 * percent) / 10 };
    this.#ctx.log.info('progress', message === null ? about : { ...about, message });
    return true;
  }

  async ask(message, blob) {
    switch (message.type) {
      case 'checkpoint':
        this.#save(message.name, message, blob);
        break;
      case 'clear':
        for (const name of message.name === null ? [...this.#saved.keys()] : [message.name]) {
          this.#saved.delete(name);
        }
        break;
      case 'extend':
        this.#ttlMs += message.ms;
        return { type: 'ok', ttlMs: this.#ttlMs };
      case 'pause':
        return this.#pause(message, blob);
      case 'result':
        this.result = message.answer;
    }
    return { type: 'ok' };
  }

  async fetch({ name }) {
    const [head, blob] = this.#saved.get(name) ?? [{}, Buffer.alloc(0)];
    return [{ ...head, found: this.#saved.has(name) }, blob];
  }

  fetchSync() {
    return [{}, Buffer.from(JSON.stringify(this.#ctx.context))];
  }

  #save(name, head, blob) {
    this.#saved.set(name, [head, blob]);
    this.#ctx.log.debug('checkpoint', { name, bytes: blob.length });
  }

  #pause({ reason, event, checkpoint }, blob) {
    if (checkpoint !== null) this.#save('default', checkpoint, blob);
    let data = null;
    let by = 'hand';
    if (this.#resumes.length > 0) {
      by = event === null ? 'hand' : 'event';
      data = this.#resumes.length > 1 ? this.#resumes.shift() : this.#resumes[0];
    }
    this.#ctx.log.info('pause', { reason, event, by });
    return { type: 'resume', by, data, pausedMs: 0 };
  }
}
