/**
 * Blob uploads in every way of the specification: in one POST, POST and PUT, chunked, streamed, resumed, mounted.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-blobs
 *
 * A session belongs to the repository and the user that began it; for others it does not exist (CVE-2026-32589).
 * Requests of one session take turns. Bytes that arrived stay when a connection breaks; a wrong digest ends the session.
 */
import type { Context } from 'koa';
import type { Ingest } from '../../shared/blob-store.ts';
import { algorithmOf, DIGEST_ALGORITHMS, type Digest, type DigestAlgorithm } from '../../shared/digest.ts';
import { isKind } from '../../shared/errors.ts';
import { authorize, type Exchange, type Handlers, isAllowed, type RegistryPorts } from '../exchange.ts';
import type { LinkedBlob, UploadSession } from '../metadata/index.ts';
import { OciError } from '../oci-errors.ts';
import { pinForPush } from '../pinning.ts';
import { parseChunkRange, receivedRange } from '../ranges.ts';
import { blobPath, parseDigestPart, parseName, uploadPath } from '../routes.ts';
import { hasBody, receive } from '../transfer.ts';
import { createTurns } from '../turns.ts';

/** Repositories asked when a mount names none: enough for the usual base image, bounded for the unusual one. */
const MOUNT_CANDIDATES = 100;

export function createUploadHandlers(ports: RegistryPorts): {
  readonly uploads: Handlers<'uploads'>;
  readonly upload: Handlers<'upload'>;
} {
  const { index, blobs, access, limits, now, randomId, quotaBytes } = ports;
  const turns = ports.turns ?? createTurns({ waitMs: limits.uploadWaitMs });

  async function findSession({ identity }: Exchange, repository: string, id: string): Promise<UploadSession> {
    authorize(access, identity, { kind: 'push', repository });
    const session = await index.upload(id, { repository, owner: identity.id });
    if (session === undefined) throw new OciError('BLOB_UPLOAD_UNKNOWN', `cannot find upload ${id} in ${repository}`);
    return session;
  }

  /** Nobody waits for a turn at a session that is not theirs; and while one waits, the session may end. */
  async function inTurn(
    exchange: Exchange,
    { repository, id }: { readonly repository: string; readonly id: string },
    work: (session: UploadSession) => Promise<void>,
  ): Promise<void> {
    await findSession(exchange, repository, id);
    using _turn = await turns.take(id);
    await work(await findSession(exchange, repository, id));
  }

  const pin = (digest: Digest) => pinForPush(index, digest, { now, waitMs: limits.uploadWaitMs });

  /** Takes the rest of the body, verifies, publishes and links. */
  async function finish(ctx: Context, ingest: Ingest, end: { repository: string; digest: Digest; upload?: string }) {
    const { repository, digest, upload } = end;
    // The pin is written while the bytes arrive; the order that matters is pin before commit.
    const pinning = pin(digest);
    pinning.catch(() => {});
    if (hasBody(ctx.req))
      await ingest.append(receive(ctx.req, limits.blobMaxBytes - ingest.offset), { takesChunks: true });
    const pinned = await pinning;
    if (now().getTime() - pinned.getTime() > limits.gcGraceMs / 4) await pin(digest);
    const quota = quotaBytes?.(repository);
    try {
      if (quota !== undefined) await index.assertFits(repository, { digest, sizeBytes: ingest.offset }, quota);
      const { sizeBytes } = await ingest.commit({ digest });
      await index.linkBlob(repository, { digest, sizeBytes }, { upload, quotaBytes: quota });
    } catch (error) {
      if (!isKind(error, 'integrity', 'denied')) throw error;
      await ingest.abort();
      if (upload !== undefined) await index.removeUpload(upload);
      throw error.kind === 'denied' ? error : new OciError('DIGEST_INVALID', error.message, { cause: error });
    }
    created(ctx, repository, digest);
  }

  async function mount({ identity }: Exchange, to: string, wanted: { digest: Digest; from: string | null }) {
    const { digest, from } = wanted;
    // Somebody who may not pull `from` must not learn whether it has the blob: the answer is that of a miss.
    const mayPull = (repository: string) => isAllowed(access, identity, { kind: 'pull', repository });
    const candidates =
      from !== null
        ? [parseName(from)]
        : (await index.repositoriesWithBlob(digest, { limit: MOUNT_CANDIDATES })).entries;
    for (const candidate of candidates.filter(mayPull)) {
      const blob: LinkedBlob | undefined = await index.mountBlob(to, candidate, {
        digest,
        quotaBytes: quotaBytes?.(to),
      });
      if (blob !== undefined) return blob;
    }
    return undefined;
  }

  async function begin(exchange: Exchange, repository: string): Promise<void> {
    const { ctx, identity, query } = exchange;
    const id = randomId();
    const algorithm = parseAlgorithm(query.get('digest-algorithm'));
    try {
      await index.createUpload(
        { id, repository, owner: identity.id, algorithm, startedAt: now() },
        { maxOpen: limits.uploadsPerUser },
      );
    } catch (error) {
      if (isKind(error, 'conflict')) throw new OciError('TOOMANYREQUESTS', error.message, { cause: error });
      throw error;
    }
    if (limits.chunkMinBytes > 0) ctx.set('OCI-Chunk-Min-Length', String(limits.chunkMinBytes));
    describe(ctx, { repository, id, offset: 0 });
    ctx.status = 202;
    ctx.body = '';
  }

  return {
    uploads: {
      async POST(exchange, { repository }) {
        const { ctx, identity, query } = exchange;
        authorize(access, identity, { kind: 'push', repository });
        const [mounted, digest] = [query.get('mount'), query.get('digest')];
        if (mounted !== null) {
          const blob = await mount(exchange, repository, { digest: parseDigestPart(mounted), from: query.get('from') });
          return blob === undefined ? begin(exchange, repository) : created(ctx, repository, blob.digest);
        }
        if (digest === null) return begin(exchange, repository);
        const expected = parseDigestPart(digest);
        await using ingest = await blobs.ingest(randomId(), { algorithm: algorithmOf(expected) });
        try {
          await finish(ctx, ingest, { repository, digest: expected });
        } finally {
          // Nobody has been told its id, so nobody can go on with it. Does nothing after a commit.
          await ingest.abort();
        }
      },
    },

    upload: {
      async GET(exchange, { repository, id }) {
        const { ctx } = exchange;
        await findSession(exchange, repository, id);
        const offset = (await blobs.ingestInfo(id))?.offset ?? 0;
        describe(ctx, { repository, id, offset });
        ctx.status = 204;
      },

      PATCH: (exchange, route) =>
        inTurn(exchange, route, async ({ repository, id, algorithm }) => {
          const { ctx } = exchange;
          await using ingest = await blobs.ingest(id, { algorithm });
          assertInOrder(ctx, { repository, id, offset: ingest.offset });
          const body = receive(ctx.req, limits.blobMaxBytes - ingest.offset);
          const offset = await ingest.append(body, { takesChunks: true });
          describe(ctx, { repository, id, offset });
          ctx.status = 202;
          ctx.body = '';
        }),

      PUT: (exchange, route) =>
        inTurn(exchange, route, async ({ repository, id, algorithm }) => {
          const { ctx, query } = exchange;
          const digest = parseDigestPart(query.get('digest') ?? '');
          const open = await blobs.ingestInfo(id);
          // Nothing received yet: hash in the flow what the client turns out to want, not what was guessed at POST.
          const wanted = open === undefined || open.offset === 0 ? algorithmOf(digest) : algorithm;
          await using ingest = await blobs.ingest(id, { algorithm: wanted });
          assertInOrder(ctx, { repository, id, offset: ingest.offset });
          await finish(ctx, ingest, { repository, digest, upload: id });
        }),

      DELETE: (exchange, route) =>
        inTurn(exchange, route, async ({ id }) => {
          // Row first, bytes last: a crash in between leaves bytes that no session names, which the sweep finds.
          await index.removeUpload(id);
          await using ingest = await blobs.ingest(id);
          await ingest.abort();
          exchange.ctx.status = 204;
        }),
    },
  };
}

