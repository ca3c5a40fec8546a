/**
 * Manifests and indexes: exact bytes in, exact bytes out, under the media type that they were pushed as.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pushing-manifests
 *
 * Accept is not negotiated: the stored type is always the answer, since a digest names one document.
 */
import type { IncomingMessage } from 'node:http';
import type { Context } from 'koa';
import { algorithmOf, digestOf } from '../../shared/digest.ts';
import { isKind } from '../../shared/errors.ts';
import { coalesce } from '../coalesce.ts';
import { authorize, type Exchange, type Handlers, type RegistryPorts, tagGuard } from '../exchange.ts';
import { newManifest, readManifest } from '../manifest-document.ts';
import type { NewManifest, StoredManifest } from '../metadata/index.ts';
import { OciError } from '../oci-errors.ts';
import { type ManifestReference, manifestPath, parseTag } from '../routes.ts';
import type { EventAction, ManifestEvent } from '../webhooks/events.ts';

export function createManifestHandlers(ports: RegistryPorts): Handlers<'manifest'> {
  const { index, access, limits, pullTimes, quotaBytes, events } = ports;

  const resolve = coalesce(
    ({ repository, reference }: { readonly repository: string; readonly reference: ManifestReference }) =>
      index.resolve(repository, reference),
    ({ repository, reference }) => `${repository} ${reference.tag ?? reference.digest}`,
  );

  async function find(repository: string, reference: ManifestReference): Promise<StoredManifest> {
    const manifest = await resolve({ repository, reference });
    if (manifest === undefined) throw unknown(repository, reference);
    return manifest;
  }

  return {
    async HEAD({ ctx, identity }, { repository, reference }) {
      authorize(access, identity, { kind: 'pull', repository });
      const manifest = await find(repository, reference);
      // A client that hears "exists" pushes only what refers to it; a tag keeps it, a digest does not.
      if (reference.digest !== undefined && !(await index.touchManifest(repository, reference.digest)))
        throw unknown(repository, reference);
      if (describe(ctx, manifest)) return;
      ctx.status = 200;
      ctx.set('Content-Length', String(manifest.bytes.length));
    },

    async GET(exchange, { repository, reference }) {
      const { ctx, identity } = exchange;
      authorize(access, identity, { kind: 'pull', repository });
      const manifest = await find(repository, reference);
      pullTimes.note(repository, manifest.digest);
      await events?.emit(eventOf(exchange, { action: 'pull', repository, reference, manifest }));
      if (describe(ctx, manifest)) return;
      const { bytes } = manifest;
      ctx.status = 200;
      ctx.body = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    },

    async PUT(exchange, { repository, reference }) {
      const { ctx, identity, query } = exchange;
      authorize(access, identity, { kind: 'push', repository });
      const tags = tagsOf(query, reference, limits.tagsPerPush);
      const bytes = await readBody(ctx.req, limits.manifestMaxBytes);
      const digest = digestOf(bytes, reference.digest === undefined ? 'sha256' : algorithmOf(reference.digest));
      if (reference.digest !== undefined && reference.digest !== digest)
        throw new OciError('DIGEST_INVALID', `cannot store manifest ${reference.digest}: the body is ${digest}`);
      const document = readManifest(bytes, ctx.get('Content-Type'));
      const manifest = newManifest(document, { digest, bytes });
      await put(exchange, repository, { manifest, tags });
      await events?.emit(eventOf(exchange, { action: 'push', repository, reference, manifest, tags }));

      ctx.set({ Location: manifestPath(repository, digest), 'Docker-Content-Digest': digest });
      if (document.subject !== undefined) ctx.set('OCI-Subject', document.subject.digest);
      if (reference.digest !== undefined && tags.length > 0) ctx.set('OCI-Tag', [...tags]);
      ctx.status = 201;
      ctx.body = '';
    },

    async DELETE(exchange, { repository, reference }) {
      const { ctx, identity } = exchange;
      authorize(access, identity, { kind: 'delete', repository });
      const guard = tagGuard(access, identity, repository);
      const removed =
        reference.tag === undefined
          ? await index.removeManifest(repository, reference.digest, { guard })
          : await index.removeTag(repository, reference.tag, { guard });
      if (!removed) throw unknown(repository, reference);
      await events?.emit(eventOf(exchange, { action: 'delete', repository, reference }));
      ctx.status = 202;
      ctx.body = '';
    },
  };

  async function put(
    { identity }: Exchange,
    repository: string,
    { manifest, tags }: { readonly manifest: NewManifest; readonly tags: readonly string[] },
  ): Promise<void> {
    try {
      const guard = tagGuard(access, identity, repository);
      await index.putManifest(repository, manifest, { tags, guard, quotaBytes: quotaBytes?.(repository) });
    } catch (error) {
      if (isKind(error, 'not-found'))
        throw new OciError('MANIFEST_BLOB_UNKNOWN', error.message, { detail: error.detail, cause: error });
      if (isKind(error, 'conflict')) throw new OciError('MANIFEST_INVALID', error.message, { cause: error });
      throw error;
    }
  }
}

