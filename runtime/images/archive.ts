/**
 * Archives: images in one tar that is a docker-archive and an OCI image layout at once.
 *
 *   blobs/<algorithm>/<hex>   exactly what the content store holds
 *   oci-layout index.json     the layout; names in annotations
 *   manifest.json             Docker's list: config, names and layers of each image
 *
 * Load takes such a tar, a plain layout, or a docker-archive of `<hex>.json` and `…/layer.tar` files. Entries go into
 * the content store as they come and are named by what they are: no path of the archive is ever a path of the host.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
 */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { extract, pack } from 'tar-stream';
import { z } from 'zod';
import { algorithmOf, type Digest, digestOf, hexOf, parseDigest } from '../../shared/digest.ts';
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import { isForeignLayer, isIndexType, isManifestType, MEDIA_TYPES } from '../../shared/media-types.ts';
import { type Descriptor, MANIFEST_MAX_BYTES, parseManifest, referencesOf } from '../../shared/oci.ts';
import { canonicalReference, familiarReference, parseReference, type Reference } from '../../shared/reference.ts';
import { type Cancelable, collect, measure } from '../../shared/streams.ts';
import { type ArchiveForm, compressionOf, decompress, HEAD_BYTES } from './decompress.ts';
import type { LayoutEntry, LoadedImage, LoadOptions } from './images.ts';
import type { Protection } from './leases.ts';
import { parsePlatform } from './platform.ts';
import type { ImagePorts } from './ports.ts';
import { fetchImage, type ImageSource, putBytes } from './pull.ts';
import { discardContent } from './reclaim.ts';
import { noSuchImage, type StoredName } from './store.ts';

const NAME_ANNOTATION = 'io.containerd.image.name';
const REF_ANNOTATION = 'org.opencontainers.image.ref.name';
/** manifest.json, index.json: as large as a manifest may be. */
const DOCUMENT_MAX_BYTES = MANIFEST_MAX_BYTES;
const ENTRIES_MAX = 100_000;

interface Saved {
  readonly manifest: Descriptor;
  readonly config: Descriptor;
  readonly layers: readonly Descriptor[];
  readonly tags: readonly Reference[];
}

/** @throws what Images.save says */
export async function saveImages(
  ports: ImagePorts,
  names: readonly string[],
  options: Cancelable = {},
): Promise<Readable> {
  const lease = ports.leases.acquire();
  try {
    const images = await chooseSaved(ports, names, lease);
    const tar = pack();
    writeArchive(ports, tar, { images, signal: options.signal })
      .catch((error) => tar.destroy(error))
      .finally(() => lease[Symbol.asyncDispose]());
    return Readable.from(tar, { objectMode: false });
  } catch (error) {
    await lease[Symbol.asyncDispose]();
    throw error;
  }
}

/** One entry per manifest; a repository without a tag means all of its tags, as with `docker save`. */
async function chooseSaved(ports: ImagePorts, names: readonly string[], lease: Protection): Promise<readonly Saved[]> {
  const chosen = new Map<Digest, { readonly id: Digest; readonly tags: Set<string> }>();
  const add = (id: Digest, manifest: Digest, name: StoredName | undefined) => {
    const entry = chosen.get(manifest) ?? { id, tags: new Set() };
    if (name !== undefined && !name.byDigest) entry.tags.add(name.name);
    chosen.set(manifest, entry);
  };
  for (const text of names) {
    const every = await tagsOfBareName(ports, text);
    for (const { id, name } of every) add(id, name.manifestDigest, name);
    if (every.length > 0) continue;
    const { id, name } = await ports.store.find(text);
    await lease.protect(id);
    const image = await ports.store.get(id);
    if (image === undefined) throw noSuchImage(text);
    add(id, name?.manifestDigest ?? image.manifest.digest, name);
  }
  return Promise.all(
    [...chosen].map(async ([digest, { id, tags }]) => {
      const image = await ports.store.get(id);
      const manifest = await ports.store.manifest(digest);
      if (image === undefined || manifest === undefined) throw noSuchImage(id);
      await lease.protect(id, ...image.blobs, ...image.layers.map((layer) => layer.layerId));
      const document = await readManifest(ports, manifest);
      return { manifest, ...document, tags: [...tags].map((tag) => parseReference(tag)) };
    }),
  );
}