interface Progress {
  readonly repository: string;
  readonly id: string;
  readonly offset: number;
}

function describe(ctx: Context, { repository, id, offset }: Progress): void {
  ctx.set({ Location: uploadPath(repository, id), Range: receivedRange(offset), 'Docker-Upload-UUID': id });
}

function created(ctx: Context, repository: string, digest: Digest): void {
  ctx.set({ Location: blobPath(repository, digest), 'Docker-Content-Digest': digest });
  ctx.status = 201;
  ctx.body = '';
}

/** @throws OciError BLOB_UPLOAD_INVALID (416 with where to go on), SIZE_INVALID */
function assertInOrder(ctx: Context, progress: Progress): void {
  const header = ctx.get('Content-Range');
  if (header === '') return;
  const { repository, id, offset } = progress;
  const range = parseChunkRange(header);
  if (range === undefined || range.start !== offset)
    throw new OciError('BLOB_UPLOAD_INVALID', `cannot take chunk ${header}: the upload is at byte ${offset}`, {
      status: 416,
      headers: { location: uploadPath(repository, id), range: receivedRange(offset) },
    });
  const length = ctx.get('Content-Length');
  if (length !== '' && Number(length) !== range.end - range.start + 1)
    throw new OciError('SIZE_INVALID', `cannot take chunk ${header}: the body has ${length} bytes`);
}

function parseAlgorithm(text: string | null): DigestAlgorithm {
  const algorithm = DIGEST_ALGORITHMS.find((known) => known === (text ?? 'sha256'));
  if (algorithm === undefined)
    throw new OciError('DIGEST_INVALID', `cannot use digest-algorithm ${JSON.stringify(text)}: want sha256 or sha512`);
  return algorithm;
}
