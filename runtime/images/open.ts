/** Wires the image store together: rows, content, leases and transfers behind the one interface `Images`. */
import { stat, statfs } from 'node:fs/promises';
import type { FsBlobStore } from '../../shared/blob-store-fs.ts';
import type { Database } from '../../shared/database.ts';
import { chainIdOf, type Digest, digestOf } from '../../shared/digest.ts';
import { diskBytesOf } from '../../shared/disk-bytes.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { familiarName, parseReference } from '../../shared/reference.ts';
import { createSlots } from '../../shared/slots.ts';
import type { EventLog } from '../events.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import { layoutOf, loadImages, saveImages } from './archive.ts';
import { assembleImage, createImage, imageLayers, importImage, putLayer } from './create.ts';
import { createErasures } from './erasures.ts';
import type { Images, ImageUsers, Lease } from './images.ts';
import { createLeases, type Protection } from './leases.ts';
import { hostPlatform } from './platform.ts';
import type { ImagePorts } from './ports.ts';
import { fetchOneLayer, pullAllTags, pullImage, putBytes } from './pull.ts';
import { publishDocuments, pushImage } from './push.ts';
import {
  applyGcPolicy,
  collectLayers,
  collectUnnamed,
  discardContent,
  KEEP_UNFINISHED_MS,
  pruneImages,
  removeImage,
  sweepImages,
} from './reclaim.ts';
import { imageHistory, inspectImage, listImages, reportUsage } from './report.ts';
import { ImageStore, noSuchImage, type StoredBlob } from './store.ts';
import type { ImageTables } from './tables.ts';
import { createTransfers, type TransferPatience } from './transfers.ts';

export interface ImagesOptions extends Pick<ImagePorts, 'connect' | 'now' | 'randomId'> {
  readonly database: Database<ImageTables>;
  /** Any on the disk that all of it is on. */
  readonly directory: string;
  /** The content store; the image store is its only owner. */
  readonly blobs: FsBlobStore;
  readonly layers: LayerStore;
  readonly users: ImageUsers;
  readonly events: Pick<EventLog, 'publish'>;
  readonly log: Log;
  /** As node:os.arch() spells it. */
  readonly architecture: string;
  /** Blobs that are downloaded, and uploaded, at a time by the whole engine. */
  readonly parallelTransfers?: number;
  readonly transferPatience?: TransferPatience;
}

const PARALLEL_TRANSFERS = 6;

