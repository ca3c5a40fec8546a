/**
 * Reclaim: rmi, prune, and the collection of what nothing names.
 *
 * Rows go first, in one transaction, bytes last, so a crash in between leaves garbage that the next sweep finds; rmi
 * answers before its bytes are gone, and whoever counts bytes waits for them. What goes is chosen inside the transaction: first nobody may protect it any more (leases.condemn), then the layers that
 * writable layers stand on are asked for; who protects a thing before that keeps it, who comes later waits.
 */
import { type Digest, hexOf } from '../../shared/digest.ts';
import { isKind, messageOf } from '../../shared/errors.ts';
import type { Layer, LayerId } from '../layers/layer-store.ts';
import { hasLabels } from './filters.ts';
import { countToRemove, type GcPolicy } from './gc-policy.ts';
import type { CachedContent, Collected, PruneFilter, PruneResult, Removal, RemoveOptions } from './images.ts';
import type { Condemned } from './leases.ts';
import type { ImagePorts } from './ports.ts';
import { planRemoval, type RemovalSubject } from './removal.ts';
import { readUsage, sumsOf } from './report.ts';
import type { StoredBlob, StoredImage, Unnamed } from './store.ts';

/** How long downloads and layers of an unfinished pull are kept for its next try. */
export const KEEP_UNFINISHED_MS = 24 * 3600 * 1000;

interface Erased {
  readonly layers: readonly Layer[];
  readonly blobs: readonly StoredBlob[];
}

/** What has lost its rows; its bytes go on their own. */
interface Erasure {
  readonly layers: readonly LayerId[];
  readonly done: Promise<Erased>;
}

/** @throws what Images.remove says */
export async function removeImage(
  ports: ImagePorts,
  nameOrId: string,
  options: RemoveOptions = {},
): Promise<readonly Removal[]> {
  const { store } = ports;
  const { id, name } = await store.find(nameOrId);
  const images = new Map((await store.all()).map((image) => [image.id, image]));
  const subject = (image: StoredImage, without?: Digest): Promise<RemovalSubject> =>
    subjectOf(ports, images, { image, without });
  const image = images.get(id);
  if (image === undefined) return [];
  const parents: RemovalSubject[] = [];
  for (let child = image; child.parentId !== undefined; ) {
    const parent = images.get(child.parentId);
    if (parent === undefined) break;
    parents.push(await subject(parent, child.id));
    child = parent;
  }
  const plan = planRemoval({ ...options, written: nameOrId, reference: name, image: await subject(image), parents });
  const erasure = await erase(ports, (choose) => store.remove({ names: plan.untag, images: plan.images }, choose));
  ports.erasures.add(erasure.done);
  publish(ports, id, plan.removals);
  return [...plan.removals, ...erasure.layers.map((deleted) => ({ deleted }))];
}

async function subjectOf(
  ports: ImagePorts,
  images: ReadonlyMap<Digest, StoredImage>,
  { image, without }: { readonly image: StoredImage; readonly without: Digest | undefined },
): Promise<RemovalSubject> {
  const { id, parentId, names: references } = image;
  const hasChildren = [...images.values()].some((other) => other.parentId === id && other.id !== without);
  return { id, parentId, references, hasChildren, users: await ports.users.usedBy(id) };
}

function publish(ports: ImagePorts, id: Digest, removals: readonly Removal[]): void {
  for (const removal of removals) {
    if ('untagged' in removal)
      ports.events.publish({ type: 'image', action: 'untag', id, attributes: { name: removal.untagged } });
    else {
      const { deleted } = removal;
      ports.events.publish({ type: 'image', action: 'delete', id: deleted, attributes: { name: deleted } });
    }
  }
}

/** @throws what Images.prune says */
export async function pruneImages(ports: ImagePorts, filter: PruneFilter = {}): Promise<PruneResult> {
  await ports.erasures.settled();
  const state = await readUsage(ports);
  const isKept = (image: StoredImage) =>
    state.inUse.has(image.id) ||
    ports.leases.isProtected(image.id) ||
    (filter.dangling !== false && image.names.some((name) => !name.byDigest)) ||
    (filter.until !== undefined && image.createdAt >= filter.until) ||
    !hasLabels(image.labels, filter.labels ?? []) ||
    (filter.labelsNot ?? []).some((label) => hasLabels(image.labels, [label]));
  const kept = withParents(state.images, state.images.filter(isKept));
  const gone = state.images.filter((image) => !kept.has(image.id));
  const removals = gone.flatMap(removalsOf);
  if (filter.dryRun === true)
    return { removals, reclaimedBytes: sumsOf(ports, state, kept).reclaimableBytes + state.ingestBytes };

  const erased = await removeImages(ports, gone);
  const collected = await collectUnnamed(ports, { keepMs: 0 });
  const reclaimedBytes = bytesOf(erased) + collected.bytes;
  ports.events.publish({ type: 'image', action: 'prune', id: '', attributes: { reclaimed: String(reclaimedBytes) } });
  // Also what no image named: docker's CLI shows no space at all when the list is empty.
  const layers = [...erased.layers, ...collected.erased.layers].map((layer) => ({ deleted: layer.id }));
  return { removals: [...removals, ...layers], reclaimedBytes };
}

