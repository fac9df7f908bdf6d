'use strict';
// JSON Schemas (2020-12) of what a class handler takes and gives: `schemas.py` in JavaScript.
//
// Owns the way from declarations to schemas. Types are gone when JavaScript runs, so an output's
// schema is the one that the class gives, or the one that allows everything.

const DIALECT = 'https://json-schema.org/draft/2020-12/schema';

/** The schema of an object with the declarations whose source is `input`. */
function inputSchema(inputs) {
  const own = inputs.filter((one) => one.source === 'input');
  const properties = Object.fromEntries(own.map((one) => [one.property, declared(one)]));
  const required = own.filter((one) => one.required).map((one) => one.property);
  const schema = { $schema: DIALECT, type: 'object', properties };
  return required.length > 0 ? { ...schema, required } : schema;
}

function outputSchema(given = {}) {
  return { $schema: DIALECT, ...given };
}

function declared(declaration) {
  const { type = 'any', nullable, items } = declaration;
  const schema = {};
  if (type !== 'any') schema.type = nullable && type !== 'null' ? [type, 'null'] : type;
  const unit = type === 'array' ? 'Items' : 'Length';
  const names = {
    ...{ min: 'minimum', max: 'maximum', pattern: 'pattern' },
    ...{ minLength: `min${unit}`, maxLength: `max${unit}` },
    ...{ description: 'description', default: 'default' },
  };
  for (const [ours, theirs] of Object.entries(names)) {
    if (declaration[ours] !== undefined) schema[theirs] = declaration[ours];
  }
  if (items !== undefined) schema.items = declared(items);
  if (declaration.enum !== undefined) {
    schema.enum = nullable ? [...declaration.enum, null] : declaration.enum;
  }
  if (declaration.email) schema.format = 'email';
  if (declaration.url) schema.format = 'uri';
  return schema;
}

module.exports = { inputSchema, outputSchema };
