/**
 * Bytes between a socket and the blob store, both ways, at the speed of the machine: no blob is ever in memory whole,
 * and nothing runs on after the other side has hung up.
 */
import type { IncomingMessage } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
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

/**
 * Answers with parts of a blob. Headers are sent once the first byte can be read, so that a broken store is an error
 * answer and not a cut connection; a failure after that cuts the connection, which is how a client learns of it.
 */
export async function sendParts(ctx: Context, blobs: BlobStore, { digest, status, parts }: Sending): Promise<void> {
  const length = parts.reduce(
    (sum, part) => sum + (Buffer.isBuffer(part) ? part.length : part.end - part.start + 1),
    0,
  );
  const first = parts[0];
  const opened = first === undefined || Buffer.isBuffer(first) ? undefined : await blobs.open(digest, first);
  ctx.status = status;
  ctx.set('Content-Length', String(length));
  ctx.respond = false;
  const { res } = ctx;
  for (const part of parts) {
    if (Buffer.isBuffer(part)) res.write(part);
    else {
      const source = part === first && opened !== undefined ? opened : await blobs.open(digest, part);
      await pipeline(source, res, { end: false });
    }
  }
  res.end();
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
