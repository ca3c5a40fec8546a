/**
 * Layers under their short names, `layers/l/<number>`: EROFS images are mounted there, each once per host however many
 * containers use it; directories are linked. They come in batches when a holder needs them, and stay when nobody does,
 * so that the next container starts at once: until their number grows, or they are released.
 *
 * Whether a layer is mounted is always read from the kernel; only who uses it is remembered.
 */
import { lstat, mkdir, readdir, rm, rmdir, stat, symlink } from 'node:fs/promises';
import { join } from 'node:path';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { Mounts } from '../kernel/mount.ts';
import { createImageCopies } from './image-copies.ts';
import type { Layer } from './layer-store.ts';

export interface LayerMounts extends AsyncDisposable {
  /** Begins, in the background, what hold() would have to wait for. What fails is tried again then. */
  anticipate(layer: Layer): void;
  /** Shows layers, for as long as holder keeps them. */
  hold(holder: string, layers: readonly Layer[]): Promise<void>;
  /** Remembers a holder that an earlier engine served. */
  adopt(holder: string, names: readonly string[]): void;
  /** Gives back all that holder has. Idempotent. */
  drop(holder: string): Promise<void>;
  /** Unmounts these. @throws AppError 'conflict' while somebody holds one */
  release(names: readonly string[]): Promise<void>;
  /** Unmounts everything that nobody holds. */
  releaseUnused(): Promise<void>;
  /** Deletes the unpacked copies of layers that are not in `names`, and what a crash left of copies. */
  sweepUnpacked(names: ReadonlySet<string>): Promise<void>;
}

export interface LayerMountsPorts {
  /** layers/l */
  readonly directory: string;
  readonly mounts: Pick<Mounts, 'mountImages' | 'unmount'>;
  readonly pathOf: (layer: Layer) => string;
  /**
   * For a kernel without EROFS: images are unpacked to `layers/unpacked/<name>` instead, once, and linked. A layer that
   * an engine of the other kind has shown already stays as it is until it is released.
   */
  readonly unpack?: boolean | undefined;
}

/** Five characters of base 36: 500 of them, with separators, leave a quarter of the kernel's page for the rest. */
const NAME_MAX_LENGTH = 5;
/** An empty directory: what overlayfs stacks on when there is no layer. Not a number in base 36. */
export const EMPTY_LAYER_NAME = '_';
/** Idle mounts cost kernel memory and make everybody's mountinfo longer. */
const IDLE_MAX = 256;

export function shortName(number: number): string {
  const name = number.toString(36);
  if (name.length <= NAME_MAX_LENGTH) return name;
  throw new AppError('too-large', `cannot name layer ${number}: all ${36 ** NAME_MAX_LENGTH} short names are used up`);
}

