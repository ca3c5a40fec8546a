/**
 * Pull: resolve → platform → manifest → config → layers, all at once.
 *
 * Each layer's blob streams into the content store while the layer store unpacks it behind the download; only settling
 * waits for the layer below. Names are written last, in one transaction, so that a pull that fails or is killed leaves
 * no image, and everything that did arrive is found again by the next one.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#pull
 */
import { Readable } from 'node:stream';
import { chainIdOf, type Digest, digestOf, hexOf, shortId } from '../../shared/digest.ts';
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import { INDEX_TYPES, layerCompression, MEDIA_TYPES } from '../../shared/media-types.ts';
import {
  CONFIG_MAX_BYTES,
  type Descriptor,
  type ImageConfig,
  type Manifest,
  parseImageConfig,
  parseManifest,
} from '../../shared/oci.ts';
import {
  canonicalReference,
  DEFAULT_TAG,
  familiarName,
  familiarReference,
  parseReference,
  type Reference,
} from '../../shared/reference.ts';
import type { RegistryClient } from '../../shared/registry-client.ts';
import { type Cancelable, collect } from '../../shared/streams.ts';
import type { Chain } from '../layers/layer-store.ts';
import type { FetchLayerRequest, LayerOrigin, PullOptions, PullResult } from './images.ts';
import type { Protection } from './leases.ts';
import { matchesPlatform, parsePlatform, platformText, selectManifests, type WantedPlatform } from './platform.ts';
import type { ImagePorts } from './ports.ts';
import type { PullEvent } from './progress.ts';
import type { StoredBlob, StoredLayer } from './store.ts';

/** An index may name indexes; deeper nesting than this is nobody's honest image. */
const INDEX_DEPTH_MAX = 4;
/** Manifests looked at while choosing one: an index may leave every platform unsaid. */
const CANDIDATES_MAX = 16;
const PROGRESS_EVERY_MS = 100;

export interface FetchedManifest {
  readonly bytes: Uint8Array;
  readonly mediaType: string;
  readonly digest: Digest;
}

/** Where an image comes from: a repository of a registry, or an archive that is being loaded. */
export interface ImageSource extends LayerOrigin {
  /** `host/repository`, when a push may mount blobs from there. */
  readonly repository: string | undefined;
  manifest(reference: string, options: Cancelable): Promise<FetchedManifest>;
}

export interface FetchRequest extends Cancelable {
  readonly wanted: WantedPlatform;
  /** Names to give; called once the manifests are known. */
  readonly names: readonly Reference[];
  readonly onProgress: (event: PullEvent) => void;
}

export interface FetchedImage {
  readonly id: Digest;
  readonly manifest: Descriptor;
  /** false = the image was here already, under all of these names. */
  readonly isNew: boolean;
}

/** @throws what Images.pull says */
export async function pullImage(ports: ImagePorts, text: string, options: PullOptions = {}): Promise<PullResult> {
  const reference = parseReference(text);
  const { host, repository, tag, digest } = reference;
  const wanted = options.platform === undefined ? ports.host : parsePlatform(options.platform, ports.host);
  const { signal, onProgress = () => {} } = options;
  const shown = familiarReference(reference);
  onProgress({ kind: 'resolving', reference: shown });
  using source = registrySource(ports.connect(host, options.credentials), reference);
  const asked = digest ?? tag ?? DEFAULT_TAG;
  const top = await source.manifest(asked, { signal });
  onProgress({ kind: 'pulling', repository, tag: digest === undefined ? asked : canonicalReference(reference) });

  const names: Reference[] = [{ host, repository, digest: top.digest }];
  if (tag !== undefined && digest === undefined && options.keepsTag !== true) names.push({ host, repository, tag });
  const image = await fetchImage(ports, source, { top, wanted, names, onProgress, signal });

  onProgress({ kind: 'digest', digest: top.digest });
  onProgress({ kind: 'done', reference: shown, isNew: image.isNew });
  ports.events.publish({ type: 'image', action: 'pull', id: shown, attributes: { name: familiarName(reference) } });
  return { ...image, reference: shown, digest: top.digest };
}

