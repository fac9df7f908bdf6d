'use strict';
// The guard: a thread beside the handler's, which keeps the line alive while that one computes.
//
// It sends the heartbeats, and when the daemon was away it connects and says hello; what was not
// answered the other thread asks again once it comes to it. Both write whole frames only, under one
// lock, to the descriptor that they share. Before there is a task it sleeps.

const { writeSync } = require('fs');
const { isMainThread, parentPort, workerData } = require('worker_threads');

// What is at which place of the shared memory.
const PLACES = { LOCK: 0, FD: 1, BEAT_MS: 2, ANSWERED: 3, PAUSED: 4, ATTEMPT: 5 };
const WITHOUT_DAEMON_MS = 15 * 60 * 1000;
const RETRY_MS = 100;
const RETRY_MAX_MS = 1000;
const UNNOTICED_MS = 5000; // after which the other thread is not waited for
const never = new Int32Array(new SharedArrayBuffer(4));

/** Wait for so long, and do nothing else. */
const nap = (forMs) => Atomics.wait(never, 0, 0, forMs);

function lock(shared) {
  while (!tryLock(shared)) Atomics.wait(shared, PLACES.LOCK, 1, 10);
}

const tryLock = (shared) => Atomics.compareExchange(shared, PLACES.LOCK, 0, 1) === 0;

function unlock(shared) {
  Atomics.store(shared, PLACES.LOCK, 0);
  Atomics.notify(shared, PLACES.LOCK);
}

/** The first frame of a connection. */
function hello(about, shared) {
  const isPaused = Atomics.load(shared, PLACES.PAUSED) === 1;
  const attempt = Atomics.load(shared, PLACES.ATTEMPT);
  const state = isPaused ? 'paused' : attempt ? 'running' : 'idle';
  return frame({ ...about, attempt, state, answered: Atomics.load(shared, PLACES.ANSWERED) });
}

function frame(message) {
  const body = Buffer.from(JSON.stringify(message));
  const bytes = Buffer.alloc(5 + body.length);
  bytes.writeUInt32BE(1 + body.length, 0);
  bytes[4] = 0x4a; // J
  body.copy(bytes, 5);
  return bytes;
}

/** What the guard's own thread does. */
function guard({ shared, path, about }) {
  const net = require('net');
  const heartbeat = frame({ type: 'heartbeat' });
  const made = []; // the other thread closes their descriptors
  let isConnecting = false;

  function beat() {
    if (!tryLock(shared)) return; // who writes there is heard anyway
    const fd = Atomics.load(shared, PLACES.FD);
    try {
      if (fd >= 0) writeSync(fd, heartbeat); // small enough to be written whole or not at all
    } catch (error) {
      if (error.code !== 'EAGAIN') Atomics.store(shared, PLACES.FD, -1);
    } finally {
      unlock(shared);
    }
    if (Atomics.load(shared, PLACES.FD) < 0) connect(RETRY_MS, 0);
  }

  function connect(delay, waited) {
    if (waited === 0 && isConnecting) return;
    isConnecting = true;
    const socket = net.connect({ path, allowHalfOpen: true });
    socket.pause(); // it is the other thread that reads
    socket.on('error', () => {
      if (waited + delay > WITHOUT_DAEMON_MS) return leave();
      setTimeout(connect, delay, Math.min(2 * delay, RETRY_MAX_MS), waited + delay);
    });
    socket.on('connect', () => {
      isConnecting = false;
      introduce(socket);
    });
  }

  function introduce(socket) {
    lock(shared);
    try {
      const { fd } = socket._handle;
      writeSync(fd, hello(about, shared));
      made.push(socket);
      Atomics.store(shared, PLACES.FD, fd);
      Atomics.notify(shared, PLACES.FD);
    } catch {
      socket.destroy();
    } finally {
      unlock(shared);
    }
    if (Atomics.load(shared, PLACES.FD) >= 0) parentPort.postMessage({ isBack: true });
  }

  function leave() {
    parentPort.postMessage({ isGone: true });
    setTimeout(() => process.kill(process.pid, 'SIGKILL'), UNNOTICED_MS);
  }

  parentPort.on('message', (said) => {
    if (said.isLost && Atomics.load(shared, PLACES.FD) < 0) connect(RETRY_MS, 0);
  });
  Atomics.wait(shared, PLACES.BEAT_MS, 0);
  setInterval(beat, Atomics.load(shared, PLACES.BEAT_MS));
}

if (!isMainThread && workerData?.shared) guard(workerData);

module.exports = { PLACES, hello, lock, nap, unlock };
