'use strict';
// Takes out of JavaScript and TypeScript what is for development only: @TestValue(…), testValue: …,
// constants that only they used, imports of test tools. Cuts the text where the compiler's tree says
// they are, so that every other byte stays where it was. What cannot be resolved is a problem and
// not a guess. No source is ever run.

const LIBRARY = 'flowmonkey';
const DECORATOR = 'TestValue';
const PROPERTY = 'testValue';
const DEVELOPMENT = ['flowmonkey/testing', 'node:test', 'test', '@jest/globals', 'jest', 'vitest', 'mocha', 'chai'];
const UNRESOLVED = 'cannot tell what this test value is: write it here, as a constant of this file, or as env("…")';

const isLibrary = (name) => name === LIBRARY || name.startsWith(LIBRARY + '/');
const isDevelopment = (name) => DEVELOPMENT.some((one) => name === one || name.startsWith(one + '/'));

/** Whether some file of the program imports the library. */
exports.usesLibrary = (ts, sources) => sources.some((source) =>
  imports(ts, source).some(({ from }) => isLibrary(from)));

/** {text, values: [{line, text}], problems: [{line, message}]} of one source file. */
exports.strip = (ts, checker, source, usesLibrary) => {
  const cuts = [], values = [], problems = [], constants = [];
  const line = (node) => source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1;
  const problem = (node, message) => problems.push({ line: line(node), message });
  const cut = (node) => cuts.push([node.getStart(source), node.getEnd()]);
  const bindings = imports(ts, source);
  const symbolOf = (node) => checker.getSymbolAtLocation(node);
  const ours = new Set(bindings.filter((one) => isLibrary(one.from)).map((one) => symbolOf(one.name)));
  const named = new Map(bindings.map((one) => [symbolOf(one.name), one.imported]));

  const comesFromLibrary = (expression) => {
    while (ts.isPropertyAccessExpression(expression) || ts.isCallExpression(expression)) {
      expression = expression.expression;
    }
    return ts.isIdentifier(expression) && ours.has(symbolOf(expression));
  };
  const isTestValue = (expression) => {
    if (ts.isPropertyAccessExpression(expression)) {
      return expression.name.text === DECORATOR && comesFromLibrary(expression);
    }
    return ts.isIdentifier(expression) && ours.has(symbolOf(expression)) &&
      named.get(symbolOf(expression)) === DECORATOR;
  };
  const isDeclared = (node) => {
    for (let at = node.parent; at; at = at.parent) {
      if (ts.isCallExpression(at) && comesFromLibrary(at.expression)) return true;
      if (ts.isClassLike(at)) {
        return (at.heritageClauses ?? []).some((clause) => clause.types.some((type) => comesFromLibrary(type.expression)));
      }
    }
    return false;
  };

  const value = (node, through = []) => {
    if (ts.isStringLiteralLike(node) || ts.isNumericLiteral(node) || ts.isBigIntLiteral(node)) {
      values.push({ line: line(node), text: node.text });
    } else if (ts.isArrayLiteralExpression(node)) {
      node.elements.forEach((one) => value(one, through));
    } else if (variable(node) !== undefined) {
      const found = process.env[variable(node)];
      if (found) values.push({ line: line(node), text: found });
      if (ts.isCallExpression(node)) node.arguments.slice(1).forEach((one) => value(one, through));
    } else if (ts.isObjectLiteralExpression(node)) {
      node.properties.forEach((one) => (ts.isPropertyAssignment(one) ? value(one.initializer, through) : problem(one, UNRESOLVED)));
    } else if (ts.isPrefixUnaryExpression(node)) {
      value(node.operand, through);
    } else if (ts.isParenthesizedExpression(node) || ts.isAsExpression(node) || ts.isSatisfiesExpression(node)) {
      value(node.expression, through);
    } else if ([ts.SyntaxKind.TrueKeyword, ts.SyntaxKind.FalseKeyword, ts.SyntaxKind.NullKeyword].includes(node.kind)) {
      // says nothing that could be searched for
    } else if (ts.isIdentifier(node) && !through.includes(node.text)) {
      constant(node, through);
    } else {
      problem(node, UNRESOLVED);
    }
  };
  /** The environment's variable of process.env.X or env('X'). */
  const variable = (node) => {
    const text = (one) => (one && ts.isStringLiteralLike(one) ? one.text : undefined);
    if (ts.isPropertyAccessExpression(node) && node.expression.getText(source) === 'process.env') return node.name.text;
    if (ts.isElementAccessExpression(node) && node.expression.getText(source) === 'process.env') return text(node.argumentExpression);
    return ts.isCallExpression(node) && comesFromLibrary(node.expression) ? text(node.arguments[0]) : undefined;
  };
  const constant = (node, through) => {
    const [declaration, more] = symbolOf(node)?.declarations ?? [];
    const statement = declaration?.parent?.parent;
    if (declaration && !more && ts.isVariableDeclaration(declaration) && declaration.initializer &&
        ts.isVariableStatement(statement) && statement.declarationList.declarations.length === 1 &&
        statement.getSourceFile() === source) {
      constants.push({ name: node.text, symbol: symbolOf(node), declaration, statement });
      value(declaration.initializer, [...through, node.text]);
    } else {
      problem(node, UNRESOLVED);
    }
  };

  const visit = (node) => {
    if (ts.isDecorator(node) && ts.isCallExpression(node.expression) && isTestValue(node.expression.expression)) {
      cut(node);
      node.expression.arguments.forEach((one) => value(one));
      return;
    }
    if (ts.isPropertyAssignment(node) && node.name.text === PROPERTY && isDeclared(node)) {
      cut(node);
      value(node.initializer);
      const list = node.parent.properties;
      if (node !== list[list.length - 1] || list.hasTrailingComma) {
        const comma = source.text.indexOf(',', skipComments(source.text, node.getEnd()));
        cuts.push([comma, comma + 1]);
      }
      return;
    }
    ts.forEachChild(node, visit);
  };
  visit(source);

  const uses = (symbol, declared) => {
    const found = [];
    const look = (node) => {
      if (ts.isIdentifier(node) && node !== declared && symbolOf(node) === symbol) {
        const start = node.getStart(source);
        found.push(cuts.some(([from, to]) => from <= start && start < to) ? null : line(node));
      }
      ts.forEachChild(node, look);
    };
    look(source);
    return found;
  };
  for (const { name, symbol, declaration, statement } of constants) {
    const outside = uses(symbol, declaration.name).filter((one) => one !== null);
    if (outside.length) {
      problem(declaration, `${name} is a test value and used in line ${outside[0]} too; write it twice, or read it from the environment`);
    } else {
      cut(statement);
    }
  }
  for (const statement of new Set(bindings.map((one) => one.statement))) {
    const names = bindings.filter((one) => one.statement === statement);
    const outside = names.flatMap((one) => uses(symbolOf(one.name), one.name)).filter((one) => one !== null);
    if (isDevelopment(names[0].from)) {
      if (outside.length) problem(statement, `${names[0].from} is for tests, and line ${outside[0]} uses it`);
      cut(statement);
    } else if (!outside.length && names.every((one) => uses(symbolOf(one.name), one.name).length)) {
      cut(statement);
    } else {
      cutSpecifiers(names);
    }
  }
  // Of several names those that only test values used: TypeScript's and esbuild's own rule drops an
  // unused name, so it is only blanked for the check that nothing is left.
  function cutSpecifiers(names) {
    for (const one of names) {
      const found = uses(symbolOf(one.name), one.name);
      const unused = found.length ? found.every((use) => use === null) : one.imported === DECORATOR && isLibrary(one.from);
      if (unused && one.node && one.list.length > 1) {
        cut(one.node);
        const end = one.node.getEnd(), last = one.node === one.list[one.list.length - 1];
        if (!last || one.list.hasTrailingComma) {
          const comma = source.text.indexOf(',', skipComments(source.text, end));
          cuts.push([comma, comma + 1]);
        }
      }
    }
  }

  const text = without(source.text, cuts);
  if (usesLibrary && !problems.length) problems.push(...left(ts, source.fileName, text));
  return { text, values, problems };
};