/** @throws what Images.pullAllTags says */
export async function pullAllTags(
  ports: ImagePorts,
  text: string,
  options: PullOptions = {},
): Promise<readonly PullResult[]> {
  const reference = parseReference(text, { bare: true });
  if (reference.tag !== undefined || reference.digest !== undefined)
    throw new AppError('invalid', `cannot pull all tags of ${JSON.stringify(text)}: it names one already`);
  using client = ports.connect(reference.host, options.credentials);
  const tags = await Array.fromAsync(client.tags(reference.repository, { signal: options.signal }));
  if (tags.length === 0)
    throw new AppError('not-found', `cannot pull all tags of ${JSON.stringify(text)}: it has none`);
  const results: PullResult[] = [];
  for (const tag of tags) results.push(await pullImage(ports, canonicalReference({ ...reference, tag }), options));
  return results;
}

/**
 * One repository, as the place where an image comes from. Another pull may have joined a transfer that reads from here,
 * so the client lives until the last of its streams has closed.
 */
function registrySource(client: RegistryClient, reference: Reference): ImageSource & Disposable {
  const { host, repository } = reference;
  let users = 1;
  const release = () => {
    if (--users === 0) client[Symbol.dispose]();
  };
  return {
    name: familiarReference(reference),
    place: host,
    repository: `${host}/${repository}`,
    async manifest(asked, { signal }) {
      try {
        const { descriptor, mediaType, bytes } = await client.fetchManifest(repository, asked, { signal });
        return { digest: descriptor.digest, mediaType, bytes };
      } catch (error) {
        if (!isKind(error, 'not-found')) throw error;
        const full = canonicalReference(reference);
        throw new AppError('not-found', `failed to resolve reference "${full}": ${full}: not found`, { cause: error });
      }
    },
    async blob(descriptor, start, { signal }) {
      users++;
      try {
        const { stream } = await client.fetchBlob(repository, descriptor, { offset: start, signal });
        return stream.once('close', release);
      } catch (error) {
        release();
        throw error;
      }
    },
    [Symbol.dispose]: release,
  };
}

/** Brings one image whole into the stores and names it. Shared by pull and load. */
export async function fetchImage(
  ports: ImagePorts,
  source: ImageSource,
  request: FetchRequest & { readonly top: FetchedManifest },
): Promise<FetchedImage> {
  await using lease = ports.leases.acquire();
  const chosen = await chooseManifest(ports, source, request);
  const { manifest, config } = chosen;
  const descriptor = { mediaType: manifest.mediaType, digest: chosen.digest, size: chosen.bytes.length };
  const id = manifest.config.digest;
  await lease.protect(id, chosen.digest, ...manifest.layers.map((layer) => layer.digest));
  await protectChain(lease, config.diffIds);

  const known = await hasWhole(ports, id, chosen);
  const layers = known ?? (await fetchLayers(ports, source, { ...request, manifest, config }));
  await putBytes(ports, chosen.configBytes, id);
  await putBytes(ports, chosen.bytes, chosen.digest);
  const blobs = await recordedBlobs(ports, [chosen.digest, id, ...manifest.layers.map((layer) => layer.digest)]);
  const before = await ports.store.get(id);
  const isNamed = (name: Reference) =>
    before?.names.some((old) => old.name === canonicalReference(name) && old.manifestDigest === chosen.digest) === true;
  const isNew = known === undefined || !request.names.every(isNamed);
  request.signal?.throwIfAborted();
  if (isNew) {
    const { names } = request;
    const now = ports.now();
    const put = { id, config: chosen.configBytes, manifest: descriptor, layers, blobs, names, now };
    await ports.store.put({ ...put, source: source.repository });
  }
  return { id, manifest: descriptor, isNew };
}

interface ChosenManifest {
  readonly digest: Digest;
  readonly bytes: Uint8Array;
  readonly manifest: Manifest;
  readonly configBytes: Uint8Array;
  readonly config: ImageConfig;
}

