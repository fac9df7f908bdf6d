'use strict';
// The socket to the pool: whole frames out, in one piece each; frames in, when they are expected.
//
// Owns descriptor 3 and the layout of frames (`wire.py`). Everything blocks: while the pool is
// asked, nothing of the handler runs. It keeps its own references to what it uses, so that a
// handler that patches them breaks its own output only; whatever comes is read once, and anything
// that is no frame of the pool's ends the process.

const fs = require('fs');
const { inspect } = require('util');

const { check } = require('./plain.cjs');
const { uncurried } = require('./primordials.cjs');

const FD = 3;
const HEAD_BYTES = 4 + 1 + 8; // length, kind, token
const TOKEN_AT = 5;
const REQUEST_MAX_BYTES = 256 * 1024 * 1024; // the pool is trusted; this catches a broken length
const LINE_MAX_BYTES = 16 * 1024; // of a log message
const LINE_COST_BYTES = 100; // as `wire.LINE_COST_BYTES`
const SCRATCH_BYTES = 64 * 1024;
const KINDS = {
  request: 'Q',
  context: 'C',
  log: 'L',
  result: 'R',
  problem: 'X',
  ready: 'Y',
  preparation: 'P',
};

const { readSync, writeSync } = fs;
const { parse, stringify } = JSON;
const { keys } = Object;
const { byteLength, allocUnsafeSlow } = Buffer;
const charCode = uncurried(String.prototype.charCodeAt);
const toWellFormed = uncurried(String.prototype.toWellFormed);
const utf8Write = uncurried(Buffer.prototype.utf8Write);
const utf8Slice = uncurried(Buffer.prototype.utf8Slice);
const readLength = uncurried(Buffer.prototype.readUInt32BE);
const writeLength = uncurried(Buffer.prototype.writeUInt32BE);
const copyBytes = uncurried(Buffer.prototype.copy);
const exit = process.reallyExit.bind(process);

const scratch = allocUnsafeSlow(SCRATCH_BYTES); // what is sent
const come = allocUnsafeSlow(SCRATCH_BYTES); // what has come: not asked for yet is `begin` to `end`
let begin = 0;
let end = 0;
const token = Buffer.alloc(8);
let logLeft = 0;
let read = readSync;
let write = writeSync;

/**
 * Wait for a request, or before it for a preparation; the process ends if the pool goes away
 * instead. What is logged before a request has nobody to belong to.
 */
function receiveNext() {
  const { kind, value } = receive(KINDS.request, KINDS.preparation);
  const isRequest = kind === charCode(KINDS.request, 0);
  logLeft = isRequest ? value.log_bytes : -1;
  return isRequest ? { request: value } : { preparation: value };
}

/** Ask the pool for the execution's context. */
function fetchContext() {
  send(KINDS.context, '');
  return receive(KINDS.context).value;
}

/** Read these frames (kind and value of each) instead of the pool's, and send nobody anything. */
function rehearse(frames) {
  const stream = Buffer.concat(
    frames.map(([kind, value]) => {
      const bytes = Buffer.concat([Buffer.alloc(HEAD_BYTES), Buffer.from(stringify(value))]);
      writeLength(bytes, bytes.length - 4, 0);
      bytes[4] = charCode(KINDS[kind], 0);
      return bytes;
    }),
  );
  let from = 0;
  write = (_fd, _bytes, _at, size) => size;
  read = (_fd, bytes, at, size) => {
    const got = copyBytes(stream, bytes, at, from, from + size);
    from += got;
    return got;
  };
}

/** From now on it is the pool. */
function endRehearsal() {
  read = readSync;
  write = writeSync;
  token.fill(0);
}

/** Say that everything is loaded and a request can come. */
function sayReady() {
  send(KINDS.ready, '');
}

/** Send the one result: JSON text. What is logged from then on until a request is too late. */
function sendResult(text) {
  logLeft = -1;
  send(KINDS.result, text);
}

/** Say why there is no result: `ending` is "memory", "output" or "protocol". */
function sendProblem(ending, message) {
  send(KINDS.problem, stringify({ ending, message: plainText(message, 2000) }));
}

/** Send a log line while the log's limit lasts, counted as the pool counts. */
function log(stream, level, message, fields) {
  if (logLeft < 0) return;
  const line = { stream, level, message: plainText(message, LINE_MAX_BYTES), fields };
  if (keys(fields).length) line.fields = plainFields(fields);
  let text = stringify(line);
  const size = byteLength(text);
  logLeft -= (keys(fields).length ? size : characters(line.message)) + LINE_COST_BYTES;
  if (size > 2 * LINE_MAX_BYTES + 1024) {
    text = stringify({ ...line, fields: { truncated: true } });
  }
  send(KINDS.log, text);
}