/** What the policy says may go, oldest first. Unfinished downloads stay for their next try. */
export async function applyGcPolicy(
  ports: ImagePorts,
  policy: GcPolicy,
  options: { readonly freeBytes: number; readonly dryRun?: boolean | undefined },
): Promise<PruneResult> {
  await ports.erasures.settled();
  const state = await readUsage(ports);
  const unused = state.images.filter((image) => !state.inUse.has(image.id) && !ports.leases.isProtected(image.id));
  const oldestFirst = unused.toSorted((a, b) => usedMs(a) - usedMs(b));
  const used = withParents(
    state.images,
    state.images.filter((image) => !unused.includes(image)),
  );
  const removable = oldestFirst.filter((image) => !used.has(image.id));
  const keptWithout = (count: number) => {
    const gone = new Set(removable.slice(0, count));
    return withParents(
      state.images,
      state.images.filter((image) => !gone.has(image)),
    );
  };
  const { actualBytes } = sumsOf(ports, state);
  const freedBy = (count: number) => (count === 0 ? 0 : sumsOf(ports, state, keptWithout(count)).reclaimableBytes);
  const count = countToRemove(policy, {
    agesMs: removable.map((image) => ports.now().getTime() - usedMs(image)),
    actualBytes,
    freeBytes: options.freeBytes,
    freedBy,
  });
  const kept = keptWithout(count);
  const gone = state.images.filter((image) => !kept.has(image.id));
  const removals = gone.flatMap(removalsOf);
  if (gone.length === 0) return { removals, reclaimedBytes: 0 };
  if (options.dryRun === true) return { removals, reclaimedBytes: freedBy(count) };
  return { removals, reclaimedBytes: bytesOf(await removeImages(ports, gone)) };
}

/** When the image was last named here; a container that runs uses it whatever its age. */
function usedMs({ taggedAt, createdAt }: StoredImage): number {
  return (taggedAt ?? createdAt).getTime();
}

/** What a kept image was made from stays too. */
function withParents(images: readonly StoredImage[], kept: readonly StoredImage[]): ReadonlySet<Digest> {
  const byId = new Map(images.map((image) => [image.id, image]));
  const ids = new Set<Digest>();
  for (const image of kept)
    for (let at: StoredImage | undefined = image; at !== undefined && !ids.has(at.id); ) {
      ids.add(at.id);
      at = at.parentId === undefined ? undefined : byId.get(at.parentId);
    }
  return ids;
}

function removalsOf(image: StoredImage): readonly Removal[] {
  return [...image.names.map((name) => ({ untagged: name.familiar })), { deleted: image.id }];
}

async function removeImages(ports: ImagePorts, gone: readonly StoredImage[]): Promise<Erased> {
  const names = gone.flatMap((image) => image.names.map((name) => name.name));
  const images = gone.map((image) => image.id);
  const erasure = await erase(ports, (choose) => ports.store.remove({ names, images }, choose));
  const erased = await erasure.done;
  for (const image of gone) publish(ports, image.id, removalsOf(image));
  return erased;
}

/** Removes blobs, layers and unfinished downloads that nothing names, leases or uses, once they are older than keepMs. */
export async function collectUnnamed(
  ports: ImagePorts,
  { keepMs }: { readonly keepMs: number },
): Promise<Collected & { readonly erased: Erased }> {
  await ports.erasures.settled();
  const before = ports.now().getTime() - keepMs;
  const layers = (await ports.layers.list()).filter((layer) => layer.createdAt.getTime() <= before);
  const ids = layers.map((layer) => layer.id);
  const erasure = await erase(ports, (choose) =>
    ports.store.collect(ids, (unnamed) =>
      choose({ ...unnamed, blobs: unnamed.blobs.filter((blob) => blob.committedMs <= before) }),
    ),
  );
  const erased = await erasure.done;
  let bytes = bytesOf(erased);
  let ingests = 0;
  for await (const { id, diskBytes, modifiedAt } of ports.blobs.ingests()) {
    if (modifiedAt.getTime() > before) continue;
    try {
      await using ingest = await ports.blobs.ingest(id);
      await ingest.abort();
      ingests++;
      bytes += diskBytes;
    } catch (error) {
      // One that is open belongs to a transfer.
      if (!isKind(error, 'conflict')) throw error;
    }
  }
  return { layers: erased.layers.length, blobs: erased.blobs.length, ingests, bytes, erased };
}

