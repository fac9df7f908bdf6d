'use strict';
// What JSON has no text for: said in words, where JSON.stringify would quietly change a value.
//
// Owns the rules of what may leave a handler (the same as `wire.encode` has for Python, in the
// words of JavaScript). It changes nothing and sends nothing.

const { uncurried } = require('./primordials.cjs');

const DEPTH_MAX = 200; // as deep as the pool's own JSON parser goes

const { isArray } = Array;
const { isFinite } = Number;
const { keys } = Object;
const { isMap, isPromise, isSet } = require('util').types;
const isWellFormed = uncurried(String.prototype.isWellFormed);

/** Throw a TypeError, in words, for a value that is not plain JSON; `undefined` is left out. */
function check(value, depth = 1) {
  switch (typeof value) {
    case 'string':
      if (!isWellFormed(value)) {
        throw new TypeError('a text with a lone surrogate has no UTF-8 form');
      }
      return;
    case 'number':
      if (!isFinite(value)) throw new TypeError(`${value} is not a JSON value`);
      return;
    case 'bigint':
      throw new TypeError('a BigInt is not a JSON value; use Number() or String()');
    case 'function':
    case 'symbol':
      throw new TypeError(`a ${typeof value} is not a JSON value`);
    case 'object':
      if (value !== null) checkObject(value, depth);
  }
}

function checkObject(value, depth) {
  if (depth > DEPTH_MAX) {
    throw new TypeError(`it is nested deeper than ${DEPTH_MAX} or contains itself`);
  }
  if (typeof value.toJSON === 'function') {
    const instead = value.toJSON();
    if (instead !== value) return check(instead, depth + 1);
  }
  if (isArray(value)) {
    for (let n = 0; n < value.length; n++) check(value[n], depth + 1);
    return;
  }
  if (isMap(value)) throw new TypeError('a Map is not a JSON value; use Object.fromEntries()');
  if (isSet(value)) throw new TypeError('a Set is not a JSON value; use Array.from()');
  if (isPromise(value)) throw new TypeError('a promise is not a JSON value; await it');
  const names = keys(value);
  for (let n = 0; n < names.length; n++) {
    if (!isWellFormed(names[n])) check(names[n]);
    check(value[names[n]], depth + 1);
  }
}

module.exports = { check };
