/**
 * Rows of the benchmark: ours and a peer's, measured in turns in one run, told as a ratio of medians. Absolute numbers
 * on a shared machine mean little; ratios of paired runs mean something.
 */
import { formatBinaryBytes } from '../../shared/units.ts';

export type Unit = 'ms' | 'bytes' | 'bytes/s' | '1/s';

/** What docs say the row must reach: a ratio to the peer, or a value in the row's unit. */
export type Budget =
  | { readonly kind: 'ratio-at-most' | 'ratio-at-least'; readonly value: number }
  | { readonly kind: 'at-most'; readonly value: number };

export interface Row {
  readonly what: string;
  readonly unit: Unit;
  readonly ours: number;
  readonly peer: { readonly name: string; readonly value: number };
  readonly budget: Budget;
  /** CPU milliseconds that both took for it, where that was measured. */
  readonly cpu?: { readonly ours: number; readonly peer: number };
}

/** One measurement, with the CPU time that it cost. */
export interface Sample {
  readonly value: number;
  readonly cpuMs: number;
}

export interface Contest {
  readonly what: string;
  readonly unit: Unit;
  readonly runs: number;
  readonly budget: Budget;
  /** One measurement of ours, in `unit`. */
  readonly ours: (run: number) => Promise<number | Sample>;
  readonly peer: { readonly name: string; readonly measure: (run: number) => Promise<number | Sample> };
}

/** Measures both in turns, so that what else the machine does hits both; who goes first changes with every run. */
export async function compete(contest: Contest): Promise<Row> {
  const values = { ours: [] as (number | Sample)[], peer: [] as (number | Sample)[] };
  const turns = [
    async (run: number) => values.ours.push(await contest.ours(run)),
    async (run: number) => values.peer.push(await contest.peer.measure(run)),
  ];
  for (let run = 0; run < contest.runs; run++) {
    for (const turn of run % 2 === 0 ? turns : turns.toReversed()) await turn(run);
  }
  const { what, unit, budget } = contest;
  const middle = (samples: readonly (number | Sample)[]) =>
    median(samples.map((sample) => (typeof sample === 'number' ? sample : sample.value)));
  const cpu = (samples: readonly (number | Sample)[]) =>
    samples.flatMap((sample) => (typeof sample === 'number' ? [] : [sample.cpuMs]));
  const [ours, peer] = [cpu(values.ours), cpu(values.peer)];
  return {
    what,
    unit,
    budget,
    ours: middle(values.ours),
    peer: { name: contest.peer.name, value: middle(values.peer) },
    ...(ours.length > 0 && peer.length > 0 && { cpu: { ours: median(ours), peer: median(peer) } }),
  };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  const [low, high] = [sorted[sorted.length % 2 === 0 ? middle - 1 : middle], sorted[middle]];
  if (low === undefined || high === undefined) throw new Error('cannot take the median of no values');
  return (low + high) / 2;
}

export async function milliseconds(action: () => Promise<unknown>): Promise<number> {
  const from = performance.now();
  await action();
  return performance.now() - from;
}

export function isWithin(row: Row): boolean {
  const ratio = row.ours / row.peer.value;
  if (row.budget.kind === 'ratio-at-most') return ratio <= row.budget.value;
  return row.budget.kind === 'ratio-at-least' ? ratio >= row.budget.value : row.ours <= row.budget.value;
}

export function table(rows: readonly Row[]): string {
  const lines = rows.map((row) => [
    row.what,
    format(row.ours, row.unit),
    `${format(row.peer.value, row.unit)} (${row.peer.name})`,
    `${(row.ours / row.peer.value).toFixed(2)} ×`,
    row.cpu === undefined ? '' : `${format(row.cpu.ours, 'ms')} : ${format(row.cpu.peer, 'ms')}`,
    budgetText(row),
    isWithin(row) ? 'yes' : 'NO',
  ]);
  const cells = [['what', 'berth', 'peer', 'ratio', 'cpu', 'budget', 'within'], ...lines];
  const widths = cells[0]?.map((_, column) => Math.max(...cells.map((line) => line[column]?.length ?? 0))) ?? [];
  const print = (line: readonly string[]) => `| ${line.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join(' | ')} |`;
  const [head = [], ...body] = cells;
  return [print(head), print(widths.map((width) => '-'.repeat(width))), ...body.map(print)].join('\n');
}

function budgetText({ budget, unit }: Row): string {
  if (budget.kind === 'at-most') return `≤ ${format(budget.value, unit)}`;
  return `${budget.kind === 'ratio-at-most' ? '≤' : '≥'} ${budget.value} ×`;
}

function format(value: number, unit: Unit): string {
  if (unit === 'ms') return `${value < 100 ? value.toFixed(1) : value.toFixed(0)} ms`;
  if (unit === '1/s') return `${value.toFixed(0)}/s`;
  return unit === 'bytes' ? formatBinaryBytes(value) : `${formatBinaryBytes(value)}/s`;
}
