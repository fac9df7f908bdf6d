'use strict';
// For the tests: a line of JSON in, what node/rules.js says of it out, until the input ends.

const path = require('path');
const { createInterface } = require('readline');

const rules = require(path.join(__dirname, '../../flowmonkey/node/rules.js'));

createInterface({ input: process.stdin }).on('line', (line) => {
  const { ask, declaration, value } = JSON.parse(line);
  const said = ask === 'faults' ? rules.faults(declaration) : rules.violations(declaration, value);
  process.stdout.write(`${JSON.stringify(said)}\n`);
});