/** Walks the index, best platform first, to the first image that is what was wanted. */
async function chooseManifest(
  ports: ImagePorts,
  source: ImageSource,
  request: FetchRequest & { readonly top: FetchedManifest },
): Promise<ChosenManifest> {
  const { wanted, signal } = request;
  let looked = 0;
  const visit = async (
    fetched: FetchedManifest,
    path: readonly Digest[],
    isSaid: boolean,
  ): Promise<ChosenManifest | undefined> => {
    const document = parseNamed(source, fetched);
    if (document.kind === 'manifest') {
      const { configBytes, config } = await fetchConfig(ports, source, { manifest: document, signal });
      // A lone manifest runs as far as it goes, as with Docker; one of several, or one asked for, must be the right one.
      const mustMatch = (path.length > 0 && !isSaid) || wanted.explicit;
      if (mustMatch && !matchesPlatform({ ...config }, wanted)) return undefined;
      return { digest: fetched.digest, bytes: fetched.bytes, manifest: document, configBytes, config };
    }
    if (path.length >= INDEX_DEPTH_MAX)
      throw new AppError('invalid', `cannot pull ${source.name}: indexes are nested more than ${INDEX_DEPTH_MAX} deep`);
    for (const entry of selectManifests(document.manifests, wanted)) {
      if (path.includes(entry.digest) || entry.digest === fetched.digest)
        throw new AppError('invalid', `cannot pull ${source.name}: its index ${entry.digest} contains itself`);
      if (++looked > CANDIDATES_MAX)
        throw new AppError(
          'invalid',
          `cannot pull ${source.name}: its index has too many manifests without a platform`,
        );
      const inner = await source.manifest(entry.digest, { signal });
      if (inner.bytes.length !== entry.size)
        throw new AppError(
          'integrity',
          `cannot pull ${source.name}: manifest ${entry.digest} has ${inner.bytes.length} bytes, the index says ${entry.size}`,
        );
      const isImage = !INDEX_TYPES.includes(inner.mediaType);
      const found = await visit(inner, [...path, fetched.digest], isImage && entry.platform !== undefined);
      if (found !== undefined) return found;
    }
    return undefined;
  };

  const found = await visit(request.top, [], false);
  if (found === undefined)
    throw new AppError('not-found', `no matching manifest for ${platformText(wanted)} in the manifest list entries`);
  return found;
}

function parseNamed(source: ImageSource, fetched: FetchedManifest) {
  if (/\.docker\.distribution\.manifest\.v1\+/.test(fetched.mediaType))
    throw new AppError(
      'unsupported',
      `cannot pull ${source.name}: it has the obsolete manifest schema 1; push it again with a current client`,
    );
  if (digestOf(fetched.bytes, fetched.digest.startsWith('sha512:') ? 'sha512' : 'sha256') !== fetched.digest)
    throw new AppError('integrity', `cannot pull ${source.name}: the manifest is not ${fetched.digest}`);
  try {
    return parseManifest(fetched.bytes, fetched.mediaType);
  } catch (error) {
    if (!isKind(error, 'invalid', 'unsupported', 'too-large')) throw error;
    throw new AppError(error.kind, `cannot pull ${source.name}: ${messageOf(error)}`, { cause: error });
  }
}

async function fetchConfig(
  ports: ImagePorts,
  source: ImageSource,
  { manifest, signal }: { readonly manifest: Manifest } & Cancelable,
): Promise<{ readonly configBytes: Uint8Array; readonly config: ImageConfig }> {
  const refuse = (kind: 'invalid' | 'unsupported' | 'too-large' | 'integrity', why: string) =>
    new AppError(kind, `cannot pull ${source.name}: ${why}`);
  const { config: descriptor, layers } = manifest;
  const types: readonly string[] = [MEDIA_TYPES.ociConfig, MEDIA_TYPES.dockerConfig];
  if (!types.includes(descriptor.mediaType))
    throw refuse('unsupported', `it is not an image: its config is ${JSON.stringify(descriptor.mediaType)}`);
  for (const layer of layers)
    if (layerCompression(layer.mediaType) === undefined)
      throw refuse('unsupported', `layer ${layer.digest} has media type ${JSON.stringify(layer.mediaType)}`);
  if (descriptor.size > CONFIG_MAX_BYTES)
    throw refuse('too-large', `its config has ${descriptor.size} bytes, more than ${CONFIG_MAX_BYTES}`);

  const here = await ports.blobs.stat(descriptor.digest);
  const stream =
    here === undefined ? await source.blob(descriptor, 0, { signal }) : await ports.blobs.open(descriptor.digest);
  const configBytes = await collect(stream, descriptor.size, { what: `config ${descriptor.digest}`, signal });
  const algorithm = descriptor.digest.startsWith('sha512:') ? 'sha512' : 'sha256';
  if (configBytes.length !== descriptor.size || digestOf(configBytes, algorithm) !== descriptor.digest)
    throw refuse('integrity', `the config is not ${descriptor.digest} (${descriptor.size} bytes)`);
  let config: ImageConfig;
  try {
    config = parseImageConfig(configBytes);
  } catch (error) {
    if (!isKind(error, 'invalid')) throw error;
    throw refuse('invalid', messageOf(error));
  }
  if (config.diffIds.length !== layers.length)
    throw refuse('invalid', `its config names ${config.diffIds.length} layers, its manifest ${layers.length}`);
  return { configBytes, config };
}

