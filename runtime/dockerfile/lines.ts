/**
 * A Dockerfile as logical lines: directives read, continuations joined, comments set aside, here-documents attached.
 * Pure, and linear in the length of the text.
 *
 * This is our own, not dockerfile-ast's, see docs/adr/0021-dockerfiles-read-by-our-own-parser.md. The rules that are
 * easy to get wrong: a line continues when its last character but blanks is an escape that no other escape precedes;
 * comments and empty lines inside a continued instruction are skipped; only a run of `# key=value` at the very top is
 * directives; here-documents are found among the words of the joined line, never inside quotes or the JSON form.
 */
import { clip, errorAt, type Location, type Source } from './source.ts';
import { type Escape, expandWords, type Variables } from './words.ts';

export interface Heredoc {
  /** The closing line, quotes removed: for COPY and ADD the name of the file. */
  readonly name: string;
  /** As written, with its line ends. */
  readonly content: string;
  /** Variables are expanded where the instruction does that: its name is not quoted. */
  readonly expands: boolean;
  /** `<<-`: tabs at the start of lines do not count. */
  readonly stripsTabs: boolean;
}

/** One instruction's text, whatever lines it is written on. */
export interface LogicalLine {
  /** Joined, trimmed. */
  readonly text: string;
  readonly keyword: string;
  /** `--name=value` before the arguments, quotes and escapes removed. */
  readonly flags: readonly string[];
  /** The arguments, trimmed. */
  readonly rest: string;
  readonly heredocs: readonly Heredoc[];
  /** Of the lines right above it, without their `#`. */
  readonly comments: readonly string[];
  readonly at: Location;
  /** 1-based line of an empty line in a continuation. */
  readonly emptyContinuation: number | undefined;
  /** Where in the file a place in `text` is. */
  locate(offset: number): Location;
}

export interface Directives {
  readonly syntax: string | undefined;
  readonly escape: Escape;
  /** Of `# check=`, unread. */
  readonly check: string | undefined;
}

/** What Docker's reader takes too. */
const LINE_MAX_BYTES = 65_535;
const DIRECTIVES = ['syntax', 'escape', 'check'];
const TAKES_HEREDOCS = ['RUN', 'COPY', 'ADD'];

/** @throws AppError 'invalid' with its place */
export function readLines(source: Source): { directives: Directives; lines: readonly LogicalLine[] } {
  const long = source.lines.findIndex(
    (line) => line.length * 3 > LINE_MAX_BYTES && Buffer.byteLength(line) > LINE_MAX_BYTES,
  );
  if (long !== -1)
    throw errorAt(lineAt(source, long), `dockerfile line greater than max allowed size of ${LINE_MAX_BYTES}`);
  const { directives, count } = readDirectives(source);
  const reader = new Reader(source, directives.escape, count);
  const lines: LogicalLine[] = [];
  for (let line = reader.next(); line !== undefined; line = reader.next()) lines.push(line);
  return { directives, lines };
}

function lineAt(source: Source, index: number, endIndex = index): Location {
  return { source, line: index + 1, column: 1, endLine: endIndex + 1 };
}

function readDirectives(source: Source): { directives: Directives; count: number } {
  const found = new Map<string, string>();
  let count = 0;
  for (const line of source.lines) {
    const directive = directiveOf(line);
    if (directive === undefined) break;
    const [key, value] = directive;
    const at = lineAt(source, count);
    if (found.has(key)) throw errorAt(at, `only one ${key} parser directive can be used`);
    if (key === 'escape' && value !== '\\' && value !== '`')
      throw errorAt(at, `invalid escape token '${clip(value)}' does not match \` or \\`);
    found.set(key, value);
    count += 1;
  }
  const escapeToken = found.get('escape') === '`' ? '`' : '\\';
  return { directives: { syntax: found.get('syntax'), escape: escapeToken, check: found.get('check') }, count };
}

/** `# key = value` of a key that is known; anything else ends the directives. */
function directiveOf(line: string): readonly [string, string] | undefined {
  const text = line.trim();
  const equals = text.indexOf('=');
  if (!text.startsWith('#') || equals === -1) return undefined;
  const key = text.slice(1, equals).trim().toLowerCase();
  const value = text.slice(equals + 1).trim();
  return DIRECTIVES.includes(key) && value !== '' ? [key, value] : undefined;
}

