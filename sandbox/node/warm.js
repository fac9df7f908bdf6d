'use strict';
// A handler of ours that is run once, before there is anybody else's: what an ordinary one makes
// Node load and compile is there by then.

exports.handle = async (input, ctx) => {
  console.log('working', input);
  ctx.log.info('working', { attempt: ctx.attempt });
  ctx.emit('progress', ctx.context.share);
  ctx.update('last', ctx.secrets.name);
  return ctx.success({ input, config: ctx.config }, { next: null });
};
