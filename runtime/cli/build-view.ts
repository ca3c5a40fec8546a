/**
 * What a build does, shown on stderr: on a terminal finished steps as one line each and the running ones with the end of
 * their output; plain lines in a pipe; the engine's own events as JSON; or only what failed. When a step fails its whole output is
 * there to be read.
 */
import { StringDecoder } from 'node:string_decoder';
import { stripVTControlCharacters } from 'node:util';
import { formatBytes } from '../../shared/units.ts';
import type { ProgressKind } from './build-request.ts';
import { type Json, number, object, text } from './values.ts';

export interface BuildView {
  /** An event as the engine sends it. */
  show(event: Json): void;
  /** Something to say in between. */
  note(line: string): void;
  /** Leaves the terminal in order. Afterwards nothing is shown. */
  end(): void;
}

export interface ViewOptions {
  readonly output: NodeJS.WriteStream;
  readonly kind: ProgressKind;
  /** Milliseconds that only count up. */
  readonly clock: () => number;
}

export function createBuildView(options: ViewOptions): BuildView {
  const { kind, output } = options;
  if (kind === 'quiet') return quietView(options);
  if (kind === 'rawjson') return jsonView(output);
  return kind === 'tty' || (kind === 'auto' && output.isTTY) ? liveView(options) : plainView(options);
}

function jsonView(output: NodeJS.WriteStream): BuildView {
  return {
    show: (event) => void output.write(`${JSON.stringify(event)}\n`),
    note: (line) => void output.write(`${JSON.stringify({ kind: 'note', text: line })}\n`),
    end() {},
  };
}

/** Characters of a running step's output that are kept for the case that it fails; the first ones go. */
const KEPT_CHARACTERS = 8 << 20;
const PROGRESS_MS = 1000;

interface Step {
  readonly number: number;
  /** `[build 2/5] RUN npm ci` */
  readonly title: string;
  readonly startedAt: number;
  readonly decoders: { readonly stdout: StringDecoder; readonly stderr: StringDecoder };
  /** The line that has no end yet. */
  rest: string;
  /** Complete lines. */
  readonly lines: string[];
  keptCharacters: number;
  readonly bars: Map<string, string>;
  toldAt: number;
}

function stepOf(event: Json, clock: () => number): Step {
  const step = object(event.step);
  const position = object(step.position);
  const place = [
    text(step.platform),
    text(step.stage),
    step.position === undefined ? '' : `${number(position.index)}/${number(position.total)}`,
  ].filter((part) => part !== '');
  return {
    number: number(step.id),
    title: place.length === 0 ? text(step.text) : `[${place.join(' ')}] ${text(step.text)}`,
    startedAt: clock(),
    decoders: { stdout: new StringDecoder('utf8'), stderr: new StringDecoder('utf8') },
    rest: '',
    lines: [],
    keptCharacters: 0,
    bars: new Map(),
    toldAt: 0,
  };
}

/** The lines that an output event completes; both streams are one, as on a terminal. */
function takeLines(step: Step, event: Json): readonly string[] {
  const stream = event.stream === 'stderr' ? 'stderr' : 'stdout';
  const bytes = event.text === undefined ? Buffer.from(text(event.base64), 'base64') : Buffer.from(text(event.text));
  const parts = (step.rest + step.decoders[stream].write(bytes)).split('\n');
  step.rest = (parts.pop() ?? '').slice(-KEPT_CHARACTERS);
  return parts.map((line) => line.replace(/\r$/, ''));
}

function keep(step: Step, lines: readonly string[]): void {
  for (const line of lines) {
    step.lines.push(line);
    step.keptCharacters += line.length + 1;
  }
  while (step.keptCharacters > KEPT_CHARACTERS) step.keptCharacters -= (step.lines.shift()?.length ?? 0) + 1;
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)}s`;
}

function barText(event: Json): string {
  const total = event.total === undefined ? '' : ` / ${formatBytes(number(event.total), 3)}`;
  return `${text(event.name)} ${formatBytes(number(event.current), 3)}${total}`;
}

function warningText(event: Json): string {
  const warning = object(event.warning);
  const line = warning.line === undefined ? '' : ` (line ${number(warning.line)})`;
  return `warning: ${text(warning.rule)}: ${text(warning.message)}${line}`;
}

/** Nothing, unless a step fails. */
function quietView({ output, clock }: ViewOptions): BuildView {
  const steps = new Map<number, Step>();
  return {
    show(event) {
      if (event.kind === 'started') {
        const step = stepOf(event, clock);
        steps.set(step.number, step);
      }
      const step = steps.get(number(event.step));
      if (step === undefined) return;
      if (event.kind === 'output') keep(step, takeLines(step, event));
      if (event.kind !== 'ended') return;
      steps.delete(step.number);
      if (event.outcome === 'failed') output.write(`${[step.title, ...failedLines(step)].join('\n')}\n`);
    },
    note() {},
    end() {},
  };
}

/** What a log of a build service shows. Every line says which step it is of; a step that comes up again says its title again. */
function plainView({ output, clock }: ViewOptions): BuildView {
  const steps = new Map<number, Step>();
  let last: number | undefined;
  const say = (step: Step, line: string) => {
    if (last !== step.number) output.write(`${last === undefined ? '' : '\n'}#${step.number} ${step.title}\n`);
    last = step.number;
    output.write(`#${step.number} ${line}\n`);
  };
  const sayOutput = (step: Step, lines: readonly string[]) => {
    const since = ((clock() - step.startedAt) / 1000).toFixed(3);
    for (const line of lines) say(step, `${since} ${line}`);
  };
  return {
    show(event) {
      if (event.kind === 'warning') return void output.write(`${warningText(event)}\n`);
      if (event.kind === 'started') {
        const step = stepOf(event, clock);
        steps.set(step.number, step);
        return;
      }
      const step = steps.get(number(event.step));
      if (step === undefined) return;
      if (event.kind === 'output') sayOutput(step, takeLines(step, event));
      if (event.kind === 'progress') {
        const isWhole = event.total !== undefined && number(event.current) >= number(event.total);
        if (!isWhole && clock() - step.toldAt < PROGRESS_MS) return;
        step.toldAt = clock();
        say(step, barText(event));
      }
      if (event.kind !== 'ended') return;
      if (step.rest !== '') sayOutput(step, [step.rest]);
      say(step, outcomeText(event));
      steps.delete(step.number);
    },
    note: (line) => void output.write(`${line}\n`),
    end() {},
  };
}