async function tagsOfBareName(ports: ImagePorts, text: string): Promise<readonly { id: Digest; name: StoredName }[]> {
  try {
    const reference = parseReference(text, { bare: true });
    if (reference.tag !== undefined || reference.digest !== undefined) return [];
    const tags = await ports.store.tagsOf(`${reference.host}/${reference.repository}`);
    return Promise.all(tags.map(async (name) => ({ id: (await ports.store.find(name.name)).id, name })));
  } catch (error) {
    if (isKind(error, 'invalid')) return [];
    throw error;
  }
}

async function readManifest(ports: ImagePorts, manifest: Descriptor) {
  const stream = await ports.blobs.open(manifest.digest);
  const bytes = await collect(stream, MANIFEST_MAX_BYTES, { what: `manifest ${manifest.digest}` });
  const document = parseManifest(bytes, manifest.mediaType);
  if (document.kind !== 'manifest') throw new AppError('integrity', `cannot save ${manifest.digest}: it is an index`);
  return { config: document.config, layers: document.layers };
}

const blobPath = (digest: Digest) => `blobs/${algorithmOf(digest)}/${hexOf(digest)}`;

async function writeArchive(
  ports: ImagePorts,
  tar: ReturnType<typeof pack>,
  { images, signal }: { readonly images: readonly Saved[] } & Cancelable,
): Promise<void> {
  const document = (name: string, value: unknown) => tar.entry({ name, ...DOCUMENT }, JSON.stringify(value));
  const blobs = new Map<Digest, Descriptor>();
  for (const { manifest, config, layers } of images)
    for (const blob of [...layers, config, manifest]) blobs.set(blob.digest, blob);
  await writeBlobs(ports, tar, { blobs: blobs.values(), signal });
  const index = images.flatMap(({ manifest, tags }) =>
    tags.length === 0 ? [manifest] : tags.map((tag) => named(manifest, tag)),
  );
  document('index.json', { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: index });
  document(
    'manifest.json',
    images.map(({ config, layers, tags }) => ({
      Config: blobPath(config.digest),
      RepoTags: tags.length === 0 ? null : tags.map(familiarReference),
      Layers: layers.map((layer) => blobPath(layer.digest)),
    })),
  );
  document('oci-layout', { imageLayoutVersion: '1.0.0' });
  tar.finalize();
}

/** @throws what Images.layout says */
export async function layoutOf(
  ports: ImagePorts,
  entries: readonly LayoutEntry[],
  { signal }: Cancelable = {},
): Promise<Readable> {
  const blobs = new Map<Digest, Descriptor>();
  for (const { descriptor } of entries) await collectBlobs(ports, descriptor, blobs);
  const index = entries.flatMap(({ descriptor, names }) =>
    names.length === 0 ? [descriptor] : names.map((name) => named(descriptor, parseReference(name))),
  );
  const tar = pack();
  const write = async () => {
    await writeBlobs(ports, tar, { blobs: blobs.values(), signal });
    const document = (name: string, value: unknown) => tar.entry({ name, ...DOCUMENT }, JSON.stringify(value));
    document('index.json', { schemaVersion: 2, mediaType: MEDIA_TYPES.ociIndex, manifests: index });
    document('oci-layout', { imageLayoutVersion: '1.0.0' });
    tar.finalize();
  };
  write().catch((error) => tar.destroy(error));
  return Readable.from(tar, { objectMode: false });
}

