'use strict';
// The handler's output as log lines: `ctx.log`, console, process.stdout and process.stderr.
//
// Whole lines, in order, cut at 16 KiB, and within a limit of bytes a second that the daemon has
// too: what is beyond is dropped and counted. What a program prints that the handler started with
// stdio "inherit" goes to the container's own log.

const { Writable } = require('stream');
const { StringDecoder } = require('string_decoder');

const { cut, plainFields, stringify } = require('./agentjson.cjs');

const LINE_MAX_BYTES = 16 * 1024;
const LOG_BYTES_PER_S = 16 * 1024;
const LOG_BURST_BYTES = 1024 * 1024;
const LINE_COST_BYTES = 100;

/** The log of the task. What is written before `begin` has nobody to belong to. */
class Logs {
  #line;
  #left = LOG_BURST_BYTES;
  #at = performance.now();
  #dropped = 0;
  #isOn = false;
  #streams;

  constructor(line) {
    this.#line = line;
    this.#streams = [new Lines(this, 'stdout', 1), new Lines(this, 'stderr', 2)];
  }

  /** Take what is printed. */
  install() {
    for (const stream of this.#streams) {
      const place = { value: stream, configurable: true, enumerable: true, writable: true };
      Object.defineProperty(process, stream.stream, place);
    }
  }

  /** The task begins: from now on there is a log. */
  begin() {
    this.#isOn = true;
  }

  /** Log a line while the limit lasts. */
  add(stream, level, message, fields = {}) {
    if (!this.#isOn) return;
    const text = cut(message, LINE_MAX_BYTES);
    const said = { type: 'log', atMs: Date.now(), stream, level, message: text, fields: null };
    let size = text.length + LINE_COST_BYTES;
    if (Object.keys(fields).length > 0) {
      const plain = plainFields(fields);
      const length = Buffer.byteLength(stringify(plain));
      said.fields = length > LINE_MAX_BYTES ? { truncated: true } : plain;
      size += Math.min(length, LINE_MAX_BYTES);
    }
    if (!this.#take(size)) {
      this.#dropped++;
      return;
    }
    if (this.#dropped > 0) {
      const why = `… ${this.#dropped} lines dropped: more than ${LOG_BYTES_PER_S} bytes a second`;
      this.#dropped = 0;
      this.#line.log({ ...said, stream: 'log', level: 'warning', message: why, fields: null });
    }
    this.#line.log(said);
  }

  /** Log what has no newline yet. */
  finish() {
    for (const stream of this.#streams) stream.finish();
  }

  #take(size) {
    const now = performance.now();
    const earned = ((now - this.#at) / 1000) * LOG_BYTES_PER_S;
    this.#left = Math.min(LOG_BURST_BYTES, this.#left + earned);
    this.#at = now;
    if (size > this.#left) return false;
    this.#left -= size;
    return true;
  }
}

/** One of the two streams; it cannot be closed, as Node's own cannot. */
class Lines extends Writable {
  #logs;
  #partial = '';
  #decoder = new StringDecoder('utf8');

  constructor(logs, stream, fd) {
    super({ decodeStrings: false });
    this.#logs = logs;
    this.stream = stream;
    this.fd = fd;
    this._type = 'pipe';
  }

  _write(chunk, encoding, done) {
    if (typeof chunk !== 'string') chunk = this.#decoder.write(chunk);
    else if (encoding !== 'utf8') chunk = this.#decoder.write(Buffer.from(chunk, encoding));
    const lines = (this.#partial + chunk).split('\n');
    this.#partial = this.#withoutPieces(lines.pop());
    for (const line of lines) this.#send(this.#withoutPieces(line));
    done();
  }

  _destroy(error, done) {
    done(error);
    this._undestroy();
  }

  finish() {
    const rest = this.#partial + this.#decoder.end();
    this.#partial = '';
    if (rest) this.#send(rest);
  }

  /** Send the beginning of a line that is too long for one, and return what is left. */
  #withoutPieces(line) {
    for (;;) {
      const piece = cut(line, LINE_MAX_BYTES);
      if (piece.length === line.length) return line;
      this.#send(piece);
      line = line.slice(piece.length);
    }
  }

  #send(line) {
    this.#logs.add(this.stream, null, line);
  }
}

module.exports = { Logs };
