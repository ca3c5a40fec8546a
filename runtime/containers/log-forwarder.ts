/**
 * Hands a container's output on to a syslog server or the journal. It follows the log, which is the stream, so a server
 * that is slow or away never makes the container wait, and `logs` reads the same log here. How far it has come is kept
 * beside the log, and told only of lines that were taken: after a crash or a failure it goes on there, so that a line
 * may come twice, but none is left out unless the log has been rotated away meanwhile.
 */
import { readFile, rename, writeFile } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { hasCode } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { OutputChunk, OutputStream } from './containers.ts';
import type { LogLine } from './log-forwarding.ts';
import type { LogSink } from './log-sinks.ts';
import type { ContainerLog, LogPosition } from './logs.ts';

export interface ForwarderOptions {
  readonly log: ContainerLog;
  /** Where the position is kept. */
  readonly positionPath: string;
  readonly sink: LogSink;
  readonly encode: (line: LogLine) => Buffer;
  readonly warnings: Pick<Log, 'warn'>;
}

const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 30_000;
/** As Docker, which splits lines there. */
const LINE_MAX_BYTES = 16 * 1024;
/** `2026-11-22T03:15:12.794834690Z `, which the log puts before each line. */
const STAMP_BYTES = 31;
const NEWLINE = 0x0a;

/** Resolves when the log's end has been handed on after `ended`, or when the signal says so; never rejects. */
export async function forwardLog(
  options: ForwarderOptions,
  until: { readonly ended: Promise<unknown>; readonly signal: AbortSignal },
): Promise<void> {
  const { log, sink, warnings } = options;
  let retryMs = FIRST_RETRY_MS;
  let isTold = false;
  try {
    while (!until.signal.aborted) {
      try {
        await forwardOnce(options, {
          ...until,
          onSent: () => {
            retryMs = FIRST_RETRY_MS;
            isTold = false;
          },
        });
        return;
      } catch (error) {
        if (until.signal.aborted) return;
        if (!isTold) warnings.warn('output could not be handed on; it is tried again', { log: log.path, error });
        isTold = true;
        await delay(retryMs, undefined, { signal: until.signal }).catch(() => {});
        retryMs = Math.min(retryMs * 2, MAX_RETRY_MS);
      }
    }
  } finally {
    sink.close();
  }
}

async function forwardOnce(
  { log, positionPath, sink, encode }: ForwarderOptions,
  until: { readonly ended: Promise<unknown>; readonly signal: AbortSignal; readonly onSent: () => void },
): Promise<void> {
  const [kept, end] = [await readPosition(positionPath), await log.end()];
  const isThere =
    kept !== undefined && (kept.segment < end.segment || (kept.segment === end.segment && kept.byte <= end.byte));
  let position = isThere ? kept : await log.start();
  const lines = createLineSplitter();
  let batch: LogLine[] = [];
  const send = async (read: LogPosition) => {
    if (batch.length > 0) {
      await sink.send(batch.map(encode));
      until.onSent();
      batch = [];
    }
    // Half a line is not handed on yet: it is read again.
    if (lines.isEmpty && (read.segment !== position.segment || read.byte !== position.byte)) {
      position = read;
      await keepPosition(positionPath, read);
    }
  };
  const chunks = log.read({
    from: position,
    follow: until.ended,
    timestamps: true,
    signal: until.signal,
    onRead: send,
  });
  for await (const chunk of chunks) batch.push(...lines.add(chunk));
  batch.push(...lines.end());
  if (!until.signal.aborted) await send(await log.end());
}

/** Lines out of chunks whose lines begin with their time. */
function createLineSplitter() {
  const open: Record<OutputStream, Buffer> = { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0) };
  return {
    get isEmpty(): boolean {
      return open.stdout.length === 0 && open.stderr.length === 0;
    },
    add({ stream, bytes }: OutputChunk): readonly LogLine[] {
      const found: LogLine[] = [];
      let rest = open[stream].length === 0 ? Buffer.from(bytes) : Buffer.concat([open[stream], bytes]);
      for (let end = rest.indexOf(NEWLINE); end !== -1; end = rest.indexOf(NEWLINE)) {
        found.push(...piecesOf(stream, rest.subarray(0, end)));
        rest = rest.subarray(end + 1);
      }
      // Without an end in sight it is handed on in pieces, under the same time.
      if (rest.length > STAMP_BYTES + LINE_MAX_BYTES) {
        const pieces = piecesOf(stream, rest);
        const last = pieces.at(-1)?.text ?? Buffer.alloc(0);
        found.push(...pieces.slice(0, -1));
        rest = Buffer.concat([rest.subarray(0, STAMP_BYTES), last]);
      }
      open[stream] = rest;
      return found;
    },
    /** The last line, which nobody ended. */
    end(): readonly LogLine[] {
      const left = (['stdout', 'stderr'] as const).filter((stream) => open[stream].length > 0);
      const found = left.flatMap((stream) => piecesOf(stream, open[stream]));
      for (const stream of left) open[stream] = Buffer.alloc(0);
      return found;
    },
  };
}

function lineOf(stream: OutputStream, line: Buffer): LogLine {
  // Milliseconds are what a Date takes.
  const at = new Date(`${line.toString('latin1', 0, 23)}Z`);
  return { stream, at, text: line.subarray(STAMP_BYTES), isPartial: false };
}

function piecesOf(stream: OutputStream, line: Buffer): readonly LogLine[] {
  const { at, text } = lineOf(stream, line);
  const pieces: LogLine[] = [];
  for (let start = 0; start === 0 || start < text.length; start += LINE_MAX_BYTES) {
    const end = Math.min(start + LINE_MAX_BYTES, text.length);
    pieces.push({ stream, at, text: text.subarray(start, end), isPartial: end < text.length });
  }
  return pieces;
}

async function readPosition(path: string): Promise<LogPosition | undefined> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    if (hasCode(error, 'ENOENT')) return '';
    throw error;
  });
  const match = /^(\d+) (\d+)\n$/.exec(text);
  return match === null ? undefined : { segment: Number(match[1]), byte: Number(match[2]) };
}

async function keepPosition(path: string, { segment, byte }: LogPosition): Promise<void> {
  await writeFile(`${path}.new`, `${segment} ${byte}\n`);
  await rename(`${path}.new`, path);
}
