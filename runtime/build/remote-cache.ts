/**
 * A build cache that others can use: an OCI manifest whose config lists results of steps by key and whose layers are
 * their layers, in a registry or in a directory; or the same list inside an image's config (inline).
 *
 *   config   application/vnd.berth.buildcache.v1+json   { version, records: [{ key, description, createdAt, layer? }] }
 *   layers   the blobs that the records name, each once
 *
 * What is imported is content of strangers: a key is believed, since whoever names a cache trusts it with what their
 * image becomes, but every layer is checked against its digests like that of a pull.
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { mkdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import { renameDurably, writeDurably } from '../../shared/atomic-file.ts';
import type { Credentials } from '../../shared/credentials.ts';
import { algorithmOf, type Digest, digestOf, hexOf, isDigest, parseDigest } from '../../shared/digest.ts';
import { AppError, hasCode, isKind, messageOf } from '../../shared/errors.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { type Descriptor, MANIFEST_MAX_BYTES, parseManifest } from '../../shared/oci.ts';
import { DEFAULT_TAG, parseReference } from '../../shared/reference.ts';
import type { RegistryClient } from '../../shared/registry-client.ts';
import { type Cancelable, collect } from '../../shared/streams.ts';
import type { Images, LayerOrigin, Lease } from '../images/images.ts';
import type { CacheSource, CacheTarget } from './builds.ts';
import type { StepResult } from './cache.ts';
import type { ImportOptions } from './steps.ts';

export const CACHE_CONFIG_TYPE = 'application/vnd.berth.buildcache.v1+json';
/** The list of a large build has some hundred bytes per step. */
const LIST_MAX_BYTES = 32 * 1024 * 1024;
/** Field of an image config that holds a list. */
export const INLINE_FIELD = 'berth.buildcache.v1';

const listSchema = z.looseObject({
  version: z.literal(1),
  records: z.array(
    z.looseObject({
      key: z.string().refine(isDigest),
      description: z.string(),
      createdAt: z.iso.datetime(),
      layer: z
        .looseObject({
          diffId: z.string().refine(isDigest),
          descriptor: z.looseObject({
            mediaType: z.string(),
            digest: z.string().refine(isDigest),
            size: z.number().int().nonnegative(),
          }),
        })
        .optional(),
    }),
  ),
});
type CacheList = z.infer<typeof listSchema>;
export type InlineCache = CacheList;

/** A result of this build, as it may be published. */
export interface KeyedResult {
  readonly key: Digest;
  readonly description: string;
  readonly result: StepResult;
}

export interface RemoteCachePorts {
  readonly images: Images;
  connect(host: string, credentials: Credentials | undefined): RegistryClient;
}

/** Results that were published elsewhere, opened for one build. */
export interface ImportedCache extends Disposable {
  find(key: Digest, options: ImportOptions & { readonly lease: Lease }): Promise<StepResult | undefined>;
}

export interface ImportRequest extends Cancelable {
  readonly sources: readonly CacheSource[];
  readonly credentials: ((host: string) => Credentials | undefined) | undefined;
  /** A source that cannot be read is told and left out: a cache is no promise. */
  readonly onUnreadable: (source: string, why: string) => void;
}

export async function openImportedCache(ports: RemoteCachePorts, request: ImportRequest): Promise<ImportedCache> {
  using undo = new DisposableStack();
  const lists: { readonly list: CacheList; readonly origin: LayerOrigin }[] = [];
  for (const source of request.sources) {
    const name = source.kind === 'registry' ? source.reference : source.directory;
    try {
      lists.push(
        source.kind === 'registry'
          ? await openRegistry(ports, source.reference, { ...request, undo })
          : await openDirectory(source.directory),
      );
    } catch (error) {
      if (isKind(error, 'timeout')) throw error;
      request.onUnreadable(name, messageOf(error));
    }
  }
  const byKey = new Map(
    lists.flatMap(({ list, origin }) => list.records.map((record) => [record.key, { record, origin }])),
  );
  const owned = undo.move();
  return {
    async find(key, { lower, lease, signal }) {
      const found = byKey.get(key);
      if (found === undefined) return undefined;
      const { record, origin } = found;
      const createdAt = new Date(record.createdAt);
      if (record.layer === undefined) return { layer: undefined, createdAt };
      // No more of it than what a layer is: it becomes part of an image.
      const { mediaType, digest, size } = record.layer.descriptor;
      const descriptor: Descriptor = { mediaType, digest: parseDigest(digest), size };
      const diffId = parseDigest(record.layer.diffId);
      try {
        const layer = await ports.images.fetchLayer(origin, { descriptor, diffId, lower, lease, signal });
        return { layer, createdAt };
      } catch (error) {
        signal?.throwIfAborted();
        request.onUnreadable(origin.name, messageOf(error));
        return undefined;
      }
    },
    [Symbol.dispose]: () => owned.dispose(),
  };
}

async function openRegistry(
  ports: RemoteCachePorts,
  text: string,
  { credentials, signal, undo }: ImportRequest & { readonly undo: DisposableStack },
) {
  const { host, repository, tag, digest } = parseReference(text);
  const client = undo.use(ports.connect(host, credentials?.(host)));
  const origin: LayerOrigin = {
    name: text,
    place: host,
    blob: async (descriptor, offset, cancelable) =>
      (await client.fetchBlob(repository, descriptor, { offset, ...cancelable })).stream,
  };
  const { bytes, mediaType } = await client.fetchManifest(repository, digest ?? tag ?? DEFAULT_TAG, { signal });
  return { list: await listIn({ bytes, mediaType }, origin, { signal }), origin };
}

