'use strict';
// Code that the flow's author wrote: it reads `input` and sets `output`, declared or not.

const vm = require('node:vm');

const refused = (ctx, code, message) => ctx.failure(code, message, { retryable: false });

exports.handle = (input, ctx) => {
  const { code, ...more } = ctx.config;
  if (typeof code !== 'string' || Object.keys(more).length) {
    return refused(ctx, 'INPUT_VALIDATION_FAILED', 'give code, as text, and nothing else');
  }
  delete globalThis.output; // of the code before, where a process is used again
  let run;
  try {
    const ended = `${code}\n;return typeof output === 'undefined' ? undefined : output;`;
    run = vm.compileFunction(ended, ['input'], { filename: '<code>' });
  } catch (error) {
    const line = /<code>:(\d+)/.exec(error.stack)[1];
    return refused(ctx, 'INVALID_EXPRESSION', `code: line ${line}: ${error.message}`);
  }
  let output;
  try {
    output = run(input);
  } catch (error) {
    return refused(ctx, 'TRANSFORM_ERROR', `code: ${error}`);
  }
  if (output === undefined) {
    return refused(ctx, 'INVALID_EXPRESSION', 'code: it does not set output');
  }
  return ctx.success(output);
};
