'use strict';
// A handler of ours that is run once, before there is anybody else's: what an ordinary one makes
// Node load and compile is there by then.

exports.handle = async (input, ctx) => {
  ctx.log.info('working', { size: input.length });
  await ctx.checkpoint.save({ n: 1 });
  ctx.progress(50, 'half');
  return ctx.success({ ...ctx.context, input });
};
