'use strict';
// Methods as functions that a handler cannot patch; Node's own sources call them so too.
//
// Whoever wants a method of the language takes it while it loads, before there is a handler, and
// holds it in a constant of its own: what the handler puts on a prototype later is not asked.

/** A method as a function of its object and arguments: `uncurried(slice)(text, 1)`. */
const uncurried = Function.prototype.call.bind.bind(Function.prototype.call);

module.exports = { uncurried };
