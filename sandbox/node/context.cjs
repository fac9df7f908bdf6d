'use strict';
// The `ctx` that a stateless Node handler is given: `ctx.py` in the words of JavaScript.
//
// Holds what the request said, collects what the handler wants to say (`emit`, `update`), and
// builds its answers (`success`, `failure`, `wait`). What it accepts has the right shape; for what
// has not it throws a TypeError or RangeError in the handler. It does no I/O of its own.

const { format, inspect } = require('util');

const { uncurried } = require('./primordials.cjs');

const { assign, create, freeze, hasOwn, keys } = Object;
const { isInteger } = Number;
const { isArray } = Array;
const join = uncurried(Array.prototype.join);
const toISOString = uncurried(Date.prototype.toISOString);
const { isDate } = require('util').types;

const EMITS_MAX = 1000; // as `wire.EMITS_MAX`

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
  #write;

  constructor(write) {
    this.#write = write;
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
    const named = typeof fields === 'object' && fields !== null && !isArray(fields);
    this.#write(level, format('%s', message), named ? fields : { value: fields });
  }
}
Log.prototype.warn = Log.prototype.warning; // as console has it

/** Everything a handler may ask of the step it runs in. */
class Context {
  #request;
  #fetchContext;
  #context;
  #updates = create(null);
  #emitted = [];

  constructor(request, writeLog, fetchContext) {
    this.#request = request;
    this.#fetchContext = fetchContext;
    this.hasInput = request.has_input;
    this.executionId = request.execution_id;
    this.flowId = request.flow_id;
    this.stepId = request.step_id;
    this.attempt = request.attempt;
    this.tenantId = request.tenant_id;
    this.taskId = request.task_id;
    this.config = request.config;
    this.secrets = secrets(request.secrets);
    this.log = new Log(writeLog);
  }

  /** The execution's context, read only; fetched when it is first read. */
  get context() {
    this.#context ??= freeze(this.#fetchContext());
    return this.#context;
  }

  /** Publish an event of the execution. */
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

  /**
   * An answer that parks the execution for a time, until a time, or until an event.
   *
   * `until` is ISO 8601 text, milliseconds since 1970 or a Date. With an event, a time is how long
   * to wait for it at most.
   */
  wait({ durationMs, until, event, filter, reason } = {}) {
    const wait = {};
    if (given(durationMs)) {
      if (!isInteger(durationMs) || durationMs < 0) {
        const shown = inspect(durationMs);
        throw new RangeError(`cannot wait ${shown} ms: it must be a whole number from 0`);
      }
      wait.durationMs = durationMs;
    }
    if (given(until)) wait.until = isDate(until) ? toISOString(until) : until;
    if (given(event)) wait.event = text('event', event);
    if (given(filter)) wait.filter = { ...filter };
    if (given(reason)) wait.reason = format('%s', reason);
    return new Answer({ outcome: 'wait', wait });
  }

  /** The result of a handler that returned this; for the runner, not for handlers. */
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
    answer.updates = context.#updates; // a literal with `...answer` takes ten times as long
    answer.emitted = context.#emitted;
    return answer;
  }
}

const given = (value) => value !== undefined && value !== null;

/** How secrets look when they are printed, in whatever way: their names. */
function shown() {
  return `<secrets ${join(keys(this), ', ')}>`;
}
const SHOWN = freeze(
  assign(create(null), { [inspect.custom]: shown, toJSON: shown, toString: shown }),
);
const READ_ONLY = {
  get(target, name) {
    if (typeof name === 'symbol' || name in target || name === 'then') return target[name];
    throw new ReferenceError(`no secret '${name}': not in handler.json, or not set`);
  },
};

/** Secrets by name; a name that is not declared throws. */
function secrets(values) {
  return new Proxy(freeze({ __proto__: SHOWN, ...values }), READ_ONLY);
}

function text(what, value) {
  if (typeof value !== 'string' || !value) {
    const shown = inspect(value);
    throw new TypeError(`cannot use ${shown} as ${what}: it must be a text that is not empty`);
  }
  return value;
}

module.exports = { Context };
