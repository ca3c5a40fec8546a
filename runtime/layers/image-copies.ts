/**
 * The copies of layers as directories, for hosts that cannot mount their images. A copy is made once, a few at a time,
 * and is whole and durable when it has its name; what has not come so far ends in `.part`, and so does what is being
 * deleted.
 *
 *   layers/unpacked/<name>    <name>.part
 */
import { lstat, mkdir, readdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { syncDirectory } from '../../shared/atomic-file.ts';
import { AppError, hasCode } from '../../shared/errors.ts';
import { coalesced, createQueue } from '../../shared/slots.ts';
import { runCommand } from '../kernel/command.ts';
import { unpackImage } from './directory.ts';
import { createSpreadDirectory } from './spread-directory.ts';

export interface ImageCopies extends AsyncDisposable {
  pathOf(name: string): string;
  /** Makes the copy, unless it is there. Those who want the same one meanwhile share the work. @throws AppError */
  make(name: string, image: string): Promise<void>;
  /** Deletes it, whole or under way. Idempotent; nobody may use it. */
  remove(name: string): Promise<void>;
  /** Deletes those that are not in `names`, and what a crash left of copies. */
  sweep(names: ReadonlySet<string>): Promise<void>;
}

/** Programs that unpack at the same time. */
const PARALLEL = 4;
const PART = '.part';

/** @param directory layers/unpacked */
export function createImageCopies(directory: string): ImageCopies {
  const running = new Map<string, { readonly done: Promise<void>; readonly abort: AbortController }>();
  const queue = createQueue(PARALLEL);
  const pathOf = (name: string) => join(directory, name);
  const partOf = (name: string) => `${pathOf(name)}${PART}`;

  /** Syncing waits for whatever else is being written there. */
  const synced = coalesced(async () => void (await runCommand('sync', ['--file-system', directory])));

  const prepare = createSpreadDirectory(directory);

  async function copy(name: string, image: string, signal: AbortSignal): Promise<void> {
    if (await exists(pathOf(name))) return;
    await prepare();
    const part = partOf(name);
    try {
      {
        using _slot = await queue.acquire(signal);
        await rm(part, { recursive: true, force: true });
        await mkdir(part, { recursive: true, mode: 0o700 });
        await unpackImage(image, part, { signal });
      }
      await synced();
      signal.throwIfAborted();
      await rename(part, pathOf(name));
      await syncDirectory(directory);
    } catch (error) {
      await rm(part, { recursive: true, force: true });
      if (!signal.aborted) throw error;
      throw new AppError('timeout', 'cannot unpack the layer to a directory: it was cancelled', { cause: error });
    }
  }

  async function stop(name: string): Promise<void> {
    const copying = running.get(name);
    copying?.abort.abort();
    await copying?.done.catch(() => {});
  }

  async function remove(name: string): Promise<void> {
    await stop(name);
    await rm(partOf(name), { recursive: true, force: true });
    // Under another name first: half a copy must never be taken for a layer.
    try {
      await rename(pathOf(name), partOf(name));
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error;
    }
    await rm(partOf(name), { recursive: true, force: true });
  }

  return {
    pathOf,
    make(name, image) {
      const joined = running.get(name);
      if (joined !== undefined) return joined.done;
      const abort = new AbortController();
      const done = copy(name, image, abort.signal).finally(() => running.delete(name));
      running.set(name, { done, abort });
      return done;
    },
    remove,
    async sweep(names) {
      const found = (await namesIn(directory)).map((name) => name.replace(/\.part$/, ''));
      for (const name of new Set(found)) {
        if (!names.has(name)) await remove(name);
        else if (!running.has(name)) await rm(partOf(name), { recursive: true, force: true });
      }
    },
    async [Symbol.asyncDispose]() {
      await Promise.all([...running.keys()].map(stop));
    },
  };
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}

async function namesIn(path: string): Promise<readonly string[]> {
  try {
    return await readdir(path);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return [];
    throw error;
  }
}
