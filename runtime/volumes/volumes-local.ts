/**
 * The volumes of this engine: rows in its database, data in its state directory. All rows are held in memory, and so is
 * who refers to which volume, since the engine is the only owner of both. What changes a volume's data or mounts happens
 * one after another per volume.
 */
import { chmod, mkdir, readdir, rm, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { syncDirectory } from '../../shared/atomic-file.ts';
import type { Database } from '../../shared/database.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { EventLog } from '../events.ts';
import { diskUsage } from '../kernel/disk-usage.ts';
import type { Mounts } from '../kernel/mount.ts';
import { plainArchive } from './archive.ts';
import { archiveOf, DATA_MODE, DIRECTORY_MODE, fillDirectory } from './data.ts';
import { checkVolumeDriver, checkVolumeName, hasLabel, type VolumeMount, volumeMount } from './names.ts';
import { createVolumeParts, type VolumeParts } from './parts.ts';
import { createVolumeStore, type VolumeRow, type VolumeTables } from './tables.ts';
import {
  ANONYMOUS_LABEL,
  type Volume,
  type VolumeFilter,
  type VolumePart,
  type VolumeRequest,
  type Volumes,
  type VolumeUsage,
} from './volumes.ts';

export interface VolumesOptions {
  readonly database: Database<VolumeTables>;
  /** `<state>/volumes`. */
  readonly directory: string;
  /** `<run>/volumes`. */
  readonly runDirectory: string;
  /** Why no container can use a volume here; undefined when they can. */
  readonly obstacle?: string | undefined;
  readonly mounts: Pick<Mounts, 'mountBind' | 'mountDevice' | 'unmount' | 'list'>;
  readonly events: Pick<EventLog, 'publish'>;
  readonly log: Log;
  readonly now: () => Date;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
}

interface Entry {
  readonly volume: Volume;
  readonly mount: VolumeMount | undefined;
  readonly references: Set<string>;
  /** What each container that runs has mounted of it. */
  readonly running: Map<string, readonly VolumePart[]>;
  queue: Promise<unknown>;
}

/** Reads what there is; nothing is mounted or deleted before sweep. */
export async function openVolumes(options: VolumesOptions): Promise<Volumes> {
  await mkdir(options.directory, { recursive: true, mode: DIRECTORY_MODE });
  await chmod(options.directory, DIRECTORY_MODE);
  const volumes = new LocalVolumes(options);
  await volumes.load();
  return volumes;
}

class LocalVolumes implements Volumes {
  readonly #options: VolumesOptions;
  readonly #store: ReturnType<typeof createVolumeStore>;
  readonly #parts: VolumeParts;
  readonly #entries = new Map<string, Entry>();
  /** Being made or removed; whoever wants the name waits. */
  readonly #changing = new Map<string, Promise<unknown>>();
  /** Removals that an earlier engine did not finish. */
  #unfinished: readonly string[] = [];
  #measuring: Promise<readonly VolumeUsage[]> | undefined;

  constructor(options: VolumesOptions) {
    this.#options = options;
    this.#store = createVolumeStore(options.database);
    this.#parts = createVolumeParts(options);
  }

  async load(): Promise<void> {
    const rows = await this.#store.load();
    for (const row of rows) if (!row.isRemoving) this.#entries.set(row.name, this.#entryOf(row));
    this.#unfinished = rows.filter(({ isRemoving }) => isRemoving).map(({ name }) => name);
  }

  async create(request: VolumeRequest): Promise<Volume> {
    return (await this.#obtain(request)).volume;
  }

  async inspect(name: string): Promise<Volume> {
    return this.#find(name).volume;
  }

  async list(filter: VolumeFilter = {}): Promise<readonly Volume[]> {
    const { names, labels = [], drivers, dangling } = filter;
    return [...this.#entries.values()]
      .filter(({ volume, references }) => {
        if (names !== undefined && !names.some((part) => volume.name.includes(part))) return false;
        if (drivers !== undefined && !drivers.includes('local')) return false;
        if (dangling !== undefined && dangling !== (references.size === 0)) return false;
        return labels.every((label) => hasLabel(volume.labels, label));
      })
      .map(({ volume }) => volume)
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  async remove(name: string, { force = false }: { readonly force?: boolean } = {}): Promise<void> {
    const entry = this.#entries.get(name);
    if (entry === undefined) {
      if (force) return;
      throw noSuchVolume(name);
    }
    await this.#destroy(entry);
  }

  async prune(filter: Parameters<Volumes['prune']>[0] = {}): ReturnType<Volumes['prune']> {
    const { labels = [], labelsNot = [], all = false } = filter;
    const candidates = [...this.#entries.values()].filter(
      ({ volume, references }) =>
        references.size === 0 &&
        (all || Object.hasOwn(volume.labels, ANONYMOUS_LABEL)) &&
        labels.every((label) => hasLabel(volume.labels, label)) &&
        !labelsNot.some((label) => hasLabel(volume.labels, label)),
    );
    const sizes = await this.#measure(candidates);
    const deleted: string[] = [];
    let reclaimedBytes = 0;
    for (const entry of candidates) {
      const { name } = entry.volume;
      // One that somebody uses or has removed meanwhile is not ours to take.
      if (this.#entries.get(name) !== entry || entry.references.size > 0) continue;
      try {
        await this.#destroy(entry);
        deleted.push(name);
        reclaimedBytes += sizes.get(name) ?? 0;
      } catch (error) {
        this.#options.log.warn('a volume could not be pruned', { volume: name, error });
      }
    }
    this.#publish('prune', '', { reclaimed: String(reclaimedBytes) });
    return { deleted, reclaimedBytes };
  }

  usage(): Promise<readonly VolumeUsage[]> {
    this.#measuring ??= this.#usage().finally(() => {
      this.#measuring = undefined;
    });
    return this.#measuring;
  }

  async export(name: string): Promise<Readable> {
    const entry = this.#find(name);
    const reader = `export ${this.#options.randomId()}`;
    await this.#use(entry, reader, []);
    const { mountpoint } = entry.volume;
    const stream = Readable.from(archiveOf(mountpoint), { objectMode: false, highWaterMark: 1 << 20 });
    stream.once('close', () => {
      this.#leave(entry, reader).catch((error) =>
        this.#options.log.warn('a volume stays mounted', { volume: name, error }),
      );
    });
    return stream;
  }

  async import(
    name: string,
    tar: Readable,
    { signal }: { readonly signal?: AbortSignal | undefined } = {},
  ): Promise<void> {
    const entry = this.#find(name);
    const cannot = `cannot import into volume ${JSON.stringify(name)}`;
    if (entry.mount !== undefined)
      throw new AppError('unsupported', `${cannot}: it has options; unpack inside a container that mounts it`);
    await this.#exclusively(entry, async () => {
      if (entry.running.size > 0) throw new AppError('conflict', `${cannot}: a running container uses it`);
      signal?.throwIfAborted();
      if (!(await this.#fill(entry, plainArchive(tar)))) throw new AppError('conflict', `${cannot}: it is not empty`);
    });
  }

  async claim(containerId: string, request: VolumeRequest): Promise<Volume> {
    for (;;) {
      const entry = await this.#obtain(request);
      // It may have been removed between being found and being referred to.
      if (this.#entries.get(entry.volume.name) !== entry) continue;
      entry.references.add(containerId);
      return entry.volume;
    }
  }

  refer(containerId: string, names: readonly string[]): void {
    for (const name of names) this.#entries.get(name)?.references.add(containerId);
  }

  async release(containerId: string, { remove = [] }: { readonly remove?: readonly string[] } = {}): Promise<void> {
    for (const { references } of this.#entries.values()) references.delete(containerId);
    for (const name of remove) {
      const entry = this.#entries.get(name);
      if (entry !== undefined && entry.references.size === 0) await this.#destroy(entry);
    }
  }

  async seed(name: string, content: { archive(): AsyncIterable<Buffer> }): Promise<void> {
    const entry = this.#find(name);
    if (entry.mount !== undefined) return;
    await this.#exclusively(entry, async () => {
      if (entry.running.size > 0 || (await readdir(entry.volume.mountpoint)).length > 0) return;
      await this.#fill(entry, content.archive());
    });
  }

  async attach(containerId: string, parts: readonly VolumePart[]): ReturnType<Volumes['attach']> {
    await using undo = new AsyncDisposableStack();
    undo.defer(() => this.detach(containerId));
    for (const [name, own] of Map.groupBy(parts, (part) => part.name)) {
      await this.#use(this.#find(name), containerId, own);
      for (const part of own) this.#publish('mount', name, { container: containerId, ...attributesOf(part) });
    }
    const opened = await this.#sourcesOf(parts);
    undo.move();
    return opened;
  }

  async open(parts: readonly VolumePart[]): ReturnType<Volumes['open']> {
    const user = `files ${this.#options.randomId()}`;
    await using undo = new AsyncDisposableStack();
    for (const [name, own] of Map.groupBy(parts, (part) => part.name)) {
      const entry = this.#find(name);
      await this.#use(entry, user, own);
      undo.defer(() => this.#leave(entry, user));
    }
    const opened = undo.use(await this.#sourcesOf(parts));
    const owned = undo.move();
    return { sources: opened.sources, [Symbol.asyncDispose]: () => owned.disposeAsync() };
  }

  resume(containerId: string, parts: readonly VolumePart[]): void {
    for (const [name, own] of Map.groupBy(parts, (part) => part.name))
      this.#entries.get(name)?.running.set(containerId, own);
  }

  async detach(containerId: string): Promise<void> {
    for (const entry of this.#entries.values()) {
      if (!entry.running.has(containerId)) continue;
      await this.#leave(entry, containerId);
      this.#publish('unmount', entry.volume.name, { container: containerId, driver: 'local' });
    }
  }

  async sweep(): Promise<void> {
    const { log, directory } = this.#options;
    await this.#parts.sweep();
    for (const name of this.#unfinished)
      await this.#deleteData(name).catch((error) => log.warn('a volume could not be removed', { volume: name, error }));
    this.#unfinished = [];
    for (const entry of this.#entries.values()) {
      if (entry.mount !== undefined && entry.running.size === 0) await this.#unmount(entry);
      const home = join(directory, entry.volume.name);
      for (const name of await readdir(home).catch(() => []))
        if (name.startsWith('fill-')) await rm(join(home, name), { recursive: true, force: true });
    }
    for (const name of await readdir(directory)) {
      if (this.#entries.has(name)) continue;
      // A create that was cut off leaves empty directories. Whatever holds data is somebody's.
      await rmdir(join(directory, name, '_data')).catch(() => {});
      await rmdir(join(directory, name)).catch((error) =>
        log.warn('a directory belongs to no volume', { name, error }),
      );
    }
  }

  #find(name: string): Entry {
    const entry = this.#entries.get(name);
    if (entry === undefined) throw noSuchVolume(name);
    return entry;
  }

  async #obtain(request: VolumeRequest): Promise<Entry> {
    const { driver = '', labels = {}, options = {} } = request;
    const isAnonymous = request.name === undefined || request.name === '';
    const name = isAnonymous ? this.#options.randomId() : (request.name ?? '');
    if (this.#options.obstacle !== undefined)
      throw new AppError('unsupported', `create ${name}: no container can use it: ${this.#options.obstacle}`);
    checkVolumeDriver(name, driver);
    checkVolumeName(name);
    try {
      volumeMount(options);
    } catch (error) {
      throw error instanceof AppError ? new AppError(error.kind, `create ${name}: ${error.message}`) : error;
    }
    for (;;) {
      const entry = this.#entries.get(name);
      if (entry !== undefined) return entry;
      const change = this.#changing.get(name);
      if (change === undefined) break;
      await change.catch(() => {});
    }
    const row: VolumeRow = {
      name,
      createdAt: this.#options.now(),
      labels: isAnonymous ? { ...labels, [ANONYMOUS_LABEL]: '' } : labels,
      options,
      isRemoving: false,
    };
    return await this.#change(name, () => this.#make(row));
  }

  async #make(row: VolumeRow): Promise<Entry> {
    const entry = this.#entryOf(row);
    const home = join(this.#options.directory, row.name);
    await mkdir(home, { recursive: true, mode: DIRECTORY_MODE });
    await mkdir(entry.volume.mountpoint, { recursive: true });
    await chmod(entry.volume.mountpoint, DATA_MODE);
    await syncDirectory(home);
    await syncDirectory(this.#options.directory);
    await this.#store.insert(row);
    this.#entries.set(row.name, entry);
    this.#publish('create', row.name, { driver: 'local' });
    return entry;
  }

  /** @throws AppError 'conflict' in Docker's words while containers refer to it */
  async #destroy(entry: Entry): Promise<void> {
    const { name } = entry.volume;
    if (entry.references.size > 0)
      throw new AppError('conflict', `remove ${name}: volume is in use - [${[...entry.references].join(', ')}]`);
    // From here on nobody finds it, and whoever wants the name waits.
    this.#entries.delete(name);
    await this.#change(name, async () => {
      try {
        await entry.queue.catch(() => {});
        await this.#unmount(entry);
        await this.#store.markRemoving(name);
      } catch (error) {
        this.#entries.set(name, entry);
        throw error;
      }
      await this.#deleteData(name);
      this.#publish('destroy', name, { driver: 'local' });
    });
  }

  /** The row says that it is being removed. */
  async #deleteData(name: string): Promise<void> {
    const home = join(this.#options.directory, name);
    // What is mounted there belongs to somebody else, and deleting would go into it.
    const mounted = (await this.#options.mounts.list()).filter(({ target }) => target.startsWith(`${home}/`));
    if (mounted.length > 0) await this.#options.mounts.unmount(mounted.map(({ target }) => target).reverse());
    await rm(home, { recursive: true, force: true });
    await this.#store.delete(name);
  }

  #change<T>(name: string, work: () => Promise<T>): Promise<T> {
    const change = work().finally(() => this.#changing.delete(name));
    this.#changing.set(name, change);
    return change;
  }

  #exclusively<T>(entry: Entry, work: () => Promise<T>): Promise<T> {
    const turn = entry.queue.then(work);
    entry.queue = turn.catch(() => {});
    return turn;
  }

  #use(entry: Entry, user: string, parts: readonly VolumePart[]): Promise<void> {
    return this.#exclusively(entry, async () => {
      const { mount, volume } = entry;
      if (mount !== undefined && !(await this.#isMounted(volume)))
        try {
          await this.#options.mounts.mountDevice({ ...mount, target: volume.mountpoint });
        } catch (cause) {
          if (!(cause instanceof AppError)) throw cause;
          throw new AppError(
            cause.kind,
            `error while mounting volume '${volume.mountpoint}': failed to mount local volume: ${cause.message}`,
            { cause },
          );
        }
      entry.running.set(user, parts);
    });
  }

  #leave(entry: Entry, user: string): Promise<void> {
    return this.#exclusively(entry, async () => {
      entry.running.delete(user);
      if (entry.running.size === 0) await this.#unmount(entry);
    });
  }

  async #unmount({ mount, volume }: Entry): Promise<void> {
    if (mount !== undefined && (await this.#isMounted(volume)))
      await this.#options.mounts.unmount([volume.mountpoint], { lazy: true });
  }

  async #isMounted({ mountpoint }: Volume): Promise<boolean> {
    return (await this.#options.mounts.list()).some(({ target }) => target === mountpoint);
  }

  /** false = it is not empty. */
  #fill({ volume }: Entry, archive: AsyncIterable<Buffer>): Promise<boolean> {
    const { directory, randomId } = this.#options;
    const staging = join(directory, volume.name, `fill-${randomId().slice(0, 12)}`);
    return fillDirectory(volume.mountpoint, { staging, archive });
  }

  async #usage(): Promise<readonly VolumeUsage[]> {
    const entries = [...this.#entries.values()];
    const sizes = await this.#measure(entries);
    return entries.map(({ volume, references }) => ({
      volume,
      diskBytes: sizes.get(volume.name),
      references: references.size,
    }));
  }

  /** Bytes on disk by name, of those without options. */
  async #measure(entries: readonly Entry[]): Promise<ReadonlyMap<string, number>> {
    const plain = entries.filter(({ mount }) => mount === undefined).map(({ volume }) => volume);
    const byPath = await diskUsage(plain.map(({ mountpoint }) => mountpoint));
    return new Map(
      plain.flatMap(({ name, mountpoint }) => {
        const bytes = byPath.get(mountpoint);
        return bytes === undefined ? [] : [[name, bytes] as const];
      }),
    );
  }

  #entryOf({ name, createdAt, labels, options }: VolumeRow): Entry {
    const mountpoint = join(this.#options.directory, name, '_data');
    return {
      volume: { name, createdAt, labels, options, mountpoint },
      mount: volumeMount(options),
      references: new Set(),
      running: new Map(),
      queue: Promise.resolve(),
    };
  }

  async #sourcesOf(parts: readonly VolumePart[]): ReturnType<Volumes['open']> {
    await using opened = new AsyncDisposableStack();
    const sources: string[] = [];
    for (const { name, subpath } of parts) {
      const { mountpoint } = this.#find(name).volume;
      sources.push(subpath === '' ? mountpoint : opened.use(await this.#parts.mount(mountpoint, subpath)).path);
    }
    const owned = opened.move();
    return { sources, [Symbol.asyncDispose]: () => owned.disposeAsync() };
  }

  #publish(action: string, name: string, attributes: Readonly<Record<string, string>>): void {
    this.#options.events.publish({ type: 'volume', action, id: name, attributes });
  }
}

function attributesOf({ destination, writable }: VolumePart): Readonly<Record<string, string>> {
  return { destination, driver: 'local', propagation: '', 'read/write': String(writable) };
}

function noSuchVolume(name: string): AppError {
  return new AppError('not-found', `get ${name}: no such volume`);
}
