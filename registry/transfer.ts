/**
 * Bytes between a socket and the blob store, both ways, at the speed of the machine: no blob is ever in memory whole,
 * and nothing runs on after the other side has hung up.
 */
import { open } from 'node:fs/promises';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Context } from 'koa';
import type { BlobStore } from '../shared/blob-store.ts';
import type { Digest } from '../shared/digest.ts';
import { AppError } from '../shared/errors.ts';
import { OciError } from './oci-errors.ts';
import type { Span } from './ranges.ts';

export interface Sending {
  readonly digest: Digest;
  readonly status: 200 | 206;
  /** Literal bytes and spans of the blob, in order. */
  readonly parts: readonly (Buffer | Span)[];
}

export interface Sender {
  /**
   * Answers with parts of a blob. Headers are sent once the blob is open, so that a broken store is an error answer and
   * not a cut connection; a failure after that cuts the connection, which is how a client learns of it.
   */
  send(ctx: Context, sending: Sending): Promise<void>;
}

/** One open blob. */
interface Source extends AsyncDisposable {
  write(response: ServerResponse, span: Span): Promise<void>;
}

export interface SenderOptions {
  /** Where blobs are files: these are read directly, which is several times faster than a stream of the store. */
  readonly pathOf?: ((digest: Digest) => string) | undefined;
}

export function createSender(blobs: BlobStore, { pathOf }: SenderOptions): Sender {
  const buffers = createBufferPool();
  const open = (digest: Digest): Promise<Source> =>
    pathOf === undefined ? openStreams(blobs, digest) : openFile(pathOf(digest), buffers);

  return {
    async send(ctx, { digest, status, parts }) {
      await using source = await open(digest);
      const lengths = parts.map((part) => (Buffer.isBuffer(part) ? part.length : part.end - part.start + 1));
      ctx.status = status;
      ctx.set('Content-Length', String(lengths.reduce((sum, length) => sum + length, 0)));
      ctx.respond = false;
      const { res } = ctx;
      for (const part of parts) {
        if (Buffer.isBuffer(part)) res.write(part);
        else await source.write(res, part);
      }
      res.end();
    },
  };
}

async function openStreams(blobs: BlobStore, digest: Digest): Promise<Source> {
  return {
    write: async (response, span) => pipeline(await blobs.open(digest, span), response, { end: false }),
    [Symbol.asyncDispose]: async () => {},
  };
}

/** A read and a write run at the same time, each with a buffer of its own. */
async function openFile(path: string, buffers: BufferPool): Promise<Source> {
  const handle = await open(path, 'r');
  return {
    async write(response, { start, end }) {
      let [filling, sending] = [buffers.take(), buffers.take()];
      let sent: Promise<void> = Promise.resolve();
      for (let position = start; position <= end; ) {
        const length = Math.min(filling.length, end - position + 1);
        const { bytesRead } = await handle.read(filling, 0, length, position);
        if (bytesRead === 0) throw new AppError('integrity', `cannot read ${path}: it ends at byte ${position}`);
        position += bytesRead;
        await sent;
        sent = write(response, filling.subarray(0, bytesRead));
        sent.catch(() => {});
        [filling, sending] = [sending, filling];
      }
      await sent;
      // After a failure they are dropped: a write may still be reading from one.
      buffers.give(filling, sending);
    },
    [Symbol.asyncDispose]: () => handle.close(),
  };
}

/**
 * Resolves when the kernel has the bytes, so that their buffer may be used again; rejects when the client is gone, of
 * which the callback of a write is not always told.
 */
function write(response: ServerResponse, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => {
    const gone = () => reject(new AppError('unavailable', 'cannot send: the client has hung up'));
    if (response.closed || response.destroyed) return gone();
    response.once('close', gone);
    response.write(bytes, (error) => {
      response.off('close', gone);
      if (error == null) resolve();
      else reject(error);
    });
  });
}

interface BufferPool {
  take(): Uint8Array;
  give(...buffers: readonly Uint8Array[]): void;
}

/** Large enough that system calls do not count, small enough to stay in the processor's cache. */
const BUFFER_BYTES = 256 << 10;
/** Kept for the next pull; fresh memory costs a page fault per 4 KiB, more than the reading. */
const IDLE_BUFFERS_MAX = 32;

function createBufferPool(): BufferPool {
  const idle: Uint8Array[] = [];
  return {
    take: () => idle.pop() ?? Buffer.allocUnsafeSlow(BUFFER_BYTES),
    give(...buffers) {
      for (const buffer of buffers) if (idle.length < IDLE_BUFFERS_MAX) idle.push(buffer);
    },
  };
}

/** What an upload's request brings. The request survives a failed append, so that the failure can be answered. */
export function receive(request: IncomingMessage, maxBytes: number): Readable {
  const encoding = request.headers['content-encoding'] ?? 'identity';
  if (encoding !== 'identity')
    throw new OciError(
      'UNSUPPORTED',
      `cannot take a body with Content-Encoding ${encoding}: send the bytes themselves`,
      {
        status: 415,
      },
    );
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) throw tooLarge(maxBytes);
  return Readable.from(bounded(request, maxBytes), { objectMode: true, highWaterMark: 4 });
}

async function* bounded(request: IncomingMessage, maxBytes: number): AsyncGenerator<Buffer> {
  let seen = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    seen += chunk.length;
    if (seen > maxBytes) throw tooLarge(maxBytes);
    yield chunk;
  }
}

function tooLarge(maxBytes: number): AppError {
  return new AppError('too-large', `cannot take the body: it is larger than ${maxBytes} bytes`);
}

/** False for a request that announces no bytes at all. */
export function hasBody({ headers }: IncomingMessage): boolean {
  return headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
}

/** What a refused request may still send before its connection is closed under it. */
const DISCARD_MAX_BYTES = 16 << 20;
const DISCARD_MAX_MS = 1_000;

/**
 * Reads on after a refusal, within bounds: most clients look for an answer only when they have sent everything, and a
 * connection closed before that loses the answer. false = there is more, for which the connection must not be kept.
 */
export async function discard(request: IncomingMessage): Promise<boolean> {
  if (request.complete || request.destroyed) return true;
  const done = new AbortController();
  const rest = async () => {
    let seen = 0;
    for await (const chunk of request.iterator({ destroyOnReturn: false })) {
      seen += chunk.length;
      if (seen > DISCARD_MAX_BYTES || done.signal.aborted) return;
    }
  };
  // Either may fail: a client that hangs up meanwhile wants no answer any more.
  await Promise.race([rest(), sleep(DISCARD_MAX_MS, undefined, { signal: done.signal })]).catch(() => {});
  done.abort();
  return request.complete;
}
