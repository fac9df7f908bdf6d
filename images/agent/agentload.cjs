'use strict';
// From an entrypoint ("file.js:name") to the function that runs.
//
// CommonJS (.cjs, .js) and ES modules (.mjs, and .js below a package.json of type "module"). It
// runs the package's code, in no other way than Node does.

const { existsSync, readFileSync } = require('fs');
const Module = require('module');
const path = require('path');

/** The handler, or a promise of it for an ES module; throws what loading it throws. */
function load(root, entrypoint) {
  const colon = entrypoint.lastIndexOf(':');
  const file = entrypoint.slice(0, colon);
  const name = entrypoint.slice(colon + 1);
  const full = path.join(root, file);
  if (isModule(root, full)) {
    const { pathToFileURL } = require('url');
    return import(pathToFileURL(full)).then((exports) => pick(exports, name, file));
  }
  return pick(run(full), name, file);
}

/** As require() would, without its 0.4 ms of looking at what cannot be: links, folders, names. */
function run(file) {
  const content = readFileSync(file, 'utf8');
  const module = new Module(file);
  module.filename = file;
  module.paths = Module._nodeModulePaths(path.dirname(file));
  Module._cache[file] = module;
  try {
    module._compile(content.charCodeAt(0) === 0xfeff ? content.slice(1) : content, file);
  } catch (error) {
    delete Module._cache[file];
    throw error;
  }
  module.loaded = true;
  return module.exports;
}

function pick(exports, name, file) {
  const found = search(exports, name);
  if (found === undefined) {
    throw new TypeError(`cannot find ${name} in ${file}: a function, or a class with handle()`);
  }
  return found;
}

function search(exports, name) {
  const standing = exports?.default;
  for (const owner of [exports, standing]) {
    const found = owner?.[name];
    if (typeof found === 'function') return instance(found) ?? found.bind(owner);
    if (method(found)) return method(found);
  }
  for (const whole of [standing, exports]) {
    if (typeof whole === 'function') return instance(whole) ?? whole;
  }
  return method(standing);
}

/** What a class does, or undefined for a function that is none. */
function instance(made) {
  const { prototype } = made;
  const is = typeof (prototype?.handle ?? prototype?.execute) === 'function';
  return is ? method(new made()) : undefined;
}

function method(object) {
  const found = object?.handle ?? object?.execute;
  return typeof found === 'function' ? found.bind(object) : undefined;
}

/** Whether Node takes this file for an ES module (nodejs.org/api/packages.html, "Determining"). */
function isModule(root, file) {
  const kind = path.extname(file);
  if (kind !== '.js') return kind === '.mjs';
  for (let folder = path.dirname(file); ; folder = path.dirname(folder)) {
    const description = path.join(folder, 'package.json');
    if (existsSync(description)) return JSON.parse(readFileSync(description)).type === 'module';
    if (folder === root || folder === path.dirname(folder)) return false;
  }
}

module.exports = { load };