export function createLayerMounts({ directory, mounts, pathOf, unpack = false }: LayerMountsPorts): LayerMounts {
  /** Short name to holders, in the order of use: the longest unused come first. */
  const holders = new Map<string, Set<string>>();
  let queue: Promise<unknown> = Promise.resolve();
  /** Mounting and unmounting take turns; a failure is its caller's alone. */
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const turn = queue.then(work);
    queue = turn.catch(() => {});
    return turn;
  };
  const take = (holder: string, name: string): void => {
    const users = holders.get(name) ?? new Set();
    users.add(holder);
    holders.delete(name);
    holders.set(name, users);
  };
  const copies = createImageCopies(join(directory, '../unpacked'));
  /** The link first: it must not show what is being deleted. */
  const removeUnpacked = async (name: string): Promise<void> => {
    const path = join(directory, name);
    if (await isLink(path)) await rm(path);
    await copies.remove(name);
  };
  const isUnused = (name: string) => (holders.get(name)?.size ?? 0) === 0;

  const unmountUnused = async (names: readonly string[]): Promise<void> => {
    const unused = names.filter(isUnused);
    // umount(8) is not for every user, and most layers are removed without ever having been mounted.
    const mounted = await Promise.all(unused.map((name) => isMounted(directory, name)));
    await mounts.unmount(unused.filter((_name, index) => mounted[index]).map((name) => join(directory, name)));
    // Who has taken one meanwhile waits for its turn, and mounts it again.
    for (const name of unused.filter(isUnused)) holders.delete(name);
    await Promise.all(unused.map((name) => removeEmpty(join(directory, name))));
  };

  return {
    anticipate(layer) {
      if (unpack && layer.backend !== 'directory') copies.make(shortName(layer.number), pathOf(layer)).catch(() => {});
    },

    adopt(holder, names) {
      for (const name of names) take(holder, name);
    },

    async hold(holder, layers) {
      for (const layer of layers) take(holder, shortName(layer.number));
      await inTurn(async () => {
        if (layers.length === 0) await mkdir(join(directory, EMPTY_LAYER_NAME), { recursive: true, mode: 0o700 });
        const shown = await Promise.all(layers.map(({ number }) => isMounted(directory, shortName(number))));
        // Mostly all of them: the container before has mounted them.
        if (!shown.includes(false)) return;
        await mkdir(directory, { recursive: true, mode: 0o700 });
        const images: Layer[] = [];
        const copied: Layer[] = [];
        await Promise.all(
          layers
            .filter((_layer, index) => shown[index] !== true)
            .map(async (layer) => {
              const path = join(directory, shortName(layer.number));
              if (layer.backend === 'directory') return linkOnce(pathOf(layer), path);
              if (unpack) {
                // Left by a host that went down while an image was mounted here.
                await removeEmpty(path);
                copied.push(layer);
                return;
              }
              if (await isLink(path)) return;
              await mkdir(path, { recursive: true, mode: 0o700 });
              images.push(layer);
            }),
        );
        const copying = copied.map(async (layer) => {
          const name = shortName(layer.number);
          await copies.make(name, pathOf(layer));
          await linkOnce(copies.pathOf(name), join(directory, name));
        });
        // All of them have ended before a failure is told.
        await Promise.allSettled(copying);
        await Promise.all(copying);
        await mounts.mountImages(
          images.map((layer) => ({ image: pathOf(layer), target: join(directory, shortName(layer.number)) })),
        );
      });
    },

    async drop(holder) {
      for (const users of holders.values()) users.delete(holder);
      const idle = [...holders.keys()].filter(isUnused);
      if (idle.length > IDLE_MAX) await inTurn(() => unmountUnused(idle.slice(0, idle.length - IDLE_MAX)));
    },

    async release(names) {
      const used = names.find((name) => !isUnused(name));
      if (used !== undefined)
        throw new AppError('conflict', `cannot unmount layer ${JSON.stringify(used)}: it is in use`, {
          detail: { holders: [...(holders.get(used) ?? [])] },
        });
      await inTurn(async () => {
        await unmountUnused(names);
        for (const name of names) await removeUnpacked(name);
      });
    },

    async sweepUnpacked(names) {
      await inTurn(async () => {
        for (const name of await namesIn(directory))
          if (!names.has(name) && name !== EMPTY_LAYER_NAME && (await isLink(join(directory, name))))
            await rm(join(directory, name));
        await copies.sweep(names);
      });
    },

    async releaseUnused() {
      await inTurn(async () => {
        const names = await namesIn(directory);
        await unmountUnused(names.filter((name) => name !== EMPTY_LAYER_NAME));
      });
    },

    [Symbol.asyncDispose]: () => copies[Symbol.asyncDispose](),
  };
}

/** Of what is in a directory; nothing where there is none. */
export async function namesIn(path: string): Promise<readonly string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return [];
    throw error;
  }
}

async function isLink(path: string): Promise<boolean> {
  try {
    return (await lstat(path)).isSymbolicLink();
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}

async function linkOnce(target: string, path: string): Promise<void> {
  try {
    await symlink(target, path);
  } catch (error) {
    if (!hasCode(error, 'EEXIST')) throw error;
  }
}

/** A link to a directory layer stays: removing the layer removes it. */
async function removeEmpty(path: string): Promise<void> {
  try {
    await rmdir(path);
  } catch (error) {
    if (!hasCode(error, 'ENOENT', 'ENOTDIR', 'ENOTEMPTY', 'EBUSY')) throw error;
  }
}

/** For LayerStore.remove: whether something is mounted under that layer's short name in `directory`, layers/l. */
export function isLayerMounted(directory: string, number: number): Promise<boolean> {
  return isMounted(directory, shortName(number));
}

async function isMounted(directory: string, name: string): Promise<boolean> {
  try {
    const [layer, outside] = await Promise.all([stat(join(directory, name)), stat(directory)]);
    return layer.dev !== outside.dev;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}
