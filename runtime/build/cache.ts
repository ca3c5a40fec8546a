/**
 * BuildCache: results of steps by key, kept until they are pruned. A result is at most one layer with its blob; both are
 * held for as long as a record names them, whether or not an image does.
 *
 * All records are in memory; the database is written through. A record is written after its layer and blob are durable
 * and deleted before they are, and one whose layer has gone is forgotten when it is found.
 */
import type { Database, Migration } from '../../shared/database.ts';
import { type Digest, parseDigest } from '../../shared/digest.ts';
import type { CachedContent, ImageLayer, Images, Lease } from '../images/images.ts';
import type { LayerId, LayerStore } from '../layers/layer-store.ts';
import type { CacheRecord } from './builds.ts';

export interface CacheTables {
  buildRecord: {
    key: Digest;
    description: string;
    /** null = the step changed nothing. */
    diffId: Digest | null;
    layerId: Digest | null;
    blobDigest: Digest | null;
    blobType: string | null;
    blobSizeBytes: number | null;
    /** What layer and blob occupy. */
    diskBytes: number;
    createdMs: number;
    usedMs: number;
    usedCount: number;
  };
}

export const BUILD_CACHE_MIGRATIONS: readonly Migration[] = [
  {
    name: 'build-cache-1',
    statements: [
      `create table buildRecord (
        key text primary key,
        description text not null,
        diffId text,
        layerId text,
        blobDigest text,
        blobType text,
        blobSizeBytes integer,
        diskBytes integer not null,
        createdMs integer not null,
        usedMs integer not null,
        usedCount integer not null
      ) strict, without rowid`,
    ],
  },
];

/** What a step has done. */
export interface StepResult {
  /** undefined = it changed nothing. */
  readonly layer: ImageLayer | undefined;
  readonly createdAt: Date;
}

interface Entry {
  readonly key: Digest;
  readonly description: string;
  readonly result: StepResult;
  readonly diskBytes: number;
  usedAt: Date;
  usedCount: number;
  /** Builds that work with it now. */
  users: number;
}

export interface BuildCachePorts {
  readonly database: Database<CacheTables>;
  readonly layers: Pick<LayerStore, 'get' | 'list'>;
  readonly images: Pick<Images, 'blobBytes' | 'discard' | 'namedContent'>;
  readonly now: () => Date;
}

export class BuildCache {
  readonly #ports: BuildCachePorts;
  readonly #entries: Map<Digest, Entry>;
  /** Found since the last flush. */
  readonly #found = new Set<Entry>();

  constructor(ports: BuildCachePorts, entries: readonly Entry[]) {
    this.#ports = ports;
    this.#entries = new Map(entries.map((entry) => [entry.key, entry]));
  }

  /**
   * The result of a step that was done before; from now on a build uses it, until `user` is disposed, and the lease
   * protects its content.
   */
  async find(key: Digest, user: AsyncDisposableStack, lease: Lease): Promise<StepResult | undefined> {
    const entry = this.#entries.get(key);
    if (entry === undefined) return undefined;
    const { layer } = entry.result;
    if (layer !== undefined) {
      await Promise.all([layer.layerId, layer.descriptor.digest].map((digest) => lease.protect(digest)));
      const isThere = (await this.#ports.layers.get(layer.layerId)) !== undefined;
      // It may have been pruned while we waited.
      if (this.#entries.get(key) !== entry) return undefined;
      if (!isThere) {
        await this.#forget([entry]);
        return undefined;
      }
    }
    this.#use(entry, user);
    entry.usedAt = this.#ports.now();
    entry.usedCount += 1;
    this.#found.add(entry);
    return entry.result;
  }

  /** Writes down what was found since the last time: after a build, since a crash may forget when a record was used. */
  async flush(): Promise<void> {
    const found = [...this.#found];
    this.#found.clear();
    if (found.length === 0) return;
    await this.#ports.database.write(async (transaction) => {
      for (const { key, usedAt, usedCount } of found)
        await transaction
          .updateTable('buildRecord')
          .set({ usedMs: usedAt.getTime(), usedCount })
          .where('key', '=', key)
          .execute();
    });
  }

  /** Keeps a result. What it holds must be leased by the caller meanwhile. */
  async put(
    key: Digest,
    about: { readonly description: string; readonly result: StepResult },
    user: AsyncDisposableStack,
  ): Promise<void> {
    const { description, result } = about;
    const { layer, createdAt } = result;
    const [unpacked, blobBytes] =
      layer === undefined
        ? [undefined, 0]
        : await Promise.all([
            this.#ports.layers.get(layer.layerId),
            this.#ports.images.blobBytes(layer.descriptor.digest),
          ]);
    const usedAt = this.#ports.now();
    const diskBytes = (unpacked?.diskBytes ?? 0) + blobBytes;
    const entry: Entry = { key, description, result, diskBytes, usedAt, usedCount: 0, users: 0 };
    const values: CacheTables['buildRecord'] = {
      key,
      description,
      diffId: layer?.diffId ?? null,
      layerId: layer?.layerId ?? null,
      blobDigest: layer?.descriptor.digest ?? null,
      blobType: layer?.descriptor.mediaType ?? null,
      blobSizeBytes: layer?.descriptor.size ?? null,
      diskBytes,
      createdMs: createdAt.getTime(),
      usedMs: usedAt.getTime(),
      usedCount: 0,
    };
    const before = this.#entries.get(key);
    // In memory first: from here on its content is held, whoever collects.
    this.#entries.set(key, entry);
    this.#use(entry, user);
    await this.#ports.database.write((transaction) =>
      transaction
        .insertInto('buildRecord')
        .values(values)
        .onConflict((conflict) => conflict.column('key').doUpdateSet(values))
        .execute(),
    );
    if (before !== undefined) await this.#discard([before]);
  }