function outcomeText(event: Json): string {
  switch (event.outcome) {
    case 'cached':
      return 'CACHED';
    case 'canceled':
      return 'CANCELED';
    case 'failed':
      return `ERROR: ${text(event.message)}`;
    default:
      return `DONE ${seconds(number(event.durationMs))}`;
  }
}

const REDRAW_MS = 80;
/** Lines of output under a running step. */
const TAIL_LINES = 5;
const MARKS = { done: '✔', cached: '✔', failed: '✖', canceled: '∅' } as const;

/** Only what runs is drawn again; what has ended scrolls away above it. */
function liveView({ output, clock }: ViewOptions): BuildView {
  const steps = new Map<number, Step>();
  const startedAt = clock();
  let ended = 0;
  let planned = 0;
  let drawn = 0;
  let timer: NodeJS.Timeout | undefined;
  let isOver = false;

  const width = () => Math.max(20, (output.columns ?? 80) - 1);
  const erase = () => {
    if (drawn > 0) output.write(`\u001b[${drawn}A\r\u001b[J`);
    drawn = 0;
  };
  const oneLine = (line: string, end = '') => {
    const room = width() - end.length - 1;
    const plain = clean(line);
    const cut = plain.length > room ? `${plain.slice(0, room - 1)}…` : plain;
    return end === '' ? cut : `${cut.padEnd(room)} ${end}`;
  };
  const draw = () => {
    timer = undefined;
    erase();
    if (isOver) return;
    const room = Math.max(2, (output.rows ?? 24) - 1);
    const running = [...steps.values()].flatMap((step) => [
      oneLine(`  ${step.title}`, seconds(clock() - step.startedAt)),
      ...[...step.bars.values()].slice(-TAIL_LINES).map((line) => oneLine(`    ${line}`)),
      ...tail(step).map((line) => oneLine(`    ${line}`)),
    ]);
    const count = planned > 0 ? ` ${Math.min(ended, planned)}/${planned}` : '';
    const lines = [`Building ${seconds(clock() - startedAt)}${count}`, ...running].slice(0, room);
    output.write(`${lines.join('\n')}\n`);
    drawn = lines.length;
    schedule();
  };
  const schedule = () => {
    timer ??= setTimeout(draw, REDRAW_MS);
  };
  const above = (lines: readonly string[]) => {
    erase();
    output.write(`${lines.join('\n')}\n`);
    if (!isOver) schedule();
  };
  schedule();

  return {
    show(event) {
      if (event.kind === 'planned')
        for (const stage of Array.isArray(event.stages) ? event.stages : []) planned += number(object(stage).steps);
      if (event.kind === 'warning') above([oneLine(warningText(event))]);
      if (event.kind === 'started') {
        const step = stepOf(event, clock);
        steps.set(step.number, step);
      }
      const step = steps.get(number(event.step));
      if (step === undefined) return;
      if (event.kind === 'output') keep(step, takeLines(step, event));
      if (event.kind === 'progress') step.bars.set(text(event.name), barText(event));
      if (event.kind !== 'ended') return;
      steps.delete(step.number);
      // Work that no line of the Dockerfile asked for is not counted.
      if (step.title.startsWith('[') && !step.title.startsWith('[internal]')) ended += 1;
      above(endedLines(step, event, oneLine));
    },
    note: (line) => above([line]),
    end() {
      isOver = true;
      clearTimeout(timer);
      erase();
    },
  };
}

function endedLines(step: Step, event: Json, oneLine: (line: string, end?: string) => string): readonly string[] {
  const mark = MARKS[event.outcome as keyof typeof MARKS] ?? MARKS.done;
  const end = event.outcome === 'cached' ? 'CACHED' : seconds(number(event.durationMs));
  const head = oneLine(`${mark} ${step.title}`, end);
  return event.outcome === 'failed' ? [head, ...failedLines(step)] : [head];
}

/** The whole output of a step. */
function failedLines(step: Step): readonly string[] {
  const rest = step.rest === '' ? [] : [step.rest];
  return [...step.lines, ...rest].map((line) => `    ${line}`);
}

function tail(step: Step): readonly string[] {
  const lines = step.rest === '' ? step.lines : [...step.lines.slice(-TAIL_LINES), step.rest];
  return lines.slice(-TAIL_LINES);
}

/** As it may be drawn in one line: no colours, no movement, and of a line that was overwritten only its end. */
function clean(line: string): string {
  const plain = stripVTControlCharacters(line).replaceAll('\t', '  ');
  const shown = plain.slice(plain.trimEnd().lastIndexOf('\r') + 1);
  return [...shown].filter((character) => character >= ' ' && character !== '\u007f').join('');
}
