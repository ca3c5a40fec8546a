/**
 * The patterns of `${name#pattern}` and its kin: `*` is any text, `?` any one character, neither crosses a line end;
 * `\` takes the meaning of `*`, `?` and itself. Pure, and without RegExp, whose worst case is exponential: the states
 * that a pattern can be in are followed together, so the work is length times length, and the caller's meter counts it.
 */
import { AppError } from '../../shared/errors.ts';

type Token = { readonly kind: 'many' } | { readonly kind: 'one' } | { readonly kind: 'char'; readonly char: string };
export type Glob = readonly Token[];

/** Counts units of work, and throws when there were too many. */
export type Meter = (units: number) => void;

/** A step costs about as much as passing on so many characters. */
const STEP_UNITS = 32;

/** @throws AppError 'invalid' for a `\` before what needs none */
export function parseGlob(pattern: string): Glob {
  const chars = [...pattern];
  const tokens: Token[] = [];
  for (let at = 0; at < chars.length; at++) {
    const char = chars[at] ?? '';
    if (char === '*') tokens.push({ kind: 'many' });
    else if (char === '?') tokens.push({ kind: 'one' });
    else if (char !== '\\') tokens.push({ kind: 'char', char });
    else {
      const escaped = chars[at + 1] ?? '';
      at += 1;
      // `}` and `/` are escaped for the substitution, not for the pattern.
      if (!['*', '?', '\\', '}', '/'].includes(escaped))
        throw new AppError('invalid', `invalid pattern (${pattern}) in substitution: invalid escape '\\${escaped}'`);
      tokens.push({ kind: 'char', char: escaped });
    }
  }
  return tokens;
}

/** Where matches that begin at `start` can end: the first or the last such place; undefined = none. */
function endOf(
  glob: Glob,
  chars: readonly string[],
  start: number,
  { longest, meter }: { readonly longest: boolean; readonly meter: Meter },
): number | undefined {
  // states[i]: the first i tokens have matched what was read.
  let states = reach(glob, new Set([0]));
  let found: number | undefined;
  for (let at = start; ; at++) {
    meter(STEP_UNITS * (states.size + 1));
    if (states.has(glob.length)) {
      found = at;
      if (!longest) return found;
    }
    const char = chars[at];
    if (char === undefined || states.size === 0) return found;
    const next = new Set<number>();
    for (const state of states) {
      const token = glob[state];
      if (token === undefined) continue;
      if (token.kind === 'many') {
        if (char !== '\n') next.add(state);
      } else if (token.kind === 'one' ? char !== '\n' : token.char === char) next.add(state + 1);
    }
    states = reach(glob, next);
  }
}

/** With what is reached by nothing: `*` matches it. */
function reach(glob: Glob, states: Set<number>): Set<number> {
  for (const state of states) if (glob[state]?.kind === 'many') states.add(state + 1);
  return states;
}

export interface TrimOptions {
  readonly from: 'start' | 'end';
  readonly longest: boolean;
  readonly meter: Meter;
}

/** The value without what the pattern matches at one end. */
export function trimByGlob(value: string, glob: Glob, { from, longest, meter }: TrimOptions): string {
  const forward = from === 'start';
  const chars = forward ? [...value] : [...value].reverse();
  const end = endOf(forward ? glob : glob.toReversed(), chars, 0, { longest, meter });
  if (end === undefined) return value;
  const rest = chars.slice(end);
  return (forward ? rest : rest.reverse()).join('');
}

/** The value with the first match, or each, replaced; of several that begin at one place the longest. */
export function replaceByGlob(
  value: string,
  glob: Glob,
  { replacement, all, meter }: { readonly replacement: string; readonly all: boolean; readonly meter: Meter },
): string {
  const chars = [...value];
  const out: string[] = [];
  let at = 0;
  let lastEnd = -1;
  while (at <= chars.length) {
    const end = endOf(glob, chars, at, { longest: true, meter });
    // No empty match right behind another.
    if (end !== undefined && !(end === at && at === lastEnd)) {
      meter(replacement.length);
      out.push(replacement);
      lastEnd = end;
      if (!all) return [...out, ...chars.slice(end)].join('');
      if (end > at) {
        at = end;
        continue;
      }
    }
    out.push(chars[at] ?? '');
    at += 1;
  }
  return out.join('');
}
