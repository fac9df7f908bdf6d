'use strict';
// Class handlers: the inputs that a class declares, taken from an execution and bound to it.
//
// Owns the decorators and what they leave on a class. A handler of this kind runs only with inputs
// that keep every declared rule; otherwise it ends as the failure INPUT_VALIDATION_FAILED, which
// names all violations and no value. A default takes the place of a missing value, never of null.
// Test values are kept for tests and are never bound. The same in Python is `declared.py`.

const { described, faults, kind, violations } = require('./rules.js');

// Compilers keep fields' decorators there, if it exists (TC39 "Decorator Metadata").
Symbol.metadata ??= Symbol.for('Symbol.metadata');

const FAILED = 'INPUT_VALIDATION_FAILED';
const MESSAGE_MAX = 1000;
// Not a WeakMap: a bundle has a copy of this file, and who describes a class has another one.
const DECLARED = Symbol.for('flowmonkey.declared');
const ENV = Symbol.for('flowmonkey.env');
const OPTIONS = [
  ...['property', 'type', 'source', 'secret', 'nullable', 'required', 'default', 'value'],
  ...['description', 'min', 'max', 'minLength', 'maxLength', 'pattern', 'email', 'url'],
  ...['enum', 'items', 'testValue'],
];
const FIRST = ['property', 'type', 'source'];

const { defineProperty, entries, hasOwn } = Object;

/** A test value that `flowctl handler test` takes from its own environment. */
const env = (name, fallback = null) => ({ [ENV]: true, env: name, fallback });

// Fields that were decorated, by the class's metadata or (legacy decorators) its prototype.
const decorated = new WeakMap();

/** A field's decorator, of either kind, that adds something to its declaration. */
function adds(name, options) {
  return (target, place) => {
    const isStandard = typeof place === 'object' && place !== null;
    const field = isStandard ? place.name : place;
    const key = isStandard ? place.metadata : target;
    const is = isStandard ? place.kind === 'field' && !place.static : typeof target === 'object';
    if (!is || typeof field !== 'string' || place.private) {
      throw new TypeError(`cannot use @${name} there: it is for public fields of a class`);
    }
    if (key === undefined) {
      throw new TypeError(
        `cannot use @${name}: the compiler gives no metadata; import flowmonkey first`,
      );
    }
    if (!decorated.has(key)) decorated.set(key, new Map());
    const fields = decorated.get(key);
    const before = fields.get(field) ?? { names: [], options: {} };
    fields.set(field, {
      names: [name, ...before.names],
      options: { ...options, ...before.options },
    });
  };
}

/** Declare an input: `@Input({ type: 'integer', description: '…' })`. */
function Input(options = {}) {
  return adds('Input', options);
}

const rule = (name, option) => (wanted) => adds(name, { [option]: wanted });
const Min = rule('Min', 'min');
const Max = rule('Max', 'max');
const MinLength = rule('MinLength', 'minLength');
const MaxLength = rule('MaxLength', 'maxLength');
const TestValue = rule('TestValue', 'testValue');
const Email = () => adds('Email', { email: true });
const Url = () => adds('Url', { url: true });
const Enum = (...values) => adds('Enum', { enum: values });
const Pattern = (wanted) =>
  adds('Pattern', { pattern: wanted instanceof RegExp ? sourceOf(wanted) : wanted });

function sourceOf(expression) {
  if (/[^u]/.test(expression.flags)) {
    throw new TypeError(`cannot use ${expression} as pattern: JSON Schema has no flags`);
  }
  return expression.source;
}

/**
 * Make a class with `execute(ctx)` a handler, as a decorator or called: `Handler(options)(Class)`.
 * `inputs` declares what decorators would, for JavaScript.
 */
function Handler({ inputs = {}, output, ...unknown } = {}) {
  known(unknown, [], 'the handler');
  return (target, context) => {
    const { name, prototype } = target;
    if (typeof prototype?.execute !== 'function') {
      throw new TypeError(`cannot use ${name || 'it'} as a handler: it has no method execute(ctx)`);
    }
    if (hasOwn(prototype, 'handle')) {
      throw new TypeError(
        `cannot use ${name}: handle() checks the inputs; call your method execute`,
      );
    }
    const found = new Map(declaredOf(Object.getPrototypeOf(target))?.inputs);
    for (const [field, one] of fieldsOf(context?.metadata ?? prototype)) found.set(field, one);
    for (const [field, options] of entries(inputs)) found.set(field, { names: ['Input'], options });
    const complete = new Map();
    for (const [field, one] of found) {
      complete.set(field, one.declaration ? one : completed(field, one, `${name}.${field}`));
    }
    const properties = [...complete.values()].map((one) => one.declaration.property);
    const twice = properties.find((one, index) => properties.indexOf(one) !== index);
    if (twice !== undefined) throw new TypeError(`cannot declare ${name}: ${twice} is declared twice`);
    const value = { inputs: complete, output };
    defineProperty(target, DECLARED, { value, configurable: true });
    defineProperty(prototype, 'handle', { value: handle, configurable: true, writable: true });
    return target;
  };
}

