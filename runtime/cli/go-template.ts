/**
 * The part of Go's text/template that `--format` needs: fields, pipelines, range, if, with, variables are left out.
 * https://pkg.go.dev/text/template. Fields are looked up in plain JSON objects; a missing one is an error as in docker,
 * so that a misspelt name does not print an empty line. Pure.
 */
import { AppError } from '../../shared/errors.ts';

type Node =
  | { readonly kind: 'text'; readonly text: string }
  | { readonly kind: 'output'; readonly pipeline: Pipeline }
  | {
      readonly kind: 'block';
      readonly verb: 'if' | 'range' | 'with';
      readonly pipeline: Pipeline;
      readonly body: readonly Node[];
      readonly otherwise: readonly Node[];
    };
type Pipeline = readonly Command[];
type Command = readonly Operand[];
type Operand =
  | { readonly kind: 'literal'; readonly value: string | number | boolean | undefined }
  | { readonly kind: 'field'; readonly root: boolean; readonly path: readonly string[] }
  | { readonly kind: 'call'; readonly name: string }
  | { readonly kind: 'group'; readonly pipeline: Pipeline; readonly path: readonly string[] };

/** Renders one value. @throws AppError 'invalid' with the place that is wrong */
export type Template = (value: unknown) => string;

export function parseTemplate(source: string): Template {
  const tokens = split(source);
  let at = 0;

  function nodes(until: readonly string[]): { readonly nodes: Node[]; readonly end: string } {
    const found: Node[] = [];
    for (;;) {
      const token = tokens[at++];
      if (token === undefined) {
        if (until.length > 0) throw bad(source, 'an action is not closed with {{end}}');
        return { nodes: found, end: '' };
      }
      if (!token.action) {
        found.push({ kind: 'text', text: token.text });
        continue;
      }
      const words = lex(token.text, source);
      const verb = words[0];
      if (verb === undefined) throw bad(source, 'an action is empty');
      if (verb === 'end' || verb === 'else') {
        if (!until.includes(verb)) throw bad(source, `unexpected {{${verb}}}`);
        return { nodes: found, end: verb };
      }
      if (verb.startsWith('/*')) continue;
      if (verb === 'if' || verb === 'range' || verb === 'with') {
        const pipeline = parsePipeline(words.slice(1), source);
        const body = nodes(['end', 'else']);
        const otherwise = body.end === 'else' ? nodes(['end']).nodes : [];
        found.push({ kind: 'block', verb, pipeline, body: body.nodes, otherwise });
      } else found.push({ kind: 'output', pipeline: parsePipeline(words, source) });
    }
  }

  const root = nodes([]).nodes;
  return (value) => render(root, value, value);
}

function bad(source: string, why: string): AppError {
  return new AppError('invalid', `cannot parse template ${JSON.stringify(source)}: ${why}`);
}

interface Token {
  readonly action: boolean;
  readonly text: string;
}

function split(source: string): readonly Token[] {
  const tokens: Token[] = [];
  let rest = source;
  let trimNext = false;
  for (;;) {
    const open = rest.indexOf('{{');
    let literal = open === -1 ? rest : rest.slice(0, open);
    if (trimNext) literal = literal.trimStart();
    if (open === -1) {
      if (literal !== '') tokens.push({ action: false, text: literal });
      return tokens;
    }
    const close = rest.indexOf('}}', open);
    if (close === -1) throw bad(source, 'an action is not closed with }}');
    let action = rest.slice(open + 2, close);
    if (action.startsWith('- ')) {
      literal = literal.trimEnd();
      action = action.slice(2);
    }
    trimNext = action.endsWith(' -');
    if (trimNext) action = action.slice(0, -2);
    if (literal !== '') tokens.push({ action: false, text: literal });
    tokens.push({ action: true, text: action.trim() });
    rest = rest.slice(close + 2);
  }
}

const WORD = /\s*("(?:[^"\\]|\\.)*"|`[^`]*`|\)\.[\w.]+|[()|]|\/\*.*?\*\/|[^\s()|]+)/y;

function lex(action: string, source: string): readonly string[] {
  const words: string[] = [];
  WORD.lastIndex = 0;
  while (WORD.lastIndex < action.trimEnd().length) {
    const match = WORD.exec(action);
    if (match?.[1] === undefined) throw bad(source, `cannot read ${JSON.stringify(action)}`);
    words.push(match[1]);
  }
  return words;
}

function parsePipeline(words: readonly string[], source: string): Pipeline {
  let at = 0;
  function pipeline(nested: boolean): Pipeline {
    const commands: Command[] = [];
    let command: Operand[] = [];
    const finish = () => {
      if (command.length === 0) throw bad(source, 'a command is missing');
      commands.push(command);
      command = [];
    };
    for (;;) {
      const word = words[at++];
      if (word === undefined || word.startsWith(')')) {
        if ((word !== undefined) !== nested) throw bad(source, 'parentheses do not match');
        finish();
        return commands;
      }
      if (word === '|') finish();
      else if (word === '(') {
        const inner = pipeline(true);
        command.push({
          kind: 'group',
          pipeline: inner,
          path: (words[at - 1] ?? ')').slice(2).split('.').filter(Boolean),
        });
      } else command.push(operand(word, source));
    }
  }
  return pipeline(false);
}

function operand(word: string, source: string): Operand {
  if (word.startsWith('"')) return { kind: 'literal', value: JSON.parse(word) };
  if (word.startsWith('`')) return { kind: 'literal', value: word.slice(1, -1) };
  if (/^-?\d+(\.\d+)?$/.test(word)) return { kind: 'literal', value: Number(word) };
  if (word === 'true' || word === 'false') return { kind: 'literal', value: word === 'true' };
  if (word === 'nil') return { kind: 'literal', value: undefined };
  if (word === '.' || word === '$') return { kind: 'field', root: word === '$', path: [] };
  const field = /^(\$?)\.([\w.]+)$/.exec(word);
  if (field !== null) return { kind: 'field', root: field[1] === '$', path: (field[2] ?? '').split('.') };
  if (Object.hasOwn(FUNCTIONS, word)) return { kind: 'call', name: word };
  throw bad(source, `function ${JSON.stringify(word)} is not defined`);
}

