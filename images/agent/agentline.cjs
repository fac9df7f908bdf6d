'use strict';
// The line to the daemon: frames both ways, and again after it was lost.
//
// This thread reads and writes; writing blocks, so that frames are whole. A second thread, the
// guard (agentguard.cjs), sends the heartbeats however long the handler computes, and makes the new
// connection when the daemon was away. They share the descriptor and a lock. Questions that have to
// last have a number; one that was not answered is asked again after a new connection, before
// anything else.

const { readSync, writeSync } = require('fs');
const net = require('net');
const { Worker } = require('worker_threads');

const { PLACES, hello, lock, nap, unlock } = require('./agentguard.cjs');
const { stringify } = require('./agentjson.cjs');

const FENCED = 4; // exit codes
const NO_DAEMON = 3;
const WITHOUT_DAEMON_MS = 15 * 60 * 1000;
const RETRY_MS = 100;
const RETRY_MAX_MS = 1000;
const IDLE_MS = 100; // what can be done ahead takes time that a task may need more
const PART_BYTES = 1024 * 1024;
const READ_BYTES = 256 * 1024;
const KEPT_BYTES = 256 * 1024; // of log lines, while there is no daemon
const exit = process.reallyExit.bind(process);

class Line {
  isCancelled = false;
  onIdle = () => {};
  onPrepare = async () => undefined;
  onTask = () => {};
  onTtl = () => {};
  onResume = () => {};
  #path;
  #about;
  #shared = new Int32Array(new SharedArrayBuffer(64));
  #socket = null;
  #fd = -1; // what this thread reads
  #frames = new Frames();
  #guard = null;
  #attempt = 0;
  #seq = 0;
  #asks = 0;
  #open = new Map(); // by seq, in order: what was said, and how to give the answer
  #asked = new Map();
  #paused = null;
  #turn = Promise.resolve();
  #waiting = 0;
  #anchor;
  #kept = [];
  #keptBytes = 0;