/** The decorated fields of a class and of what it extends, the furthest first. */
function fieldsOf(key) {
  const fields = new Map();
  const chain = [];
  for (let one = key; one !== null && one !== undefined; one = Object.getPrototypeOf(one)) {
    chain.unshift(one);
  }
  for (const one of chain) for (const [name, found] of decorated.get(one) ?? []) fields.set(name, found);
  return fields;
}

/** A field's declaration with what follows from it. Throws a TypeError with every fault. */
function completed(field, { names, options }, where) {
  if (!names.includes('Input')) {
    throw new TypeError(`cannot declare ${where}: @${names[0]} needs an @Input beside it`);
  }
  known(options, OPTIONS, where);
  const { testValue, ...rest } = options;
  const declaration = { source: 'input' };
  for (const [name, one] of entries(rest)) if (one !== undefined) declaration[name] = one;
  const { source } = declaration;
  declaration.property ??= field;
  declaration.type ??= source === 'vault' ? 'string' : 'any';
  if (typeof declaration.items === 'string') declaration.items = { type: declaration.items };
  if (source === 'vault') declaration.secret ??= true;
  if (source !== 'static') declaration.required ??= !hasOwn(declaration, 'default');
  const wrong = faults(declaration);
  if (wrong.length > 0) throw new TypeError(`cannot declare ${where}: ${wrong.join('; ')}`);
  const ordered = {};
  for (const name of FIRST) ordered[name] = declaration[name];
  return { declaration: { ...ordered, ...declaration }, testValue };
}

function known(options, names, where) {
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) throw new TypeError(`cannot declare ${where}: unknown option ${name}`);
  }
}

function declaredOf(target) {
  return target?.[DECLARED];
}

/** What runs a handler calls: bind the inputs and execute, or fail with all violations. */
function handle(input, ctx) {
  const [values, broken] = bound(this.constructor, input, ctx);
  if (broken.length > 0) {
    const words = broken.map((one) => `${one.property} ${one.message}`).join('; ');
    const points = [...`cannot accept the input: ${words}`];
    if (points.length > MESSAGE_MAX) points.splice(MESSAGE_MAX - 1, Infinity, '…');
    return ctx.failure(FAILED, points.join(''), { retryable: false, details: broken });
  }
  const fresh = new this.constructor();
  for (const [field, value] of values) fresh[field] = value;
  return fresh.execute(ctx);
}

/** The values of the declared inputs, and every violation as { property, rule, message }. */
function bound(target, input, ctx) {
  const values = new Map();
  const broken = [];
  const places = {
    input: () => (ctx.hasInput ? input : {}),
    config: () => ctx.config,
    context: () => ctx.context,
    vault: () => ctx.secrets,
  };
  const found = {};
  for (const [field, { declaration }] of declaredOf(target).inputs) {
    const { source, property } = declaration;
    if (!hasOwn(found, source) && hasOwn(places, source)) {
      found[source] = places[source]();
      if (source === 'input' && kind(found[source]) !== 'object') {
        const message = `must be an object, not ${described(input)}`;
        broken.push({ property: '$', rule: 'type', message });
        found[source] = undefined;
      }
    }
    let value;
    if (source === 'static') {
      value = structuredClone(declaration.value);
    } else if (found[source] === undefined) {
      continue; // told once, for all of them
    } else {
      value = hasOwn(found[source], property) ? found[source][property] : undefined;
      for (const [where, rule, message] of violations(declaration, value)) {
        broken.push({ property: property + where, rule, message });
      }
    }
    if (value === undefined) value = structuredClone(declaration.default);
    values.set(field, value);
  }
  return [values, broken];
}

/** What a class declares, as the `inputs` of handler.json; without test values. */
function manifestInputs(target) {
  return [...declaredOf(target).inputs.values()].map((one) => structuredClone(one.declaration));
}

/** JSON Schemas (2020-12) as { input, output }. */
function schemas(target) {
  const { inputSchema, outputSchema } = require('./schemas.js');
  const { output } = declaredOf(target);
  return { input: inputSchema(manifestInputs(target)), output: outputSchema(output) };
}

/** The test values as [{ property, source, value }], or with `env` and `fallback` for `value`. */
function testValues(target) {
  const found = [];
  for (const { declaration, testValue } of declaredOf(target).inputs.values()) {
    if (testValue === undefined) continue;
    const { property, source } = declaration;
    const value = testValue?.[ENV] ? { ...testValue } : { value: testValue };
    found.push({ property, source, ...value });
  }
  return found;
}

module.exports = {
  ...{ Email, Enum, Handler, Input, Max, MaxLength, Min, MinLength, Pattern, TestValue, Url },
  ...{ declaredOf, env, manifestInputs, schemas, testValues },
};
