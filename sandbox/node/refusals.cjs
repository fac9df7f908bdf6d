'use strict';
// What a handler may not do, said clearly at the place where it tries.
//
// Owns the messages, not the boundary: that is the process's confinement, which holds for whoever
// gets around these. Threads, programs and addons that would fail (or be killed) without a word
// throw an Error with the code NOT_ALLOWED that says what to do instead.

const { realpathSync } = require('fs');
const Module = require('module');
const os = require('os');
const timers = require('timers');
const timersPromises = require('timers/promises');
const path = require('path');
const workers = require('worker_threads'); // 2 ms, for what no later hook could reach

const { uncurried } = require('./primordials.cjs');

const { isBuiltin, _resolveFilename: resolve } = Module;
const { defineProperty } = Object;
const startsWith = uncurried(String.prototype.startsWith);

function refusal(what, instead) {
  return function refused() {
    const error = new Error(`cannot ${what}: handlers may not; ${instead}`);
    error.code = 'NOT_ALLOWED';
    Error.captureStackTrace(error, refused);
    throw error;
  };
}

const PROCESS = {
  exit: ['call process.exit()', 'return a value, or throw an error'],
  reallyExit: ['call process.reallyExit()', 'return a value, or throw an error'],
  abort: ['call process.abort()', 'throw an error'],
  kill: ['send signals', 'there is no other process to signal'],
  _kill: ['send signals', 'there is no other process to signal'],
  dlopen: ['load a native addon', 'use a package in JavaScript or WebAssembly'],
  binding: ['use process.binding()', 'use the public modules of Node'],
  _linkedBinding: ['use process._linkedBinding()', 'use the public modules of Node'],
  _debugProcess: ['start a debugger', 'use ctx.log'],
};

/** Refuse in this process what handlers may not do. */
function install() {
  const program = refusal('start a program', 'there is none; do it in JavaScript');
  const flags = refusal('change flags of V8', 'there is no other way');
  below('process_wrap', (binding) => (binding.Process.prototype.spawn = program));
  below('spawn_sync', (binding) => (binding.spawn = program));
  below('v8', (binding) => (binding.setFlagsFromString = flags), 'setFlagsFromString', flags);
  const debugged = refusal('start a debugger', 'use ctx.log');
  below('inspector', (binding) => (binding.open = debugged), 'open', debugged);
  for (const [name, [what, instead]] of Object.entries(PROCESS)) {
    replace(process, name, refusal(what, instead));
  }
  const worker = refusal('start a worker thread', 'a handler has one core; use async functions');
  replace(workers, 'Worker', worker);
  const interval = refusal('use setInterval()', 'await a setTimeout() in a loop');
  replace(globalThis, 'setInterval', interval);
  replace(timers, 'setInterval', interval);
  replace(timersPromises, 'setInterval', interval);
  os.networkInterfaces = () => ({}); // they are not shown, which libuv takes for a failure
  Module.syncBuiltinESMExports();
  Module._extensions['.node'] = refusal(
    'load a native addon',
    'use a package in JavaScript or WebAssembly',
  );
}

let inside = ''; // the folder, with a slash at its end

/**
 * Change the binding below a module: 0.1 ms, where loading the module would take 4. Newer Nodes do
 * not give all of them: then it is the module.
 */
function below(module, change, name, value) {
  try {
    change(process.binding(module));
  } catch (error) {
    if (name === undefined) throw error;
    replace(require(module), name, value);
  }
}

/** From now on require() finds Node's own modules and what is inside the folder, nothing else. */
function confineRequire(root) {
  inside = realpathSync.native(root) + path.sep;
  Module._resolveFilename = resolveInside;
}

function resolveInside(request, ...rest) {
  const found = resolve(request, ...rest);
  if (isBuiltin(found) || startsWith(found, inside)) return found;
  const error = new Error(
    `cannot find module '${request}': ${found} is outside the handler's package; ` +
      'put it into the package',
  );
  error.code = 'MODULE_NOT_FOUND';
  throw error;
}

function replace(object, name, value) {
  defineProperty(object, name, { value, configurable: true, enumerable: true, writable: true });
}

module.exports = { confineRequire, install };