  constructor(path, instance) {
    this.#path = path;
    const runtime = `node${process.versions.node.split('.')[0]}`;
    this.#about = { type: 'hello', protocol: 1, instance, runtime };
    Atomics.store(this.#shared, PLACES.FD, -1);
  }

  /** Connect; from then on the daemon is served. */
  open(delay = RETRY_MS, waited = 0) {
    const socket = net.connect({ path: this.#path, allowHalfOpen: true });
    socket.on('error', () => {
      // Added up, not looked at on a clock: that runs on while the container is frozen.
      if (waited + delay > WITHOUT_DAEMON_MS) exit(NO_DAEMON);
      const again = () => this.open(Math.min(2 * delay, RETRY_MAX_MS), waited + delay);
      setTimeout(again, delay);
    });
    socket.on('connect', () => {
      socket.removeAllListeners('error');
      this.#fd = socket._handle.fd;
      writeAll(this.#fd, hello(this.#about, this.#shared));
      Atomics.store(this.#shared, PLACES.FD, this.#fd);
      this.#read(socket);
      setTimeout(() => this.#becomeReady(), IDLE_MS).unref();
    });
  }

  /** The task begins: from now on there are heartbeats. */
  begin(task) {
    this.#attempt = task.attempt;
    Atomics.store(this.#shared, PLACES.ATTEMPT, task.attempt);
    this.watch();
    this.send({ type: 'accepted', attempt: task.attempt });
    Atomics.store(this.#shared, PLACES.BEAT_MS, task.heartbeatMs);
    Atomics.notify(this.#shared, PLACES.BEAT_MS);
    this.#hold();
  }

  /** Say something that may be lost. */
  send(message) {
    return this.write([frame(stringify(message))]);
  }

  /** Say a log line, or keep it, within a limit, while there is no daemon. */
  log(message) {
    const bytes = frame(stringify(message));
    if (this.write([bytes]) || this.#keptBytes > KEPT_BYTES) return;
    this.#kept.push(bytes);
    this.#keptBytes += bytes.length;
  }

  /** Ask what has to last, one at a time; after a pause the answer is the resumption. */
  ask(message, blob) {
    return this.#inTurn(() => {
      const seq = this.#seq + 1;
      const frames = withBlob(stringify({ ...message, seq }), blob);
      this.#seq = seq;
      return new Promise((give) => {
        this.write(frames, () => this.#open.set(seq, { frames, give }));
      });
    });
  }

  /** Ask for something, and for its bytes: [answer, blob]. */
  fetch(message) {
    return this.#inTurn(() => {
      let give;
      const promise = new Promise((resolve) => (give = resolve));
      this.#question(message, give);
      return promise;
    });
  }

  /** The same, while nothing else of this thread runs. */
  fetchSync(message) {
    let answer;
    this.#question(message, (given) => (answer = given));
    const bytes = Buffer.allocUnsafe(READ_BYTES);
    while (answer === undefined) {
      let got = 0;
      try {
        this.#adopt();
        got = readSync(this.#fd, bytes);
      } catch (error) {
        if (error.code === 'EAGAIN') {
          nap(1);
          continue;
        }
      }
      if (got > 0) this.take(bytes.subarray(0, got));
      else {
        this.#lose();
        Atomics.wait(this.#shared, PLACES.FD, -1);
      }
    }
    return answer;
  }

  #becomeReady() {
    this.watch();
    if (!this.#attempt) this.onIdle();
  }

  get hasTask() {
    return this.#attempt > 0;
  }

  /** What keeps the process: before there is a task the line does, from then on open questions. */
  #hold() {
    const isHeld = !this.#attempt || this.#waiting > 0;
    if (isHeld) this.#socket?.ref();
    else this.#socket?.unref();
    if (isHeld && this.#socket === null) this.#anchor ??= setInterval(() => {}, 2 ** 30);
    else if (this.#anchor !== undefined) {
      clearInterval(this.#anchor);
      this.#anchor = undefined;
    }
  }

  async #inTurn(ask) {
    const before = this.#turn;
    let done;
    this.#turn = new Promise((resolve) => (done = resolve));
    this.#waiting++;
    this.#hold();
    try {
      await before;
      return await ask();
    } finally {
      this.#waiting--;
      this.#hold();
      done();
    }
  }

  #question(message, give) {
    const ask = ++this.#asks;
    const frames = [frame(stringify({ ...message, ask }))];
    this.write(frames, () => this.#asked.set(ask, { frames, give }));
  }

  // -- out -----------------------------------------------------------------------------------

  /** Send whole frames, however long that takes; false if there is no daemon. */
  write(frames, remember) {
    lock(this.#shared);
    try {
      this.#adopt(true);
      remember?.();
      if (this.#fd < 0) return false;
      for (const one of frames) writeAll(this.#fd, one);
      return true;
    } catch {
      // Its reader finds out, and the guard makes another one.
      Atomics.compareExchange(this.#shared, PLACES.FD, this.#fd, -1);
      return false;
    } finally {
      unlock(this.#shared);
    }
  }

  /** Take over the connection that the guard has made, if it has: ask again, then go on. */
  #adopt(isLocked = false) {
    const fd = Atomics.load(this.#shared, PLACES.FD);
    if (fd === this.#fd || fd < 0) return;
    this.#lose();
    if (!isLocked) lock(this.#shared);
    try {
      this.#fd = fd;
      this.#frames = new Frames();
      this.#read(new net.Socket({ fd, readable: true, writable: true, allowHalfOpen: true }));
      const questions = [...this.#open.values(), ...this.#asked.values()];
      for (const one of questions) {
        if (one !== this.#paused) for (const bytes of one.frames) writeAll(fd, bytes);
      }
      for (const bytes of this.#kept) writeAll(fd, bytes);
      this.#kept = [];
      this.#keptBytes = 0;
    } catch {
      Atomics.compareExchange(this.#shared, PLACES.FD, fd, -1);
    } finally {
      if (!isLocked) unlock(this.#shared);
    }
  }

  // -- in ------------------------------------------------------------------------------------

  #read(socket) {
    this.#socket = socket;
    const destroy = socket._destroy;
    socket._destroy = (...rest) => {
      if (socket === this.#socket) this.#forget();
      return destroy.apply(socket, rest);
    };
    socket.on('error', () => {});
    socket.on('data', (bytes) => {
      if (socket === this.#socket) this.take(bytes);
    });
    socket.on('end', () => {
      if (socket === this.#socket) this.#lose();
    });
    socket.on('close', () => this.#again());
    this.#hold();
  }

  /** The connection is of no use. */
  #lose() {
    const socket = this.#socket;
    this.#forget();
    socket?.destroy();
  }

  /** Before the descriptor is closed nobody may write to it any more. */
  #forget() {
    Atomics.compareExchange(this.#shared, PLACES.FD, this.#fd, -1);
    this.#socket = null;
    this.#fd = -1;
    if (this.#attempt) this.#hold();
    if (this.#attempt) this.#guard?.postMessage({ isLost: true });
  }

  #again() {
    if (!this.#attempt && this.#socket === null) this.open();
  }

  /** Have the guard. */
  watch() {
    if (this.#guard !== null) return;
    const workerData = { shared: this.#shared, path: this.#path, about: this.#about };
    this.#guard = new Worker(require.resolve('./agentguard.cjs'), { workerData, env: {} });
    this.#guard.on('message', (said) => {
      if (said.isGone) exit(NO_DAEMON);
      this.#adopt();
    });
    this.#guard.unref();
  }

  /** Bytes of the daemon have come. */
  take(bytes) {
    for (const [message, blob] of this.#frames.feed(bytes)) this.#handle(message, blob);
  }

  #handle(message, blob) {
    switch (message.type) {
      case 'ok':
      case 'refused':
        this.#answered(message.seq);
        this.#open.get(message.seq)?.give(message);
        this.#open.delete(message.seq);
        break;
      case 'paused':
        this.#answered(message.seq);
        this.#paused = this.#open.get(message.seq) ?? null;
        Atomics.store(this.#shared, PLACES.PAUSED, this.#paused === null ? 0 : 1);
        break;
      case 'resume':
        this.onResume(message.pausedMs);
        this.#resume(message);
        break;
      case 'loaded':
      case 'context':
        this.#asked.get(message.ask)?.give([message, blob]);
        this.#asked.delete(message.ask);
        break;
      case 'ping':
        this.send({ type: 'pong', n: message.n });
        break;
      case 'prepare':
        this.#prepare(message);
        break;
      case 'task':
        this.onTask(message);
        break;
      case 'cancel':
        this.isCancelled = true;
        break;
      case 'ttl':
        this.onTtl(message.leftMs);
        break;
      case 'fenced':
        exit(FENCED);
    }
  }

  async #prepare({ package: root, entrypoint }) {
    const why = await this.onPrepare(root, entrypoint);
    this.send(why === undefined ? { type: 'prepared' } : { type: 'problem', message: why });
  }

  #answered(seq) {
    if (seq > Atomics.load(this.#shared, PLACES.ANSWERED)) {
      Atomics.store(this.#shared, PLACES.ANSWERED, seq);
    }
  }

  #resume(message) {
    if (this.#paused === null) return;
    this.#open.clear(); // it was the only one
    this.#paused.give(message);
    this.#paused = null;
    Atomics.store(this.#shared, PLACES.PAUSED, 0);
  }
}

/** Makes messages, each with its blob, of the daemon's bytes. */
class Frames {
  #chunks = [];
  #size = 0;
  #needed = 5;
  #message = null; // whose blob is not whole
  #parts = [];
  #missing = 0;

  *feed(bytes) {
    this.#chunks.push(Buffer.from(bytes));
    this.#size += bytes.length;
    while (this.#size >= this.#needed) {
      const all = this.#chunks.length === 1 ? this.#chunks[0] : Buffer.concat(this.#chunks);
      const end = 4 + all.readUInt32BE(0);
      this.#chunks = [all];
      this.#needed = end;
      if (this.#size < end) return;
      this.#chunks = end < all.length ? [all.subarray(end)] : [];
      this.#size = all.length - end;
      this.#needed = 5;
      const found = this.#body(all[4], all.subarray(5, end));
      if (found) yield found;
    }
  }

  #body(kind, body) {
    if (kind === 0x42) { // B
      this.#parts.push(body);
      this.#missing -= body.length;
    } else {
      this.#message = JSON.parse(body.toString());
      this.#missing = this.#message.size ?? 0;
    }
    if (this.#missing > 0) return undefined;
    const found = [this.#message, Buffer.concat(this.#parts)];
    this.#message = null;
    this.#parts = [];
    return found;
  }
}

function head(length, kind) {
  const bytes = Buffer.allocUnsafe(5);
  bytes.writeUInt32BE(length, 0);
  bytes[4] = kind.charCodeAt(0);
  return bytes;
}

const framed = (message) => frame(stringify(message));

function frame(text) {
  const size = Buffer.byteLength(text);
  const bytes = Buffer.allocUnsafe(5 + size);
  bytes.writeUInt32BE(1 + size, 0);
  bytes[4] = 0x4a; // J
  bytes.utf8Write(text, 5, size);
  return bytes;
}

function withBlob(text, blob) {
  const frames = [frame(text)];
  for (let at = 0; at < (blob?.length ?? 0); at += PART_BYTES) {
    const part = blob.subarray(at, at + PART_BYTES);
    frames.push(head(1 + part.length, 'B'), part);
  }
  return frames;
}

/** Write all of it; libuv has made the descriptor one that does not block. */
function writeAll(fd, bytes) {
  let at = 0;
  while (at < bytes.length) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      nap(1);
    }
  }
}

module.exports = { Frames, Line, framed };