async function openDirectory(directory: string) {
  const blobPath = (digest: Digest) => join(directory, 'blobs', algorithmOf(digest), hexOf(digest));
  const origin: LayerOrigin = {
    name: directory,
    place: directory,
    blob: async ({ digest }, start) => createReadStream(blobPath(digest), { start }),
  };
  const read = (path: string) => collect(createReadStream(path), MANIFEST_MAX_BYTES, { what: path });
  const index = parseManifest(await read(join(directory, 'index.json')), MEDIA_TYPES.ociIndex);
  const [top] = index.kind === 'index' ? index.manifests : [];
  if (top === undefined) throw new AppError('invalid', 'its index names no manifest');
  const bytes = await read(blobPath(top.digest));
  if (digestOf(bytes) !== top.digest) throw new AppError('integrity', `its manifest is not ${top.digest}`);
  return { list: await listIn({ bytes, mediaType: top.mediaType }, origin, {}), origin };
}

/** @throws AppError 'invalid', 'integrity' for what is no cache */
async function listIn(
  top: { readonly bytes: Uint8Array; readonly mediaType: string },
  origin: LayerOrigin,
  cancelable: Cancelable,
): Promise<CacheList> {
  const manifest = parseManifest(top.bytes, top.mediaType);
  if (manifest.kind !== 'manifest') throw new AppError('invalid', 'it is an index, and no build cache');
  const { config } = manifest;
  const bytes = await collect(await origin.blob(config, 0, cancelable), LIST_MAX_BYTES, { what: 'the build cache' });
  if (digestOf(bytes) !== config.digest) throw new AppError('integrity', `its list is not ${config.digest}`);
  const json: unknown = JSON.parse(bytes.toString('utf8'));
  const list = config.mediaType === CACHE_CONFIG_TYPE ? json : inlineIn(json);
  const parsed = listSchema.safeParse(list);
  if (!parsed.success) throw new AppError('invalid', 'it holds no build cache that this engine understands');
  return parsed.data;
}

/** The list that an image carries in its config. */
function inlineIn(config: unknown): unknown {
  return typeof config === 'object' && config !== null ? Reflect.get(config, INLINE_FIELD) : undefined;
}

/** The results as a list; `only` these layers, for an image that carries no others. */
export function cacheListOf(results: Iterable<KeyedResult>, only?: ReadonlySet<Digest>): CacheList {
  const records = [...results]
    .filter(({ result: { layer } }) => only === undefined || (layer !== undefined && only.has(layer.layerId)))
    .map(({ key, description, result: { layer, createdAt } }) => ({
      key,
      description,
      createdAt: createdAt.toISOString(),
      ...(layer !== undefined && { layer: { diffId: layer.diffId, descriptor: layer.descriptor } }),
    }));
  return { version: 1, records };
}

export interface ExportRequest extends Cancelable {
  readonly results: readonly KeyedResult[];
  /** Of the images that were built. */
  readonly imageLayers: ReadonlySet<Digest>;
  readonly lease: Lease;
  readonly credentials: ((host: string) => Credentials | undefined) | undefined;
}

/** Publishes results for later builds. @throws what the registry answers, 'unavailable' for a directory that cannot be written */
export async function exportCache(
  { images }: RemoteCachePorts,
  target: Exclude<CacheTarget, { kind: 'inline' }>,
  request: ExportRequest,
): Promise<void> {
  const { results, imageLayers, lease, signal } = request;
  const list = cacheListOf(results, target.mode === 'min' ? imageLayers : undefined);
  const layers = new Map<string, Descriptor>();
  for (const { layer } of list.records)
    if (layer !== undefined) layers.set(layer.descriptor.digest, layer.descriptor as Descriptor);
  const config = await images.putDocument(Buffer.from(JSON.stringify(list)), { mediaType: CACHE_CONFIG_TYPE, lease });
  const document = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    artifactType: CACHE_CONFIG_TYPE,
    config,
    layers: [...layers.values()],
  };
  const bytes = Buffer.from(JSON.stringify(document));
  if (bytes.length > MANIFEST_MAX_BYTES)
    throw new AppError(
      'too-large',
      `cannot export the build cache: it has ${layers.size} layers, more than a manifest holds`,
    );
  const manifest = await images.putDocument(bytes, { mediaType: MEDIA_TYPES.ociManifest, lease });
  if (target.kind === 'registry') {
    const { host } = parseReference(target.reference);
    await images.publish(target.reference, [manifest], { credentials: request.credentials?.(host), signal });
    return;
  }
  await writeDirectory(images, target.directory, [...layers.values(), config, manifest], signal);
}

/** An OCI layout; blobs that are there stay. The index goes last, so that a reader finds all that it names. */
async function writeDirectory(
  images: Images,
  directory: string,
  blobs: readonly Descriptor[],
  signal: AbortSignal | undefined,
): Promise<void> {
  for (const { digest, size } of blobs) {
    const parent = join(directory, 'blobs', algorithmOf(digest));
    await mkdir(parent, { recursive: true });
    const path = join(parent, hexOf(digest));
    if (await hasSize(path, size)) continue;
    const staging = `${path}.part`;
    await pipeline(await images.openBlob(digest), createWriteStream(staging, { flush: true }), { signal });
    await renameDurably(staging, path);
  }
  const manifest = blobs.at(-1);
  await writeDurably(join(directory, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }));
  const index = { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: [manifest] };
  await writeDurably(join(directory, 'index.json'), JSON.stringify(index));
}

async function hasSize(path: string, sizeBytes: number): Promise<boolean> {
  try {
    return (await stat(path)).size === sizeBytes;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}