/** Return once the pool closes the channel; it usually kills before. */
function waitForEnd() {
  try {
    read(FD, scratch, 0, 1, null);
  } finally {
    exit(0);
  }
}

/** At most that many bytes of UTF-8, of the beginning. */
function cut(text, sizeBytes) {
  if (text.length * 3 <= sizeBytes || byteLength(text) <= sizeBytes) return text;
  const bytes = allocUnsafeSlow(sizeBytes); // utf8Write never writes a part of a character
  return utf8Slice(bytes, 0, utf8Write(bytes, text, 0, sizeBytes));
}

/** Text that can be sent, of at most that many bytes. */
function plainText(text, sizeBytes) {
  return cut(toWellFormed(text), sizeBytes);
}

/** Fields with a text in the place of what is not JSON. */
function plainFields(fields) {
  const plain = {};
  for (const name of keys(fields)) {
    const key = toWellFormed(name);
    try {
      check(fields[name], 3);
      plain[key] = fields[name];
    } catch {
      plain[key] = plainText(inspect(fields[name]), LINE_MAX_BYTES);
    }
  }
  return plain;
}

/** Unicode characters, as Python counts them. */
function characters(text) {
  let count = text.length;
  if (byteLength(text) === count) return count;
  for (let n = 0; n < text.length; n++) {
    if ((charCode(text, n) & 0xfc00) === 0xdc00) count--; // it is well-formed: the second of two
  }
  return count;
}

function send(kind, text) {
  const size = text.length * 3 <= SCRATCH_BYTES - HEAD_BYTES ? text.length * 3 : byteLength(text);
  const bytes = HEAD_BYTES + size <= SCRATCH_BYTES ? scratch : allocUnsafeSlow(HEAD_BYTES + size);
  const last = HEAD_BYTES + utf8Write(bytes, text, HEAD_BYTES, size);
  writeLength(bytes, last - 4, 0);
  bytes[4] = charCode(kind, 0);
  copyBytes(token, bytes, TOKEN_AT);
  let at = 0;
  try {
    while (at < last) at += write(FD, bytes, at, last - at, null);
  } catch {
    exit(0); // the pool has gone away, or the handler has spoilt the descriptor
  }
}

function receive(wanted, otherwise = wanted) {
  fill(HEAD_BYTES);
  const size = 4 + readLength(come, begin);
  if (size < HEAD_BYTES || size > REQUEST_MAX_BYTES) refuse(`a frame of ${size} bytes`);
  const kind = come[begin + 4];
  if (kind !== charCode(wanted, 0) && kind !== charCode(otherwise, 0)) {
    refuse(`a frame of kind ${kind}`);
  }
  if (wanted === KINDS.request) copyBytes(come, token, 0, begin + TOKEN_AT, begin + HEAD_BYTES);
  const text = taken(size);
  try {
    return { kind, value: parse(text) };
  } catch {
    return refuse('no JSON');
  }
}

/** The text of the next frame, which has that many bytes and is behind us then. */
function taken(size) {
  if (size > come.length) return takenInPieces(size);
  fill(size);
  const text = utf8Slice(come, begin + HEAD_BYTES, begin + size);
  begin += size;
  return text;
}

function takenInPieces(size) {
  const bytes = allocUnsafeSlow(size);
  let at = copyBytes(come, bytes, 0, begin, end);
  begin = end;
  while (at < size) at += more(bytes, at, size - at);
  return utf8Slice(bytes, HEAD_BYTES, size);
}

/** Have at least that many bytes, and with them what has come besides. */
function fill(size) {
  if (end - begin >= size) return;
  copyBytes(come, come, 0, begin, end);
  end -= begin;
  begin = 0;
  while (end < size) end += more(come, end, come.length - end);
}

function more(bytes, at, size) {
  let got = 0;
  try {
    got = read(FD, bytes, at, size, null);
  } catch {} // the handler has spoilt the descriptor
  if (got === 0) exit(0);
  return got;
}

function refuse(what) {
  writeSync(2, `the runner got ${what} where it expected a frame of the pool's\n`);
  exit(1);
}

module.exports = {
  LINE_MAX_BYTES,
  cut,
  endRehearsal,
  fetchContext,
  log,
  plainText,
  receiveNext,
  rehearse,
  sayReady,
  sendProblem,
  sendResult,
  waitForEnd,
};
