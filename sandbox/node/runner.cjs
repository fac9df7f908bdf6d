'use strict';
// Inside the child: read a request, run the handler, send one result; then be killed, or read on.
//
// `runner.py` for Node. Runs fully confined, with nothing but a socket to the pool, and started
// ahead: everything is loaded before it says that it is ready. It keeps its own references to what
// it needs, but promises nothing about a handler that attacks its own process: such a handler can
// at most forge its own single result.

const { readSync } = require('fs');
const Module = require('module');
const { inspect } = require('util');
const { isNativeError, isPromise } = require('util').types;

const channel = require('./channel.cjs');
const { Context } = require('./context.cjs');
const { load, readAhead } = require('./handler.cjs');
const output = require('./output.cjs');
const { check } = require('./plain.cjs');
const { uncurried } = require('./primordials.cjs');
const refusals = require('./refusals.cjs');
const timers = require('./timers.cjs');

const GO_FD = 0;
const TRACEBACK_MAX_BYTES = 16 * 1024;
const CAUSES_MAX = 5;
const NEVER = "the handler's promise will never settle: nothing is left that could do so";
const OUT_OF_MEMORY =
  /^(Array buffer allocation failed|Failed to allocate memory|WebAssembly\.Memory\(\): could not)/;

const { stringify } = JSON;
const { byteLength } = Buffer;
const exit = process.reallyExit.bind(process);
const later = setImmediate;
const then = uncurried(Promise.prototype.then);
const tested = uncurried(RegExp.prototype.test);
const split = uncurried(String.prototype.split);
const includes = uncurried(String.prototype.includes);
const filter = uncurried(Array.prototype.filter);
const join = uncurried(Array.prototype.join);
const Promise_ = Promise;

let handler;
let isPrepared = false;
let giveUp; // on an import ahead
let next; // what follows an execution in a process that serves again
let execution = null; // the one that runs

class Execution {
  constructor(request) {
    this.request = request;
    this.context = new Context(
      request,
      (level, message, fields) => {
        if (this === execution) channel.log('log', level, message, fields);
      },
      () => {
        if (this !== execution) throw new Error('cannot read the context: the execution has ended');
        return channel.fetchContext();
      },
    );
  }

  /** Run the handler; it ends in `succeed` or `fail`, now or later. */
  run() {
    try {
      handler ??= load(this.request.root, this.request.entrypoint);
      if (isPromise(handler)) {
        then(
          handler,
          (loaded) => {
            handler = loaded;
            this.call();
          },
          (error) => {
            handler = undefined;
            this.fail(error);
          },
        );
      } else this.call();
    } catch (error) {
      this.fail(error);
    }
  }

  call() {
    try {
      const { has_input: hasInput, input } = this.request;
      const returned = handler(hasInput ? input : undefined, this.context);
      const waits = typeof returned === 'object' && typeof returned?.then === 'function';
      if (!waits) return this.succeed(returned);
      const promise = isPromise(returned) ? returned : new Promise_((resolve) => resolve(returned));
      then(
        promise,
        (value) => this.succeed(value),
        (error) => this.fail(error),
      );
    } catch (error) {
      this.fail(error);
    }
  }

  succeed(returned) {
    this.finish(() => Context.finished(this.context, returned));
  }

  fail(error) {
    if (this !== execution) return;
    if (isOutOfMemory(error)) return this.end('memory', 'the handler ran out of memory');
    const described = describe(error);
    this.finish(() => Context.collected(this.context, { outcome: 'failure', error: described }));
  }

  /** Send the result, once; what comes later is too late. */
  finish(result) {
    if (this !== execution) return;
    let text;
    try {
      const value = result();
      check(value);
      text = stringify(value);
    } catch (error) {
      const why = isNativeError(error) ? error.message : inspect(error);
      return this.end('protocol', `the handler's result is not JSON: ${why}`);
    }
    const size = byteLength(text);
    const { output_bytes: limit } = this.request;
    if (size > limit) {
      return this.end('output', `the result has ${size} bytes, ${limit} are allowed`);
    }
    execution = null;
    output.finish();
    channel.sendResult(text);
    if (!this.request.reuse) return channel.waitForEnd();
    timers.clear();
    later(next);
  }

