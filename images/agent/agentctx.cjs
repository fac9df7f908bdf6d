'use strict';
// The `ctx` of a stateful Node handler: that of any handler, and checkpoints, progress, pauses.
//
// Collects what the handler wants to say (`emit`, `update`) and builds its answers; what has to
// last (a checkpoint, a pause, a longer time to live) is there when the promise is fulfilled. What
// it accepts has the right shape; for what has not it throws a TypeError or RangeError.

const { format, inspect } = require('util');
const { isDate } = require('util').types;

const { CheckpointTooLarge, Refused, granted, pack, unpack } = require('./agentblobs.cjs');
const { check, cut } = require('./agentjson.cjs');

const { assign, create, defineProperty, freeze, hasOwn, keys } = Object;
const { isInteger } = Number;
const EMITS_MAX = 1000;
const NAME_MAX = 200;
const PROGRESS_MS = 100; // so often at most it is told

/** What `ctx.success`, `ctx.failure` and `ctx.wait` return; hand it back with `return`. */
class Answer {
  #value;

  constructor(value) {
    this.#value = value;
  }

  /** The answer in a value, or undefined if it is none. */
  static in(value) {
    const is = typeof value === 'object' && value !== null && #value in value;
    return is ? value.#value : undefined;
  }
}

/** `ctx.log.info("working", { size: 3 })`; levels debug, info, warning, error. */
class Log {
  #logs;

  constructor(logs) {
    this.#logs = logs;
  }

  debug(message, fields) {
    this.#log('debug', message, fields);
  }

  info(message, fields) {
    this.#log('info', message, fields);
  }

  warning(message, fields) {
    this.#log('warning', message, fields);
  }

  error(message, fields) {
    this.#log('error', message, fields);
  }

  #log(level, message, fields = {}) {
    const named = typeof fields === 'object' && fields !== null && !Array.isArray(fields);
    this.#logs.add('log', level, format('%s', message), named ? fields : { value: fields });
  }
}
Log.prototype.warn = Log.prototype.warning; // as console has it

/**
 * Active time of the job: the container's clock runs on while it is frozen, and is told how long
 * that was.
 */
class Clock {
  #since;

  constructor({ ttlMs, activeMs }) {
    this.ttlMs = ttlMs;
    this.#since = performance.now() - activeMs;
  }

  paused(pausedMs) {
    this.#since += pausedMs;
  }

  activeMs() {
    return performance.now() - this.#since;
  }
}

/** `ctx.checkpoint`: named values that outlive this process. */
class Checkpoints {
  #line;
  #maxBytes;
  #sizes;
  #pause;

  constructor(line, { maxSize, names }, pause) {
    this.#line = line;
    this.#maxBytes = maxSize;
    this.#sizes = new Map(keys(names).map((one) => [one, names[one].size]));
    this.#pause = pause;
    this.TooLarge = CheckpointTooLarge;
  }