/** A layer is named by its diffID or its chainID: which, only settling tells. */
async function protectChain(lease: Protection, diffIds: readonly Digest[]): Promise<void> {
  const names = diffIds.map((_, index) => chainIdOf(diffIds.slice(0, index + 1)) ?? digestOf(''));
  await lease.protect(...diffIds, ...names);
}

/** The layers of an image that is here with every blob of this manifest. */
async function hasWhole(
  ports: ImagePorts,
  id: Digest,
  { manifest }: ChosenManifest,
): Promise<readonly StoredLayer[] | undefined> {
  const image = await ports.store.get(id);
  if (image === undefined) return undefined;
  const blobs = await Promise.all(manifest.layers.map((layer) => ports.blobs.stat(layer.digest)));
  const layers = await Promise.all(image.layers.map((layer) => ports.layers.get(layer.layerId)));
  return blobs.includes(undefined) || layers.includes(undefined) ? undefined : image.layers;
}

interface LayersRequest extends FetchRequest {
  readonly manifest: Manifest;
  readonly config: ImageConfig;
}

async function fetchLayers(
  ports: ImagePorts,
  source: ImageSource,
  request: LayersRequest,
): Promise<readonly StoredLayer[]> {
  const { manifest, config } = request;
  // The first failure stops the others; each of them is waited for, so that nothing runs on after the answer.
  const stop = new AbortController();
  const signal = request.signal === undefined ? stop.signal : AbortSignal.any([request.signal, stop.signal]);
  for (const layer of manifest.layers) request.onProgress(layerEvent(layer, 'pulling-fs-layer'));

  const here = await layersHere(ports, request);
  for (const layer of manifest.layers.slice(0, here.length)) request.onProgress(layerEvent(layer, 'already-exists'));

  let failure: unknown;
  let lower: Promise<Chain> = Promise.resolve(here.map((layer) => layer.layerId));
  const pulls: Promise<StoredLayer>[] = here.map((layer) => Promise.resolve(layer));
  for (const [index, descriptor] of manifest.layers.entries()) {
    const diffId = config.diffIds[index];
    if (diffId === undefined || index < here.length) continue;
    const below = lower;
    const pulled = fetchLayer(ports, source, { ...request, descriptor, diffId, lower: below, signal }).catch(
      (error) => {
        failure ??= error;
        stop.abort(error);
        throw error;
      },
    );
    lower = Promise.all([below, pulled]).then(([chain, layer]) => [...chain, layer.layerId]);
    lower.catch(() => {});
    pulls.push(pulled);
  }
  const settled = await Promise.allSettled(pulls);
  if (settled.some((result) => result.status === 'rejected')) throw failure;
  return settled.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
}

/** The base layers that are unpacked already, with their blobs; the rest may be too, but only the layer store can tell. */
async function layersHere(ports: ImagePorts, { manifest, config }: LayersRequest): Promise<readonly StoredLayer[]> {
  const here: StoredLayer[] = [];
  for (const [index, { digest }] of manifest.layers.entries()) {
    const diffId = config.diffIds[index];
    if (diffId === undefined || (await ports.blobs.stat(digest)) === undefined) break;
    const chain = here.map((layer) => layer.layerId);
    const found = await ports.layers.find(diffId, chain);
    if (found === undefined) break;
    here.push({ diffId, layerId: found.id });
  }
  return here;
}

interface LayerRequest extends Pick<FetchRequest, 'onProgress' | 'signal'> {
  readonly descriptor: Descriptor;
  readonly diffId: Digest;
  readonly lower: Promise<Chain>;
}

async function fetchLayer(ports: ImagePorts, source: LayerOrigin, request: LayerRequest): Promise<StoredLayer> {
  const attempt = await tryLayer(ports, source, request);
  if (attempt.layer !== undefined) return attempt.layer;
  // What another registry did to a transfer that both pulls shared is no fault of this one.
  const again = attempt.isShared && request.signal?.aborted !== true ? await tryLayer(ports, source, request) : attempt;
  if (again.layer !== undefined) return again.layer;
  throw withName(again.error, source.name, request.descriptor);
}

interface LayerAttempt {
  readonly layer?: StoredLayer;
  readonly error?: unknown;
  readonly isShared: boolean;
}

