'use strict';
// One task: the handler loaded and called, its result sent.
//
// What a handler is and what its answers look like is as in the sandbox: a function or a class with
// handle() or execute(), plain or async; an error is the failure HANDLER_ERROR.

const { inspect } = require('util');
const { isNativeError } = require('util').types;

const { Refused } = require('./agentblobs.cjs');
const { Context } = require('./agentctx.cjs');
const { check, cut, stringify } = require('./agentjson.cjs');
const { load } = require('./agentload.cjs');

const RESULT_MAX_BYTES = 1024 * 1024 + 63 * 1024; // a message has 1 KiB more
const TRACEBACK_MAX_BYTES = 16 * 1024;
const CAUSES_MAX = 5;
const NEVER = "the handler's promise will never settle: nothing is left that could do so";
const OUT_OF_MEMORY =
  /^(Array buffer allocation failed|Failed to allocate memory|WebAssembly\.Memory\(\): could not)/;

/** What this agent runs. */
class Run {
  #line;
  #logs;
  #handler;
  #context = null;
  #isEnding = false;
  #done;

  /** `done` is called once the daemon has the result. */
  constructor(line, logs, done) {
    this.#line = line;
    this.#logs = logs;
    this.#done = done;
  }

  /** What would end this program ends the handler. */
  install() {
    process.on('uncaughtException', (error) => {
      if (this.#context !== null) return this.#fail(error);
      process._rawDebug(inspect(error)); // a fault of ours
      return process.reallyExit(1);
    });
    process.on('beforeExit', () => {
      setImmediate(() => {}); // so that this is asked again
      this.#fail(new Error(NEVER));
    });
    process.exit = () => {
      throw new Error('cannot call process.exit(): return a value, or throw an error');
    };
  }

  /** Import the handler ahead; if that fails, return why, and it is tried again with the task. */
  async prepare(root, entrypoint) {
    try {
      this.#handler = await load(root, entrypoint);
    } catch (error) {
      return describe(error).message;
    }
    return undefined;
  }

  /** Run the task to its end. */
  async execute(task) {
    this.#context = new Context(task, this.#line, this.#logs);
    try {
      process.argv[1] = `${task.package}/${task.entrypoint.replace(/:[^:]*$/, '')}`;
      if (this.#handler === undefined) {
        const loaded = load(task.package, task.entrypoint);
        this.#handler = typeof loaded === 'function' ? loaded : await loaded;
      }
      const given = task.hasInput ? task.input : undefined;
      const returned = this.#handler(given, this.#context);
      const waits = typeof returned === 'object' && typeof returned?.then === 'function';
      this.#succeed(waits ? await returned : returned);
    } catch (error) {
      this.#fail(error);
    }
  }

  #succeed(returned) {
    if (!this.#isEnding) this.#end(Context.finished(this.#context, returned));
  }

  #fail(error) {
    if (this.#isEnding || this.#context === null) return;
    if (isNativeError(error) && OUT_OF_MEMORY.test(error.message)) {
      this.#end(problem('memory', 'the handler ran out of memory'));
      return;
    }
    const failure = { outcome: 'failure', error: describe(error) };
    this.#end(Context.collected(this.#context, failure));
  }

  /** Send the result, once; what comes later is too late. */
  async #end(answer) {
    this.#isEnding = true;
    this.#logs.finish();
    this.#context.tellProgress();
    await this.#line.ask({ type: 'result', answer: sendable(answer) });
    this.#done();
  }
}

function sendable(answer) {
  let text;
  try {
    check(answer);
    text = stringify(answer);
  } catch (error) {
    const why = isNativeError(error) ? error.message : inspect(error);
    return problem('protocol', `the handler's result is not JSON: ${why}`);
  }
  const size = Buffer.byteLength(text);
  if (size > RESULT_MAX_BYTES) {
    return problem('output', `the result has ${size} bytes, ${RESULT_MAX_BYTES} are allowed`);
  }
  return answer;
}

const problem = (ending, message) => ({ outcome: 'problem', ending, message: cut(message, 2000) });

/** An exception as an error value; what the handler's own getters do stays its problem. */
function describe(error) {
  let message = 'an error that cannot be shown';
  let traceback = '';
  try {
    if (isNativeError(error)) message = `${error.name}: ${error.message}`;
    else message = typeof error === 'string' ? error : inspect(error);
    traceback = trace(error, 0);
  } catch {}
  const refused = error instanceof Refused;
  return {
    code: refused ? error.code : 'HANDLER_ERROR',
    message: cut(message, 2000),
    retryable: refused ? error.isRetryable : true,
    details: { traceback: cut(traceback, TRACEBACK_MAX_BYTES) },
  };
}

/** Where an error came from, in their code and in Node's modules, and what caused it. */
function trace(error, depth) {
  if (!isNativeError(error) || depth === CAUSES_MAX) return inspect(error);
  const lines = String(error.stack).split('\n');
  const theirs = lines.filter(
    (line) => !line.includes(`${__dirname}/`) && !line.includes('(node:internal/'),
  );
  const text = theirs.join('\n');
  return error.cause === undefined ? text : `${text}\ncaused by: ${trace(error.cause, depth + 1)}`;
}

module.exports = { Run };
