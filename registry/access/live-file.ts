/**
 * What a file says now: it is read again when it changes, and replaces what was known as a whole, so that a right that
 * was taken from the file is gone (CVE-2025-23208). A new file that cannot be used changes nothing and is logged as an
 * error. Works by looking at the file's inode, size and times, which also sees atomic renames, swapped symbolic links
 * and network file systems.
 */
import { stat } from 'node:fs/promises';
import type { Log } from '../../shared/log.ts';

export interface LiveFile<T> extends Disposable {
  current(): T;
}

export interface LiveFileOptions<T> {
  /** What to look at: files, or a directory for its entries. */
  readonly paths: readonly string[];
  readonly load: () => Promise<T>;
  readonly log: Log;
  readonly onChange?: (value: T) => void;
}

const INTERVAL_MS = 1_000;

/** @throws whatever `load` throws the first time */
export async function openLiveFile<T>(options: LiveFileOptions<T>): Promise<LiveFile<T>> {
  const { paths, load, log, onChange } = options;
  // Taken before loading: a change in between is then seen as one.
  let signature = await signatureOf(paths);
  let current = await load();

  const look = async (): Promise<void> => {
    const seen = await signatureOf(paths);
    if (seen === signature) return;
    signature = seen;
    try {
      const value = await load();
      onChange?.(value);
      current = value;
      log.info('file read again', { paths });
    } catch (error) {
      log.error('changed file cannot be used, the old content stays', { paths, error });
    }
  };
  let looking = Promise.resolve();
  const timer = setInterval(() => {
    looking = looking.then(look);
  }, INTERVAL_MS).unref();
  return { current: () => current, [Symbol.dispose]: () => clearInterval(timer) };
}

async function signatureOf(paths: readonly string[]): Promise<string> {
  const signatures = paths.map(async (path) => {
    try {
      const { ino, size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
      return `${ino} ${size} ${mtimeNs} ${ctimeNs}`;
    } catch {
      // Absent for a moment while it is replaced, or for good: loading tells.
      return 'absent';
    }
  });
  return (await Promise.all(signatures)).join('\n');
}