  /** Everything that records hold. */
  content(): CachedContent {
    const layers = new Set<LayerId>();
    const blobs = new Set<Digest>();
    for (const { result } of this.#entries.values()) {
      if (result.layer === undefined) continue;
      layers.add(result.layer.layerId);
      blobs.add(result.layer.descriptor.digest);
    }
    return { layers, blobs };
  }

  async records(): Promise<readonly CacheRecord[]> {
    const named = await this.#ports.images.namedContent();
    const layers = new Map((await this.#ports.layers.list()).map(({ id, diskBytes }) => [id, diskBytes]));
    const partsOf = ({ result: { layer }, diskBytes }: Entry): ReadonlyMap<string, number> => {
      if (layer === undefined) return new Map();
      const { layerId, descriptor } = layer;
      const layerBytes = layers.get(layerId) ?? 0;
      const parts = new Map<string, number>();
      if (!named.layers.has(layerId)) parts.set(`layer ${layerId}`, layerBytes);
      if (!named.blobs.has(descriptor.digest)) parts.set(`blob ${descriptor.digest}`, diskBytes - layerBytes);
      return parts;
    };
    return [...this.#entries.values()].map((entry) => {
      const { key, description, result, diskBytes, usedAt, usedCount, users } = entry;
      return {
        id: idOf(key),
        parts: partsOf(entry),
        kind: 'regular',
        description,
        sizeBytes: diskBytes,
        isShared: result.layer !== undefined && named.layers.has(result.layer.layerId),
        isInUse: users > 0,
        createdAt: result.createdAt,
        usedAt,
        usedCount,
      };
    });
  }

  /** Forgets records by id, but those that a build uses. Answers the bytes that this gave back to the disk. */
  async remove(ids: ReadonlySet<string>): Promise<{ readonly removed: readonly string[]; readonly bytes: number }> {
    const gone = [...this.#entries.values()].filter(({ key, users }) => users === 0 && ids.has(idOf(key)));
    return { removed: gone.map(({ key }) => idOf(key)), bytes: await this.#forget(gone) };
  }

  async #forget(entries: readonly Entry[]): Promise<number> {
    // In memory first: who looks one up from here on must not find it. A new record of its key is written after.
    const gone = entries.filter((entry) => this.#entries.get(entry.key) === entry);
    for (const { key } of gone) this.#entries.delete(key);
    await this.#ports.database.write(async (transaction) => {
      for (const { key } of gone) await transaction.deleteFrom('buildRecord').where('key', '=', key).execute();
    });
    return await this.#discard(entries);
  }

  async #discard(entries: readonly Entry[]): Promise<number> {
    const layers = entries.flatMap(({ result: { layer } }) => (layer === undefined ? [] : [layer]));
    return await this.#ports.images.discard({
      layers: new Set(layers.map((layer) => layer.layerId)),
      blobs: new Set(layers.map((layer) => layer.descriptor.digest)),
    });
  }

  #use(entry: Entry, user: AsyncDisposableStack): void {
    entry.users += 1;
    user.defer(() => {
      entry.users -= 1;
    });
  }
}

const ID_CHARACTERS = 25;

function idOf(key: Digest): string {
  return key.slice(key.indexOf(':') + 1).slice(0, ID_CHARACTERS);
}

export async function openBuildCache(ports: BuildCachePorts): Promise<BuildCache> {
  const rows = await ports.database.kysely.selectFrom('buildRecord').selectAll().execute();
  const entries = rows.map((row): Entry => {
    const { diffId, layerId, blobDigest, blobType, blobSizeBytes } = row;
    const isWhole = diffId !== null && layerId !== null && blobDigest !== null && blobType !== null;
    const layer: ImageLayer | undefined = isWhole
      ? {
          diffId: parseDigest(diffId),
          layerId: parseDigest(layerId),
          descriptor: { mediaType: blobType, digest: parseDigest(blobDigest), size: blobSizeBytes ?? 0 },
        }
      : undefined;
    return {
      key: parseDigest(row.key),
      description: row.description,
      result: { layer, createdAt: new Date(row.createdMs) },
      diskBytes: row.diskBytes,
      usedAt: new Date(row.usedMs),
      usedCount: row.usedCount,
      users: 0,
    };
  });
  return new BuildCache(ports, entries);
}