/** @throws nothing but what the database does: bytes that cannot be deleted stay for the next sweep */
export async function discardContent(ports: ImagePorts, { layers, blobs }: CachedContent): Promise<number> {
  if (layers.size === 0 && blobs.size === 0) return 0;
  const erasure = await erase(ports, (choose) =>
    ports.store.collect([...layers], (unnamed) =>
      choose({ ...unnamed, blobs: unnamed.blobs.filter((blob) => blobs.has(blob.digest)) }),
    ),
  );
  return bytesOf(await erasure.done);
}

/** Nothing else is looked at: blobs and the layers of unfinished pulls wait for their next try. */
export async function collectLayers(ports: ImagePorts, layers: readonly LayerId[]): Promise<void> {
  // A removal that still runs may just have found one of them mounted; until it ends nobody else can take it.
  await ports.erasures.settled();
  const erasure = await erase(ports, (choose) =>
    ports.store.collect(layers, (unnamed) => choose({ ...unnamed, blobs: [] })),
  );
  ports.erasures.add(erasure.done);
}

/** At start: first gives a row to every blob that a crash left without one, so that its age decides like any other's. */
export async function sweepImages(ports: ImagePorts): Promise<Collected> {
  const known = new Set((await ports.store.blobs()).map((blob) => blob.digest));
  for await (const { digest } of ports.blobs.list())
    if (!known.has(digest)) await ports.store.putBlob(await ports.measureBlob(digest));
  return collectUnnamed(ports, { keepMs: KEEP_UNFINISHED_MS });
}

type Choose = (unnamed: Unnamed) => Promise<readonly Digest[]>;

/**
 * Runs a transaction that leaves things without a name, and begins to erase the bytes of those that it chose. Until they
 * are gone nobody can protect them, so a pull of the same layers waits.
 */
async function erase(ports: ImagePorts, transaction: (choose: Choose) => Promise<void>): Promise<Erasure> {
  let condemned: Condemned | undefined;
  let blobs: readonly StoredBlob[] = [];
  let layers: readonly LayerId[] = [];
  const choose: Choose = async (unnamed) => {
    condemned = ports.leases.condemn([...unnamed.blobs.map((blob) => blob.digest), ...unnamed.layers]);
    const taken = new Set(condemned.digests);
    const [held, cached] = await Promise.all([ports.users.layersInUse(), ports.users.cached()]);
    blobs = unnamed.blobs.filter((blob) => taken.has(blob.digest) && !cached.blobs.has(blob.digest));
    layers = unnamed.layers.filter((id) => taken.has(id) && !held.has(id) && !cached.layers.has(id));
    return blobs.map((blob) => blob.digest);
  };
  try {
    await transaction(choose);
  } catch (error) {
    condemned?.[Symbol.dispose]();
    throw error;
  }
  return { layers, done: eraseBytes(ports, { layers, blobs }).finally(() => condemned?.[Symbol.dispose]()) };
}

async function eraseBytes(
  ports: ImagePorts,
  { layers, blobs }: { readonly layers: readonly LayerId[]; readonly blobs: readonly StoredBlob[] },
): Promise<Erased> {
  const erased = await Promise.all(layers.map((id) => eraseLayer(ports, id)));
  await Promise.all(blobs.map((blob) => eraseBlob(ports, blob.digest)));
  return { blobs, layers: erased.filter((layer) => layer !== undefined) };
}

/** A failure to delete bytes undoes nothing: their names are gone, and the next sweep tries again. */
async function eraseLayer({ layers, log }: ImagePorts, id: LayerId): Promise<Layer | undefined> {
  try {
    const layer = await layers.get(id);
    return (await layers.remove(id)) ? layer : undefined;
  } catch (error) {
    log.warn('layer stays for the next sweep', { layer: hexOf(id), reason: messageOf(error) });
    return undefined;
  }
}

async function eraseBlob({ blobs, log }: ImagePorts, digest: Digest): Promise<void> {
  try {
    await blobs.remove(digest);
  } catch (error) {
    log.warn('blob stays for the next sweep', { digest, reason: messageOf(error) });
  }
}

function bytesOf(erased: Erased): number {
  const layers = erased.layers.reduce((sum, layer) => sum + layer.diskBytes, 0);
  return erased.blobs.reduce((sum, blob) => sum + blob.diskBytes, layers);
}