interface Happening {
  readonly action: EventAction;
  readonly repository: string;
  readonly reference: ManifestReference;
  readonly manifest?: StoredManifest;
  readonly tags?: readonly string[];
}

function eventOf({ ctx, identity }: Exchange, happening: Happening): ManifestEvent {
  const { action, repository, reference, manifest, tags } = happening;
  return {
    action,
    repository,
    digest: manifest?.digest ?? reference.digest,
    tags: tags ?? (reference.tag === undefined ? [] : [reference.tag]),
    mediaType: manifest?.mediaType,
    sizeBytes: manifest?.bytes.length,
    actor: identity.id,
    request: {
      method: ctx.method,
      address: ctx.req.socket.remoteAddress,
      userAgent: ctx.get('User-Agent') || undefined,
    },
  };
}

function unknown(repository: string, reference: ManifestReference): OciError {
  return new OciError('MANIFEST_UNKNOWN', `cannot find manifest ${reference.tag ?? reference.digest} in ${repository}`);
}

/** Sets what HEAD, GET and 304 have in common. True = the client has it already, and the answer is complete. */
function describe(ctx: Context, { digest, mediaType }: StoredManifest): boolean {
  const etag = `"${digest}"`;
  ctx.set({ 'Docker-Content-Digest': digest, ETag: etag });
  const known = ctx.get('If-None-Match');
  if (known !== '' && (known === '*' || known.split(',').some((tag) => tag.trim().replace(/^W\//, '') === etag))) {
    ctx.status = 304;
    return true;
  }
  ctx.set('Content-Type', mediaType);
  return false;
}

/** Tags that this push sets: the one in the path, or those of `?tag=` on a push by digest. */
function tagsOf(query: URLSearchParams, reference: ManifestReference, maxTags: number): readonly string[] {
  const named = [...new Set(query.getAll('tag'))].map(parseTag);
  if (named.length > maxTags)
    throw new OciError('MANIFEST_INVALID', `cannot set ${named.length} tags at once: the limit is ${maxTags}`, {
      status: 414,
    });
  if (reference.tag === undefined) return named;
  if (named.length > 0) throw new OciError('MANIFEST_INVALID', 'cannot use ?tag= here: push by digest to set tags so');
  return [reference.tag];
}

/** Leaves the request alive when it is too large, so that the client hears 413 and not a broken connection. */
async function readBody(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let seen = 0;
  const tooLarge = () =>
    new OciError('MANIFEST_INVALID', `cannot take the manifest: it is larger than ${maxBytes} bytes`, { status: 413 });
  if (Number(request.headers['content-length'] ?? 0) > maxBytes) throw tooLarge();
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    seen += chunk.length;
    if (seen > maxBytes) throw tooLarge();
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, seen);
}
