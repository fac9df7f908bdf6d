'use strict';
// The authoring library for handlers in JavaScript and TypeScript: what a handler's file imports.
//
// Owns the public names. A package carries its own copy of these files, or a bundle has them
// inside. The same in Python is the package `flowmonkey`.

const declared = require('./declared.js');

// One by one, so that `import { Handler } from 'flowmonkey'` finds them (cjs-module-lexer).
exports.Email = declared.Email;
exports.Enum = declared.Enum;
exports.Handler = declared.Handler;
exports.Input = declared.Input;
exports.Max = declared.Max;
exports.MaxLength = declared.MaxLength;
exports.Min = declared.Min;
exports.MinLength = declared.MinLength;
exports.Pattern = declared.Pattern;
exports.TestValue = declared.TestValue;
exports.Url = declared.Url;
exports.env = declared.env;