async function tryLayer(ports: ImagePorts, source: LayerOrigin, request: LayerRequest): Promise<LayerAttempt> {
  const { descriptor, diffId, lower, signal } = request;
  const tell = throttled(request.onProgress, ports.now);
  const compression = layerCompression(descriptor.mediaType) ?? 'none';
  const total = descriptor.size;
  let downloaded = false;
  const ticket = await ports.transfers.join(
    {
      digest: descriptor.digest,
      sizeBytes: descriptor.size,
      from: source.place,
      origin: (start, cancelable) => source.blob(descriptor, start, cancelable),
    },
    {
      signal,
      onProgress: (phase, current) => {
        downloaded = phase === 'download-complete';
        if (phase === 'downloading') tell(layerEvent(descriptor, phase, { current, total }));
        else tell(layerEvent(descriptor, phase));
      },
    },
  );
  const unpacked = ports.layers.ingest(
    {
      diffId,
      compression,
      source: ticket.source,
      lower,
      onProgress: (current) => {
        if (downloaded) tell(layerEvent(descriptor, 'extracting', { current, total }));
      },
    },
    { signal },
  );
  // The download's own failure says more than the unpack's, which only sees its source end.
  unpacked.catch(() => {});
  try {
    await ticket.done;
    const layer = await unpacked;
    tell(layerEvent(descriptor, 'pull-complete'));
    return { layer: { diffId, layerId: layer.id }, isShared: false };
  } catch (error) {
    ticket.leave();
    // Nothing of this attempt may run on into the next.
    await unpacked.catch(() => {});
    return { error, isShared: ticket.isShared() };
  } finally {
    ticket.leave();
  }
}

/** @throws what Images.fetchLayer says */
export async function fetchOneLayer(
  ports: ImagePorts,
  origin: LayerOrigin,
  request: Omit<FetchLayerRequest, 'lease'>,
): Promise<StoredLayer> {
  const { descriptor, diffId, lower, signal } = request;
  return await fetchLayer(ports, origin, {
    descriptor,
    diffId,
    lower: Promise.resolve(lower.map((layer) => layer.layerId)),
    onProgress: () => {},
    signal,
  });
}

function withName(error: unknown, name: string, layer: Descriptor): unknown {
  if (!(error instanceof AppError)) return error;
  const { kind, detail } = error;
  const message = `cannot pull ${name}: layer ${shortId(layer.digest)}: ${error.message}`;
  return new AppError(kind, message, detail === undefined ? { cause: error } : { cause: error, detail });
}

type LayerEvent = Extract<PullEvent, { kind: 'layer' }>;

function layerEvent(
  layer: Descriptor,
  status: LayerEvent['status'],
  progress: { readonly current?: number; readonly total?: number } = {},
): LayerEvent {
  return { kind: 'layer', digest: layer.digest, id: shortId(layer.digest), status, ...progress };
}

/** Lets every new status through, and repeated ones at most every PROGRESS_EVERY_MS. */
function throttled(onProgress: (event: PullEvent) => void, now: () => Date): (event: LayerEvent) => void {
  let last: LayerEvent['status'] | undefined;
  let lastMs = 0;
  return (event) => {
    const ms = now().getTime();
    const isRepeated = event.status === last;
    if (
      isRepeated &&
      (event.current === undefined || (event.current !== event.total && ms - lastMs < PROGRESS_EVERY_MS))
    )
      return;
    last = event.status;
    lastMs = ms;
    onProgress(event);
  };
}

/** Commits bytes that are in memory, unless the blob is here. The digest must have been checked. */
export async function putBytes(ports: ImagePorts, bytes: Uint8Array, digest: Digest): Promise<void> {
  if ((await ports.blobs.stat(digest)) !== undefined) return;
  await using ingest = await ports.blobs.ingest(`${ports.randomId()}-${hexOf(digest).slice(0, 64)}`);
  await ingest.append(Readable.from([Buffer.from(bytes)]));
  await ingest.commit({ digest, sizeBytes: bytes.length });
}

/** Blobs that are committed, with what they occupy; measured when they came, or now. */
export async function recordedBlobs(ports: ImagePorts, digests: readonly Digest[]): Promise<readonly StoredBlob[]> {
  const unique = [...new Set(digests)];
  return Promise.all(unique.map(async (digest) => (await ports.store.blob(digest)) ?? ports.measureBlob(digest)));
}
