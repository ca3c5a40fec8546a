/**
 * /dev/shm of containers that share their IPC namespace: a tmpfs on the host, which the owner and whoever joins it bind.
 * Any other container gets a tmpfs of its own from the runtime.
 *
 *   <directory>/<id>      mounted while the owner runs
 */
import { mkdir, readdir, rmdir } from 'node:fs/promises';
import { join } from 'node:path';
import { hasCode } from '../../shared/errors.ts';
import type { Mounts } from '../kernel/mount.ts';

export interface SharedMemory {
  pathOf(id: string): string;
  /** Mounts an empty one. What an earlier run left is unmounted first. */
  open(id: string, sizeBytes: number): Promise<void>;
  /** Idempotent. Who still has it bound keeps it. */
  close(id: string): Promise<void>;
  /** Closes all that are not in valid. */
  sweep(valid: ReadonlySet<string>): Promise<void>;
}

export function createSharedMemory(options: {
  readonly mounts: Pick<Mounts, 'mountDevice' | 'unmount'>;
  readonly directory: string;
}): SharedMemory {
  const { mounts, directory } = options;
  const pathOf = (id: string) => join(directory, id);
  const close = async (id: string): Promise<void> => {
    await mounts.unmount([pathOf(id)], { lazy: true });
    await rmdir(pathOf(id)).catch((error: unknown) => {
      if (!hasCode(error, 'ENOENT')) throw error;
    });
  };
  return {
    pathOf,
    async open(id, sizeBytes) {
      await close(id);
      await mkdir(pathOf(id), { recursive: true, mode: 0o700 });
      await mounts.mountDevice({
        type: 'tmpfs',
        device: 'shm',
        options: `nosuid,nodev,noexec,mode=1777,size=${sizeBytes}`,
        target: pathOf(id),
      });
    },
    close,
    async sweep(valid) {
      const found = await readdir(directory).catch(() => []);
      for (const id of found) if (!valid.has(id)) await close(id);
    },
  };
}