/** Everything below a manifest or an index, itself last. */
async function collectBlobs(ports: ImagePorts, top: Descriptor, found: Map<Digest, Descriptor>): Promise<void> {
  const isDocument = isManifestType(top.mediaType) || isIndexType(top.mediaType);
  if (isDocument) {
    const bytes = await collect(await ports.blobs.open(top.digest), MANIFEST_MAX_BYTES, { what: top.digest });
    for (const below of referencesOf(parseManifest(bytes, top.mediaType))) await collectBlobs(ports, below, found);
  }
  if ((await ports.blobs.stat(top.digest)) !== undefined) found.set(top.digest, top);
}

function named(descriptor: Descriptor, reference: Reference): Descriptor {
  const names = { [NAME_ANNOTATION]: canonicalReference(reference), [REF_ANNOTATION]: reference.tag ?? 'latest' };
  return { ...descriptor, annotations: { ...descriptor.annotations, ...names } };
}

const DOCUMENT = { mtime: new Date(0), mode: 0o644 } as const;

async function writeBlobs(
  ports: ImagePorts,
  tar: ReturnType<typeof pack>,
  { blobs, signal }: { readonly blobs: Iterable<Descriptor> } & Cancelable,
): Promise<void> {
  for (const { digest, size } of blobs) {
    const stream = await ports.blobs.open(digest);
    await pipeline(stream, tar.entry({ name: blobPath(digest), size, ...DOCUMENT }), { signal });
  }
}

const dockerManifestSchema = z.array(
  z.looseObject({
    Config: z.string(),
    RepoTags: z.array(z.string()).nullish(),
    Layers: z.array(z.string()).nullish(),
  }),
);
const layoutIndexSchema = z.looseObject({
  manifests: z.array(
    z.looseObject({
      mediaType: z.string(),
      digest: z.string(),
      size: z.number(),
      annotations: z.record(z.string(), z.string()).nullish(),
    }),
  ),
});

interface ArchiveFile {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly form: ArchiveForm;
}

/** What the archive held, by normalised name. Links stand for what they point at. */
interface Unpacked {
  readonly files: ReadonlyMap<string, ArchiveFile>;
  readonly links: ReadonlyMap<string, string>;
}

/** An image that the archive offers. */
interface Offered {
  readonly digest: Digest;
  readonly names: readonly Reference[];
}

/** @throws what Images.load says */
export async function loadImages(
  ports: ImagePorts,
  stream: Readable,
  options: LoadOptions = {},
): Promise<readonly LoadedImage[]> {
  const brought = new Set<Digest>();
  try {
    return await loadAll(ports, stream, { ...options, brought });
  } finally {
    // The archive's own documents, and what only images for other platforms need: nobody could ask for it again.
    await discardContent(ports, { layers: new Set(), blobs: brought });
  }
}

/** To `brought` is added what was not here before. */
async function loadAll(
  ports: ImagePorts,
  stream: Readable,
  options: LoadOptions & { readonly brought: Set<Digest> },
): Promise<readonly LoadedImage[]> {
  const { signal, brought, onProgress = () => {} } = options;
  const wanted = options.platform === undefined ? ports.host : parsePlatform(options.platform, ports.host);
  await using lease = ports.leases.acquire();
  const archive = await unpack(ports, stream, { signal, lease, brought });
  const source = sourceOf(ports);
  const loaded: LoadedImage[] = [];
  for (const { digest, names } of await offers(ports, archive)) {
    const top = await source.manifest(digest, { signal });
    const { id } = await fetchImage(ports, source, { top, wanted, names, onProgress, signal });
    const shown = names.map(familiarReference);
    for (const reference of shown.length === 0 ? [undefined] : shown) loaded.push({ id, reference });
    ports.events.publish({ type: 'image', action: 'load', id, attributes: { name: shown[0] ?? id } });
  }
  return loaded;
}

