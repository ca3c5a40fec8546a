/**
 * `.dockerignore`: which files of a directory are no part of a build's context. Pure: who reads the file must not follow
 * a link out of the context for it (CVE-2022-4122, CVE-2022-4123).
 *
 * The rules are those of Docker's walk through a directory: the last pattern that matches a path or a directory above it
 * counts, and `!` takes back. As with BuildKit, a directory is skipped only when no `!` can mean anything in it. Patterns
 * are followed state by state and never become a RegExp, whose worst case a hostile pattern would choose.
 * https://docs.docker.com/build/concepts/context/#dockerignore-files
 */
import { posix } from 'node:path';
import { AppError } from './errors.ts';

export interface Ignore {
  /** Some pattern begins with `!`. */
  readonly hasExceptions: boolean;
  /** Every root entry is out: a pattern `*`, `**` or their like is there. */
  readonly ignoresAll: boolean;
  /** Of the context itself, which is never ignored. */
  readonly root: IgnoreState;
  /** Whether a path, relative with slashes, is out: as a walk from the root to it finds. */
  ignores(path: string): boolean;
}

/** What is known of one path on a walk; a walk of 50,000 files tests each directory's patterns once. */
export interface IgnoreState {
  readonly isIgnored: boolean;
  /** Of a directory: it and all below are out, and nothing in it needs a look. */
  readonly isSkippable: boolean;
  /** Of an entry of this directory. */
  enter(name: string): IgnoreState;
}

export const DOCKERIGNORE_MAX_BYTES = 1024 * 1024;
const PATTERNS_MAX = 10_000;
const PATTERN_MAX = 4096;

/** Where the patterns of a Dockerfile are, the first file that exists counts. */
export function dockerignoreNames(dockerfile: string): readonly string[] {
  return [`${dockerfile}.dockerignore`, '.dockerignore'];
}

/** The patterns, cleaned, in their order. @throws AppError 'invalid' for more than anybody writes */
export function parseDockerignore(text: string): readonly string[] {
  const patterns: string[] = [];
  for (const line of text.replace(/^\ufeff/, '').split('\n')) {
    // Only at the very start: Docker reads ` #a` as a name.
    if (line.startsWith('#')) continue;
    const pattern = line.trim();
    if (pattern === '') continue;
    const isException = pattern.startsWith('!');
    const cleaned = clean(isException ? pattern.slice(1).trim() : pattern);
    patterns.push(isException ? `!${cleaned}` : cleaned);
  }
  return patterns;
}

/** As a relative path without `.`, `..`, and slashes that say nothing. */
function clean(pattern: string): string {
  if (pattern === '') return '';
  const normal = posix.normalize(pattern);
  const bare = normal.length > 1 && normal.endsWith('/') ? normal.slice(0, -1) : normal;
  return bare.length > 1 && bare.startsWith('/') ? bare.slice(1) : bare;
}

/** The patterns, and what a classic build needs sent although they exclude it: the Dockerfile and `.dockerignore`. */
export function keepBuildFiles(patterns: readonly string[], names: readonly string[]): readonly string[] {
  const ignore = createIgnore(patterns);
  return [...patterns, ...names.filter((name) => ignore.ignores(name)).map((name) => `!${name}`)];
}

/** @throws AppError 'invalid' for a pattern that is none */
export function createIgnore(patterns: readonly string[]): Ignore {
  if (patterns.length > PATTERNS_MAX)
    throw new AppError('invalid', `cannot read .dockerignore: it has more than ${PATTERNS_MAX} patterns`);
  const compiled = patterns.map(compile).filter((pattern) => pattern !== undefined);
  const hasExceptions = compiled.some(({ isException }) => isException);
  if (compiled.length === 0) return NOTHING_IGNORED;
  const root = stateOf(compiled, '', undefined);
  return {
    hasExceptions,
    ignoresAll: compiled.some(({ isException, text }) => !isException && ['*', '**', '**/*'].includes(text)),
    root,
    ignores: (path) =>
      path
        .split('/')
        .filter((name) => name !== '' && name !== '.')
        .reduce((state, name) => state.enter(name), root).isIgnored,
  };
}

