/**
 * Progress of a long request (pull, push, load, import): a chunked stream of JSON objects, one a line, ended by \r\n.
 *
 * Nothing is sent before the first message, so a failure until then is an ordinary HTTP error; later ones go into the
 * stream. A client that does not read loses intermediate counts, never a result, and costs bounded memory.
 */
import type { Writable } from 'node:stream';
import { type ApiContext, disconnectSignal } from './context.ts';
import { answerOf } from './errors.ts';

export interface ProgressMessage {
  readonly status?: string;
  readonly stream?: string;
  readonly id?: string;
  readonly progressDetail?: {
    readonly current?: number;
    readonly total?: number;
    readonly units?: string;
    readonly hidecounts?: boolean;
  };
  readonly aux?: unknown;
}

/** Sends one message. Messages that only count further may be dropped while the client is slow. */
export type Report = (message: ProgressMessage) => void;

/** Unsent bytes from which counts are dropped. */
const BACKLOG_BYTES = 256 * 1024;

export interface ProgressOptions {
  /** Even a failure before the first message goes into the stream. */
  readonly alwaysInStream?: boolean;
  /** What to say in the stream of an error; undefined = its status and message. */
  readonly failure?: (error: unknown) => { readonly code?: number; readonly message: string } | undefined;
}

/** Runs work, which reports as it goes; its signal aborts when the client hangs up. */
export async function streamProgress(
  ctx: ApiContext,
  work: (report: Report, signal: AbortSignal) => Promise<void>,
  options: ProgressOptions = {},
): Promise<void> {
  const { res } = ctx;
  const report: Report = (message) => {
    if (!res.headersSent) startChunked(ctx, 'application/json');
    if (res.writableLength > BACKLOG_BYTES && message.progressDetail?.current !== undefined) return;
    if (!res.destroyed) res.write(`${JSON.stringify(message)}\r\n`);
  };
  try {
    await work(report, disconnectSignal(ctx));
    if (!res.headersSent) startChunked(ctx, 'application/json');
    res.end();
  } catch (error) {
    if (!res.headersSent && options.alwaysInStream === true) startChunked(ctx, 'application/json');
    if (!res.headersSent) throw error;
    const { status, body } = answerOf(error);
    const errorDetail = options.failure?.(error) ?? { code: status, message: body.message };
    res.end(`${JSON.stringify({ errorDetail, error: errorDetail.message })}\r\n`);
    // The edge cannot answer any more, but it logs faults.
    throw error;
  }
}

/** Sends status and headers now, and takes the response out of Koa's hands. Clients rely on chunking and on the flush. */
export function startChunked(ctx: ApiContext, contentType: string): Writable {
  ctx.respond = false;
  const { res } = ctx;
  res.statusCode = 200;
  res.setHeader('Content-Type', contentType);
  res.setHeader('Transfer-Encoding', 'chunked');
  res.flushHeaders();
  return res;
}