async function unpack(
  ports: ImagePorts,
  stream: Readable,
  { signal, lease, brought }: Cancelable & { readonly lease: Protection; readonly brought: Set<Digest> },
): Promise<Unpacked> {
  const files = new Map<string, ArchiveFile>();
  const links = new Map<string, string>();
  const parser = extract();
  const plain = await decompress(stream);
  const flow = pipeline(plain, parser, { signal });
  flow.catch(() => {});
  let entries = 0;
  try {
    for await (const entry of parser) {
      if (++entries > ENTRIES_MAX)
        throw new AppError('invalid', `cannot load archive: it has more than ${ENTRIES_MAX} entries`);
      const { name, type, linkname } = entry.header;
      const path = normalize(name);
      if (type === 'file' || type === 'contiguous-file') {
        const file = await storeEntry(ports, Readable.from(entry, { objectMode: false }), lease);
        if (file.isNew) brought.add(file.digest);
        files.set(path, file);
      } else {
        if (type === 'symlink') links.set(path, normalize(`${path}/../${linkname ?? ''}`));
        if (type === 'link') links.set(path, normalize(linkname ?? ''));
        entry.resume();
      }
    }
    await flow;
  } catch (error) {
    throw archiveError(error);
  }
  return { files, links };
}

/** What the parser and the decompressors find wrong is the archive's fault. */
function archiveError(error: unknown): unknown {
  if (!(error instanceof Error) || error instanceof AppError) return error;
  const code = 'code' in error ? String(error.code) : undefined;
  // The parser's errors alone have none.
  if (code !== undefined && !/^(?:Z_|ZSTD_error_)/.test(code)) return error;
  return new AppError('invalid', `cannot load archive: it is cut off or damaged: ${messageOf(error)}`, {
    cause: error,
  });
}

async function storeEntry(
  ports: ImagePorts,
  entry: Readable,
  lease: Protection,
): Promise<ArchiveFile & { readonly isNew: boolean }> {
  const measured = measure();
  await using ingest = await ports.blobs.ingest(`load-${ports.randomId()}`);
  try {
    await Promise.all([pipeline(entry, measured), ingest.append(measured)]);
    const { digest, sizeBytes } = measured.result();
    await lease.protect(digest);
    const isNew = (await ports.store.blob(digest)) === undefined;
    await ingest.commit({ digest, sizeBytes });
    await ports.store.putBlob(await ports.measureBlob(digest));
    return { digest, sizeBytes, form: await formOf(ports, digest, sizeBytes), isNew };
  } catch (error) {
    await ingest.abort();
    throw error;
  }
}

async function formOf(ports: ImagePorts, digest: Digest, sizeBytes: number): Promise<ArchiveForm> {
  if (sizeBytes < HEAD_BYTES) return 'none';
  const head = await ports.blobs.open(digest, { start: 0, end: HEAD_BYTES - 1 });
  return compressionOf(await collect(head, HEAD_BYTES, { what: `blob ${digest}` }));
}

/** A name inside the archive, without `.` and `..`; it is only ever a key. */
function normalize(name: string): string {
  const parts: string[] = [];
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') parts.pop();
    else parts.push(part);
  }
  return parts.join('/');
}

function lookUp({ files, links }: Unpacked, name: string): ArchiveFile {
  let path = normalize(name);
  for (let hops = 0; hops < 8; hops++) {
    const file = files.get(path);
    if (file !== undefined) return file;
    const next = links.get(path);
    if (next === undefined) break;
    path = next;
  }
  throw new AppError('invalid', `cannot load archive: it names ${JSON.stringify(name)}, which it does not hold`);
}

