'use strict';
// `handlerTest`: a handler's folder, run in the real sandbox; for tests with node:test or any other.
//
// Asks `flowctl handler test` (FLOWCTL says where, else PATH), so that nothing is mocked: the same
// confinement and limits as under a daemon with default settings. Where there is no sandbox it
// rejects and says so. Never part of a package.

const { execFile } = require('child_process');
const { existsSync } = require('fs');
const path = require('path');

const OUTPUT_MAX_BYTES = 64 * 1024 * 1024;
const FAILED = 1; // flowctl's exit code of a handler that failed: an answer like any other

async function handlerTest(input, options = {}) {
  const { config, context, secrets, resumes, folder = nearest(), testValues = true } = options;
  const given = { input, config, context, secrets, resumes };
  const args = ['handler', 'test', folder, '--given', '-', '-o', 'json'];
  if (!testValues) args.push('--no-test-values');
  const tested = JSON.parse(await flowctl(args, JSON.stringify(given)));
  const violations =
    tested.error?.code === 'INPUT_VALIDATION_FAILED'
      ? tested.error.details.map(({ property, rule }) => [property, rule])
      : [];
  return { ...tested, violations };
}

function nearest() {
  for (let folder = process.cwd(); ; folder = path.dirname(folder)) {
    if (existsSync(path.join(folder, 'handler.json'))) return folder;
    if (folder === path.dirname(folder)) {
      throw new Error(
        "cannot find handler.json: run the tests in the handler's folder, or give { folder }",
      );
    }
  }
}

function flowctl(args, stdin) {
  return new Promise((resolve, reject) => {
    const program = process.env.FLOWCTL ?? 'flowctl';
    const child = execFile(program, args, { maxBuffer: OUTPUT_MAX_BYTES }, (error, out, err) => {
      if (error === null || (error.code === FAILED && out !== '')) resolve(out);
      else if (error.code === 'ENOENT') {
        reject(new Error(`cannot run ${program}: install FlowMonkey or set FLOWCTL to its path`));
      } else reject(new Error(err.trim() || error.message));
    });
    child.stdin.on('error', () => {}); // it ended before it read: its words say why
    child.stdin.end(stdin);
  });
}

module.exports = { handlerTest };
