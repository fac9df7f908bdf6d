'use strict';
// process.stdout and process.stderr: whole lines become log lines, in order with `ctx.log`.
//
// Owns the two streams and what they hold of an unfinished line. `console` writes to them as it
// writes to any stream. They cannot be closed, as Node's own cannot.

const { Writable } = require('stream');
const { StringDecoder } = require('string_decoder');

const channel = require('./channel.cjs');
const { uncurried } = require('./primordials.cjs');

const split = uncurried(String.prototype.split);
const slice = uncurried(String.prototype.slice);
const bufferFrom = Buffer.from;

class Lines extends Writable {
  #name;
  #partial = '';
  #decoder = new StringDecoder('utf8');

  constructor(name, fd) {
    super({ decodeStrings: false });
    this.#name = name;
    this.fd = fd;
    this._type = 'pipe';
  }

  _write(chunk, encoding, done) {
    if (typeof chunk !== 'string') chunk = this.#decoder.write(chunk);
    else if (encoding !== 'utf8') chunk = this.#decoder.write(bufferFrom(chunk, encoding));
    this.#add(chunk);
    done();
  }

  _destroy(error, done) {
    done(error);
    this._undestroy();
  }

  /** Send what has no newline yet. */
  finish() {
    const rest = this.#partial + this.#decoder.end();
    this.#partial = '';
    if (rest) this.#send(rest);
  }

  #add(text) {
    const lines = split(this.#partial + text, '\n');
    for (let n = 0; n < lines.length - 1; n++) this.#send(this.#withoutPieces(lines[n]));
    this.#partial = this.#withoutPieces(lines[lines.length - 1]);
  }

  /** Send the beginning of a line that is too long for one, and return what is left. */
  #withoutPieces(line) {
    for (;;) {
      const piece = channel.cut(line, channel.LINE_MAX_BYTES);
      if (piece.length === line.length) return line;
      this.#send(piece);
      line = slice(line, piece.length);
    }
  }

  #send(line) {
    channel.log(this.#name, null, line, {});
  }
}

const streams = [new Lines('stdout', 1), new Lines('stderr', 2)];

/** Put our streams in the place of Node's. */
function install() {
  const [stdout, stderr] = streams;
  for (const [name, stream] of [['stdout', stdout], ['stderr', stderr]]) {
    Object.defineProperty(process, name, {
      value: stream,
      configurable: true,
      enumerable: true,
      writable: true,
    });
  }
}

/** Send what both hold of an unfinished line. */
function finish() {
  for (let n = 0; n < streams.length; n++) streams[n].finish();
}

module.exports = { finish, install };
