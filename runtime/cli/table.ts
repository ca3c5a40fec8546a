/** Columns as docker prints them: upper-case heads, three spaces between, no trailing blanks. Pure. */

export interface Column<T> {
  readonly head: string;
  readonly cell: (row: T) => string;
}

const GAP = 3;

export function formatTable<T>(columns: readonly Column<T>[], rows: readonly T[]): string {
  const lines = [columns.map((column) => column.head), ...rows.map((row) => columns.map((column) => column.cell(row)))];
  return alignColumns(lines);
}

/** Pads every column but the last of each line to its widest cell. */
export function alignColumns(lines: readonly (readonly string[])[]): string {
  const widths: number[] = [];
  for (const line of lines)
    line.forEach((cell, index) => {
      widths[index] = Math.max(widths[index] ?? 0, [...cell].length);
    });
  return lines
    .map((line) =>
      line
        .map((cell, index) => cell + ' '.repeat((widths[index] ?? 0) - [...cell].length + GAP))
        .join('')
        .trimEnd(),
    )
    .join('\n');
}

/** Docker's ellipsis: at most `width` characters. */
export function ellipsis(text: string, width: number): string {
  const characters = [...text];
  return characters.length <= width ? text : `${characters.slice(0, width - 1).join('')}…`;
}
