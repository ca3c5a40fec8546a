/**
 * Words and variables as the Dockerfile's shell-like lexer reads them: `$name`, `${name}` with its modifiers, quotes,
 * the escape character. Pure. https://docs.docker.com/reference/dockerfile/#environment-replacement
 *
 * It is no shell: a value that comes out of a variable is not read again, `'` takes everything but itself, and `"` takes
 * everything but `$` and an escape before `"`, `$` or itself. Values can double on each line of a file, so what an
 * expansion may cost is metered.
 */
import { AppError } from '../../shared/errors.ts';
import { type Meter, parseGlob, replaceByGlob, trimByGlob } from './glob.ts';
import { clip } from './source.ts';

export type Escape = '\\' | '`';

/** What words are expanded with. */
export interface Variables {
  readonly escape: Escape;
  get(name: string): string | undefined;
  /** Counts what expansions cost; absent = one expansion is metered by itself. */
  readonly meter?: Meter | undefined;
}

export interface Names {
  /** Variables that were asked for and are set. */
  readonly used: ReadonlySet<string>;
  /** Variables that were asked for and are not. */
  readonly missing: ReadonlySet<string>;
}
export interface ExpandedWord extends Names {
  readonly value: string;
}
export interface ExpandedWords extends Names {
  readonly values: readonly string[];
}

export interface LexOptions {
  /** Quotes stay where they are, and mean nothing when `plain`. */
  readonly quotes?: 'strip' | 'keep' | 'plain';
  readonly escapes?: 'strip' | 'keep';
  /** What is not set stays as it is written. */
  readonly keepsMissing?: boolean;
}

const NESTING_MAX = 100;
const VALUE_MAX = 4 * 1024 * 1024;
const WORK_MAX = 64 * 1024 * 1024;

/** A meter for everything that one Dockerfile asks for. @throws AppError 'invalid' when it is too much */
export function createMeter(max = WORK_MAX): Meter {
  let left = max;
  return (units) => {
    left -= units;
    if (left < 0) throw new AppError('invalid', 'its variables take too much work to expand');
  };
}

/** The text as one word: blanks stay. @throws AppError 'invalid' */
export function expandWord(text: string, variables: Variables, options?: LexOptions): ExpandedWord {
  const { value, used, missing } = lex(text, variables, options);
  return { value, used, missing };
}

/** The text as words: variables are expanded first, then blanks outside quotes part. @throws AppError 'invalid' */
export function expandWords(text: string, variables: Variables, options?: LexOptions): ExpandedWords {
  const { values, used, missing } = lex(text, variables, options);
  return { values, used, missing };
}

function lex(text: string, variables: Variables, options: LexOptions = {}): ExpandedWord & ExpandedWords {
  const lexer = new Lexer(text, variables, options);
  try {
    const { value, words } = lexer.run();
    return { value, values: words, used: lexer.used, missing: lexer.missing };
  } catch (cause) {
    if (!(cause instanceof AppError)) throw cause;
    throw new AppError('invalid', `failed to process ${JSON.stringify(clip(text))}: ${cause.message}`, { cause });
  }
}

const BLANK = /\s/;
const isBlank = (char: string) => BLANK.test(char);
const isLetter = (char: string) => /[\p{L}\p{Nd}_]/u.test(char);
const isDigit = (char: string) => /\p{Nd}/u.test(char);
const SPECIAL = '@*#?-$!';

function bad(message: string): AppError {
  return new AppError('invalid', message);
}

/** Words that grow out of pieces: of a variable's value blanks part, of a quoted piece nothing does. */
class WordList {
  readonly #words: string[] = [];
  #parts: string[] = [];
  #length = 0;

  addRaw(text: string): void {
    if (text === '') return;
    this.#parts.push(text);
    this.#length += text.length;
  }

  addSplit(text: string): void {
    for (const piece of text.split(/(\s+)/)) {
      if (piece === '') continue;
      if (isBlank(piece)) this.#close();
      else this.addRaw(piece);
    }
  }

  finish(): readonly string[] {
    this.#close();
    return this.#words;
  }

  #close(): void {
    if (this.#length > 0) this.#words.push(this.#parts.join(''));
    this.#parts = [];
    this.#length = 0;
  }
}

class Lexer {
  readonly used = new Set<string>();
  readonly missing = new Set<string>();
  readonly #text: string;
  readonly #variables: Variables;
  readonly #options: LexOptions;
  readonly #meter: Meter;
  #at = 0;
  #depth = 0;

  constructor(text: string, variables: Variables, options: LexOptions) {
    this.#text = text;
    this.#variables = variables;
    this.#options = options;
    this.#meter = variables.meter ?? createMeter();
  }

  run(): { readonly value: string; readonly words: readonly string[] } {
    this.#meter(this.#text.length);
    return this.#until(undefined, this.#options.escapes === 'keep');
  }