/** Most contexts and copies have no patterns, and may have many files. */
const NEVER_IGNORED: IgnoreState = { isIgnored: false, isSkippable: false, enter: () => NEVER_IGNORED };
const NOTHING_IGNORED: Ignore = {
  hasExceptions: false,
  ignoresAll: false,
  root: NEVER_IGNORED,
  ignores: () => false,
};

function stateOf(patterns: readonly Pattern[], path: string, above: readonly boolean[] | undefined): IgnoreState {
  let isIgnored = false;
  const matched = patterns.map((pattern, index) => {
    let matches = above?.[index] === true;
    // Asks only what can change the answer, and so remembers for what is below exactly what Docker remembers.
    if (!matches && path !== '' && pattern.isException === isIgnored) matches = pattern.matches(path);
    if (matches) isIgnored = !pattern.isException;
    return matches;
  });
  let isSkippable: boolean | undefined;
  return {
    isIgnored,
    get isSkippable() {
      isSkippable ??= isIgnored && !patterns.some((pattern) => pattern.isException && pattern.reachesBelow(path));
      return isSkippable;
    },
    enter: (name) => stateOf(patterns, path === '' ? name : `${path}/${name}`, matched),
  };
}

interface Pattern {
  readonly text: string;
  readonly isException: boolean;
  matches(path: string): boolean;
  /** May match something inside this directory. */
  reachesBelow(directory: string): boolean;
}

type Token =
  | { readonly kind: 'char'; readonly char: string }
  | { readonly kind: 'class'; readonly negated: boolean; readonly ranges: readonly (readonly [string, string])[] }
  /** `?` and `*`: of one name. */
  | { readonly kind: 'one' | 'some' }
  /** `**` at the end: anything. */
  | { readonly kind: 'all' }
  /** `**` before more: directories, none too; `inside` is in the middle of them. */
  | { readonly kind: 'directories' | 'inside' };

