/**
 * FetchedSources: what builds have fetched from git and by URL, a layer each, kept for the next build that names it and
 * counted as build cache until it is pruned. What a record means, its `about`, is the business of who fetched it.
 *
 * A record is written after its layer is durable and deleted before it; one whose layer has gone is forgotten when it is
 * found. All records are in memory.
 */
import type { Database, Migration } from '../../shared/database.ts';
import { digestOf, hexOf, parseDigest } from '../../shared/digest.ts';
import { messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Lease } from '../images/images.ts';
import type { LayerId, LayerStore } from '../layers/layer-store.ts';
import type { CacheRecord, CacheRecordKind } from './builds.ts';

export interface FetchedSourceTables {
  buildSource: {
    /** Hex digest of the key, which may hold a password. */
    id: string;
    kind: string;
    description: string;
    layerId: string;
    diskBytes: number;
    /** JSON. */
    about: string;
    createdMs: number;
    usedMs: number;
    usedCount: number;
  };
}

export const FETCHED_SOURCE_MIGRATIONS: readonly Migration[] = [
  {
    name: 'build-sources-1',
    statements: [
      `create table buildSource (
        id text primary key,
        kind text not null,
        description text not null,
        layerId text not null,
        diskBytes integer not null,
        about text not null,
        createdMs integer not null,
        usedMs integer not null,
        usedCount integer not null
      ) strict, without rowid`,
    ],
  },
];

export interface FetchedSource {
  readonly layerId: LayerId;
  /** As it was given to put(). */
  readonly about: unknown;
}

export interface NewSource {
  readonly kind: Extract<CacheRecordKind, `source.${string}`>;
  /** For people: no secrets. */
  readonly description: string;
  readonly layerId: LayerId;
  /** JSON. */
  readonly about: unknown;
}

export interface FetchedSourcePorts {
  readonly database: Database<FetchedSourceTables>;
  readonly layers: Pick<LayerStore, 'get'>;
  /** Removes layers that no image, lease or container keeps; answers the bytes given back. */
  readonly discard: (layers: ReadonlySet<LayerId>) => Promise<number>;
  readonly log: Log;
  readonly now: () => Date;
}

interface Entry {
  readonly id: string;
  readonly source: NewSource;
  readonly diskBytes: number;
  readonly createdAt: Date;
  usedAt: Date;
  usedCount: number;
}

export class FetchedSources {
  readonly #ports: FetchedSourcePorts;
  readonly #entries: Map<string, Entry>;
  readonly #usedAgain = new Set<Entry>();

  constructor(ports: FetchedSourcePorts, entries: readonly Entry[]) {
    this.#ports = ports;
    this.#entries = new Map(entries.map((entry) => [entry.id, entry]));
  }

