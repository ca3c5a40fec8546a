/**
 * Create: an image made here, of a parent and at most one more layer (commit, build, import).
 *
 * The layer is compressed on its way into the content store, so that a push sends what is stored. The manifest is OCI,
 * also over a Docker parent: layer types translate without touching their bytes.
 */
import { once } from 'node:events';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { type Digest, digestOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { isForeignLayer, layerCompression, MEDIA_TYPES } from '../../shared/media-types.ts';
import { type Descriptor, type ImageConfig, MANIFEST_MAX_BYTES, parseManifest } from '../../shared/oci.ts';
import { parseReference } from '../../shared/reference.ts';
import { type Cancelable, collect, measure } from '../../shared/streams.ts';
import { applyChanges } from '../dockerfile/image-config.ts';
import type { Chain } from '../layers/layer-store.ts';
import { decompress } from './decompress.ts';
import type { AssembleRequest, CreateRequest, ImageId, ImageLayer, ImportOptions } from './images.ts';
import type { Protection } from './leases.ts';
import { normalizePlatform, parsePlatform } from './platform.ts';
import type { ImagePorts } from './ports.ts';
import { putBytes, recordedBlobs } from './pull.ts';
import { noSuchImage } from './store.ts';

/** A third of the time of zlib's default for a few percent more bytes. */
const GZIP_LEVEL = 3;

/** @throws what Images.create says */
export async function createImage(
  ports: ImagePorts,
  request: CreateRequest,
  options: Cancelable = {},
): Promise<ImageId> {
  const config = applyChanges(request.config, request.changes ?? []);
  await using lease = ports.leases.acquire();
  const { parent } = request;
  if (parent !== undefined) await lease.protect(parent);
  const lower = parent === undefined ? [] : await imageLayers(ports, parent, lease);
  const above = request.layer === undefined ? [] : [await putLayer(ports, request.layer, { ...options, lower, lease })];
  const parentConfig = parent === undefined ? undefined : await ports.store.config(parent);
  const { id } = await assembleImage(ports, {
    layers: [...lower, ...above],
    config: configOf(ports, { ...request, config }, parentConfig),
    names: request.name === undefined ? [] : [request.name],
    parentId: parent,
    lease,
  });
  return id;
}

/** @throws what Images.layers says */
export async function imageLayers(
  ports: ImagePorts,
  id: ImageId,
  lease: Pick<Protection, 'protect'>,
): Promise<readonly ImageLayer[]> {
  const image = await ports.store.get(id);
  if (image === undefined) throw noSuchImage(id);
  await lease.protect(...image.layers.map((layer) => layer.layerId), ...image.blobs);
  const stream = await ports.blobs.open(image.manifest.digest);
  const bytes = await collect(stream, MANIFEST_MAX_BYTES, { what: `manifest ${image.manifest.digest}` });
  const document = parseManifest(bytes, image.manifest.mediaType);
  if (document.kind !== 'manifest')
    throw new AppError('integrity', `cannot read image ${id}: its manifest is an index`);
  return image.layers.map((layer, index) => {
    const descriptor = document.layers[index];
    if (descriptor === undefined)
      throw new AppError('integrity', `cannot read image ${id}: its manifest names ${document.layers.length} layers`);
    return { ...layer, descriptor };
  });
}

interface PutOptions extends Cancelable {
  readonly lower: readonly ImageLayer[];
  readonly lease: Protection;
}

/** Unpacked and compressed side by side, out of one reading. @throws what Images.putLayer says */
export async function putLayer(
  ports: ImagePorts,
  tar: Readable,
  { lower, lease, signal }: PutOptions,
): Promise<ImageLayer> {
  const gzip = createGzip({ level: GZIP_LEVEL, chunkSize: 1 << 18 });
  const compressed = measure();
  await using ingest = await ports.blobs.ingest(`create-${ports.randomId()}`, { signal });
  let failure: unknown;
  try {
    const compressing = Promise.all([pipeline(gzip, compressed, { signal }), ingest.append(compressed, { signal })]);
    // What fails there fails the reading, too, and is what there is to tell.
    compressing.catch((error: Error) => {
      failure ??= error;
      tar.destroy(error);
    });
    const chain: Chain = lower.map((layer) => layer.layerId);
    const protect = (id: Digest) => lease.protect(id);
    const layer = await ports.layers.make(Readable.from(teed(tar, gzip), { objectMode: false }), chain, {
      protect,
      signal,
    });
    await compressing;
    const blob = compressed.result();
    await lease.protect(blob.digest);
    await ingest.commit(blob);
    await ports.store.putBlob(await ports.measureBlob(blob.digest));
    const descriptor = { mediaType: MEDIA_TYPES.ociLayerGzip, digest: blob.digest, size: blob.sizeBytes };
    return { diffId: layer.diffId, layerId: layer.id, descriptor };
  } catch (error) {
    const first = failure instanceof AppError ? failure : error;
    gzip.destroy();
    await ingest.abort();
    throw first;
  }
}

/** Passes bytes through and writes them to `aside`, at the pace of the slower reader. */
async function* teed(source: Readable, aside: Writable): AsyncGenerator<Buffer, void, undefined> {
  for await (const chunk of source) {
    if (!aside.write(chunk)) await once(aside, 'drain');
    yield chunk;
  }
  aside.end();
}

interface AssembleOptions extends Omit<AssembleRequest, 'lease'> {
  readonly parentId?: ImageId | undefined;
  readonly lease: Protection;
}

/** @throws what Images.assemble says */
export async function assembleImage(
  ports: ImagePorts,
  request: AssembleOptions,
): Promise<{ readonly id: ImageId; readonly manifest: Descriptor }> {
  const { layers, lease, annotations, parentId } = request;
  const rootfs = { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) };
  const { history, ...about } = request.config;
  const config = Buffer.from(JSON.stringify({ ...about, rootfs, history }));
  const id = digestOf(config);
  const document = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: { mediaType: MEDIA_TYPES.ociConfig, digest: id, size: config.length },
    layers: layers.map((layer) => ociLayer(layer.descriptor)),
    annotations,
  };
  const bytes = Buffer.from(JSON.stringify(document));
  const manifest = { mediaType: MEDIA_TYPES.ociManifest, digest: digestOf(bytes), size: bytes.length };
  await lease.protect(id, manifest.digest);
  const names = (request.names ?? []).map((name) => parseReference(name));
  // A build that has changed nothing makes the same image again.
  const before = await ports.store.get(id);
  if (before?.manifest.digest === manifest.digest && names.length === 0) return { id, manifest };
  await putBytes(ports, config, id);
  await putBytes(ports, bytes, manifest.digest);
  const blobs = await recordedBlobs(ports, [manifest.digest, id, ...layers.map((layer) => layer.descriptor.digest)]);
  const stored = layers.map(({ diffId, layerId }) => ({ diffId, layerId }));
  await ports.store.put({ id, config, manifest, layers: stored, blobs, names, now: ports.now(), parentId });
  return { id, manifest };
}