async function offers(ports: ImagePorts, archive: Unpacked): Promise<readonly Offered[]> {
  const index = await readDocument(ports, archive, { name: 'index.json', schema: layoutIndexSchema });
  const list = await readDocument(ports, archive, { name: 'manifest.json', schema: dockerManifestSchema });
  if (index !== undefined) {
    const offered = new Map<Digest, Reference[]>();
    for (const { digest, annotations } of index.manifests) {
      const names = offered.get(lookUpBlob(archive, digest)) ?? [];
      const name = annotations?.[NAME_ANNOTATION] ?? fullName(annotations?.[REF_ANNOTATION]);
      if (name !== undefined) names.push(parseReference(name));
      offered.set(lookUpBlob(archive, digest), names);
    }
    return [...offered].map(([digest, names]) => ({ digest, names }));
  }
  if (list === undefined)
    throw new AppError('invalid', 'cannot load archive: it has neither manifest.json nor index.json');
  const offered: Offered[] = [];
  for (const image of list) {
    const config = lookUp(archive, image.Config);
    const layers = (image.Layers ?? []).map((name) => lookUp(archive, name));
    const document = Buffer.from(JSON.stringify(dockerManifest(config, layers)));
    const digest = digestOf(document);
    const names = (image.RepoTags ?? []).map((tag) => parseReference(tag));
    await putBytes(ports, document, digest);
    await ports.store.putBlob(await ports.measureBlob(digest));
    offered.push({ digest, names });
  }
  return offered;
}

function lookUpBlob(archive: Unpacked, digest: string): Digest {
  const found = lookUp(archive, `blobs/${digest.replace(':', '/')}`).digest;
  if (found !== digest) throw new AppError('integrity', `cannot load archive: the blob called ${digest} is ${found}`);
  return found;
}

/** skopeo and buildah write a whole reference there, others only a tag: that is no name. */
function fullName(text: string | undefined): string | undefined {
  return text !== undefined && /[:/]/.test(text) ? text : undefined;
}

function dockerManifest(config: ArchiveFile, layers: readonly ArchiveFile[]): Record<string, unknown> {
  const types = { none: MEDIA_TYPES.ociLayer, gzip: MEDIA_TYPES.ociLayerGzip, zstd: MEDIA_TYPES.ociLayerZstd };
  return {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: config.digest, size: config.sizeBytes },
    layers: layers.map(({ digest, sizeBytes, form }) => {
      if (form === 'bzip2' || form === 'xz')
        throw new AppError('unsupported', `cannot load archive: layer ${digest} is compressed with ${form}`);
      return { mediaType: types[form], digest, size: sizeBytes };
    }),
  };
}

async function readDocument<T>(
  ports: ImagePorts,
  archive: Unpacked,
  { name, schema }: { readonly name: string; readonly schema: z.ZodType<T> },
): Promise<T | undefined> {
  const file = archive.files.get(name);
  if (file === undefined) return undefined;
  const bytes = await collect(await ports.blobs.open(file.digest), DOCUMENT_MAX_BYTES, { what: name });
  let json: unknown;
  try {
    json = JSON.parse(bytes.toString('utf8'));
  } catch (cause) {
    throw new AppError('invalid', `cannot load archive: ${name} is not JSON`, { cause });
  }
  const result = schema.safeParse(json);
  if (!result.success) throw new AppError('invalid', `cannot load archive: ${name} has an unexpected form`);
  return result.data;
}

/** The content store, seen as the place where an image comes from. */
function sourceOf(ports: ImagePorts): ImageSource {
  const open = async (digest: Digest, start: number) => {
    try {
      return await ports.blobs.open(digest, start === 0 ? undefined : { start });
    } catch (error) {
      if (!isKind(error, 'not-found')) throw error;
      throw new AppError('invalid', `cannot load archive: it does not hold ${digest}`, { cause: error });
    }
  };
  return {
    name: 'archive',
    place: 'archive',
    repository: undefined,
    async manifest(reference, { signal }) {
      const digest = parseDigest(reference);
      const bytes = await collect(await open(digest, 0), MANIFEST_MAX_BYTES, { what: `manifest ${digest}`, signal });
      return { digest, bytes, mediaType: parseManifest(bytes).mediaType };
    },
    blob: (descriptor, start) => {
      if (isForeignLayer(descriptor.mediaType))
        throw new AppError(
          'unsupported',
          `cannot load archive: layer ${descriptor.digest} has to be fetched from elsewhere`,
        );
      return open(descriptor.digest, start);
    },
  };
}
