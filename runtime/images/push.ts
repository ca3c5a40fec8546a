/**
 * Push: the exact bytes that a tag names, to its registry.
 *
 * Blobs go in parallel: what is there is left alone, what another repository of the same registry is known to have is
 * mounted from it, the rest is sent. The manifest goes last, so that a tag there never points at what is not there.
 * https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#push
 */
import { type Digest, shortId } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { isForeignLayer } from '../../shared/media-types.ts';
import { type Descriptor, MANIFEST_MAX_BYTES, type Manifest, parseManifest } from '../../shared/oci.ts';
import {
  DEFAULT_TAG,
  familiarName,
  familiarReference,
  parseReference,
  type Reference,
} from '../../shared/reference.ts';
import type { RegistryClient } from '../../shared/registry-client.ts';
import type { Slots } from '../../shared/slots.ts';
import { collect } from '../../shared/streams.ts';
import type { PublishOptions, PushOptions, PushResult } from './images.ts';
import type { ImagePorts } from './ports.ts';
import type { PushEvent, PushLayerStatus } from './progress.ts';
import { noSuchImage, type StoredName } from './store.ts';

const PROGRESS_EVERY_MS = 100;

interface Target {
  readonly reference: Reference;
  readonly client: RegistryClient;
  readonly onProgress: (event: PushEvent) => void;
  readonly signal: AbortSignal | undefined;
  /** Blobs that this push has dealt with: tags of one repository share most of them. */
  readonly done: Map<Digest, Promise<void>>;
  readonly slots: Slots;
}

/** @throws what Images.push says */
export async function pushImage(
  ports: ImagePorts,
  text: string,
  options: PushOptions & { readonly slots: Slots },
): Promise<readonly PushResult[]> {
  const reference = parseReference(text);
  if (reference.digest !== undefined)
    throw new AppError('invalid', `cannot push ${JSON.stringify(text)}: push a tag, not a digest`);
  const { host, repository } = reference;
  const { allTags, credentials, signal, slots, onProgress = () => {} } = options;
  onProgress({ kind: 'pushing', repository: `${host}/${repository}` });
  const known = await ports.store.tagsOf(`${host}/${repository}`);
  const tags = allTags === true ? known : known.filter((name) => name.tag === reference.tag);
  if (known.length === 0)
    throw new AppError('not-found', `An image does not exist locally with the tag: ${familiarName(reference)}`);
  if (tags.length === 0) throw new AppError('not-found', `tag does not exist: ${familiarReference(reference)}`);

  using client = ports.connect(host, credentials);
  const target: Target = { reference, client, onProgress, signal, done: new Map(), slots };
  const results: PushResult[] = [];
  for (const name of tags) results.push(await pushTag(ports, target, name));
  return results;
}

async function pushTag(
  ports: ImagePorts,
  target: Target,
  name: StoredName & { readonly tag: string },
): Promise<PushResult> {
  const { reference, client, signal, onProgress } = target;
  const { host, repository } = reference;
  await using lease = ports.leases.acquire();
  const { id } = await ports.store.find(name.name);
  await lease.protect(id);
  const image = await ports.store.get(id);
  const descriptor = await ports.store.manifest(name.manifestDigest);
  if (image === undefined || descriptor === undefined) throw noSuchImage(name.familiar);
  await lease.protect(...image.blobs);
  const stream = await ports.blobs.open(descriptor.digest);
  const bytes = await collect(stream, MANIFEST_MAX_BYTES, { what: `manifest ${descriptor.digest}`, signal });
  const manifest = parseManifest(bytes, descriptor.mediaType);
  if (manifest.kind !== 'manifest') throw new AppError('integrity', `cannot push ${name.familiar}: it is an index`);

  await pushBlobsOf(ports, target, manifest);
  await client.pushManifest(repository, name.tag, { bytes, mediaType: descriptor.mediaType, signal });

  for (const blob of [manifest.config, ...manifest.layers])
    await ports.store.putSource(blob.digest, `${host}/${repository}`);
  const names = [{ host, repository, digest: descriptor.digest }];
  await ports.store.setNames(names, { id, manifestDigest: descriptor.digest, now: ports.now() });
  const { digest, size: sizeBytes } = descriptor;
  onProgress({ kind: 'done', tag: name.tag, digest, sizeBytes });
  ports.events.publish({
    type: 'image',
    action: 'push',
    id: name.familiar,
    attributes: { name: familiarName(reference) },
  });
  return { tag: name.tag, digest, sizeBytes };
}