function render(nodes: readonly Node[], dot: unknown, root: unknown): string {
  let out = '';
  for (const node of nodes) {
    if (node.kind === 'text') out += node.text;
    else if (node.kind === 'output') out += print(evaluate(node.pipeline, dot, root));
    else {
      const value = evaluate(node.pipeline, dot, root);
      if (!truthy(value)) out += render(node.otherwise, dot, root);
      else if (node.verb === 'if') out += render(node.body, dot, root);
      else if (node.verb === 'with') out += render(node.body, value, root);
      else for (const item of itemsOf(value)) out += render(node.body, item, root);
    }
  }
  return out;
}

function itemsOf(value: unknown): readonly unknown[] {
  if (Array.isArray(value)) return value;
  if (typeof value === 'object' && value !== null) return sortedKeys(value).map((key) => Reflect.get(value, key));
  throw new AppError('invalid', `cannot range over ${print(value)}`);
}

function sortedKeys(value: object): readonly string[] {
  return Object.keys(value).sort();
}

function evaluate(pipeline: Pipeline, dot: unknown, root: unknown): unknown {
  let value: unknown;
  pipeline.forEach((command, index) => {
    const [first, ...rest] = command;
    if (first === undefined) return;
    const args = rest.map((item) => resolve(item, dot, root));
    if (index > 0) args.push(value);
    value = first.kind === 'call' ? (FUNCTIONS[first.name] ?? print)(...args) : resolve(first, dot, root);
  });
  return value;
}

function resolve(item: Operand, dot: unknown, root: unknown): unknown {
  switch (item.kind) {
    case 'literal':
      return item.value;
    case 'group':
      return fieldOf(evaluate(item.pipeline, dot, root), item.path);
    case 'call':
      return (FUNCTIONS[item.name] ?? print)();
    case 'field':
      return fieldOf(item.root ? root : dot, item.path);
  }
}

function fieldOf(start: unknown, path: readonly string[]): unknown {
  let value = start;
  for (const name of path) {
    if (value === null || value === undefined) return undefined;
    if (typeof value !== 'object' || !(name in value))
      throw new AppError(
        'invalid',
        `cannot render template: there is no field ${JSON.stringify(name)}${typeof value === 'object' ? `, only ${sortedKeys(value).join(', ')}` : ''}`,
      );
    value = Reflect.get(value, name);
  }
  return value;
}

function truthy(value: unknown): boolean {
  if (Array.isArray(value)) return value.length > 0;
  if (typeof value === 'object' && value !== null) return Object.keys(value).length > 0;
  return Boolean(value);
}

/** As fmt.Print shows maps, slices and nil. */
function print(...values: readonly unknown[]): string {
  return values
    .map((value): string => {
      if (value === undefined || value === null) return '<no value>';
      if (Array.isArray(value)) return `[${value.map((item) => print(item)).join(' ')}]`;
      if (typeof value === 'object')
        return `map[${sortedKeys(value)
          .map((key) => `${key}:${print(Reflect.get(value, key))}`)
          .join(' ')}]`;
      return String(value);
    })
    .join(' ');
}

function compare(test: (order: number) => boolean): (...args: readonly unknown[]) => boolean {
  return (a, b) => {
    const [x, y] = typeof a === 'number' && typeof b === 'number' ? [a, b] : [String(a), String(b)];
    return test(x < y ? -1 : x > y ? 1 : 0);
  };
}

const FUNCTIONS: Readonly<Record<string, (...args: readonly unknown[]) => unknown>> = {
  json: (value) => JSON.stringify(value ?? null),
  len: (value) => (typeof value === 'string' ? Buffer.byteLength(value) : itemsOf(value).length),
  index: (value, ...keys) =>
    keys.reduce(
      (inner: unknown, key) =>
        typeof inner === 'object' && inner !== null ? Reflect.get(inner, String(key)) : undefined,
      value,
    ) ?? '',
  join: (value, separator) => (Array.isArray(value) ? value.map(String).join(String(separator)) : print(value)),
  split: (value, separator) => String(value).split(String(separator)),
  lower: (value) => String(value).toLowerCase(),
  upper: (value) => String(value).toUpperCase(),
  title: (value) => String(value).replace(/\b\w/g, (letter) => letter.toUpperCase()),
  truncate: (value, length) => String(value).slice(0, Number(length)),
  pad: (value, before, after) =>
    value === '' ? '' : ' '.repeat(Number(before)) + String(value) + ' '.repeat(Number(after)),
  println: (...values) => `${print(...values)}\n`,
  print,
  printf: (format, ...values) => {
    let next = 0;
    return String(format).replace(/%[-+#0-9.]*([sdvq%])/g, (_whole, verb: string) => {
      if (verb === '%') return '%';
      const value = values[next++];
      return verb === 'q' ? JSON.stringify(String(value)) : print(value);
    });
  },
  eq: (a, ...others) => others.some((other) => a === other),
  ne: (a, b) => a !== b,
  lt: compare((order) => order < 0),
  le: compare((order) => order <= 0),
  gt: compare((order) => order > 0),
  ge: compare((order) => order >= 0),
  and: (...values) => values.find((value) => !truthy(value)) ?? values.at(-1),
  or: (...values) => values.find(truthy) ?? values.at(-1),
  not: (value) => !truthy(value),
};