function configOf(ports: ImagePorts, request: CreateRequest, parent: ImageConfig | undefined): Record<string, unknown> {
  const created = ports.now().toISOString();
  const platform = parent ?? normalizePlatform(request.platform ?? ports.host);
  const { author, comment, createdBy: created_by } = request;
  const step = { created, created_by, author, comment, empty_layer: request.layer === undefined ? true : undefined };
  return {
    created,
    author: author ?? parent?.author,
    architecture: platform.architecture,
    variant: platform.variant,
    os: platform.os,
    config: request.config,
    history: [...(parent?.history ?? []), step],
  };
}

/** The same bytes under OCI's name for them. */
function ociLayer(layer: Descriptor): Descriptor {
  if (isForeignLayer(layer.mediaType)) return layer;
  const types = { none: MEDIA_TYPES.ociLayer, gzip: MEDIA_TYPES.ociLayerGzip, zstd: MEDIA_TYPES.ociLayerZstd };
  return { ...layer, mediaType: types[layerCompression(layer.mediaType) ?? 'none'] };
}

/** @throws what Images.import says */
export async function importImage(ports: ImagePorts, tar: Readable, options: ImportOptions = {}): Promise<ImageId> {
  const { name, message, config = {}, changes, platform, signal } = options;
  const wanted = platform === undefined ? ports.host : parsePlatform(platform, ports.host);
  const { os, architecture, variant } = wanted;
  if (os !== ports.host.os) throw new AppError('invalid', 'operating system is not supported');
  const id = await createImage(
    ports,
    {
      layer: await decompress(tar, { mayBeEmpty: true }),
      config,
      changes,
      platform: variant === undefined ? { os, architecture } : { os, architecture, variant },
      comment: message,
      createdBy: '',
      name,
    },
    { signal },
  );
  ports.events.publish({ type: 'image', action: 'import', id, attributes: { name: name ?? id } });
  return id;
}