  /**
   * Keep a JSON value or bytes under a name, in the place of what was there. Fulfilled once it is
   * on disk. Throws CheckpointTooLarge if all names together have more than `maxSize`.
   */
  async save(data, name = 'default') {
    const [head, blob] = Checkpoints.fitting(this, data, name);
    const settled = this.#pause.isSettled;
    granted(await this.#line.ask({ type: 'checkpoint', name, settled, ...head }, blob));
    Checkpoints.saved(this, name, blob.length);
  }

  /** What was saved last under that name, by this process or one before it. */
  async load(name = 'default', otherwise = undefined) {
    const [answer, blob] = await this.#line.fetch({ type: 'load', name: named(name) });
    return answer.found ? unpack(answer, blob) : otherwise;
  }

  /** Forget what is saved under a name, or everything. */
  async clear(name) {
    const one = given(name) ? named(name) : null;
    granted(await this.#line.ask({ type: 'clear', name: one }));
    if (one === null) this.#sizes.clear();
    else this.#sizes.delete(one);
  }

  /** The names under which something is saved. */
  names() {
    return [...this.#sizes.keys()].sort();
  }

  /** The data as it is sent; for the pause. Throws CheckpointTooLarge. */
  static fitting(own, data, name) {
    const packed = pack(data);
    const size = packed[1].length;
    let others = 0;
    named(name);
    for (const [other, its] of own.#sizes) if (other !== name) others += its;
    if (others + size > own.#maxBytes) {
      throw new CheckpointTooLarge(
        `cannot save ${size} bytes as '${name}': with ${others} under other names that is more ` +
          `than the manifest's checkpoint.maxSize, ${own.#maxBytes}`,
      );
    }
    return packed;
  }

  static saved(own, name, size) {
    own.#sizes.set(name, size);
  }
}

/**
 * `ctx.pause`: `wait` stops the bill until something happens; `by` is what ended the last one
 * ("event", "hand" or "time"), null before there was one.
 */
class Pauses {
  by = null;
  #line;
  #maxMs;
  #resume; // not taken yet
  #context;

  constructor(line, { pauseMaxMs, resume }, context) {
    this.#line = line;
    this.#maxMs = pauseMaxMs;
    this.#resume = resume;
    this.#context = context;
  }

  /** Whether the handler has what the job was resumed with. */
  get isSettled() {
    return this.#resume === null;
  }

  /**
   * Pause until the event, or a hand, or the time; fulfilled with the event's data, if it has any.
   *
   * `checkpoint` is saved as "default" in the same moment. The process may be gone in between: then
   * the handler starts anew, and the same call is fulfilled at once with that data.
   */
  async wait(reason, options = {}) {
    const { maxWaitMs = null, event = null, filter = null, checkpoint } = options ?? {};
    this.#check(maxWaitMs);
    const why = cut(format('%s', reason), 1000);
    if (event !== null) named(event);
    check(filter);
    const before = this.#resume;
    this.#resume = null;
    if (before !== null && before.reason === why && before.event === event) {
      this.by = before.by;
      return before.data ?? undefined;
    }
    const { checkpoint: checkpoints } = this.#context;
    let head = null;
    let blob;
    if (checkpoint !== undefined) {
      [head, blob] = Checkpoints.fitting(checkpoints, checkpoint, 'default');
      head = { name: 'default', ...head };
    }
    this.#context.tellProgress();
    const wanted = { reason: why, maxWaitMs, event, filter, checkpoint: head };
    const answer = granted(await this.#line.ask({ type: 'pause', ...wanted }, blob));
    if (head !== null) Checkpoints.saved(checkpoints, 'default', blob.length);
    this.by = answer.by;
    return answer.data ?? undefined;
  }

  #check(maxWaitMs) {
    if (!this.#maxMs) {
      const why = 'cannot pause: set execution.pause.enabled in handler.json';
      throw new Refused('PAUSE_NOT_ENABLED', why);
    }
    if (maxWaitMs === null) return;
    if (!isInteger(maxWaitMs) || maxWaitMs < 0 || maxWaitMs > this.#maxMs) {
      throw new RangeError(
        `cannot pause for ${inspect(maxWaitMs)} ms: it must be a whole number from 0 to the ` +
          `manifest's pause.maxPauseDuration, ${this.#maxMs}`,
      );
    }
  }
}

/** Everything a handler may ask of the step it runs in. */
class Context {
  ttlWarned = false;
  #line;
  #clock;
  #context;
  #updates = create(null);
  #emitted = [];
  #first = null; // progress: percent, at
  #untold = null;
  #toldAt = -PROGRESS_MS;

  constructor(task, line, logs) {
    this.#line = line;
    this.#clock = new Clock(task.ttl);
    this.hasInput = task.hasInput;
    this.executionId = task.executionId;
    this.flowId = task.flowId;
    this.stepId = task.stepId;
    this.attempt = task.stepAttempt;
    this.tenantId = task.tenantId;
    this.taskId = task.taskId;
    this.config = task.config;
    this.secrets = secrets(task.secrets);
    this.log = new Log(logs);
    this.pause = new Pauses(line, task, this);
    this.checkpoint = new Checkpoints(line, task.checkpoint, this.pause);
    line.onResume = (pausedMs) => this.#clock.paused(pausedMs);
    line.onTtl = () => (this.ttlWarned = true); // the daemon has it in the log
  }

  /** Whether the execution was cancelled: the process is killed soon. */
  get cancelled() {
    return this.#line.isCancelled;
  }

  /** How much active time is left before it is killed. */
  get ttlLeftMs() {
    return Math.max(0, Math.trunc(this.#clock.ttlMs - this.#clock.activeMs()));
  }

  /** Have more time to live, up to the manifest's hard ttl; fulfilled with what is left then. */
  async extendTtl(ms) {
    if (!isInteger(ms) || ms < 1) {
      throw new RangeError(`cannot extend by ${inspect(ms)} ms: it must be a whole number from 1`);
    }
    const answer = granted(await this.#line.ask({ type: 'extend', ms }));
    this.#clock.ttlMs = answer.ttlMs;
    this.ttlWarned = false;
    return this.ttlLeftMs;
  }

  /** Say how far it is, from 0 to 100; as often as one likes. */
  progress(percent, message) {
    if (typeof percent !== 'number' || Number.isNaN(percent)) {
      throw new TypeError(`cannot use ${inspect(percent)} as percent: it must be a number`);
    }
    percent = Math.min(100, Math.max(0, percent));
    const text = given(message) ? cut(format('%s', message), 1000) : null;
    const isFirst = this.#untold === null;
    this.#untold = { type: 'progress', percent, message: text, etaMs: this.#etaMs(percent) };
    const wait = this.#toldAt + PROGRESS_MS - performance.now();
    if (wait <= 0) this.tellProgress();
    else if (isFirst) setTimeout(() => this.tellProgress(), wait).unref();
  }

  /** Tell the last progress; for the agent. */
  tellProgress() {
    const untold = this.#untold;
    this.#untold = null;
    if (untold === null) return;
    this.#toldAt = performance.now();
    this.#line.send(untold);
  }

  /** How long it takes if it goes on as it did since the first progress of this process. */
  #etaMs(percent) {
    const now = this.#clock.activeMs();
    if (this.#first === null || percent < this.#first.percent) this.#first = { percent, at: now };
    const done = percent - this.#first.percent;
    const since = now - this.#first.at;
    return done > 0 && since > 0 ? Math.trunc((since * (100 - percent)) / done) : null;
  }

  /** The execution's context, read only; fetched when it is first read. */
  get context() {
    this.#context ??= freeze(JSON.parse(this.#line.fetchSync({ type: 'context' })[1].toString()));
    return this.#context;
  }

  /** Publish an event of the execution, with the result. */
  emit(event, data = null) {
    if (this.#emitted.length === EMITS_MAX) {
      throw new RangeError(`cannot emit more than ${EMITS_MAX} events in one execution`);
    }
    this.#emitted.push([text('event', event), data]);
  }

  /** Set a key of the context; applied only if the handler succeeds. */
  update(key, value = null) {
    this.#updates[text('key', key)] = value;
  }

  /** An answer with an output, or none, and a step to go to instead of the flow's choice. */
  success(output, { next } = {}) {
    const answer = { outcome: 'success' };
    if (output !== undefined) answer.output = output;
    if (next !== undefined) answer.next = next === null ? null : text('next', next);
    return new Answer(answer);
  }

  /** An answer that says no: `failure(code, message, { retryable, details })`, or in that order. */
  failure(code, message, retryable = true, details = null) {
    if (typeof retryable === 'object' && retryable !== null) {
      ({ retryable = true, details = null } = retryable);
    }
    const error = { code: text('code', code), message: format('%s', message), details };
    error.retryable = Boolean(retryable);
    return new Answer({ outcome: 'failure', error });
  }

  /** An answer that ends this job and parks the execution; to go on in it use `pause.wait`. */
  wait({ durationMs, until, event, filter, reason } = {}) {
    const wait = {};
    if (given(durationMs)) {
      if (!isInteger(durationMs) || durationMs < 0) {
        const shown = inspect(durationMs);
        throw new RangeError(`cannot wait ${shown} ms: it must be a whole number from 0`);
      }
      wait.durationMs = durationMs;
    }
    if (given(until)) wait.until = isDate(until) ? until.toISOString() : until;
    if (given(event)) wait.event = text('event', event);
    if (given(filter)) wait.filter = { ...filter };
    if (given(reason)) wait.reason = format('%s', reason);
    return new Answer({ outcome: 'wait', wait });
  }

  /** The result of a handler that returned this; for the agent, not for handlers. */
  static finished(context, returned) {
    let answer = Answer.in(returned);
    if (answer === undefined) {
      answer = { outcome: 'success' };
      if (returned !== undefined) answer.output = returned;
    }
    return Context.collected(context, answer);
  }

  /** An answer with the events and updates so far. */
  static collected(context, answer) {
    return { ...answer, updates: context.#updates, emitted: context.#emitted };
  }
}

const given = (value) => value !== undefined && value !== null;

/** Secrets by name; a name that is not declared throws, and printing shows names only. */
function secrets(values) {
  const own = assign(create(null), values);
  const shown = `<secrets ${keys(own).join(', ')}>`;
  for (const name of [inspect.custom, 'toJSON', 'toString']) {
    if (!hasOwn(own, name)) defineProperty(own, name, { value: () => shown });
  }
  return new Proxy(freeze(own), {
    get(target, name) {
      if (typeof name === 'symbol' || hasOwn(target, name) || name === 'then') return target[name];
      throw new ReferenceError(`no secret '${name}': declare it in handler.json`);
    },
  });
}

function named(value) {
  text('name', value);
  if (value.length <= NAME_MAX) return value;
  const limit = `${NAME_MAX} are allowed`;
  throw new RangeError(`cannot use a name of ${value.length} characters: ${limit}`);
}

function text(what, value) {
  if (typeof value !== 'string' || !value) {
    const shown = inspect(value);
    throw new TypeError(`cannot use ${shown} as ${what}: it must be a text that is not empty`);
  }
  check(value);
  return value;
}

module.exports = { Context };
