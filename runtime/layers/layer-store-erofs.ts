/**
 * The LayerStore that keeps each layer as one EROFS image. Rows live in the engine's database; the contract and the
 * places on disk are described in layer-store.ts.
 *
 * Order of a new layer: image in ingest/ → fsync → rename → fsync of the directory → row. So a crash leaves files that
 * no row names, and sweep() removes them.
 */
import { mkdir, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import type { Generated, Insertable, Selectable } from 'kysely';
import { renameDurably } from '../../shared/atomic-file.ts';
import type { Database, Migration } from '../../shared/database.ts';
import { chainIdOf, type Digest, hexOf, parseDigest } from '../../shared/digest.ts';
import { diskBytesOf } from '../../shared/disk-bytes.ts';
import { AppError, hasCode, isKind } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { loadTree, openFileInImage } from './erofs-reader.ts';
import { DEFAULT_LAYER_LIMITS, type LayerLimits } from './layer-builder.ts';
import { createLayerFeed, type LayerFeedWriter } from './layer-feed.ts';
import { createLayerPool, type Unpacking } from './layer-pool.ts';
import type { Chain, Layer, LayerId, LayerIngest, LayerStore, MakeOptions } from './layer-store.ts';
import type { UnpackedLayer } from './layer-worker.ts';
import type { LayerTree } from './tree.ts';

export interface LayerTable {
  /** Never given twice: a mount of a removed layer must not be taken for a new one. */
  readonly number: Generated<number>;
  readonly id: string;
  readonly diffId: string;
  readonly backend: 'erofs';
  /** 1 = means the same above any other layers. */
  readonly independent: number;
  readonly diskBytes: number;
  readonly apparentBytes: number;
  readonly entryCount: number;
  /** Of `/`, null when the tar had no entry for it. */
  readonly rootMode: number | null;
  readonly rootUid: number | null;
  readonly rootGid: number | null;
  readonly createdAt: string;
}
export interface LayerTables {
  readonly layer: LayerTable;
}
export const LAYER_MIGRATIONS: readonly Migration[] = [
  {
    name: 'layers-1',
    statements: [
      `create table layer (
        number integer primary key autoincrement,
        id text not null unique,
        diffId text not null,
        backend text not null,
        independent integer not null,
        diskBytes integer not null,
        apparentBytes integer not null,
        entryCount integer not null,
        rootMode integer,
        rootUid integer,
        rootGid integer,
        createdAt text not null
      ) strict`,
    ],
  },
];

export interface LayerStoreOptions {
  /** The state directory. */
  readonly root: string;
  readonly database: Database<LayerTables>;
  readonly log: Log;
  readonly now: () => Date;
  /** For names of unfinished images: `[A-Za-z0-9_-]`. */
  readonly randomId: () => string;
  /** Layers that unpack at the same time. */
  readonly workers: number;
  readonly limits?: LayerLimits;
  /** Images of layers that are pulled are soon read as a whole, so they stay in the page cache. */
  readonly keepsCached?: boolean | undefined;
  /** Whether the layer of this number is mounted now. */
  readonly isMounted?: (number: number) => Promise<boolean>;
}

const MAKERS_MIN = 4;
/** Names of trees that stay in memory between two uses: some 200 bytes each. */
const TREES_MAX_ENTRIES = 150_000;
const TREES_KEPT_MS = 60_000;
/** Five characters in base 36; more would not fit mount options with 500 layers. */
const NUMBER_MAX = 36 ** 5 - 1;

interface StoredLayer extends Layer {
  readonly independent: boolean;
}

/** One unpack, and all who wait for it. */
interface Unpack {
  readonly layer: Promise<Layer>;
  readonly lower: PromiseWithResolvers<Chain>;
  readonly unpacking: Unpacking;
  readonly listeners: Set<(consumedBytes: number) => void>;
  waiting: number;
  /** Waiters whose layers below may still arrive. */
  lowersPending: number;
}

export function createLayerStore(options: LayerStoreOptions): LayerStore & AsyncDisposable {
  const { database, now, limits = DEFAULT_LAYER_LIMITS } = options;
  const directory = join(options.root, 'layers');
  const ingestDirectory = join(directory, 'ingest');
  const log = options.log.child({ component: 'layers' });
  const pool = createLayerPool({ size: Math.max(2, options.workers) });
  // Of their own: what feeds them may be slow or stuck, and pulls must not wait for that.
  const makers = createLayerPool({ size: Math.max(MAKERS_MIN, options.workers) });
  const unpacks = new Map<Digest, Unpack>();

  const imagePath = (id: string) => join(directory, `${hexOf(parseDigest(id))}.erofs`);

  async function get(id: LayerId): Promise<StoredLayer | undefined> {
    const row = await database.kysely.selectFrom('layer').selectAll().where('id', '=', id).executeTakeFirst();
    return row && layerOf(row);
  }

  async function layersOf(chain: Chain): Promise<readonly Layer[]> {
    if (chain.length === 0) return [];
    const rows = await database.kysely.selectFrom('layer').selectAll().where('id', 'in', chain).execute();
    const byId = new Map(rows.map((row) => [row.id, layerOf(row)]));
    return chain.map((id) => {
      const layer = byId.get(id);
      if (layer === undefined) throw new AppError('not-found', `cannot find layer ${id}: pull its image again`);
      return layer;
    });
  }

  /** Kept from one change to the next: `df` and lists of images ask for all layers, and far more often than they change. */
  let listed: Promise<readonly Layer[]> | undefined;

  async function readAll(): Promise<readonly Layer[]> {
    const rows = await database.kysely.selectFrom('layer').selectAll().orderBy('number').execute();
    return rows.map(layerOf);
  }

  async function find(diffId: Digest, lower: Chain): Promise<Layer | undefined> {
    return findAbove(diffId, await layersOf(lower));
  }

  async function findAbove(diffId: Digest, lower: readonly Layer[]): Promise<Layer | undefined> {
    const chainId = chainIdAbove(diffId, lower);
    const rows = await database.kysely.selectFrom('layer').selectAll().where('id', 'in', [chainId, diffId]).execute();
    const row =
      rows.find(({ id }) => id === chainId) ?? rows.find(({ id, independent }) => id === diffId && independent === 1);
    return row && layerOf(row);
  }

  async function ingest(request: LayerIngest, { signal }: Cancelable = {}): Promise<Layer> {
    // Nobody may be listening yet when the layers below fail.
    request.lower.catch(() => {});
    for (;;) {
      const known = await get(request.diffId);
      if (known?.independent === true) {
        await cancelable(request.lower, signal);
        return known;
      }
      const joined = unpacks.get(request.diffId);
      try {
        const lower = await waitFor(joined ?? startUnpack(request), request, signal);
        // Another caller's unpack may have settled above other layers than ours.
        const found = await find(request.diffId, lower);
        if (found !== undefined) return found;
      } catch (error) {
        // Bad bytes are bad for everybody; what else stopped another caller's unpack need not stop ours.
        const isOurs = joined === undefined || signal?.aborted === true;
        if (isOurs || isKind(error, 'integrity', 'invalid', 'too-large', 'unsupported')) throw error;
        await request.lower;
      }
      if (joined === undefined)
        throw new AppError('conflict', `cannot unpack layer ${request.diffId}: it was removed meanwhile`);
    }
  }

  /** Waits for an unpack on behalf of a request; the first of those who wait whose lower layers are there settles it. */
  async function waitFor(unpack: Unpack, request: LayerIngest, signal: AbortSignal | undefined): Promise<Chain> {
    unpack.waiting += 1;
    unpack.lowersPending += 1;
    request.lower.then(unpack.lower.resolve, (error: unknown) => {
      unpack.lowersPending -= 1;
      if (unpack.lowersPending === 0) unpack.lower.reject(error);
    });
    if (request.onProgress !== undefined) unpack.listeners.add(request.onProgress);
    try {
      const [lower] = await cancelable(Promise.all([request.lower, unpack.layer]), signal);
      return lower;
    } finally {
      if (request.onProgress !== undefined) unpack.listeners.delete(request.onProgress);
      unpack.waiting -= 1;
      if (unpack.waiting === 0) unpack.unpacking.cancel();
    }
  }

  function startUnpack(request: LayerIngest): Unpack {
    const { diffId, compression, source } = request;
    const stagingPath = join(ingestDirectory, `${options.randomId()}.erofs`);
    const listeners = new Set<(consumedBytes: number) => void>();
    const lower = Promise.withResolvers<Chain>();
    lower.promise.catch(() => {});
    const bypassesCache = options.keepsCached !== true;
    const unpacking = pool.unpack({ diffId, compression, source, stagingPath, limits, bypassesCache }, (bytes) => {
      for (const listener of listeners) listener(bytes);
    });
    const layer = finishUnpack({ diffId, lower: lower.promise, unpacking, stagingPath }).finally(() => {
      unpacks.delete(diffId);
    });
    layer.catch(() => {});
    const unpack: Unpack = { layer, lower, unpacking, listeners, waiting: 0, lowersPending: 0 };
    unpacks.set(diffId, unpack);
    return unpack;
  }

  interface Finishing {
    readonly diffId: Digest;
    readonly lower: Promise<Chain>;
    readonly unpacking: Unpacking;
    readonly stagingPath: string;
  }

  async function finishUnpack({ diffId, lower, unpacking, stagingPath }: Finishing): Promise<Layer> {
    const startedAt = now().getTime();
    const settling = lower.then(layersOf).then(
      (below) => {
        unpacking.lower(below.map(pathOf));
        return below;
      },
      (error: unknown) => {
        unpacking.cancel();
        throw error;
      },
    );
    settling.catch(() => {});
    try {
      const unpacked = await unpacking.layer.catch(async (error: unknown) => {
        // What cancelled it says more than that it was cancelled.
        if (isKind(error, 'timeout')) await Promise.race([settling, Promise.resolve()]);
        throw error;
      });
      const id = unpacked.independent ? diffId : chainIdAbove(diffId, await settling);
      const layer = await publish(id, { diffId, unpacked, stagingPath });
      log.debug('layer unpacked', { diffId, id, durationMs: now().getTime() - startedAt });
      return layer;
    } finally {
      await rm(stagingPath, { force: true });
    }
  }

  async function make(tar: Readable, lower: Chain, { signal, ...making }: MakeOptions = {}): Promise<Layer> {
    const stagingPath = join(ingestDirectory, `${options.randomId()}.erofs`);
    const below = await layersOf(lower);
    const writer = createLayerFeed();
    const unpacking = makers.unpack({
      ...{ diffId: undefined, compression: making.compression ?? 'none', source: writer.feed, stagingPath, limits },
      files: making.files,
      // The next step of a build reads it.
      bypassesCache: false,
    });
    unpacking.lower(below.map(pathOf));
    const cancel = () => unpacking.cancel();
    signal?.addEventListener('abort', cancel, { once: true });
    try {
      if (signal?.aborted === true) cancel();
      const unpacked = await fed(tar, writer, unpacking.layer);
      const { diffId, independent } = unpacked;
      const id = independent ? diffId : chainIdAbove(diffId, below);
      await making.protect?.(id);
      return await publish(id, { diffId, unpacked, stagingPath });
    } finally {
      signal?.removeEventListener('abort', cancel);
      await rm(stagingPath, { force: true });
    }
  }

  interface Unpublished {
    readonly diffId: Digest;
    readonly unpacked: UnpackedLayer;
    readonly stagingPath: string;
  }

  /** Two who have made the same layer publish it one after the other. */
  const publishing = new Map<LayerId, Promise<Layer>>();

  async function publish(id: LayerId, unpublished: Unpublished): Promise<Layer> {
    const before = publishing.get(id) ?? Promise.resolve();
    const mine = before.then(
      () => publishAlone(id, unpublished),
      () => publishAlone(id, unpublished),
    );
    publishing.set(id, mine);
    try {
      return await mine;
    } finally {
      if (publishing.get(id) === mine) publishing.delete(id);
    }
  }

  async function publishAlone(id: LayerId, { diffId, unpacked, stagingPath }: Unpublished): Promise<Layer> {
    const existing = await get(id);
    if (existing !== undefined) return existing;
    await renameDurably(stagingPath, imagePath(id));
    const { independent, diskBytes, apparentBytes, entryCount, root } = unpacked;
    const values: Insertable<LayerTable> = {
      id,
      diffId,
      backend: 'erofs',
      independent: independent ? 1 : 0,
      diskBytes,
      apparentBytes,
      entryCount,
      rootMode: root?.mode ?? null,
      rootUid: root?.uid ?? null,
      rootGid: root?.gid ?? null,
      createdAt: now().toISOString(),
    };
    try {
      const row = await database.write(async (transaction) => {
        const inserted = await transaction.insertInto('layer').values(values).returningAll().executeTakeFirstOrThrow();
        if (inserted.number > NUMBER_MAX)
          throw new AppError('unavailable', 'cannot number one more layer: all five-character names are used up');
        return inserted;
      });
      return layerOf(row);
    } catch (error) {
      await rm(imagePath(id), { force: true });
      throw error;
    } finally {
      listed = undefined;
    }
  }

  const pathOf = (layer: Layer) => imagePath(layer.id);

  /** Least recently used first. One build asks for the same large tree again and again. */
  const trees = new Map<LayerId, { readonly tree: Promise<LayerTree>; readonly entryCount: number }>();
  let forgetting: NodeJS.Timeout | undefined;

  function treeOf(layer: Layer): Promise<LayerTree> {
    const { id, entryCount } = layer;
    const entry = trees.get(id) ?? { tree: loadTree(pathOf(layer)), entryCount };
    entry.tree.catch(() => trees.delete(id));
    trees.delete(id);
    trees.set(id, entry);
    let entries = [...trees.values()].reduce((sum, kept) => sum + kept.entryCount, 0);
    for (const [oldest, kept] of trees) {
      if (entries <= TREES_MAX_ENTRIES) break;
      trees.delete(oldest);
      entries -= kept.entryCount;
    }
    clearTimeout(forgetting);
    forgetting = setTimeout(() => trees.clear(), TREES_KEPT_MS).unref();
    return entry.tree;
  }

  async function existing(id: LayerId): Promise<Layer> {
    const layer = await get(id);
    if (layer === undefined) throw new AppError('not-found', `cannot find layer ${id}: pull its image again`);
    return layer;
  }

  return {
    find,
    async ingest(request, cancel) {
      await mkdir(ingestDirectory, { recursive: true, mode: 0o700 });
      return ingest(request, cancel);
    },
    async make(tar, lower, making) {
      // It may fail before it is read; whoever reads it is told then.
      tar.on('error', () => {});
      try {
        await mkdir(ingestDirectory, { recursive: true, mode: 0o700 });
        return await make(tar, lower, making);
      } finally {
        tar.destroy();
      }
    },
    get,
    tree: async (id) => treeOf(await existing(id)),
    async remove(id) {
      const layer = await get(id);
      if (layer === undefined) return false;
      if ((await options.isMounted?.(layer.number)) === true)
        throw new AppError('conflict', `cannot remove layer ${id}: it is mounted`);
      await database.write((transaction) => transaction.deleteFrom('layer').where('id', '=', id).execute());
      listed = undefined;
      trees.delete(id);
      await rm(pathOf(layer), { force: true });
      return true;
    },
    list() {
      listed ??= readAll().catch((error) => {
        listed = undefined;
        throw error;
      });
      return listed;
    },
    openFile: async (layer, { node }) => openFileInImage(pathOf(layer), node),
    pathOf,
    async sweep() {
      const named = new Set(
        (await database.kysely.selectFrom('layer').select('id').execute()).map(({ id }) => imagePath(id)),
      );
      let freed = 0;
      const removeFile = async (path: string) => {
        const bytes = diskBytesOf(await stat(path));
        await rm(path, { recursive: true });
        freed += bytes;
        log.info('removed an unfinished layer', { path });
      };
      for (const path of await pathsIn(ingestDirectory)) await removeFile(path);
      for (const path of await pathsIn(directory))
        if (path.endsWith('.erofs') && !named.has(path)) await removeFile(path);
      return freed;
    },
    async [Symbol.asyncDispose]() {
      clearTimeout(forgetting);
      await Promise.all([pool[Symbol.asyncDispose](), makers[Symbol.asyncDispose]()]);
    },
  };
}

/**
 * Writes all of the tar into the feed. When one of the two ends early, the other is not waited for: what the tar failed
 * with is told rather than what the worker says of it.
 */
async function fed(tar: Readable, writer: LayerFeedWriter, layer: Promise<UnpackedLayer>): Promise<UnpackedLayer> {
  const over = new AbortController();
  layer.catch(() => {}).finally(() => over.abort());
  const writing = (async () => {
    try {
      for await (const chunk of tar)
        await writer.write(typeof chunk === 'string' ? Buffer.from(chunk) : chunk, over.signal);
      writer.end();
    } catch (error) {
      writer.fail();
      throw error;
    }
  })();
  // A source that waits for its peer would not notice that nobody reads any more.
  over.signal.addEventListener('abort', () => tar.destroy(), { once: true });
  const [written, made] = await Promise.allSettled([writing, layer]);
  if (made.status === 'fulfilled') return made.value;
  const isSourceFailure =
    written.status === 'rejected' && isKind(made.reason, 'unavailable') && !isAbort(written.reason);
  throw isSourceFailure ? written.reason : made.reason;
}

function isAbort(error: unknown): boolean {
  return hasCode(error, 'ERR_STREAM_PREMATURE_CLOSE') || (error instanceof Error && error.name === 'AbortError');
}

function chainIdAbove(diffId: Digest, lower: readonly Layer[]): Digest {
  return chainIdOf([...lower.map((layer) => layer.diffId), diffId]) ?? diffId;
}

function layerOf(row: Selectable<LayerTable>): StoredLayer {
  const { number, backend, diskBytes, apparentBytes, entryCount, rootMode, rootUid, rootGid } = row;
  const hasRoot = rootMode !== null && rootUid !== null && rootGid !== null;
  return {
    id: parseDigest(row.id),
    diffId: parseDigest(row.diffId),
    backend,
    independent: row.independent === 1,
    number,
    diskBytes,
    apparentBytes,
    entryCount,
    root: hasRoot ? { mode: rootMode, uid: rootUid, gid: rootGid } : undefined,
    createdAt: new Date(row.createdAt),
  };
}

/** Waits, but not longer than the signal allows. The work itself goes on. */
function cancelable<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  const { promise, resolve, reject } = Promise.withResolvers<T>();
  const stop = () =>
    reject(new AppError('timeout', 'cannot wait for the layer: it was cancelled', { cause: signal.reason }));
  if (signal.aborted) stop();
  signal.addEventListener('abort', stop, { once: true });
  work.then(resolve, reject);
  return promise.finally(() => signal.removeEventListener('abort', stop));
}

async function pathsIn(directory: string): Promise<readonly string[]> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  return (await readdir(directory)).map((name) => join(directory, name));
}
