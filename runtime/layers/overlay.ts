/**
 * Snapshotter over the kernel's overlayfs. Everything that it must know after a crash is on disk or in the kernel: the
 * chain in `lowers`, the changes in `upper`, and whether it is mounted in the mount table.
 *
 * Directories are for root alone: below them lie setuid programs that no host user may start (CVE-2021-41091).
 * https://docs.kernel.org/filesystems/overlayfs.html
 */
import { access, chmod, chown, constants, lstat, mkdir, readlink, rm, stat, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { diskBytesOf } from '../../shared/disk-bytes.ts';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { Mounts } from '../kernel/mount.ts';
import { createLayerMounts, EMPTY_LAYER_NAME, type LayerMounts, namesIn, shortName } from './layer-mounts.ts';
import type { Chain, Layer, LayerId, LayerStore } from './layer-store.ts';
import type { MountedSnapshot, SnapshotMountOptions, Snapshotter } from './snapshotter.ts';
import { createSpreadDirectory } from './spread-directory.ts';

export interface OverlaySnapshotterPorts {
  /** The state directory, without symbolic links in its path. */
  readonly root: string;
  readonly layers: Pick<LayerStore, 'get' | 'list' | 'pathOf'>;
  readonly mounts: Mounts;
  /** Layers are unpacked to directories, as a kernel without EROFS needs it. */
  readonly unpack?: boolean | undefined;
}

export function createOverlaySnapshotter(ports: OverlaySnapshotterPorts): Snapshotter {
  return new OverlaySnapshotter(ports);
}

const KEY = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;
const ROOT_ATTRIBUTES = { mode: 0o755, uid: 0, gid: 0 };
/** Left by the kernel below `work` when a volatile overlay was mounted; it refuses to mount over it again. */
const VOLATILE_MARK = 'work/work/incompat/volatile';

class OverlaySnapshotter implements Snapshotter {
  readonly #ports: OverlaySnapshotterPorts;
  readonly #layerMounts: LayerMounts;
  readonly #containers: string;
  readonly #makeContainers: () => Promise<void>;
  readonly #cwd: string;
  readonly #byName = new Map<string, Layer>();
  /** What unpacked layers occupy, by name: they never change, so each is measured once. */
  readonly #unpackedBytes = new Map<string, number>();
  readonly #turns = new Map<string, Promise<unknown>>();
  #adopted: Promise<void> | undefined;

  constructor(ports: OverlaySnapshotterPorts) {
    const { root, layers, mounts, unpack } = ports;
    this.#ports = ports;
    this.#containers = join(root, 'containers');
    this.#makeContainers = createSpreadDirectory(this.#containers);
    this.#cwd = join(root, 'layers/l');
    this.#layerMounts = createLayerMounts({
      directory: this.#cwd,
      mounts,
      unpack,
      pathOf: (layer) => layers.pathOf(layer),
    });
  }

  async prepare(key: string, chain: Chain): Promise<void> {
    const directory = this.#directoryOf(key);
    const layers = await Promise.all(chain.map((id) => this.#layer(id)));
    // The kernel takes no directory twice. Where a layer comes again, all of it that is seen is seen from the upper place.
    const lowers = [...new Set(layers.map((layer) => shortName(layer.number)).reverse())];
    await this.#inTurn(key, async () => {
      const existing = await readLowers(directory);
      if (existing !== undefined) {
        if (existing.join() === lowers.join()) return;
        throw new AppError('conflict', `cannot prepare snapshot ${JSON.stringify(key)}: it exists above other layers`);
      }
      await this.#makeContainers();
      await mkdir(directory, { recursive: true, mode: 0o700 });
      await Promise.all(
        ['upper', 'work', 'rootfs'].map((name) => mkdir(join(directory, name), { recursive: true, mode: 0o700 })),
      );
      // The upper root covers the layers' roots, so it must look like the topmost that an image gave attributes.
      const { mode, uid, gid } = layers.findLast(({ root }) => root !== undefined)?.root ?? ROOT_ATTRIBUTES;
      await chown(join(directory, 'upper'), uid, gid);
      await chmod(join(directory, 'upper'), mode);
      // Last: with it the snapshot exists. Like the directories it is durable with the container's database row.
      await symlink(lowers.join(':') || EMPTY_LAYER_NAME, join(directory, 'lowers'));
    });
  }

  anticipate(layer: Layer): void {
    this.#layerMounts.anticipate(layer);
  }

  async mount(key: string, options: SnapshotMountOptions = {}): Promise<MountedSnapshot> {
    const directory = this.#directoryOf(key);
    const rootfs = join(directory, 'rootfs');
    await this.#adopt();
    await this.#inTurn(key, async () => {
      const [lowers, isMounted] = await Promise.all([readLowers(directory), isMountPoint(rootfs)]);
      if (lowers === undefined)
        throw new AppError('not-found', `cannot mount snapshot ${JSON.stringify(key)}: it does not exist`);
      if (isMounted) {
        if (options.readOnly !== true && (await isReadOnly(rootfs)))
          throw new AppError('conflict', `cannot mount snapshot ${JSON.stringify(key)}: it is mounted read-only`);
        return;
      }
      try {
        await this.#layerMounts.hold(key, await this.#layersNamed(lowers));
        await this.#mountOverlay(key, lowers, options);
      } catch (error) {
        await this.#layerMounts.drop(key);
        throw error;
      }
    });
    return { rootfs, [Symbol.asyncDispose]: () => this.unmount(key) };
  }

  async unmount(key: string): Promise<void> {
    const directory = this.#directoryOf(key);
    await this.#adopt();
    await this.#inTurn(key, () => this.#unmountNow(key, directory));
  }

  upperOf(key: string): string {
    return join(this.#directoryOf(key), 'upper');
  }

  async diskBytes(key: string): Promise<number> {
    return diskBytesBelow(this.upperOf(key), new Set());
  }

  async unpackedBytes(): Promise<number> {
    const directory = join(this.#ports.root, 'layers/unpacked');
    const names = await namesIn(directory);
    for (const name of this.#unpackedBytes.keys()) if (!names.includes(name)) this.#unpackedBytes.delete(name);
    let total = 0;
    for (const name of names) {
      const bytes = this.#unpackedBytes.get(name) ?? (await diskBytesBelow(join(directory, name), new Set()));
      // A copy under way still grows.
      if (!name.endsWith('.part')) this.#unpackedBytes.set(name, bytes);
      total += bytes;
    }
    return total;
  }

  async remove(key: string): Promise<boolean> {
    const directory = this.#directoryOf(key);
    await this.#adopt();
    return this.#inTurn(key, async () => {
      if ((await readLowers(directory)) === undefined && !(await exists(join(directory, 'upper')))) return false;
      await this.#unmountNow(key, directory);
      // `lowers` first: what is half deleted must not be mounted again.
      for (const name of ['lowers', 'upper', 'work', 'rootfs'])
        await rm(join(directory, name), { recursive: true, force: true });
      return true;
    });
  }

  async release(layers: readonly LayerId[]): Promise<void> {
    await this.#adopt();
    const found = await Promise.all(layers.map((id) => this.#ports.layers.get(id)));
    const names = found.filter((layer) => layer !== undefined).map((layer) => shortName(layer.number));
    await this.#layerMounts.release(names);
    for (const name of names) this.#byName.delete(name);
  }

  async releaseUnused(): Promise<void> {
    await this.#adopt();
    await this.#layerMounts.releaseUnused();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#layerMounts[Symbol.asyncDispose]();
  }

  async sweep(valid: ReadonlySet<string>): Promise<void> {
    const keys = await namesIn(this.#containers);
    const failures: unknown[] = [];
    for (const key of keys.filter((name) => KEY.test(name) && !valid.has(name)))
      await this.remove(key).catch((error: unknown) => failures.push(error));
    await this.releaseUnused().catch((error: unknown) => failures.push(error));
    const layers = new Set((await this.#ports.layers.list()).map((layer) => shortName(layer.number)));
    await this.#layerMounts.sweepUnpacked(layers).catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw new AggregateError(failures, 'cannot sweep all snapshots');
  }

  async #mountOverlay(key: string, lowers: readonly string[], options: SnapshotMountOptions): Promise<void> {
    const { mounts } = this.#ports;
    const directory = this.#directoryOf(key);
    const target = join(directory, 'rootfs');
    const upper = `../../containers/${key}/upper`;
    const below = lowers.length === 0 ? [EMPTY_LAYER_NAME] : lowers;
    if (options.readOnly === true) {
      await mounts.mountOverlay({ target, lowers: [upper, ...below], cwd: this.#cwd });
      return;
    }
    const mark = join(directory, VOLATILE_MARK);
    if (await exists(mark)) await rm(mark, { recursive: true });
    await mounts.mountOverlay({
      target,
      lowers: below,
      writable: { upper, work: `../../containers/${key}/work` },
      cwd: this.#cwd,
      volatile: options.throwAway,
    });
  }

  async #unmountNow(key: string, directory: string): Promise<void> {
    const rootfs = join(directory, 'rootfs');
    if (await isMountPoint(rootfs)) await this.#ports.mounts.unmount([rootfs], { lazy: true });
    await this.#layerMounts.drop(key);
  }

  /** Once: learns which layers the snapshots use that an earlier engine mounted. */
  #adopt(): Promise<void> {
    this.#adopted ??= (async () => {
      for (const key of await namesIn(this.#containers)) {
        const directory = join(this.#containers, key);
        if (!(await isMountPoint(join(directory, 'rootfs')))) continue;
        this.#layerMounts.adopt(key, (await readLowers(directory)) ?? []);
      }
    })().catch((error: unknown) => {
      // A failure that passes (EMFILE) must not fail every later mount.
      this.#adopted = undefined;
      throw error;
    });
    return this.#adopted;
  }

  #directoryOf(key: string): string {
    if (!KEY.test(key)) throw new AppError('invalid', `cannot use snapshot key ${JSON.stringify(key)}`);
    return join(this.#containers, key);
  }

  async #layer(id: LayerId): Promise<Layer> {
    const layer = await this.#ports.layers.get(id);
    if (layer === undefined) throw new AppError('not-found', `cannot find layer ${id}: pull its image again`);
    this.#byName.set(shortName(layer.number), layer);
    return layer;
  }

  async #layersNamed(names: readonly string[]): Promise<readonly Layer[]> {
    if (names.some((name) => !this.#byName.has(name)))
      for (const layer of await this.#ports.layers.list()) this.#byName.set(shortName(layer.number), layer);
    return names.map((name) => {
      const layer = this.#byName.get(name);
      if (layer === undefined)
        throw new AppError('not-found', `cannot find layer number ${JSON.stringify(name)}: it is gone`);
      return layer;
    });
  }

  /** Work on one key takes turns. */
  #inTurn<T>(key: string, work: () => Promise<T>): Promise<T> {
    const turn = (this.#turns.get(key) ?? Promise.resolve()).then(work);
    const settled = turn.then(
      () => {},
      () => {},
    );
    this.#turns.set(key, settled);
    void settled.then(() => {
      if (this.#turns.get(key) === settled) this.#turns.delete(key);
    });
    return turn;
  }
}

/** Short names topmost first; undefined = there is no such snapshot. */
async function readLowers(directory: string): Promise<readonly string[] | undefined> {
  try {
    const target = await readlink(join(directory, 'lowers'));
    return target === EMPTY_LAYER_NAME ? [] : target.split(':');
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

async function isMountPoint(path: string): Promise<boolean> {
  try {
    const [inside, outside] = await Promise.all([stat(path), stat(join(path, '..'))]);
    // `..` of a mounted root is the directory above its mount point.
    return inside.dev !== outside.dev;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}

async function isReadOnly(path: string): Promise<boolean> {
  return access(path, constants.W_OK).then(
    () => false,
    (error: unknown) => hasCode(error, 'EROFS'),
  );
}

async function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  );
}

/** Directories count too, hard links once. What vanishes meanwhile counts nothing. */
async function diskBytesBelow(path: string, seen: Set<number>): Promise<number> {
  const entry = await lstat(path).catch((error: unknown) => {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  });
  if (entry === undefined) return 0;
  if (!entry.isDirectory()) {
    if (entry.nlink > 1 && seen.has(entry.ino)) return 0;
    seen.add(entry.ino);
    return diskBytesOf(entry);
  }
  let total = diskBytesOf(entry);
  for (const name of await namesIn(path)) total += await diskBytesBelow(join(path, name), seen);
  return total;
}
