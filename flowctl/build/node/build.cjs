'use strict';
// A program: checks the types of a handler's sources, strips them, and bundles them into one file.
// argv: the folder of the tools, then a request as JSON: {folder, stripped, sources, entry, out,
// library, target, outside (packages that are not bundled)}. Answers JSON: {problems: [{file, line, message}], values: [{file, line, text}],
// stripped: {name: text}, bundle, asked (with flowmonkey left outside), inputs, warnings}. Reads and writes nothing but these folders.

const path = require('node:path');
const fs = require('node:fs');
const { createRequire } = require('node:module');
const { strip, usesLibrary } = require('./strip.cjs');

const [, , tools, request] = process.argv;
const { folder, stripped, sources, entry, out, library, target, outside } = JSON.parse(request);
const load = createRequire(path.join(tools, 'package.json'));
const ts = load('typescript');
const esbuild = load('esbuild');

const inFolder = (file) => path.relative(folder, file).split(path.sep).join('/');

function program() {
  const config = path.join(folder, 'tsconfig.json');
  let given = {};
  const problems = [];
  if (fs.existsSync(config)) {
    const read = ts.readConfigFile(config, (file) => fs.readFileSync(file, 'utf8'));
    const parsed = ts.parseJsonConfigFileContent(read.config ?? {}, { ...ts.sys, readDirectory: () => [] }, folder);
    given = parsed.options;
    problems.push(...[read.error, ...parsed.errors.filter((one) => one.code !== 18003)].filter(Boolean));
  }
  const options = {
    strict: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    ...given,
    allowJs: true,
    checkJs: false,
    noEmit: true,
    incremental: false,
    composite: false,
    skipLibCheck: true,
    esModuleInterop: true,
    resolveJsonModule: true,
    types: ['node'],
    typeRoots: [path.join(tools, 'node_modules/@types')],
    paths: { ...given.paths, flowmonkey: [path.join(library, 'index.d.ts')], 'flowmonkey/*': [path.join(library, '*.d.ts')] },
  };
  const made = ts.createProgram(sources.map((name) => path.join(folder, name)), options);
  problems.push(...ts.getPreEmitDiagnostics(made));
  return { made, problems: problems.filter((one) => one.category === ts.DiagnosticCategory.Error).map(told) };
}

// What the library's types say of a decorator whose field is of another type, in twelve lines.
const UNFIT = /ClassFieldDecoratorContext<[^,]+, (.+?)> & DoesNotFit<(.+?)>'/;

function told(diagnostic) {
  const whole = ts.flattenDiagnosticMessageText(diagnostic.messageText, ' ');
  const [, type, declared] = UNFIT.exec(whole) ?? [];
  const message = type
    ? `the field's type is ${type}, and what is declared of it lets through ${declared}`
    : [folder, stripped].reduce((text, place) => text.replaceAll(`${place}${path.sep}`, ''), whole);
  if (!diagnostic.file) return { file: 'tsconfig.json', line: 1, message };
  const at = diagnostic.file.getLineAndCharacterOfPosition(diagnostic.start ?? 0);
  return { file: inFolder(diagnostic.file.fileName), line: at.line + 1, message };
}

async function bundle(differently) {
  const built = await esbuild.build({
    absWorkingDir: stripped,
    entryPoints: [entry],
    outfile: out,
    write: false,
    bundle: true,
    minify: true,
    platform: 'node',
    format: out.endsWith('.mjs') ? 'esm' : 'cjs',
    target,
    charset: 'utf8',
    legalComments: 'eof',
    metafile: true,
    logLevel: 'silent',
    ...differently,
  });
  return { bundle: built.outputFiles[0].text, inputs: Object.keys(built.metafile.inputs), warnings: built.warnings.map(said) };
}

const said = ({ text, location }) => ({ file: location?.file ?? entry, line: location?.line ?? 1, message: text });

async function main() {
  const answer = { problems: [], values: [], stripped: {} };
  const { made, problems } = program();
  answer.problems = problems;
  const files = sources.map((name) => made.getSourceFile(path.join(folder, name)));
  const uses = usesLibrary(ts, files);
  for (const [index, source] of files.entries()) {
    const file = sources[index];
    const done = strip(ts, made.getTypeChecker(), source, uses);
    answer.values.push(...done.values.map((one) => ({ file, ...one })));
    answer.problems.push(...done.problems.map((one) => ({ file, ...one })));
    answer.stripped[file] = done.text;
    fs.writeFileSync(path.join(stripped, file), done.text);
  }
  if (!answer.problems.length) {
    try {
      Object.assign(answer, await bundle({ alias: { flowmonkey: library }, external: outside }));
      if (uses) answer.asked = (await bundle({ external: ['flowmonkey', ...outside] })).bundle;
    } catch (error) {
      if (!error.errors) throw error;
      answer.problems = error.errors.map(said);
    }
  }
  process.stdout.write(JSON.stringify(answer));
}

main();
