'use strict';
// JSON text of what leaves a handler: refused, in words, where JSON.stringify would quietly change
// a value. The same rules as agentjson.py has, in the words of JavaScript.

const { inspect } = require('util');
const { isMap, isPromise, isSet } = require('util').types;

const DEPTH_MAX = 200;
const { isArray } = Array;
const { keys } = Object;
const { stringify } = JSON;

/** Throw a TypeError, in words, for a value that is not plain JSON; `undefined` is left out. */
function check(value, depth = 1) {
  switch (typeof value) {
    case 'string':
      if (!value.isWellFormed()) {
        throw new TypeError('a text with a lone surrogate has no UTF-8 form');
      }
      return;
    case 'number':
      if (!Number.isFinite(value)) throw new TypeError(`${value} is not a JSON value`);
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
  for (const name of keys(value)) {
    check(name);
    check(value[name], depth + 1);
  }
}

/** At most that many bytes of UTF-8, of the beginning. */
function cut(text, sizeBytes) {
  text = text.toWellFormed();
  if (text.length * 3 <= sizeBytes || Buffer.byteLength(text) <= sizeBytes) return text;
  const bytes = Buffer.allocUnsafe(sizeBytes); // write() never writes a part of a character
  return bytes.toString('utf8', 0, bytes.write(text, 0, sizeBytes));
}

/** Fields with a text in the place of what is not JSON. */
function plainFields(fields) {
  const plain = {};
  for (const name of keys(fields)) {
    const key = cut(name, 200);
    try {
      check(fields[name], 3);
      plain[key] = fields[name];
    } catch {
      plain[key] = cut(inspect(fields[name]), 16 * 1024);
    }
  }
  return plain;
}

module.exports = { check, cut, plainFields, stringify };
