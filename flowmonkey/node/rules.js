'use strict';
// What a declaration asks of a value, and what a declaration itself must be: `rules.py` in
// JavaScript, held to the same table of cases.
//
// Owns the verdicts and their words. A declaration is one entry of `inputs` in handler.json. A
// message never quotes the value it is about: it may be a secret. It does no I/O.

// The type's name in words.
const TYPES = {
  string: 'a string',
  number: 'a number',
  integer: 'a whole number',
  boolean: 'a boolean',
  object: 'an object',
  array: 'an array',
  null: 'null',
  any: 'anything',
};
const SOURCES = ['input', 'config', 'context', 'vault', 'static'];
const RULES = {
  min: ['number', 'integer'],
  max: ['number', 'integer'],
  minLength: ['string', 'array'],
  maxLength: ['string', 'array'],
  pattern: ['string'],
  email: ['string'],
  url: ['string'],
  items: ['array'],
  enum: ['string', 'number', 'integer', 'boolean', 'any'],
};
const ITEM_FIELDS = ['type', 'nullable', ...Object.keys(RULES)];
const WRONG_ITEMS_MAX = 10; // more of the same helps nobody

// https://html.spec.whatwg.org/multipage/input.html#valid-e-mail-address; RFC 5321, 4.5.3.1.3
const EMAIL_MAX = 254;
const LABEL = '[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?';
const EMAIL = new RegExp(`^[a-zA-Z0-9.!#$%&'*+/=?^_\`{|}~-]+@${LABEL}(?:\\.${LABEL})*$`);
// RFC 3986 with an authority: ASCII only, others are percent-encoded or in Punycode.
const URL_TEXT = new RegExp(
  "^https?://(?:[\\w.~!$&'()*+,;=:%-]*@)?(?:[\\w.~-]+|\\[[0-9a-f:.]+\\])(?::(\\d{1,5}))?" +
    "(?:[/?#][\\w.~!$&'()*+,;=:@%/?#\\[\\]-]*)?$",
  'i',
);
const PORT_MAX = 65535;

const { isArray } = Array;
const { hasOwn } = Object;

/** The rules that a value breaks, as [where, rule, message]; `undefined` is a missing value. */
function violations(declaration, value) {
  if (value === undefined) {
    return declaration.required ? [['', 'required', 'is required']] : [];
  }
  const { type = 'any', nullable } = declaration;
  const found = kind(value);
  if (found === 'null' && (nullable || type === 'null')) return [];
  if (type !== found && type !== 'any' && !(type === 'number' && found === 'integer')) {
    const words = TYPES[type] + (nullable ? ' or null' : '');
    return [['', 'type', `must be ${words}, not ${foundInWords(type, value)}`]];
  }
  const broken = [];
  if (found === 'number' || found === 'integer') {
    sizes(declaration, value, broken);
  } else if (found === 'string') {
    lengths(declaration, characters(value), 'character', broken);
    texts(declaration, value, broken);
  } else if (found === 'array') {
    lengths(declaration, value.length, 'item', broken);
    items(declaration, value, broken);
  }
  if (declaration.enum !== undefined && !declaration.enum.includes(value)) {
    const isSecret = declaration.secret || declaration.source === 'vault';
    const allowed = declaration.enum.map((one) => JSON.stringify(one)).join(', ');
    broken.push(['', 'enum', `must be one of ${isSecret ? 'the declared values' : allowed}`]);
  }
  return broken;
}

/** The narrowest type of a JSON value; 3.0 is an integer, as in JSON Schema. */
function kind(value) {
  if (value === null) return 'null';
  if (isArray(value)) return 'array';
  if (typeof value === 'number') return Number.isInteger(value) ? 'integer' : 'number';
  return typeof value;
}

/** What kind of value it is, in words that quote nothing of it. */
function described(value) {
  const found = kind(value);
  return TYPES[found === 'integer' ? 'number' : found];
}

/** What is wrong with a declaration, each in words; an empty list if it can be used. */
function faults(declaration) {
  const found = shapeFaults(declaration);
  if (found.length > 0) return found;
  const { source = 'input' } = declaration;
  if (!SOURCES.includes(source)) return [`source must be one of ${SOURCES.join(', ')}`];
  if (source === 'static') {
    if (!hasOwn(declaration, 'value')) found.push('value is required for the source static');
  } else if (hasOwn(declaration, 'value')) {
    found.push('value is for the source static only; did you mean default');
  }
  if (hasOwn(declaration, 'default') && (source === 'vault' || source === 'static')) {
    found.push(`default is not for the source ${source}`);
  }
  if (hasOwn(declaration, 'default') && declaration.required) {
    found.push('required and default exclude each other');
  }
  if (source === 'vault' && (declaration.type ?? 'string') !== 'string') {
    found.push('type must be string for the source vault');
  }
  for (const name of ['default', 'value']) {
    if (hasOwn(declaration, name) && found.length === 0) {
      for (const [where, , message] of violations(declaration, declaration[name])) {
        found.push(`${name}${where} ${message}`);
      }
    }
  }
  return found;
}