/** @throws what Images.publish says */
export async function publishDocuments(
  ports: ImagePorts,
  text: string,
  request: PublishOptions & { readonly documents: readonly Descriptor[]; readonly slots: Slots },
): Promise<Descriptor> {
  const reference = parseReference(text);
  const { host, repository, tag = DEFAULT_TAG } = reference;
  const { documents, credentials, signal, slots, untagged, onProgress = () => {} } = request;
  using client = ports.connect(host, credentials);
  const target: Target = { reference, client, onProgress, signal, done: new Map(), slots };
  onProgress({ kind: 'pushing', repository: `${host}/${repository}` });
  const top = documents.at(-1);
  if (top === undefined) throw new RangeError('there is nothing to publish');
  for (const descriptor of documents) {
    const { digest, mediaType } = descriptor;
    const stream = await ports.blobs.open(digest);
    const bytes = await collect(stream, MANIFEST_MAX_BYTES, { what: `manifest ${digest}`, signal });
    const document = parseManifest(bytes, mediaType);
    if (document.kind === 'manifest') await pushBlobsOf(ports, target, document);
    const name = descriptor === top && untagged !== true ? tag : digest;
    await client.pushManifest(repository, name, { bytes, mediaType, signal });
  }
  onProgress({ kind: 'done', tag, digest: top.digest, sizeBytes: top.size });
  return top;
}

async function pushBlobsOf(ports: ImagePorts, target: Target, manifest: Manifest): Promise<void> {
  for (const layer of manifest.layers) tell(target, layer, { status: 'preparing' });
  await allOrNothing([
    ...manifest.layers.map((layer) => pushLayer(ports, target, layer)),
    pushOnce(ports, target, { blob: manifest.config, onStatus: () => {} }),
  ]);
}

/** Waits for all of them even when one fails, so that nothing runs on after the answer. */
async function allOrNothing(work: readonly Promise<void>[]): Promise<void> {
  await Promise.allSettled(work);
  await Promise.all(work);
}

interface Status {
  readonly status: PushLayerStatus;
  readonly current?: number;
  readonly total?: number;
  readonly from?: string;
}

function tell({ onProgress }: Target, { digest }: Descriptor, status: Status): void {
  onProgress({ kind: 'layer', digest, id: shortId(digest), ...status });
}

async function pushLayer(ports: ImagePorts, target: Target, layer: Descriptor): Promise<void> {
  if (isForeignLayer(layer.mediaType)) return tell(target, layer, { status: 'skipped' });
  await pushOnce(ports, target, { blob: layer, onStatus: (status) => tell(target, layer, status) });
}

interface PushOnce {
  readonly blob: Descriptor;
  readonly onStatus: (status: Status) => void;
}

async function pushOnce(ports: ImagePorts, target: Target, { blob, onStatus }: PushOnce): Promise<void> {
  const before = target.done.get(blob.digest);
  if (before !== undefined) {
    await before;
    return onStatus({ status: 'already-exists' });
  }
  const work = pushBlob(ports, target, { blob, onStatus });
  target.done.set(blob.digest, work);
  await work;
}

async function pushBlob(ports: ImagePorts, target: Target, { blob, onStatus }: PushOnce): Promise<void> {
  const { client, signal, reference } = target;
  onStatus({ status: 'waiting' });
  using _slot = await target.slots.acquire(reference.host, signal);
  const mountFrom = await repositoryHolding(ports, reference, blob.digest);
  let lastMs = 0;
  const total = blob.size;
  const outcome = await client.pushBlob(reference.repository, blob, {
    open: (offset) => ports.blobs.open(blob.digest, offset === 0 ? undefined : { start: offset }),
    mountFrom,
    signal,
    onProgress: (current) => {
      const ms = ports.now().getTime();
      if (current < total && ms - lastMs < PROGRESS_EVERY_MS) return;
      lastMs = ms;
      onStatus({ status: 'pushing', current, total });
    },
  });
  if (outcome === 'existed') onStatus({ status: 'already-exists' });
  else if (outcome === 'uploaded') onStatus({ status: 'pushed' });
  else onStatus(mountFrom === undefined ? { status: 'mounted' } : { status: 'mounted', from: mountFrom });
}

/** Another repository of the same registry that is known to have the blob. */
async function repositoryHolding(
  ports: ImagePorts,
  { host, repository }: Reference,
  digest: Digest,
): Promise<string | undefined> {
  const prefix = `${host}/`;
  const sources = await ports.store.sources(digest);
  return sources
    .filter((source) => source.startsWith(prefix))
    .map((source) => source.slice(prefix.length))
    .find((source) => source !== repository);
}
