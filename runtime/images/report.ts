/**
 * Reports: lists, details, history and `df`, from recorded rows; nothing is measured and no directory is walked here.
 */
import type { Digest } from '../../shared/digest.ts';
import type { Layer } from '../layers/layer-store.ts';
import { hasLabels, matchesReference } from './filters.ts';
import type {
  CachedContent,
  HistoryStep,
  ImageDetail,
  ImageFilter,
  ImageSummary,
  ImagesUsage,
  ImageUse,
  ManifestContent,
} from './images.ts';
import type { ImagePorts } from './ports.ts';
import type { StoredImage } from './store.ts';
import { sumUsage, type UsageSums } from './usage.ts';

/** The whole store at one moment, as far as sums need it. */
export interface UsageState {
  /** Newest first. */
  readonly images: readonly StoredImage[];
  readonly blobBytes: ReadonlyMap<Digest, number>;
  readonly layers: readonly Layer[];
  readonly inUse: ReadonlyMap<Digest, readonly ImageUse[]>;
  readonly layersInUse: ReadonlySet<Digest>;
  readonly cached: CachedContent;
  readonly ingests: number;
  readonly ingestBytes: number;
}

export async function readUsage(ports: ImagePorts): Promise<UsageState> {
  const [images, blobBytes, layers, inUse, layersInUse, cached] = await Promise.all([
    ports.store.all(),
    ports.store.blobBytes(),
    ports.layers.list(),
    ports.users.imagesInUse(),
    ports.users.layersInUse(),
    ports.users.cached(),
  ]);
  let ingests = 0;
  let ingestBytes = 0;
  for await (const ingest of ports.blobs.ingests()) {
    ingests++;
    ingestBytes += ingest.diskBytes;
  }
  return { images, blobBytes, layers, inUse, layersInUse, cached, ingests, ingestBytes };
}

/** `usedImages` undefined = those that containers use, and leased ones. */
export function sumsOf(ports: ImagePorts, state: UsageState, usedImages?: ReadonlySet<Digest>): UsageSums {
  const isCached = (digest: Digest) => state.cached.layers.has(digest) || state.cached.blobs.has(digest);
  const isUsed = (id: Digest) => state.inUse.has(id) || ports.leases.isProtected(id);
  return sumUsage({
    images: new Map(
      state.images.map(({ id, layers, blobs }) => [id, { layers: layers.map((layer) => layer.layerId), blobs }]),
    ),
    layerBytes: new Map(state.layers.map((layer) => [layer.id, layer.diskBytes])),
    blobBytes: state.blobBytes,
    usedImages: usedImages ?? new Set(state.images.map((image) => image.id).filter(isUsed)),
    isHeld: (digest) => state.layersInUse.has(digest) || isCached(digest) || ports.leases.isProtected(digest),
    isCached,
  });
}

export async function reportUsage(ports: ImagePorts): Promise<ImagesUsage> {
  await ports.erasures.settled();
  const state = await readUsage(ports);
  const sums = sumsOf(ports, state);
  return {
    images: state.images.map((image) => {
      const summary = summarize(image, state, sums);
      return { summary, uniqueBytes: summary.sizeBytes - summary.sharedBytes };
    }),
    activeCount: state.images.filter((image) => state.inUse.has(image.id)).length,
    logicalBytes: sums.logicalBytes,
    actualBytes: sums.actualBytes + state.ingestBytes,
    reclaimableBytes: sums.reclaimableBytes + state.ingestBytes,
    orphans: { ...sums.orphans, ingests: state.ingests, bytes: sums.orphans.bytes + state.ingestBytes },
  };
}

function summarize(image: StoredImage, state: Pick<UsageState, 'inUse'>, sums: UsageSums): ImageSummary {
  const { id, parentId, createdAt, labels, manifest, names } = image;
  const { sizeBytes = 0, sharedBytes = 0 } = sums.perImage.get(id) ?? {};
  return {
    id,
    parentId,
    repoTags: names.filter((name) => !name.byDigest).map((name) => name.familiar),
    repoDigests: names.filter((name) => name.byDigest).map((name) => name.familiar),
    createdAt,
    sizeBytes,
    sharedBytes,
    labels,
    containers: state.inUse.get(id)?.length ?? 0,
    manifest,
  };
}