  /** What was fetched by this key, with its layer protected. */
  async find(key: string, lease: Lease): Promise<FetchedSource | undefined> {
    const entry = this.#entries.get(idOf(key));
    if (entry === undefined) return undefined;
    const { layerId } = entry.source;
    await lease.protect(layerId);
    const isThere = (await this.#ports.layers.get(layerId)) !== undefined;
    // It may have been pruned while we waited.
    if (this.#entries.get(entry.id) !== entry) return undefined;
    if (!isThere) {
      await this.#forget([entry]);
      return undefined;
    }
    entry.usedAt = this.#ports.now();
    entry.usedCount += 1;
    this.#usedAgain.add(entry);
    return entry.source;
  }

  /** Keeps a source, in place of an older one of this key. The caller leases its layer meanwhile. */
  async put(key: string, source: NewSource): Promise<void> {
    const { database, layers, now } = this.#ports;
    const id = idOf(key);
    const diskBytes = (await layers.get(source.layerId))?.diskBytes ?? 0;
    const at = now();
    const entry: Entry = { id, source, diskBytes, createdAt: at, usedAt: at, usedCount: 1 };
    const before = this.#entries.get(id);
    // In memory first: from here on its layer is held, whoever collects.
    this.#entries.set(id, entry);
    const { kind, description, layerId } = source;
    const values = {
      ...{ id, kind, description, layerId, diskBytes, about: JSON.stringify(source.about) },
      ...{ createdMs: at.getTime(), usedMs: at.getTime(), usedCount: entry.usedCount },
    };
    await database.write((transaction) =>
      transaction
        .insertInto('buildSource')
        .values(values)
        .onConflict((conflict) => conflict.column('id').doUpdateSet(values))
        .execute(),
    );
    if (before !== undefined) await this.#discard([before]);
  }

  layersInUse(): ReadonlySet<LayerId> {
    return new Set([...this.#entries.values()].map(({ source }) => source.layerId));
  }

  records(): readonly CacheRecord[] {
    return [...this.#entries.values()].map(({ id, source, diskBytes, createdAt, usedAt, usedCount }) => ({
      ...{ id: recordId(id), kind: source.kind, description: source.description, sizeBytes: diskBytes },
      parts: new Map([[`layer ${source.layerId}`, diskBytes]]),
      ...{ isShared: false, isInUse: false, createdAt, usedAt, usedCount },
    }));
  }

  /** Forgets records by id. What a build works with stays until the build has ended. */
  async remove(ids: ReadonlySet<string>): Promise<{ readonly removed: readonly string[]; readonly bytes: number }> {
    const gone = [...this.#entries.values()].filter(({ id }) => ids.has(recordId(id)));
    return { removed: gone.map(({ id }) => recordId(id)), bytes: await this.#forget(gone) };
  }

  /** Writes down what was found since the last time: after a build, since a crash may forget when that was. */
  async flush(): Promise<void> {
    const found = [...this.#usedAgain];
    this.#usedAgain.clear();
    if (found.length === 0) return;
    await this.#ports.database.write(async (transaction) => {
      for (const { id, usedAt, usedCount } of found)
        await transaction
          .updateTable('buildSource')
          .set({ usedMs: usedAt.getTime(), usedCount })
          .where('id', '=', id)
          .execute();
    });
  }

  async #forget(entries: readonly Entry[]): Promise<number> {
    // In memory first: who looks one up from here on must not find it. A new record of its key is written after.
    const gone = entries.filter((entry) => this.#entries.get(entry.id) === entry);
    for (const { id } of gone) this.#entries.delete(id);
    if (gone.length === 0) return 0;
    await this.#ports.database.write(async (transaction) => {
      for (const { id } of gone) await transaction.deleteFrom('buildSource').where('id', '=', id).execute();
    });
    return await this.#discard(gone);
  }

  async #discard(entries: readonly Entry[]): Promise<number> {
    const held = this.layersInUse();
    const gone = new Set(entries.map(({ source }) => source.layerId).filter((id) => !held.has(id)));
    if (gone.size === 0) return 0;
    try {
      return await this.#ports.discard(gone);
    } catch (error) {
      this.#ports.log.warn('layers of a fetched source stay for the next collection', { reason: messageOf(error) });
      return 0;
    }
  }
}

export async function openFetchedSources(ports: FetchedSourcePorts): Promise<FetchedSources> {
  const rows = await ports.database.kysely.selectFrom('buildSource').selectAll().execute();
  const entries = rows.map(
    ({ id, kind, description, layerId, about, diskBytes, createdMs, usedMs, usedCount }): Entry => ({
      ...{ id, diskBytes, usedCount, createdAt: new Date(createdMs), usedAt: new Date(usedMs) },
      source: {
        kind: kind as NewSource['kind'],
        description,
        layerId: parseDigest(layerId),
        about: JSON.parse(about),
      },
    }),
  );
  return new FetchedSources(ports, entries);
}

function idOf(key: string): string {
  return hexOf(digestOf(key));
}

const ID_CHARACTERS = 25;

function recordId(id: string): string {
  return id.slice(0, ID_CHARACTERS);
}
