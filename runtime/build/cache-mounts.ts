/**
 * CacheMounts: directories that outlive a build, for `RUN --mount=type=cache`. What is in them is the commands' own: a
 * build must come out the same without.
 *
 *   build/mounts/<id>   id = digest of the mount's name and of what it was seeded from, and a number for private copies
 */
import { chmod, chown, mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Database, Migration } from '../../shared/database.ts';
import { digestOf, hexOf } from '../../shared/digest.ts';
import { type Cancelable, unlessAborted } from '../../shared/streams.ts';
import type { CacheRecord } from './builds.ts';

export interface CacheMountTables {
  buildMount: {
    id: string;
    description: string;
    createdMs: number;
    usedMs: number;
    usedCount: number;
    /** Measured when it was last given back. */
    diskBytes: number;
    /** 1 = a command has it now, or had it when the engine ended: what diskBytes says may be old. */
    isOpen: number;
  };
}
export const CACHE_MOUNT_MIGRATIONS: readonly Migration[] = [
  {
    name: 'build-mounts-1',
    statements: [
      `create table buildMount (
        id text primary key,
        description text not null,
        createdMs integer not null,
        usedMs integer not null,
        usedCount integer not null,
        diskBytes integer not null
      ) strict, without rowid`,
    ],
  },
  { name: 'build-mounts-2', statements: ['alter table buildMount add column isOpen integer not null default 0'] },
];

export interface CacheMountRequest {
  /** `id=` of the mount, or its target. */
  readonly name: string;
  readonly sharing: 'shared' | 'private' | 'locked';
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** What fills it when it is new; `key` names that content. */
  readonly seed: { readonly key: string; fill(directory: string): Promise<void> } | undefined;
}

/** Disposing gives it back. */
export interface AcquiredMount extends AsyncDisposable {
  readonly path: string;
}

interface Entry {
  readonly id: string;
  readonly description: string;
  readonly createdAt: Date;
  usedAt: Date;
  usedCount: number;
  diskBytes: number;
  /** Those that have it or wait for it. */
  users: number;
  /** Those that have it. */
  holders: number;
  /** The one that has it has it alone. */
  isLocked: boolean;
  /** Resolved when somebody gives it back. */
  changed: PromiseWithResolvers<void>;
  /** What the row says may be old: see CacheMountTables. */
  isOpen: boolean;
  /** The directory is there. */
  ready: Promise<void> | undefined;
}

export interface CacheMountPorts {
  readonly database: Database<CacheMountTables>;
  readonly directory: string;
  /** Bytes on disk below a directory. */
  readonly measure: (directory: string) => Promise<number>;
  readonly now: () => Date;
}

const NEW_SUFFIX = '.new';

export class CacheMounts {
  readonly #ports: CacheMountPorts;
  readonly #entries: Map<string, Entry>;
  /** Directories that are being deleted, by id. */
  readonly #removing = new Map<string, Promise<void>>();

  constructor(ports: CacheMountPorts, entries: readonly Entry[]) {
    this.#ports = ports;
    this.#entries = new Map(entries.map((entry) => [entry.id, entry]));
  }

