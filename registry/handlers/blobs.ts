/**
 * Blobs: pull, existence, delete. Ranges per RFC 9110; several are answered as multipart/byteranges, since clients of
 * zstd:chunked and eStargz ask so. A client that hangs up stops the reading at once.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pulling-blobs
 */
import type { Context } from 'koa';
import type { Digest } from '../../shared/digest.ts';
import { isKind } from '../../shared/errors.ts';
import { authorize, type Handlers, type RegistryPorts } from '../exchange.ts';
import type { LinkedBlob } from '../metadata/index.ts';
import { OciError } from '../oci-errors.ts';
import { contentRange, parseRange, type Span } from '../ranges.ts';
import { createSender } from '../transfer.ts';

const OCTETS = 'application/octet-stream';

export function createBlobHandlers(ports: RegistryPorts): Handlers<'blob'> {
  const { index, access, limits } = ports;
  const sender = createSender(ports.blobs, { pathOf: ports.blobPathOf });

  return {
    async HEAD({ ctx, identity }, { repository, digest }) {
      authorize(access, identity, { kind: 'pull', repository });
      // A client that hears "exists" skips the upload, so the blob must outlive its push.
      const blob = known(await index.touchBlob(repository, digest), repository, digest);
      describe(ctx, blob);
      ctx.status = 200;
      ctx.set('Content-Length', String(blob.sizeBytes));
    },

    async GET({ ctx, identity }, { repository, digest }) {
      authorize(access, identity, { kind: 'pull', repository });
      const blob = known(await index.blob(repository, digest), repository, digest);
      describe(ctx, blob);
      if (ctx.get('If-None-Match') === etag(digest)) {
        ctx.status = 304;
        return;
      }
      const ifRange = ctx.get('If-Range');
      const header = ifRange === '' || ifRange === etag(digest) ? ctx.get('Range') : '';
      const answer = parseRange(header, blob.sizeBytes, limits.rangeMaxParts);
      switch (answer.kind) {
        case 'unsatisfiable':
          throw new OciError('SIZE_INVALID', `cannot send that range of ${digest}: it has ${blob.sizeBytes} bytes`, {
            status: 416,
            headers: { 'content-range': `bytes */${blob.sizeBytes}` },
          });
        case 'whole':
          return sender.send(ctx, { digest, status: 200, parts: whole(blob) });
        case 'parts':
          return sender.send(ctx, {
            digest,
            status: 206,
            parts: partsOf(ctx, blob, answer.spans, ports.randomId),
          });
        default:
          answer satisfies never;
      }
    },

    async DELETE({ ctx, identity }, { repository, digest }) {
      authorize(access, identity, { kind: 'delete', repository });
      try {
        if (!(await index.unlinkBlob(repository, digest))) known(undefined, repository, digest);
      } catch (error) {
        if (!isKind(error, 'conflict')) throw error;
        throw new OciError('UNSUPPORTED', error.message, { headers: { allow: 'GET, HEAD' }, cause: error });
      }
      ctx.status = 202;
      ctx.body = '';
    },
  };
}

function known(blob: LinkedBlob | undefined, repository: string, digest: Digest): LinkedBlob {
  if (blob === undefined) throw new OciError('BLOB_UNKNOWN', `cannot find blob ${digest} in ${repository}`);
  return blob;
}

function etag(digest: Digest): string {
  return `"${digest}"`;
}

function describe(ctx: Context, { digest }: LinkedBlob): void {
  ctx.set({
    'Content-Type': OCTETS,
    'Docker-Content-Digest': digest,
    'Accept-Ranges': 'bytes',
    ETag: etag(digest),
    'Cache-Control': 'private, max-age=31536000, immutable',
    // A blob may be HTML: no browser may run it on our origin.
    'Content-Security-Policy': "default-src 'none'; sandbox",
    'Content-Disposition': 'attachment',
  });
}

type Part = Buffer | Span;

function whole({ sizeBytes }: LinkedBlob): readonly Part[] {
  return sizeBytes === 0 ? [] : [{ start: 0, end: sizeBytes - 1 }];
}

/** Sets the headers of a 206 and answers what its body consists of. */
function partsOf(
  ctx: Context,
  { sizeBytes }: LinkedBlob,
  spans: readonly Span[],
  randomId: () => string,
): readonly Part[] {
  const [first] = spans;
  if (spans.length === 1 && first !== undefined) {
    ctx.set('Content-Range', contentRange(first, sizeBytes));
    return [first];
  }
  const boundary = randomId();
  ctx.set('Content-Type', `multipart/byteranges; boundary=${boundary}`);
  const head = (span: Span, position: number) =>
    Buffer.from(
      `${position === 0 ? '' : '\r\n'}--${boundary}\r\nContent-Type: ${OCTETS}\r\nContent-Range: ${contentRange(span, sizeBytes)}\r\n\r\n`,
    );
  return [...spans.flatMap((span, position) => [head(span, position), span]), Buffer.from(`\r\n--${boundary}--\r\n`)];
}
