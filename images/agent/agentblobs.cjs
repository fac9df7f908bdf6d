'use strict';
// Checkpoints as bytes: encoded, compressed where that pays, with their SHA-256.
//
// And `Refused`, which the handler gets when the daemon does not keep one.

const { check, stringify } = require('./agentjson.cjs');

const COMPRESS_FROM_BYTES = 4 * 1024;
const COMPRESS_LEVEL = 1;

/** The daemon did not do what was asked; `code` says why. */
class Refused extends Error {
  constructor(code, message, isRetryable = true) {
    super(message);
    this.name = this.constructor.name;
    this.code = code;
    this.isRetryable = isRetryable;
  }
}

/** A checkpoint has no room; nothing was changed. */
class CheckpointTooLarge extends Refused {
  constructor(message) {
    super('CHECKPOINT_TOO_LARGE', message, false);
  }
}

/** Throw what an answer refuses. */
function granted(answer) {
  if (answer.type !== 'refused') return answer;
  if (answer.code === 'CHECKPOINT_TOO_LARGE') throw new CheckpointTooLarge(answer.message);
  throw new Refused(answer.code, answer.message);
}

/** What is said of a checkpoint, and its bytes; a TypeError for what is not JSON. */
function pack(data) {
  const isBytes = ArrayBuffer.isView(data) || data instanceof ArrayBuffer;
  let blob = isBytes ? bytesOf(data) : jsonOf(data);
  let compression = 'none';
  if (blob.length > COMPRESS_FROM_BYTES) {
    const smaller = require('zlib').deflateSync(blob, { level: COMPRESS_LEVEL });
    if (smaller.length <= blob.length * 0.9) {
      blob = smaller;
      compression = 'zlib';
    }
  }
  const encoding = isBytes ? 'bytes' : 'json';
  return [{ size: blob.length, encoding, compression, sha256: digest(blob) }, blob];
}

/** The value of a checkpoint. */
function unpack(head, blob) {
  if (digest(blob) !== head.sha256) {
    throw new Error('a checkpoint is damaged: its SHA-256 is another one');
  }
  const data = head.compression === 'zlib' ? require('zlib').inflateSync(blob) : blob;
  return head.encoding === 'bytes' ? data : JSON.parse(data.toString());
}

/** The bytes as they are now: they are sent when it is their turn. */
function bytesOf(data) {
  if (data instanceof ArrayBuffer) return Buffer.from(data.slice(0));
  return Buffer.from(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
}

function jsonOf(data) {
  if (data === undefined) throw new TypeError('undefined is not a JSON value; use null');
  check(data);
  return Buffer.from(stringify(data));
}

const digest = (blob) => require('crypto').createHash('sha256').update(blob).digest('hex');

module.exports = { CheckpointTooLarge, Refused, granted, pack, unpack };
