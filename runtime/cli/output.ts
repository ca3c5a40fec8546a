/**
 * `--format` for lists: nothing = docker's table, `json` = one JSON object a line, `table TEMPLATE`, or a template per
 * row. Data goes to stdout, talk to stderr. Pure but for `print`.
 */
import { parseTemplate } from './go-template.ts';
import { alignColumns, type Column, formatTable } from './table.ts';

/** One row of a list: docker's names for the values, as templates and `--format json` know them. */
export type Row = Readonly<Record<string, string>>;

export interface ListOptions {
  readonly format?: string | undefined;
  /** Only the ids. */
  readonly quiet?: string | undefined;
}

/** `columns` are keys of the rows with their heads, in the order of the default table. */
export function formatRows(
  rows: readonly Row[],
  columns: readonly (readonly [key: string, head: string])[],
  options: ListOptions = {},
): string {
  const { format, quiet } = options;
  if (quiet !== undefined) return rows.map((row) => row[quiet] ?? '').join('\n');
  if (format === undefined || format === '' || format === 'table') {
    const shown: Column<Row>[] = columns.map(([key, head]) => ({ head, cell: (row) => row[key] ?? '' }));
    return formatTable(shown, rows);
  }
  if (format === 'json' || format === '{{json .}}') return rows.map((row) => JSON.stringify(row)).join('\n');
  const unescaped = format.replaceAll('\\t', '\t').replaceAll('\\n', '\n');
  if (unescaped.startsWith('table ')) {
    const template = parseTemplate(unescaped.slice('table '.length));
    const heads: Record<string, string> = Object.fromEntries(
      Object.keys(rows[0] ?? {}).map((key) => [key, key.toUpperCase()]),
    );
    for (const [key, head] of columns) heads[key] = head;
    return alignColumns([heads, ...rows].map((row) => template(row).split('\t')));
  }
  const template = parseTemplate(unescaped);
  return rows.map((row) => template(row)).join('\n');
}

/** `inspect`: indented JSON, or a template per object. */
export function formatObjects(objects: readonly unknown[], format: string | undefined): string {
  if (format === undefined || format === '') return JSON.stringify(objects, null, 4);
  if (format === 'json') return JSON.stringify(objects);
  const template = parseTemplate(format.replaceAll('\\t', '\t').replaceAll('\\n', '\n'));
  return objects.map((item) => template(item)).join('\n');
}

/** Data for the user: stdout, ended by a newline; nothing at all when there is none. */
export function print(text: string): void {
  if (text !== '') process.stdout.write(`${text}\n`);
}

/** Talk: stderr. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}
