'use strict';
// What a user would write: the standard clients of Node, each as its documentation says.
//
// A package of test_clients.py: node_modules lies beside this file, and the CA that the servers'
// certificate is from. The functions and what they answer are those of clients/handler.py.

const { createHash } = require('crypto');
const { readFileSync } = require('fs');
const path = require('path');

const CA = readFileSync(path.join(__dirname, 'ca.pem'));

function handler(get) {
  return async (input) => {
    const { url, times = 1, verify = true } = input;
    try {
      return { said: await get(url, times, verify ? CA : undefined) };
    } catch (error) {
      const cause = error.cause ? `: ${error.cause}` : '';
      return { error: `${error.name}: ${error.message} ${error.code ?? ''}${cause}` };
    }
  };
}

async function oneByOne(times, get) {
  const said = [];
  for (let n = 0; n < times; n += 1) said.push(await get());
  return said;
}

exports.get_with_fetch = handler((url, times, ca) => {
  const { Agent } = require('undici'); // a CA of its own: how Node's documentation says it
  const dispatcher = ca && new Agent({ connect: { ca } });
  return oneByOne(times, async () => (await fetch(url, { dispatcher })).text());
});

exports.get_with_undici = handler((url, times, ca) => {
  const { Agent, fetch: get } = require('undici');
  const dispatcher = new Agent({ connect: { ca } });
  return oneByOne(times, async () => (await get(url, { dispatcher })).text());
});

exports.get_with_https = handler((url, times, ca) => {
  const { protocol } = new URL(url);
  const library = require(protocol === 'https:' ? 'https' : 'http');
  const agent = new library.Agent({ keepAlive: true });
  return oneByOne(times, () => get(library, url, { agent, ca, timeout: 5000 }));
});

function get(library, url, options) {
  return new Promise((resolve, reject) => {
    const request = library.get(url, options, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (piece) => (text += piece));
      answer.on('error', reject).on('end', () => {
        // it follows nothing by itself
        const { location } = answer.headers;
        resolve(location ? get(require('http'), location, { timeout: 5000 }) : text);
      });
    });
    request.on('error', reject);
    request.on('timeout', () => request.destroy(new Error('timed out')));
  });
}

exports.get_with_axios = handler((url, times, ca) => {
  const { Agent } = require('https');
  const axios = require('axios').create({
    httpAgent: new (require('http').Agent)({ keepAlive: true }),
    httpsAgent: new Agent({ keepAlive: true, ca }),
    responseType: 'text',
    timeout: 5000,
  });
  return oneByOne(times, async () => (await axios.get(url)).data);
});

/** Over a WebSocket, whose class is as in a browser. */
function talk(socket, times) {
  return new Promise((resolve, reject) => {
    const said = [];
    socket.onopen = () => socket.send('message 0');
    socket.onerror = (event) => reject(event.error ?? new Error(event.message));
    socket.onmessage = ({ data }) => {
      said.push(data);
      if (said.length < times) return socket.send(`message ${said.length}`);
      socket.onclose = () => resolve(said);
      return socket.close();
    };
  });
}

exports.talk_with_ws = handler((url, times, ca) => {
  const WebSocket = require('ws');
  return talk(new WebSocket(url, { ca }), times);
});

exports.talk_with_undici = handler((url, times, ca) => {
  const { Agent, WebSocket } = require('undici');
  return talk(new WebSocket(url, { dispatcher: new Agent({ connect: { ca } }) }), times);
});

exports.digest_with_fetch = handler(async (url) => {
  const digest = createHash('sha256');
  for await (const piece of (await fetch(url)).body) digest.update(piece);
  return [digest.digest('hex')];
});

exports.get_at_once_with_fetch = handler((url, times) => {
  const asked = Array.from({ length: times }, async () => (await fetch(url)).text());
  return Promise.all(asked);
});
