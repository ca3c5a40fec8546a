/**
 * Where in a Dockerfile something stands, and how messages show it: the words, `NAME:LINE:COLUMN`, and the lines with a
 * mark, in the form that BuildKit has made familiar. Pure.
 *
 * A Dockerfile is foreign text that ends on somebody's terminal: control characters are replaced, long lines and long
 * instructions are cut.
 */
import { AppError } from '../../shared/errors.ts';

export interface Source {
  /** As the user calls the file. */
  readonly name: string;
  /** Without their line ends. */
  readonly lines: readonly string[];
}

/** 1-based; the end is inclusive. */
export interface Location {
  readonly source: Source;
  readonly line: number;
  readonly column: number;
  readonly endLine: number;
}

const RULE = '-'.repeat(20);
const LINES_MAX = 24;
const LINE_MAX = 240;
const WORD_MAX = 200;

/** The lines of a location, marked, among some of their neighbours. Ends with a line end. */
export function showSource({ source, line, column, endLine }: Location): string {
  const last = Math.min(endLine, line + LINES_MAX - 1, source.lines.length);
  const around = last === line ? 2 : 1;
  const first = Math.max(1, line - around);
  const rows: string[] = [];
  for (let at = first; at <= Math.min(source.lines.length, last + around); at++) {
    const mark = at >= line && at <= endLine ? '>>>' : '   ';
    rows.push(` ${String(at).padStart(3)} | ${mark} ${clip(source.lines[at - 1] ?? '', LINE_MAX)}`);
  }
  if (endLine > last) rows.push(`     | >>> … ${endLine - last} more`);
  return `${source.name}:${line}:${column}\n${RULE}\n${rows.join('\n')}\n${RULE}\n`;
}

/** An error with its place: for what a Dockerfile says, and for a step of a build that failed. */
export function errorAt(
  location: Location,
  message: string,
  { kind = 'invalid', cause, detail }: ErrorAtOptions = {},
): AppError {
  const { source, line, column } = location;
  return new AppError(kind, `${message}\n${showSource(location).trimEnd()}`, {
    cause,
    detail: { ...detail, file: source.name, line, column },
  });
}

export interface ErrorAtOptions {
  readonly kind?: AppError['kind'];
  readonly cause?: unknown;
  readonly detail?: Readonly<Record<string, unknown>> | undefined;
}

/** Foreign text as messages may show it. */
export function clip(text: string, max = WORD_MAX): string {
  const shown = text.length > max ? `${text.slice(0, max)}…` : text;
  return shown.replace(/[^\P{Cc}\t]/gu, '\ufffd');
}

/** ` (did you mean X?)` for a slip of at most two letters, else nothing. */
export function didYouMean(word: string, known: Iterable<string>): string {
  let best: string | undefined;
  let least = 3;
  for (const option of known) {
    if (option === word) return '';
    // Also keeps the table small for a word without end.
    if (Math.abs(option.length - word.length) >= least) continue;
    const distance = editDistance(word, option);
    if (distance >= least) continue;
    least = distance;
    best = option;
  }
  return best === undefined ? '' : ` (did you mean ${best}?)`;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