export function openImages(options: ImagesOptions): Images {
  const { blobs, layers, users, events, log, now, randomId, connect } = options;
  const parallel = options.parallelTransfers ?? PARALLEL_TRANSFERS;
  const store = new ImageStore(options.database);
  const leases = createLeases();
  const erasures = createErasures();
  const uploads = createSlots(parallel);
  const measureBlob = async (digest: Digest): Promise<StoredBlob> => {
    const stats = await stat(blobs.pathOf(digest));
    return { digest, sizeBytes: stats.size, diskBytes: diskBytesOf(stats), committedMs: now().getTime() };
  };
  const transfers = createTransfers({
    blobs,
    parallel,
    patience: options.transferPatience,
    onCommitted: async (digest) => store.putBlob(await measureBlob(digest)),
  });
  const host = hostPlatform(options.architecture);
  const ports: ImagePorts = {
    ...{ store, blobs, layers, leases, erasures, transfers, users, events, log, host },
    ...{ now, randomId, connect, measureBlob },
  };

  let prepared: Promise<unknown> = Promise.resolve();
  /** Reads what lists and `df` are made of before they are asked for: with many images that takes longer than the answer. */
  const prepareLists = () => {
    prepared = Promise.all([store.all(), store.blobBytes(), layers.list()]).catch(() => {});
  };
  const thenPrepare = async <T>(work: Promise<T>): Promise<T> => {
    const result = await work;
    prepareLists();
    return result;
  };

  return {
    async resolve(nameOrId) {
      const { id, name } = await store.find(nameOrId);
      const image = await store.get(id);
      if (image === undefined) throw noSuchImage(nameOrId);
      const chain = image.layers.map((layer) => layer.layerId);
      return { id, reference: name?.familiar, config: await store.config(id), chain };
    },
    list: (filter) => listImages(ports, filter),
    inspect: (nameOrId) => inspectImage(ports, nameOrId),
    history: (nameOrId) => imageHistory(ports, nameOrId),
    async tag(nameOrId, target) {
      const reference = parseReference(target);
      if (reference.digest !== undefined)
        throw new AppError('invalid', 'refusing to create a tag with a digest reference');
      if (familiarName(reference) === 'sha256')
        throw new AppError('invalid', 'refusing to create an ambiguous tag using digest algorithm as name');
      const { id, name } = await store.find(nameOrId);
      const manifestDigest = name?.manifestDigest ?? (await store.get(id))?.manifest.digest;
      if (manifestDigest === undefined) throw noSuchImage(nameOrId);
      await store.setNames([reference], { id, manifestDigest, now: now() });
      events.publish({ type: 'image', action: 'tag', id, attributes: { name: target } });
    },
    remove: (nameOrId, removal) => removeImage(ports, nameOrId, removal),
    pull: (reference, pull) => thenPrepare(pullImage(ports, reference, pull)),
    pullAllTags: (repository, pull) => pullAllTags(ports, repository, pull),
    push: (reference, push) => pushImage(ports, reference, { ...push, slots: uploads }),
    usage: () => reportUsage(ports),
    prune: (filter) => pruneImages(ports, filter),
    async collectByPolicy(policy, collecting) {
      const { bavail, bsize } = await statfs(options.directory);
      return await applyGcPolicy(ports, policy, { ...collecting, freeBytes: bavail * bsize });
    },
    save: (names, save) => saveImages(ports, names, save),
    load: (tar, load) => thenPrepare(loadImages(ports, tar, load)),
    import: (tar, imported) => importImage(ports, tar, imported),
    create: (request, create) => createImage(ports, request, create),
    async layers(id) {
      await using lease = leases.acquire();
      return await imageLayers(ports, id, lease);
    },
    putLayer: (tar, { lease, ...put }) => putLayer(ports, tar, { ...put, lease: protectionOf(lease) }),
    async fetchLayer(origin, { lease, ...request }) {
      const { descriptor, diffId, lower } = request;
      const chainId = chainIdOf([...lower.map((layer) => layer.diffId), diffId]) ?? diffId;
      await protectionOf(lease).protect(descriptor.digest, diffId, chainId);
      return { ...(await fetchOneLayer(ports, origin, request)), descriptor };
    },
    async putDocument(bytes, { mediaType, lease }) {
      const digest = digestOf(bytes);
      await lease.protect(digest);
      await putBytes(ports, bytes, digest);
      // With a row, so that it is counted, and collected once nobody leases it.
      await store.putBlob(await measureBlob(digest));
      return { mediaType, digest, size: bytes.length };
    },
    openBlob: (digest) => blobs.open(digest),
    publish: (reference, documents, publishing) =>
      publishDocuments(ports, reference, { ...publishing, documents, slots: uploads }),
    layout: (documents, cancelable) => layoutOf(ports, documents, cancelable),
    assemble: ({ lease, ...request }) => assembleImage(ports, { ...request, lease: protectionOf(lease) }),
    lease: () => openLease(ports),
    blobBytes: async (digest) => (await measureBlob(digest)).diskBytes,
    async namedContent() {
      const images = await store.all();
      return {
        layers: new Set(images.flatMap((image) => image.layers.map((layer) => layer.layerId))),
        blobs: new Set(images.flatMap((image) => image.blobs)),
      };
    },
    discard: (content) => discardContent(ports, content),
    collect: () => collectUnnamed(ports, { keepMs: KEEP_UNFINISHED_MS }),
    collectLayers: (chain) => collectLayers(ports, chain),
    sweep: () => thenPrepare(sweepImages(ports)),
    settled: async () => {
      await Promise.all([erasures.settled(), prepared]);
    },
  };
}

/** A lease of the caller's, as the stores below take it: it stays the caller's. */
function protectionOf(lease: Lease): Protection {
  return {
    protect: async (...digests) => {
      await Promise.all(digests.map((digest) => lease.protect(digest)));
    },
    async [Symbol.asyncDispose]() {},
  };
}

function openLease({ leases, store }: ImagePorts): Lease {
  const protection = leases.acquire();
  return {
    protect: (digest) => protection.protect(digest),
    async protectImage(image) {
      await protection.protect(image.id, ...image.chain);
      // It was found before it was protected, so it may be gone.
      if ((await store.get(image.id)) === undefined) throw noSuchImage(image.reference ?? image.id);
    },
    [Symbol.asyncDispose]: () => protection[Symbol.asyncDispose](),
  };
}
