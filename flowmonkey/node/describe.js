'use strict';
// A handler that describes another one: `describe.py` in JavaScript.
//
// To read what a class declares its file must be run, and that is a stranger's code. So this runs
// in the sandbox, as the handler of a package that carries the library, with the other's
// entrypoint as input; what it returns is data like any handler's output.

const path = require('path');
const { pathToFileURL } = require('url');

const { declaredOf, manifestInputs, schemas, testValues } = require('./declared.js');

const ROOT = path.join(__dirname, '..', '..');
const NOTHING = { isClass: false, inputs: null, schemas: {}, testValues: [] };

/** `{ entrypoint: 'handler.js:Resize' }` to { isClass, inputs, schemas, testValues }. */
async function handle({ entrypoint }) {
  const colon = entrypoint.lastIndexOf(':');
  const name = entrypoint.slice(colon + 1);
  const exports = await import(pathToFileURL(path.join(ROOT, entrypoint.slice(0, colon))));
  const standing = exports.default;
  const target = exports[name] ?? standing?.[name] ?? standing?.default ?? standing;
  if (declaredOf(target) === undefined) return NOTHING;
  return {
    isClass: true,
    inputs: manifestInputs(target),
    schemas: schemas(target),
    testValues: testValues(target),
  };
}

module.exports = { handle };