  get #char(): string | undefined {
    return this.#text[this.#at];
  }

  /** Reads up to the closing character, which it takes, or to the end. */
  #until(stop: string | undefined, keepsEscapes: boolean): { value: string; words: readonly string[] } {
    const parts: string[] = [];
    const words = new WordList();
    let length = 0;
    const add = (piece: string, form: 'raw' | 'split') => {
      length += piece.length;
      if (length > VALUE_MAX) throw bad(`the value is longer than ${VALUE_MAX} characters`);
      parts.push(piece);
      if (form === 'raw') words.addRaw(piece);
      else words.addSplit(piece);
    };
    const hasQuotes = this.#options.quotes !== 'plain';
    for (let char = this.#char; char !== undefined; char = this.#char) {
      if (char === stop) {
        this.#at += 1;
        return { value: parts.join(''), words: words.finish() };
      }
      if (char === '$') add(this.#dollar(), 'split');
      else if (char === '<') add(this.#angle(), 'raw');
      else if (char === "'" && hasQuotes) add(this.#single(), 'raw');
      else if (char === '"' && hasQuotes) add(this.#double(keepsEscapes), 'raw');
      else if (char === this.#variables.escape) {
        const escaped = this.#text[this.#at + 1] ?? '';
        this.#at += 2;
        if (keepsEscapes) add(char, 'raw');
        add(escaped, 'raw');
      } else {
        this.#at += 1;
        add(char, 'split');
      }
    }
    if (stop !== undefined) throw bad(`syntax error: missing '${stop}'`);
    return { value: parts.join(''), words: words.finish() };
  }

  #single(): string {
    const end = this.#text.indexOf("'", this.#at + 1);
    if (end === -1) throw bad('unexpected end of statement while looking for matching single-quote');
    const start = this.#at;
    this.#at = end + 1;
    return this.#options.quotes === 'keep' ? this.#text.slice(start, end + 1) : this.#text.slice(start + 1, end);
  }

  #double(keepsEscapes: boolean): string {
    const quote = this.#options.quotes === 'keep' ? '"' : '';
    const parts = [quote];
    this.#at += 1;
    for (let char = this.#char; char !== undefined; char = this.#char) {
      if (char === '$') {
        parts.push(this.#dollar());
        continue;
      }
      this.#at += 1;
      if (char === '"') return [...parts, quote].join('');
      if (char === this.#variables.escape) {
        if (keepsEscapes) parts.push(char);
        const next = this.#char;
        if (next === undefined) continue;
        if (next === '"' || next === '$' || next === this.#variables.escape) {
          char = next;
          this.#at += 1;
        }
      }
      parts.push(char);
    }
    throw bad('unexpected end of statement while looking for matching double-quote');
  }

  /** `<<` and the blanks behind it are one piece, so that `<< EOF` is one word. */
  #angle(): string {
    const start = this.#at;
    this.#at += 1;
    if (this.#char !== '<') return '<';
    do this.#at += 1;
    while (' \t\r'.includes(this.#text[this.#at] ?? 'x'));
    return this.#text.slice(start, this.#at);
  }

  #dollar(): string {
    const start = this.#at;
    this.#at += 1;
    if (this.#char !== '{') {
      const name = this.#name();
      return name === '' ? '$' : (this.#value(name) ?? this.#unset(start));
    }
    this.#at += 1;
    if (this.#char === undefined) throw bad("syntax error: missing '}'");
    if ('{}:'.includes(this.#char)) throw bad('syntax error: bad substitution');
    this.#depth += 1;
    if (this.#depth > NESTING_MAX) throw bad(`substitutions are nested deeper than ${NESTING_MAX}`);
    const value = this.#substitution(start);
    this.#depth -= 1;
    return value;
  }

  #unset(start: number): string {
    return this.#options.keepsMissing === true ? this.#text.slice(start, this.#at) : '';
  }

  /** Letters, digits and `_`; a number; or one special character. */
  #name(): string {
    const start = this.#at;
    const first = this.#char ?? '';
    const takes = isDigit(first) ? isDigit : isLetter;
    if (first !== '' && SPECIAL.includes(first)) this.#at += 1;
    else while (this.#char !== undefined && takes(this.#char)) this.#at += 1;
    return this.#text.slice(start, this.#at);
  }

  #value(name: string): string | undefined {
    const value = this.#variables.get(name);
    (value === undefined ? this.missing : this.used).add(name);
    this.#meter(value?.length ?? 0);
    return value;
  }

  /** Behind `${`. */
  #substitution(start: number): string {
    const name = this.#name();
    let modifier = this.#char ?? '';
    this.#at += 1;
    if (modifier === '') throw bad("syntax error: missing '}'");
    if (modifier === '}') return this.#value(name) ?? this.#unset(start);
    if (modifier === '/') return this.#replaced(name, start);
    const emptyIsUnset = modifier === ':';
    if (emptyIsUnset) {
      modifier = this.#char ?? '';
      this.#at += 1;
    }
    const isTrim = modifier === '#' || modifier === '%';
    if (!(isTrim && !emptyIsUnset) && !'+-?'.includes(modifier || 'x'))
      throw bad(`unsupported modifier (${emptyIsUnset ? ':' : ''}${clip(modifier)}) in substitution`);
    const word = this.#until('}', isTrim).value;
    const value = this.#value(name);
    if (value === undefined && this.#options.keepsMissing === true) return this.#text.slice(start, this.#at);
    if (isTrim) return value === undefined ? '' : this.#trimmed(value, word, modifier);
    const isSet = value !== undefined && !(emptyIsUnset && value === '');
    if (modifier === '+') return isSet ? word : '';
    if (isSet) return value;
    if (modifier === '-') return word;
    throw bad(`${name}: ${word || `is not allowed to be ${value === undefined ? 'unset' : 'empty'}`}`);
  }

  #trimmed(value: string, word: string, modifier: string): string {
    const longest = word.startsWith(modifier);
    const glob = parseGlob(longest ? word.slice(1) : word);
    return trimByGlob(value, glob, { from: modifier === '#' ? 'start' : 'end', longest, meter: this.#meter });
  }

  #replaced(name: string, start: number): string {
    const all = this.#char === '/';
    if (all) this.#at += 1;
    const glob = parseGlob(this.#until('/', true).value);
    const replacement = this.#until('}', true).value;
    const value = this.#value(name);
    if (value === undefined) return this.#unset(start);
    return replaceByGlob(value, glob, { replacement, all, meter: this.#meter });
  }
}