  /** Waits for others where one must be alone. @throws the signal's reason */
  async acquire(request: CacheMountRequest, { signal }: Cancelable = {}): Promise<AcquiredMount> {
    const base = hexOf(digestOf(JSON.stringify([request.name, request.seed?.key ?? '']))).slice(0, 24);
    const entry = request.sharing === 'private' ? this.#unused(base, request) : this.#entry(base, request);
    const isAlone = request.sharing === 'locked';
    entry.users += 1;
    let isHeld = false;
    const leave = () => {
      entry.users -= 1;
      if (!isHeld) return;
      entry.holders -= 1;
      entry.isLocked = false;
      entry.changed.resolve();
      entry.changed = Promise.withResolvers();
    };
    try {
      while (entry.isLocked || (isAlone && entry.holders > 0)) await unlessAborted(entry.changed.promise, signal);
      entry.holders += 1;
      entry.isLocked = isAlone;
      isHeld = true;
      entry.ready ??= this.#make(entry, request).catch((error: unknown) => {
        entry.ready = undefined;
        throw error;
      });
      await entry.ready;
      if (!entry.isOpen) await this.#save(entry, { isOpen: true });
    } catch (error) {
      leave();
      throw error;
    }
    const path = this.#pathOf(entry.id);
    let isGivenBack = false;
    return {
      path,
      [Symbol.asyncDispose]: async () => {
        if (isGivenBack) return;
        isGivenBack = true;
        try {
          // Others may be writing there; then the size before is the best that is known.
          entry.diskBytes = await this.#ports.measure(path).catch(() => entry.diskBytes);
          entry.usedAt = this.#ports.now();
          entry.usedCount += 1;
          await this.#save(entry, { isOpen: entry.holders > 1 });
        } finally {
          leave();
        }
      },
    };
  }

  records(): readonly CacheRecord[] {
    return [...this.#entries.values()].map((entry) => ({
      id: entry.id,
      kind: 'exec.cachemount',
      description: entry.description,
      sizeBytes: entry.diskBytes,
      parts: new Map([[`mount ${entry.id}`, entry.diskBytes]]),
      isShared: false,
      isInUse: entry.users > 0,
      createdAt: entry.createdAt,
      usedAt: entry.usedAt,
      usedCount: entry.usedCount,
    }));
  }

  /** Forgets directories by id, but those that a build uses. Who wants one of them meanwhile waits until it is gone. */
  async remove(ids: ReadonlySet<string>): Promise<{ readonly removed: readonly string[]; readonly bytes: number }> {
    const gone = [...this.#entries.values()].filter(({ id, users }) => users === 0 && ids.has(id));
    if (gone.length === 0) return { removed: [], bytes: 0 };
    for (const { id } of gone) this.#entries.delete(id);
    const removing = this.#erase(gone.map(({ id }) => id));
    for (const { id } of gone) this.#removing.set(id, removing);
    try {
      await removing;
    } finally {
      for (const { id } of gone) if (this.#removing.get(id) === removing) this.#removing.delete(id);
    }
    return { removed: gone.map(({ id }) => id), bytes: gone.reduce((sum, { diskBytes }) => sum + diskBytes, 0) };
  }

  async #erase(ids: readonly string[]): Promise<void> {
    await this.#ports.database.write(async (transaction) => {
      for (const id of ids) await transaction.deleteFrom('buildMount').where('id', '=', id).execute();
    });
    for (const id of ids) await rm(this.#pathOf(id), { recursive: true, force: true });
  }

  /** At start: removes directories that no row names, and measures those that a command had when the engine ended. */
  async sweep(): Promise<void> {
    await mkdir(this.#ports.directory, { recursive: true, mode: 0o700 });
    for (const name of await readdir(this.#ports.directory))
      if (!this.#entries.has(name)) await rm(join(this.#ports.directory, name), { recursive: true, force: true });
    for (const entry of this.#entries.values()) {
      if (!entry.isOpen || entry.users > 0) continue;
      entry.diskBytes = await this.#ports.measure(this.#pathOf(entry.id)).catch(() => 0);
      await this.#save(entry, { isOpen: false });
    }
  }

  #pathOf(id: string): string {
    return join(this.#ports.directory, id);
  }

  #entry(id: string, { name }: CacheMountRequest): Entry {
    const known = this.#entries.get(id);
    if (known !== undefined) return known;
    const now = this.#ports.now();
    const entry: Entry = {
      ...{ id, createdAt: now, usedAt: now, usedCount: 0, diskBytes: 0 },
      description: `cached mount ${name}`,
      ...nobody(),
    };
    this.#entries.set(id, entry);
    return entry;
  }

  /** The first copy that nobody has. */
  #unused(base: string, request: CacheMountRequest): Entry {
    for (let number = 0; ; number++) {
      const entry = this.#entry(number === 0 ? base : `${base}-${number}`, request);
      if (entry.users === 0) return entry;
    }
  }

  /** Whole or not at all: filled beside, then renamed. The row comes first, so that what a crash leaves is found. */
  async #make(entry: Entry, { mode, uid, gid, seed }: CacheMountRequest): Promise<void> {
    const path = this.#pathOf(entry.id);
    const staging = `${path}${NEW_SUFFIX}`;
    // Whether that went well or not is told to whoever asked for it.
    await this.#removing.get(entry.id)?.catch(() => {});
    await mkdir(this.#ports.directory, { recursive: true, mode: 0o700 });
    if ((await readdir(this.#ports.directory)).includes(entry.id)) return;
    await this.#save(entry, { isOpen: true });
    await rm(staging, { recursive: true, force: true });
    await mkdir(staging);
    if (seed === undefined) {
      await chmod(staging, mode);
      await chown(staging, uid, gid);
    } else await seed.fill(staging);
    await rename(staging, path);
  }

  async #save(entry: Entry, { isOpen }: { readonly isOpen: boolean }): Promise<void> {
    entry.isOpen = isOpen;
    const { id, description, createdAt, usedAt, usedCount, diskBytes } = entry;
    const values = {
      ...{ id, description, usedCount, diskBytes, isOpen: isOpen ? 1 : 0 },
      createdMs: createdAt.getTime(),
      usedMs: usedAt.getTime(),
    };
    await this.#ports.database.write((transaction) =>
      transaction
        .insertInto('buildMount')
        .values(values)
        .onConflict((conflict) => conflict.column('id').doUpdateSet(values))
        .execute(),
    );
  }
}

function nobody(): Pick<Entry, 'users' | 'holders' | 'isLocked' | 'changed' | 'isOpen' | 'ready'> {
  return {
    users: 0,
    holders: 0,
    isLocked: false,
    changed: Promise.withResolvers(),
    isOpen: false,
    ready: undefined,
  };
}

export async function openCacheMounts(ports: CacheMountPorts): Promise<CacheMounts> {
  const rows = await ports.database.kysely.selectFrom('buildMount').selectAll().execute();
  const entries = rows.map(
    ({ id, description, createdMs, usedMs, usedCount, diskBytes, isOpen }): Entry => ({
      ...{ id, description, usedCount, diskBytes },
      createdAt: new Date(createdMs),
      usedAt: new Date(usedMs),
      ...nobody(),
      isOpen: isOpen === 1,
    }),
  );
  return new CacheMounts(ports, entries);
}