  /** There is no result, and this process is not used again. */
  end(ending, message) {
    execution = null;
    output.finish();
    channel.sendProblem(ending, message);
    channel.waitForEnd();
  }
}

function serve() {
  const { request, preparation } = channel.receiveNext();
  if (!isPrepared) prepare(request ?? preparation);
  if (preparation) return becomeReady(preparation);
  execution = new Execution(request);
  execution.run();
}

/** Before there is a call: read what will be called, or import it. */
function becomeReady({ root, entrypoint, import: isImported }) {
  if (!isImported) {
    readAhead(root, entrypoint);
    return serve();
  }
  const done = (loaded) => {
    if (giveUp === undefined) return;
    giveUp = undefined;
    handler = loaded; // if that failed it is tried again with the call, which is told
    serve();
  };
  giveUp = () => done(undefined);
  try {
    const loaded = load(root, entrypoint);
    if (!isPromise(loaded)) return done(loaded);
    then(loaded, done, giveUp);
  } catch {
    giveUp();
  }
}

/** Wait until the package is there, and make the process look like its own program. */
function prepare({ root, entrypoint, reuse }) {
  isPrepared = true;
  if (readSync(GO_FD, Buffer.alloc(1)) === 0) exit(0);
  process.argv = [process.argv0, `${root}/${entrypoint.slice(0, entrypoint.lastIndexOf(':'))}`];
  refusals.confineRequire(root);
  if (reuse) timers.track();
}

/** Run a handler of ours in this very process, before there is anybody else's. */
function rehearse(afterwards) {
  const request = {
    root: __dirname,
    entrypoint: 'warm.js:handle',
    input: [1, 2.5, 'three', null, { four: true }],
    has_input: true,
    config: {},
    secrets: { name: 'value' },
    attempt: 0,
    output_bytes: 10000,
    log_bytes: 10000,
    reuse: true,
  };
  channel.rehearse([['request', request], ['context', { share: 0.5 }]]);
  refusals.confineRequire(__dirname);
  next = afterwards;
  isPrepared = true;
  serve();
}

/** The rehearsal is over: wait for the first request. */
function start() {
  channel.endRehearsal();
  handler = undefined;
  isPrepared = false;
  next = serve;
  hide();
  channel.sayReady();
  serve();
}

function isOutOfMemory(error) {
  try {
    return isNativeError(error) && tested(OUT_OF_MEMORY, error.message);
  } catch {
    return false;
  }
}

/** An exception as an error value; what the handler's own getters do stays its problem. */
function describe(error) {
  let message = 'an error that cannot be shown';
  let traceback = '';
  try {
    if (isNativeError(error)) message = `${error.name}: ${error.message}`;
    else message = typeof error === 'string' ? error : inspect(error);
    traceback = trace(error, 0);
  } catch {}
  return {
    code: 'HANDLER_ERROR',
    message: channel.plainText(message, 2000),
    retryable: true,
    details: { traceback: channel.plainText(traceback, TRACEBACK_MAX_BYTES) },
  };
}

/** Where an error came from, in their code and in Node's modules, and what caused it. */
function trace(error, depth) {
  if (!isNativeError(error) || depth === CAUSES_MAX) return inspect(error);
  const text = join(filter(split(String(error.stack), '\n'), isTheirs), '\n');
  return error.cause === undefined ? text : `${text}\ncaused by: ${trace(error.cause, depth + 1)}`;
}

function isTheirs(line) {
  return !includes(line, `${__dirname}/`) && !includes(line, '(node:internal/');
}

/** Nothing of this program is what a handler asks for. */
function hide() {
  for (const name of Object.keys(Module._cache)) delete Module._cache[name];
  for (const name of ['LANG', 'OPENSSL_CONF', 'UV_USE_IO_URING']) delete process.env[name];
  process.execArgv = [];
  process.mainModule = undefined;
}

output.install();
refusals.install();
process.on('uncaughtException', (error) => execution?.fail(error));
process.on('beforeExit', () => {
  if (execution === null && giveUp === undefined) exit(1); // nothing would ever come
  later(() => {}); // so that this is asked again
  execution?.fail(new Error(NEVER));
  giveUp?.();
});
rehearse(start);
