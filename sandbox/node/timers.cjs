'use strict';
// Timers of one execution do not fire in the next that the same process serves.
//
// Owns the wrapping of setTimeout and setImmediate, only where a process may serve again. Timers
// that were unref'd hold nothing open; the ones of Node's own HTTP client are such and stay.

const Module = require('module');
const timers = require('timers');
const { promisify } = require('util');

const live = new Map(); // timer: the function that clears it

/** From now on remember what is started. */
function track() {
  wrap('setTimeout', 'clearTimeout');
  wrap('setImmediate', 'clearImmediate');
  Module.syncBuiltinESMExports();
}

/** Clear what was started and still holds the event loop open. */
function clear() {
  for (const [timer, cancel] of live) if (timer.hasRef()) cancel(timer);
  live.clear();
}

function wrap(start, stop) {
  const begin = timers[start];
  const cancel = timers[stop];
  function tracked(callback, ...rest) {
    if (typeof callback !== 'function') return begin(callback, ...rest); // throws
    const timer = begin(function fire(...values) {
      live.delete(timer);
      return callback.apply(this, values);
    }, ...rest);
    live.set(timer, cancel);
    return timer;
  }
  Object.defineProperty(tracked, 'name', { value: start });
  Object.defineProperty(tracked, promisify.custom, {
    get: () => begin[promisify.custom],
    enumerable: true,
  });
  timers[start] = tracked;
  globalThis[start] = tracked;
}

module.exports = { clear, track };