function shapeFaults(declaration) {
  const { type = 'any' } = declaration;
  if (!hasOwn(TYPES, type)) return [`type must be one of ${Object.keys(TYPES).join(', ')}`];
  const found = [];
  for (const [rule, types] of Object.entries(RULES)) {
    if (!hasOwn(declaration, rule)) continue;
    const wrong = ruleFault(rule, declaration[rule]);
    if (!types.includes(type)) found.push(`${rule} is for ${types.join(', ')}, not for ${type}`);
    else if (wrong !== undefined) found.push(wrong);
  }
  for (const [low, high] of [['min', 'max'], ['minLength', 'maxLength']]) {
    if (declaration[low] > declaration[high]) found.push(`${low} must not be more than ${high}`);
  }
  return found;
}

function ruleFault(rule, wanted) {
  switch (rule) {
    case 'min':
    case 'max':
      return Number.isFinite(wanted) ? undefined : `${rule} must be a number`;
    case 'minLength':
    case 'maxLength': {
      const isCount = Number.isInteger(wanted) && wanted >= 0;
      return isCount ? undefined : `${rule} must be a whole number from 0`;
    }
    case 'email':
    case 'url':
      return typeof wanted === 'boolean' ? undefined : `${rule} must be true or false`;
    case 'enum':
      if (!isArray(wanted) || wanted.length === 0 || wanted.some(isNested)) {
        return 'enum must be a list of strings, numbers or booleans that is not empty';
      }
      return undefined;
    case 'items': {
      const fits = kind(wanted) === 'object';
      if (!fits || Object.keys(wanted).some((name) => !ITEM_FIELDS.includes(name))) {
        return 'items must be an object with a type and rules';
      }
      const [inner] = shapeFaults(wanted);
      return inner && `items: ${inner}`;
    }
    default:
      return isPattern(wanted)
        ? undefined
        : 'pattern must be a regular expression of JSON Schema (ECMA-262)';
  }
}

function isNested(value) {
  return typeof value === 'object' && value !== null;
}

function isPattern(source) {
  try {
    return typeof source === 'string' && pattern(source) !== undefined;
  } catch {
    return false;
  }
}

function foundInWords(type, value) {
  return type === 'integer' && kind(value) === 'number' ? 'a fraction' : described(value);
}

function sizes({ min, max }, value, broken) {
  if (value < min) broken.push(['', 'min', `must be at least ${JSON.stringify(min)}`]);
  if (value > max) broken.push(['', 'max', `must be at most ${JSON.stringify(max)}`]);
}

function lengths({ minLength, maxLength }, count, unit, broken) {
  const units = (bound) => `${bound} ${unit}${bound === 1 ? '' : 's'}`;
  if (count < minLength) broken.push(['', 'minLength', `must have at least ${units(minLength)}`]);
  if (count > maxLength) broken.push(['', 'maxLength', `must have at most ${units(maxLength)}`]);
}

function texts(declaration, value, broken) {
  if (declaration.pattern !== undefined && !pattern(declaration.pattern).test(value)) {
    broken.push(['', 'pattern', `must match the pattern ${declaration.pattern}`]);
  }
  if (declaration.email && !(value.length <= EMAIL_MAX && EMAIL.test(value))) {
    broken.push(['', 'email', 'must be an e-mail address']);
  }
  if (declaration.url) {
    const match = URL_TEXT.exec(value);
    if (match === null || Number(match[1] ?? 0) > PORT_MAX) {
      broken.push(['', 'url', 'must be an http or https URL']);
    }
  }
}

function items({ items: wanted }, value, broken) {
  let told = 0;
  for (let index = 0; wanted !== undefined && index < value.length; index++) {
    for (const [where, rule, message] of violations(wanted, value[index])) {
      broken.push([`[${index}]${where}`, rule, message]);
      if (++told === WRONG_ITEMS_MAX) return;
    }
  }
}

/** Code points, as JSON Schema counts (RFC 8259), not UTF-16's units. */
function characters(text) {
  let count = 0;
  for (const _ of text) count++;
  return count;
}

const compiled = new Map();

function pattern(source) {
  if (!compiled.has(source)) compiled.set(source, new RegExp(source, 'u'));
  return compiled.get(source);
}

module.exports = { described, faults, kind, violations };