interface Piece {
  /** In the joined text. */
  readonly offset: number;
  readonly line: number;
  readonly column: number;
}

class Reader {
  readonly #source: Source;
  readonly #escape: Escape;
  /** Index of the next line of the file. */
  #at: number;
  #comments: string[] = [];

  constructor(source: Source, escapeToken: Escape, start: number) {
    this.#source = source;
    this.#escape = escapeToken;
    this.#at = start;
  }

  next(): LogicalLine | undefined {
    for (; this.#at < this.#source.lines.length; this.#at++) {
      const text = (this.#source.lines[this.#at] ?? '').trimStart();
      if (text.startsWith('#')) this.#comment(text);
      else if (text !== '') return this.#instruction();
    }
    return undefined;
  }

  /** An empty comment parts what is above from the instruction below. */
  #comment(text: string): void {
    const comment = text.slice(1).trim();
    if (comment === '') this.#comments = [];
    else this.#comments.push(comment);
  }

  #instruction(): LogicalLine | undefined {
    const start = this.#at;
    const joined = this.#join();
    const text = joined.text.trim();
    // A lone escape that nothing follows.
    if (text === '') return this.next();
    const command = splitCommand(text, this.#escape);
    const names = heredocsOf(text, command, this.#escape);
    const heredocs = names.map((heredoc) => ({ ...heredoc, content: this.#document(heredoc, start) }));
    const { pieces } = joined;
    const shift = joined.text.length - joined.text.trimStart().length;
    const source = this.#source;
    const endLine = this.#at;
    const locate = (offset: number): Location => {
      const piece = pieces.findLast((each) => each.offset <= offset + shift) ?? { offset: 0, line: start, column: 0 };
      return { source, line: piece.line + 1, column: piece.column + offset + shift - piece.offset + 1, endLine };
    };
    const first = locate(0);
    const comments = this.#comments;
    this.#comments = [];
    return { ...command, text, heredocs, comments, locate, at: first, emptyContinuation: joined.empty };
  }

  #join(): { text: string; pieces: readonly Piece[]; empty: number | undefined } {
    const parts: string[] = [];
    const pieces: Piece[] = [];
    let length = 0;
    let empty: number | undefined;
    for (let isOpen = true; isOpen && this.#at < this.#source.lines.length; this.#at++) {
      const raw = trimReturns(this.#source.lines[this.#at] ?? '');
      const isFirst = parts.length === 0;
      const bare = raw.trimStart();
      if (!isFirst && bare.startsWith('#')) continue;
      if (!isFirst && bare === '') {
        empty = this.#at + 1;
        continue;
      }
      const line = isFirst ? bare : raw;
      const continued = continuedBy(line, this.#escape);
      isOpen = continued !== undefined;
      pieces.push({ offset: length, line: this.#at, column: raw.length - line.length });
      parts.push(continued ?? line);
      length += (continued ?? line).length;
    }
    return { text: parts.join(''), pieces, empty };
  }

  #document({ name, stripsTabs }: Omit<Heredoc, 'content'>, start: number): string {
    const from = this.#at;
    for (; this.#at < this.#source.lines.length; this.#at++) {
      const line = trimReturns(this.#source.lines[this.#at] ?? '');
      if ((stripsTabs ? line.replace(/^\t+/, '') : line) !== name) continue;
      const content = this.#source.lines.slice(from, this.#at).map((each) => `${each}\n`);
      this.#at += 1;
      return content.join('');
    }
    throw errorAt(lineAt(this.#source, start), `unterminated heredoc: no line ${JSON.stringify(clip(name))} follows`);
  }
}

/** Lines end in CRLF on some systems. Not by RegExp, which looks for the end from every `\r`. */
function trimReturns(line: string): string {
  let end = line.length;
  while (line[end - 1] === '\r') end -= 1;
  return line.slice(0, end);
}

/** The line without its continuation; undefined = it ends here. */
function continuedBy(line: string, escapeToken: Escape): string | undefined {
  let end = line.length;
  while (line[end - 1] === ' ' || line[end - 1] === '\t') end -= 1;
  return line[end - 1] === escapeToken && line[end - 2] !== escapeToken ? line.slice(0, end - 1) : undefined;
}

type Command = Pick<LogicalLine, 'keyword' | 'flags' | 'rest'>;

/** What stands first is the instruction, what begins with `--` behind it are its flags. */
export function splitCommand(text: string, escapeToken: Escape): Command {
  const keyword = /^\S+/.exec(text)?.[0] ?? '';
  const { flags, rest } = splitFlags(text.slice(keyword.length), escapeToken);
  return { keyword, flags, rest: rest.trim() };
}

function splitFlags(text: string, escapeToken: Escape): { flags: readonly string[]; rest: string } {
  const flags: string[] = [];
  let at = 0;
  for (;;) {
    while (at < text.length && isBlank(text[at])) at += 1;
    if (!text.startsWith('--', at)) return { flags, rest: text.slice(at) };
    const word: string[] = [];
    let quote = '';
    for (; at < text.length && (quote !== '' || !isBlank(text[at])); at++) {
      const char = text[at] ?? '';
      if (char === escapeToken) {
        at += 1;
        word.push(text[at] ?? '');
      } else if (quote === '' ? char === '"' || char === "'" : char === quote) quote = quote === '' ? char : '';
      else word.push(char);
    }
    const flag = word.join('');
    // Everything behind a bare `--` is arguments.
    if (flag === '--') return { flags, rest: text.slice(at) };
    flags.push(flag);
  }
}

function isBlank(char: string | undefined): boolean {
  return char !== undefined && /\s/.test(char);
}

const NO_VARIABLES: Variables = { escape: '\\', get: () => undefined };

function heredocsOf(text: string, command: Command, escapeToken: Escape): readonly Omit<Heredoc, 'content'>[] {
  if (!text.includes('<<')) return [];
  const isTrigger = command.keyword.toUpperCase() === 'ONBUILD';
  const { keyword, rest } = isTrigger ? splitCommand(command.rest, escapeToken) : command;
  if (!TAKES_HEREDOCS.includes(keyword.toUpperCase()) || jsonWords(rest) !== undefined) return [];
  let words: readonly string[];
  try {
    words = expandWords(text, NO_VARIABLES, { quotes: 'keep', escapes: 'keep', keepsMissing: true }).values;
  } catch {
    // A shell may make sense of quotes that this lexer cannot pair; then there are no here-documents.
    return [];
  }
  return words.map(heredocIn).filter((heredoc) => heredoc !== undefined);
}

/** `<<NAME`, `<<-"NAME"`, `3<<NAME` as one word; undefined when it is none. */
export function heredocIn(word: string): Omit<Heredoc, 'content'> | undefined {
  const match = /^\d*<<(-?)\s*([^<\s][^<]*)$/.exec(word);
  if (match === null) return undefined;
  const [, dash, quoted = ''] = match;
  let names: readonly string[];
  try {
    names = expandWords(quoted, NO_VARIABLES, { keepsMissing: true }).values;
  } catch {
    return undefined;
  }
  const [name] = names;
  if (name === undefined || names.length !== 1) return undefined;
  return { name, stripsTabs: dash === '-', expands: quotesIn(quoted) === quotesIn(name) };
}

function quotesIn(text: string): number {
  return text.split(/['"]/).length;
}

/** The content that counts. */
export function heredocText({ content, stripsTabs }: Heredoc): string {
  return stripsTabs ? content.replace(/(^|\n)\t+/g, '$1') : content;
}

/** The words of the JSON form; undefined = it is not JSON, `invalid` = JSON of something else than words. */
export function jsonWords(text: string): readonly string[] | 'invalid' | undefined {
  if (!text.startsWith('[')) return undefined;
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    // What only looks like JSON is words, as with Docker.
    return undefined;
  }
  if (!Array.isArray(parsed)) return undefined;
  return parsed.every((word) => typeof word === 'string') ? parsed : 'invalid';
}
