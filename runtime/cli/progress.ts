/**
 * Progress of a pull, push or load: bars on a terminal, plain lines in a pipe. The engine's stream is the same for both:
 * `{id, status, progressDetail: {current, total}}`, `{status}`, `{stream}`, `{error}`.
 */
import type { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import { formatBytes } from '../../shared/units.ts';
import { jsonLines } from './client.ts';
import { type Json, number, object, text } from './values.ts';

export interface ProgressOptions {
  readonly output: NodeJS.WriteStream;
  readonly quiet: boolean;
  /** Called with each `aux` value. */
  readonly aux?: (value: Json) => void;
}

const BAR_WIDTH = 30;
const REDRAW_MS = 80;

/** Shows the stream until it ends. @throws AppError with the engine's words when the stream says that it failed */
export async function showProgress(stream: Readable, options: ProgressOptions): Promise<void> {
  const view = options.quiet ? undefined : options.output.isTTY ? liveView(options.output) : plainView(options.output);
  try {
    for await (const line of jsonLines(stream)) {
      const event = object(line);
      if (event.error !== undefined) throw new AppError('conflict', text(event.error));
      if (event.aux !== undefined) options.aux?.(object(event.aux));
      else view?.show(event);
    }
  } finally {
    view?.end();
  }
}

interface View {
  show(event: Json): void;
  end(): void;
}

/** One line per change of status; no bytes counted, so that a CI log stays short. */
function plainView(output: NodeJS.WriteStream): View {
  const last = new Map<string, string>();
  return {
    show(event) {
      const id = text(event.id);
      const line = event.stream === undefined ? text(event.status) : text(event.stream).trimEnd();
      if (line === '' || (id !== '' && last.get(id) === line)) return;
      last.set(id, line);
      output.write(id === '' ? `${line}\n` : `${id}: ${line}\n`);
    },
    end() {},
  };
}

interface Item {
  readonly status: string;
  readonly current: number;
  readonly total: number;
}

function bar({ current, total }: Item): string {
  if (total <= 0) return current > 0 ? formatBytes(current, 3) : '';
  const filled = Math.min(BAR_WIDTH, Math.floor((current / total) * BAR_WIDTH));
  return `[${'='.repeat(filled)}${filled < BAR_WIDTH ? '>' : ''}${' '.repeat(Math.max(0, BAR_WIDTH - filled - 1))}] ${formatBytes(current, 3)}/${formatBytes(total, 3)}`;
}

/** A line per layer, redrawn in place, and the total of what is being downloaded. */
function liveView(output: NodeJS.WriteStream): View {
  const items = new Map<string, Item>();
  /** What each layer downloads, for the total: unpacking reports other sizes. */
  const downloads = new Map<string, Item>();
  let drawn = 0;
  let timer: NodeJS.Timeout | undefined;
  const columns = () => output.columns ?? 80;

  function draw(): void {
    timer = undefined;
    const lines = [...items].map(([id, item]) => `${id}: ${item.status} ${bar(item)}`.trimEnd());
    const sizes = [...downloads.values()];
    const total = sizes.reduce((sum, item) => sum + item.total, 0);
    if (sizes.length > 1 && total > 0)
      lines.push(`total: ${bar({ status: '', total, current: sizes.reduce((sum, item) => sum + item.current, 0) })}`);
    const room = Math.max(1, (output.rows ?? 24) - 1);
    const shown = lines.slice(-room);
    output.write(
      `${drawn > 0 ? `\u001b[${drawn}A` : ''}${shown.map((line) => `\r\u001b[2K${line.slice(0, columns() - 1)}\n`).join('')}\u001b[J`,
    );
    drawn = shown.length;
  }

  return {
    show(event) {
      const id = text(event.id);
      const status = text(event.status);
      const detail = object(event.progressDetail);
      if (id === '' || status.startsWith('Pulling from')) {
        if (timer !== undefined) clearTimeout(timer);
        if (drawn > 0) output.write(`\u001b[${drawn}A\r\u001b[J`);
        drawn = 0;
        output.write(
          `${id === '' ? '' : `${id}: `}${event.stream === undefined ? status : text(event.stream).trimEnd()}\n`,
        );
        draw();
        return;
      }
      const item = { status, current: number(detail.current), total: number(detail.total) };
      items.set(id, item);
      const download = downloads.get(id);
      if (status === 'Downloading' || status === 'Pushing') downloads.set(id, item);
      else if (download !== undefined) downloads.set(id, { ...download, current: download.total });
      timer ??= setTimeout(draw, REDRAW_MS);
    },
    end() {
      if (timer !== undefined) clearTimeout(timer);
      if (items.size > 0) draw();
    },
  };
}