/** @throws what Images.list says */
export async function listImages(ports: ImagePorts, filter: ImageFilter = {}): Promise<readonly ImageSummary[]> {
  const state = await readUsage(ports);
  const sums = sumsOf(ports, state);
  const createdAt = async (nameOrId: string | undefined) => {
    if (nameOrId === undefined) return undefined;
    const { id } = await ports.store.find(nameOrId);
    return state.images.find((image) => image.id === id)?.createdAt;
  };
  const before = await createdAt(filter.before);
  const since = await createdAt(filter.since);
  const parents = new Set(state.images.map((image) => image.parentId));
  const chosen = state.images
    .filter((image) => {
      if (before !== undefined && image.createdAt >= before) return false;
      if (since !== undefined && image.createdAt <= since) return false;
      if (filter.until !== undefined && image.createdAt >= filter.until) return false;
      return hasLabels(image.labels, filter.labels ?? []);
    })
    .map((image) => summarize(image, state, sums))
    .flatMap((summary) => shown(summary, filter, parents.has(summary.id)));
  if (filter.withContent !== true) return chosen;
  const layerBytes = new Map(state.layers.map((layer) => [layer.id, layer.diskBytes]));
  const stored = new Map(state.images.map((image) => [image.id, image]));
  return await Promise.all(
    chosen.map(async (summary) => {
      const { architecture, os, variant } = await ports.store.config(summary.id);
      const layers = new Set(stored.get(summary.id)?.layers.map(({ layerId }) => layerId));
      const unpacked = [...layers].reduce((sum, id) => sum + (layerBytes.get(id) ?? 0), 0);
      const content: ManifestContent = {
        platform: { architecture, os, ...(variant !== undefined && { variant }) },
        blobBytes: summary.sizeBytes - unpacked,
        layerBytes: unpacked,
        containerIds: (state.inUse.get(summary.id) ?? []).map(({ containerId }) => containerId),
      };
      return { ...summary, content };
    }),
  );
}

/** Docker's rules for untagged images; `reference` also narrows the names that are shown. */
function shown(summary: ImageSummary, filter: ImageFilter, isParent: boolean): readonly ImageSummary[] {
  const { references, dangling } = filter;
  const matches = (name: string) => references === undefined || references.some((one) => matchesReference(name, one));
  const repoTags = summary.repoTags.filter(matches);
  const repoDigests = summary.repoDigests.filter(matches);
  const isNamed = repoTags.length + repoDigests.length > 0;
  if (!isNamed && (references !== undefined || dangling === false)) return [];
  if (!isNamed && isParent && filter.all !== true) return [];
  if (dangling === true && repoTags.length > 0) return [];
  return [{ ...summary, repoTags, repoDigests }];
}

/** @throws what Images.inspect says */
export async function inspectImage(ports: ImagePorts, nameOrId: string): Promise<ImageDetail> {
  const { id } = await ports.store.find(nameOrId);
  const state = await readUsage(ports);
  const image = state.images.find((other) => other.id === id);
  const config = await ports.store.config(id);
  // Both reads name the same image: a removal in between makes config() fail.
  const summary = image && summarize(image, state, sumsOf(ports, state));
  if (image === undefined || summary === undefined) return inspectImage(ports, nameOrId);
  return {
    ...summary,
    config,
    chain: image.layers.map((layer) => layer.layerId),
    comment: config.history.at(-1)?.comment ?? '',
    lastTaggedAt: image.taggedAt,
  };
}

/** @throws what Images.history says */
export async function imageHistory(ports: ImagePorts, nameOrId: string): Promise<readonly HistoryStep[]> {
  const { id } = await ports.store.find(nameOrId);
  const image = await ports.store.get(id);
  const config = await ports.store.config(id);
  const made = await stepsMadeHere(ports, id);
  const layers = await Promise.all((image?.layers ?? []).map((layer) => ports.layers.get(layer.layerId)));
  let position = 0;
  const steps = config.history.map((step, index): HistoryStep => {
    const sizeBytes = step.empty_layer === true ? 0 : (layers[position++]?.apparentBytes ?? 0);
    const maker = made.get(index);
    const createdAt = step.created === undefined ? undefined : new Date(step.created);
    return {
      id: maker?.id,
      createdAt: createdAt !== undefined && Number.isNaN(createdAt.getTime()) ? undefined : createdAt,
      createdBy: step.created_by ?? '',
      comment: step.comment ?? '',
      sizeBytes,
      tags: maker?.names.filter((name) => !name.byDigest).map((name) => name.familiar) ?? [],
    };
  });
  return steps.reverse();
}

/** The image, and those that it was made from here, by the number of their last step. */
async function stepsMadeHere(ports: ImagePorts, id: Digest): Promise<ReadonlyMap<number, StoredImage>> {
  const made = new Map<number, StoredImage>();
  let next: Digest | undefined = id;
  while (next !== undefined) {
    const image: StoredImage | undefined = await ports.store.get(next);
    if (image === undefined) break;
    made.set((await ports.store.config(image.id)).history.length - 1, image);
    next = image.parentId;
  }
  return made;
}
