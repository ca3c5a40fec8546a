/**
 * Create: an image made here, of a parent and at most one more layer (commit, build, import).
 *
 * The layer is compressed on its way into the content store, so that a push sends what is stored. The manifest is OCI,
 * also over a Docker parent: layer types translate without touching their bytes.
 */
import type { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { chainIdOf, type Digest, digestOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { isForeignLayer, layerCompression, MEDIA_TYPES } from '../../shared/media-types.ts';
import { type Descriptor, type ImageConfig, MANIFEST_MAX_BYTES, parseManifest } from '../../shared/oci.ts';
import { parseReference } from '../../shared/reference.ts';
import { type Cancelable, collect, type Measured, measure } from '../../shared/streams.ts';
import { applyChanges } from '../dockerfile/image-config.ts';
import { createLayerSource } from '../layers/layer-source.ts';
import type { Chain } from '../layers/layer-store.ts';
import { decompress } from './decompress.ts';
import type { CreateRequest, ImageId, ImportOptions } from './images.ts';
import type { Protection } from './leases.ts';
import { normalizePlatform, parsePlatform } from './platform.ts';
import type { ImagePorts } from './ports.ts';
import { putBytes, recordedBlobs } from './pull.ts';
import { noSuchImage, type StoredLayer } from './store.ts';

/** A third of the time of zlib's default for a few percent more bytes. */
const GZIP_LEVEL = 3;

interface Parent {
  readonly layers: readonly StoredLayer[];
  readonly descriptors: readonly Descriptor[];
  readonly config: ImageConfig;
}

/** @throws what Images.create says */
export async function createImage(
  ports: ImagePorts,
  request: CreateRequest,
  options: Cancelable = {},
): Promise<ImageId> {
  const runConfig = applyChanges(request.config, request.changes ?? []);
  await using lease = ports.leases.acquire();
  const parent = request.parent === undefined ? undefined : await readParent(ports, request.parent, lease);
  const lower = parent?.layers ?? [];
  const made =
    request.layer === undefined
      ? undefined
      : await storeLayer(ports, request.layer, { ...options, lease, diffIds: parent?.config.diffIds ?? [], lower });

  const layers = [...lower, ...(made === undefined ? [] : [made.layer])];
  const config = Buffer.from(
    JSON.stringify(configOf(ports, { ...request, config: runConfig }, { parent: parent?.config, layers })),
  );
  const id = digestOf(config);
  const configDescriptor = { mediaType: MEDIA_TYPES.ociConfig, digest: id, size: config.length };
  const descriptors = [...(parent?.descriptors ?? []), ...(made === undefined ? [] : [made.descriptor])];
  const document = {
    schemaVersion: 2,
    mediaType: MEDIA_TYPES.ociManifest,
    config: configDescriptor,
    layers: descriptors.map(ociLayer),
  };
  const bytes = Buffer.from(JSON.stringify(document));
  const manifest = { mediaType: MEDIA_TYPES.ociManifest, digest: digestOf(bytes), size: bytes.length };
  await lease.protect(id, manifest.digest);
  await putBytes(ports, config, id);
  await putBytes(ports, bytes, manifest.digest);
  const blobs = await recordedBlobs(ports, [manifest.digest, id, ...descriptors.map((layer) => layer.digest)]);
  const names = request.name === undefined ? [] : [parseReference(request.name)];
  const now = ports.now();
  await ports.store.put({ id, config, manifest, layers, blobs, names, now, parentId: request.parent });
  return id;
}

async function readParent(ports: ImagePorts, id: ImageId, lease: Protection): Promise<Parent> {
  await lease.protect(id);
  const image = await ports.store.get(id);
  if (image === undefined) throw noSuchImage(id);
  await lease.protect(...image.layers.map((layer) => layer.layerId), ...image.blobs);
  const stream = await ports.blobs.open(image.manifest.digest);
  const bytes = await collect(stream, MANIFEST_MAX_BYTES, { what: `manifest ${image.manifest.digest}` });
  const document = parseManifest(bytes, image.manifest.mediaType);
  if (document.kind !== 'manifest')
    throw new AppError('integrity', `cannot read image ${id}: its manifest is an index`);
  return { layers: image.layers, descriptors: document.layers, config: await ports.store.config(id) };
}

interface StoreLayerOptions extends Cancelable {
  readonly lease: Protection;
  /** Of the layers below. */
  readonly diffIds: readonly Digest[];
  readonly lower: readonly StoredLayer[];
}

async function storeLayer(
  ports: ImagePorts,
  tar: Readable,
  options: StoreLayerOptions,
): Promise<{ readonly layer: StoredLayer; readonly descriptor: Descriptor }> {
  const { lease, diffIds, lower, signal } = options;
  const raw = measure();
  const compressed = measure();
  const gzip = createGzip({ level: GZIP_LEVEL, chunkSize: 1 << 18 });
  await using ingest = await ports.blobs.ingest(`create-${ports.randomId()}`, { signal });
  let blob: Measured;
  try {
    const flow = pipeline(tar, raw, gzip, compressed, { signal });
    await Promise.all([flow, ingest.append(compressed, { signal })]);
    blob = compressed.result();
    const diffId = raw.result().digest;
    await lease.protect(blob.digest, diffId, chainIdOf([...diffIds, diffId]) ?? diffId);
    await ingest.commit(blob);
  } catch (error) {
    await ingest.abort();
    throw error;
  }
  await ports.store.putBlob(await ports.measureBlob(blob.digest));
  const diffId = raw.result().digest;
  const source = createLayerSource([ports.blobs.pathOf(blob.digest)]);
  source.end(blob.sizeBytes);
  const chain: Chain = lower.map((layer) => layer.layerId);
  const layer = await ports.layers.ingest(
    { diffId, compression: 'gzip', source: source.source, lower: Promise.resolve(chain) },
    { signal },
  );
  const descriptor = { mediaType: MEDIA_TYPES.ociLayerGzip, digest: blob.digest, size: blob.sizeBytes };
  return { layer: { diffId, layerId: layer.id }, descriptor };
}

function configOf(
  ports: ImagePorts,
  request: CreateRequest,
  below: { readonly parent: ImageConfig | undefined; readonly layers: readonly StoredLayer[] },
): Record<string, unknown> {
  const { parent, layers } = below;
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
    rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) },
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
  const id = await createImage(
    ports,
    {
      layer: await decompress(tar),
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