/** {statement, from, name, imported, node, list} of every imported name, by import or require. */
function imports(ts, source) {
  const found = [];
  for (const statement of source.statements) {
    if (ts.isImportDeclaration(statement)) {
      const from = statement.moduleSpecifier.text, clause = statement.importClause;
      if (clause?.name) found.push({ statement, from, name: clause.name, imported: 'default' });
      const names = clause?.namedBindings;
      if (names && ts.isNamespaceImport(names)) found.push({ statement, from, name: names.name, imported: '*' });
      if (names && ts.isNamedImports(names)) {
        for (const one of names.elements) {
          found.push({ statement, from, name: one.name, imported: (one.propertyName ?? one.name).text, node: one, list: names.elements });
        }
      }
    } else if (ts.isVariableStatement(statement)) {
      const [declaration] = statement.declarationList.declarations;
      let call = declaration.initializer;
      if (call && ts.isPropertyAccessExpression(call)) call = call.expression;
      if (!call || !ts.isCallExpression(call) || call.expression.getText(source) !== 'require') continue;
      if (!call.arguments[0] || !ts.isStringLiteralLike(call.arguments[0])) continue;
      const from = call.arguments[0].text;
      if (ts.isIdentifier(declaration.name)) {
        const member = ts.isPropertyAccessExpression(declaration.initializer) ? declaration.initializer.name.text : '*';
        found.push({ statement, from, name: declaration.name, imported: member });
      } else if (ts.isObjectBindingPattern(declaration.name)) {
        for (const one of declaration.name.elements) {
          if (!ts.isIdentifier(one.name)) continue;
          found.push({ statement, from, name: one.name, imported: (one.propertyName ?? one.name).text, node: one, list: declaration.name.elements });
        }
      }
    }
  }
  return found;
}

/** A test value that is declared in a way nobody can follow. */
function left(ts, fileName, text) {
  const source = ts.createSourceFile(fileName, text, ts.ScriptTarget.Latest, true);
  const found = [];
  const look = (node) => {
    const name = ts.isIdentifier(node) || ts.isStringLiteralLike(node) ? node.text : undefined;
    if (name === PROPERTY || name === DECORATOR) {
      const line = source.getLineAndCharacterOfPosition(node.getStart(source)).line + 1;
      found.push({ line, message: `cannot resolve ${name}: use ${LIBRARY}'s own ${name} where the input is declared, or rename it` });
    }
    ts.forEachChild(node, look);
  };
  look(source);
  return found;
}

/** The text without the cuts; its lines keep their numbers. */
function without(text, cuts) {
  const parts = [];
  let at = 0;
  for (const [from, to] of cuts.sort((a, b) => a[0] - b[0] || b[1] - a[1])) {
    if (from < at) continue;
    parts.push(text.slice(at, from), text.slice(from, to).replace(/[^\n]+/g, ''));
    at = to;
  }
  return parts.join('') + text.slice(at);
}

function skipComments(text, at) {
  for (;;) {
    const match = /^(\s+|\/\/[^\n]*|\/\*[^]*?\*\/)/.exec(text.slice(at, at + 10000));
    if (!match) return at;
    at += match[0].length;
  }
}