function compile(given: string): Pattern | undefined {
  const trimmed = given.trim();
  if (trimmed === '') return undefined;
  const isException = trimmed.startsWith('!');
  const text = clean(isException ? trimmed.slice(1) : trimmed);
  if (text === '') throw new AppError('invalid', 'illegal exclusion pattern: "!"');
  if (text.length > PATTERN_MAX)
    throw new AppError('invalid', `a pattern of .dockerignore is longer than ${PATTERN_MAX}`);
  const tokens = tokensOf(text);
  // Docker takes `**name` for an end of the whole path, also in the middle of a name.
  const suffix = /^\*\*[^/*?[\]\\][^*?[\]\\]*$/.test(text) ? text.slice(2) : undefined;
  const matches = suffix === undefined ? matcherOf(tokens) : (path: string) => path.endsWith(suffix);
  return { text, isException, matches, reachesBelow: reachOf(text, tokens) };
}

function tokensOf(text: string): readonly Token[] {
  const chars = [...text];
  const tokens: Token[] = [];
  for (let at = 0; at < chars.length; at++) {
    const char = chars[at] ?? '';
    if (char === '*' && chars[at + 1] === '*') {
      at += chars[at + 2] === '/' ? 2 : 1;
      if (at + 1 >= chars.length) tokens.push({ kind: 'all' });
      else tokens.push({ kind: 'directories' }, { kind: 'inside' });
    } else if (char === '*') tokens.push({ kind: 'some' });
    else if (char === '?') tokens.push({ kind: 'one' });
    else if (char === '[') {
      const { token, end } = classAt(chars, at, text);
      tokens.push(token);
      at = end;
    } else if (char === '\\') {
      at += 1;
      const escaped = chars[at];
      if (escaped === undefined) throw badPattern(text);
      tokens.push({ kind: 'char', char: escaped });
    } else tokens.push({ kind: 'char', char });
  }
  return tokens;
}

function classAt(chars: readonly string[], start: number, text: string): { token: Token; end: number } {
  let at = start + 1;
  const negated = chars[at] === '^';
  if (negated) at += 1;
  const ranges: (readonly [string, string])[] = [];
  const next = (): string => {
    if (chars[at] === '\\') at += 1;
    const char = chars[at];
    if (char === undefined) throw badPattern(text);
    at += 1;
    return char;
  };
  while (chars[at] !== ']' || ranges.length === 0) {
    if (chars[at] === ']' || chars[at] === '-') throw badPattern(text);
    const low = next();
    if (chars[at] !== '-') {
      ranges.push([low, low]);
      continue;
    }
    at += 1;
    ranges.push([low, next()]);
  }
  return { token: { kind: 'class', negated, ranges }, end: at };
}

function badPattern(text: string): AppError {
  return new AppError('invalid', `syntax error in pattern ${JSON.stringify(text)}`);
}

function matcherOf(tokens: readonly Token[]): (path: string) => boolean {
  const [head, tail] = [literal(tokens), literal(tokens.toReversed()).split('').reverse().join('')];
  if (tokens.every(({ kind }) => kind === 'char')) return (path) => path === head;
  if (tokens.at(-1)?.kind === 'all' && tokens.slice(0, -1).every(({ kind }) => kind === 'char'))
    return (path) => path.startsWith(head);
  // Most paths are told apart by their ends.
  return (path) => path.startsWith(head) && path.endsWith(tail) && follow(tokens, path);
}

/** The characters that every match begins with. */
function literal(tokens: readonly Token[]): string {
  const end = tokens.findIndex(({ kind }) => kind !== 'char');
  const plain = end === -1 ? tokens : tokens.slice(0, end);
  return plain.map((token) => (token.kind === 'char' ? token.char : '')).join('');
}

/** All places that the pattern can be at are followed together: length times length, whatever the pattern. */
function follow(tokens: readonly Token[], path: string): boolean {
  let states = new Set<number>();
  reach(tokens, states, 0);
  for (const char of path) {
    const next = new Set<number>();
    for (const state of states) {
      const token = tokens[state];
      if (token !== undefined) step(tokens, token, { state, char, next });
    }
    if (next.size === 0) return false;
    states = next;
  }
  return states.has(tokens.length);
}

/** Adds a place, and those that it reaches by nothing. */
function reach(tokens: readonly Token[], states: Set<number>, state: number): void {
  for (let at = state; !states.has(at); ) {
    states.add(at);
    const kind = tokens[at]?.kind;
    if (kind === 'some' || kind === 'all') at += 1;
    else if (kind === 'directories') at += 2;
    else return;
  }
}

function step(
  tokens: readonly Token[],
  token: Token,
  { state, char, next }: { readonly state: number; readonly char: string; readonly next: Set<number> },
): void {
  switch (token.kind) {
    case 'char':
      if (char === token.char) reach(tokens, next, state + 1);
      return;
    case 'class':
      if (token.ranges.some(([low, high]) => low <= char && char <= high) !== token.negated)
        reach(tokens, next, state + 1);
      return;
    case 'one':
      if (char !== '/') reach(tokens, next, state + 1);
      return;
    case 'some':
      if (char !== '/') reach(tokens, next, state);
      return;
    case 'all':
      reach(tokens, next, state);
      return;
    case 'directories':
      reach(tokens, next, state + 1);
      if (char === '/') reach(tokens, next, state + 2);
      return;
    case 'inside':
      reach(tokens, next, state);
      if (char === '/') reach(tokens, next, state + 1);
      return;
  }
}

/** Without `**`, classes and escapes each name of a pattern stands for one of a path; with them only its beginning tells. */
function reachOf(text: string, tokens: readonly Token[]): (directory: string) => boolean {
  if (text.includes('\\') || tokens.some(({ kind }) => ['all', 'directories', 'class'].includes(kind))) {
    const head = literal(tokens);
    return (directory) => head.startsWith(`${directory}/`) || `${directory}/`.startsWith(head);
  }
  const names = text.split('/').map((name) => matcherOf(tokensOf(name)));
  return (directory) => {
    const above = directory.split('/');
    return names.length > above.length && above.every((name, index) => names[index]?.(name) === true);
  };
}
