/**
 * The patterns of `.dockerignore`, `COPY --exclude` and COPY's sources, by Docker's rules: `*` and `?` within a name, `**` over any number
 * of directories, `!` for exceptions, the last pattern that matches a path or one of its parents decides. Patterns come
 * from outside: matching takes time proportional to pattern times path, whatever they are. Pure.
 * https://docs.docker.com/build/concepts/context/#dockerignore-files
 */
import { AppError } from './errors.ts';

export interface IgnorePatterns {
  /** Whether the path, relative and with slashes, is left out. */
  matches(path: string): boolean;
  /** Some pattern begins with `!`: what lies in a directory that is left out may be wanted all the same. */
  readonly hasExceptions: boolean;
}

/** The lines of a .dockerignore file that are patterns. */
export function readIgnoreFile(text: string): readonly string[] {
  return text
    .replace(/^\uFEFF/, '')
    .split('\n')
    .filter((line) => !line.startsWith('#'))
    .map((line) => line.trim())
    .filter((line) => line !== '');
}

interface Pattern {
  readonly isException: boolean;
  readonly match: (path: string) => boolean;
}

/** @throws AppError 'invalid' for a pattern that is none */
export function createIgnorePatterns(lines: readonly string[]): IgnorePatterns {
  const patterns = lines.flatMap((line) => patternOf(line) ?? []);
  return {
    hasExceptions: patterns.some(({ isException }) => isException),
    matches(path) {
      const names = parentsOf(path);
      let isIgnored = false;
      // A pattern that would change nothing need not be tried.
      for (const { isException, match } of patterns)
        if (isIgnored === isException && names.some(match)) isIgnored = !isException;
      return isIgnored;
    },
  };
}

/** The path and every directory that it lies in. */
function parentsOf(path: string): readonly string[] {
  const found = [path];
  for (let slash = path.lastIndexOf('/'); slash > 0; slash = path.lastIndexOf('/', slash - 1))
    found.push(path.slice(0, slash));
  return found;
}

function patternOf(line: string): Pattern | undefined {
  const isException = line.startsWith('!');
  const text = cleaned(isException ? line.slice(1).trim() : line);
  if (text === '' || text === '.') {
    if (isException && line.length === 1) throw invalid(line);
    return undefined;
  }
  if (!/[*?[\]\\]/.test(text)) return { isException, match: (path) => path === text };
  const tokens = tokensOf(text, line);
  return { isException, match: (path) => run(tokens, path) };
}

/**
 * Whether a name, without slashes, is what a pattern of a COPY says: `*`, `?`, `[a-z]`, `\\`. No wildcard in it = undefined:
 * it names one thing. @throws AppError 'invalid'
 */
export function createNamePattern(pattern: string): ((name: string) => boolean) | undefined {
  if (!/[*?[\\]/.test(pattern)) return undefined;
  const tokens = tokensOf(pattern, pattern, { crossing: false });
  return (name) => run(tokens, name);
}

/** As Go's path.Clean, without a leading slash. */
function cleaned(text: string): string {
  const parts: string[] = [];
  for (const part of text.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..' && parts.length > 0 && parts.at(-1) !== '..') parts.pop();
    else if (part !== '..' || !text.startsWith('/')) parts.push(part);
  }
  return parts.join('/');
}

type Token =
  | { readonly kind: 'one'; readonly is: (character: string) => boolean }
  /** Any characters but slashes. */
  | { readonly kind: 'name' }
  /** Any characters. */
  | { readonly kind: 'all' }
  /** Nothing, or any characters and a slash. */
  | { readonly kind: 'directories' };

function tokensOf(text: string, line: string, { crossing = true } = {}): readonly Token[] {
  const tokens: Token[] = [];
  for (let at = 0; at < text.length; at++) {
    const character = text.charAt(at);
    if (crossing && character === '*' && text[at + 1] === '*') {
      at += 1;
      if (text[at + 1] === '/') at += 1;
      tokens.push({ kind: at + 1 >= text.length ? 'all' : 'directories' });
    } else if (character === '*') tokens.push({ kind: 'name' });
    else if (character === '?') tokens.push({ kind: 'one', is: (found) => found !== '/' });
    else if (character === '[') {
      const { is, end } = classAt(text, at) ?? failed(line);
      tokens.push({ kind: 'one', is: (found) => found !== '/' && is(found) });
      at = end;
    } else {
      const literal = character === '\\' ? text.charAt(++at) : character;
      if (literal === '') throw invalid(line);
      tokens.push({ kind: 'one', is: (found) => found === literal });
    }
  }
  return tokens;
}

interface CharacterClass {
  readonly is: (character: string) => boolean;
  /** Index of its `]`. */
  readonly end: number;
}

/** `[abc]`, `[a-z]`, `[^a]`, with `\` before a character that means itself. undefined = it does not end. */
function classAt(text: string, start: number): CharacterClass | undefined {
  let at = start + 1;
  const isNegated = text[at] === '^';
  if (isNegated) at += 1;
  const ranges: (readonly [string, string])[] = [];
  const next = (): string | undefined => {
    if (text[at] === '\\') at += 1;
    const character = text[at];
    at += 1;
    return character;
  };
  while (ranges.length === 0 || text[at] !== ']') {
    if (text[at] === ']' || (text[at] === '-' && ranges.length === 0)) return undefined;
    const low = next();
    if (low === undefined) return undefined;
    let high: string | undefined = low;
    if (text[at] === '-' && text[at + 1] !== ']') {
      at += 1;
      high = next();
    }
    if (high === undefined || at >= text.length) return undefined;
    ranges.push([low, high]);
  }
  const isIn = (found: string) => ranges.some(([low, high]) => low <= found && found <= high);
  return { is: (found) => isIn(found) !== isNegated, end: at };
}

/** All ways to match are followed at the same time, so no pattern makes it slow. */
function run(tokens: readonly Token[], path: string): boolean {
  let states = new Uint8Array(tokens.length + 1);
  const enter = (into: Uint8Array, state: number) => {
    for (let at = state; into[at] !== 1; at++) {
      if (at >= into.length) return;
      into[at] = 1;
      const token = tokens[at];
      if (token === undefined || token.kind === 'one') return;
    }
  };
  enter(states, 0);
  for (const character of path) {
    const after = new Uint8Array(tokens.length + 1);
    let isAlive = false;
    for (const [at, token] of tokens.entries()) {
      if (states[at] === 0) continue;
      isAlive = true;
      if (token.kind === 'one') {
        if (token.is(character)) enter(after, at + 1);
      } else if (token.kind === 'all') enter(after, at);
      else if (token.kind === 'name') {
        if (character !== '/') enter(after, at);
      } else {
        // Only at a slash may what follows begin.
        if (character === '/') enter(after, at);
        else if (after[at] === 0) after[at] = INSIDE;
      }
    }
    if (!isAlive) return false;
    states = after;
  }
  return states[tokens.length] === 1;
}

/** State of `directories` in the middle of a name. */
const INSIDE = 2;

function failed(line: string): never {
  throw invalid(line);
}

function invalid(line: string): AppError {
  return new AppError('invalid', `cannot use pattern ${JSON.stringify(line)}: syntax error in pattern`);
}
