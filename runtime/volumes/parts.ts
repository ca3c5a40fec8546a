/**
 * Subpaths of volumes, mounted under `<run>/volumes` for as long as a container is being started or its files are
 * looked at: a path that leads to what was found, and cannot be made to lead elsewhere by who writes to the volume.
 */
import { mkdir, readdir, rmdir, unlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Mounts } from '../kernel/mount.ts';
import { DIRECTORY_MODE } from './data.ts';
import { openSubpath } from './subpath.ts';

export interface VolumeParts {
  /** Disposing takes it back. @throws AppError 'not-found', 'invalid' (subpath), 'unavailable' (mount) */
  mount(root: string, subpath: string): Promise<AsyncDisposable & { readonly path: string }>;
  /** What an engine that was killed while it started a container left. */
  sweep(): Promise<void>;
}

export interface VolumePartsOptions {
  readonly runDirectory: string;
  readonly mounts: Pick<Mounts, 'mountBind' | 'unmount' | 'list'>;
  /** Hexadecimal characters. */
  readonly randomId: () => string;
}

export function createVolumeParts({ runDirectory, mounts, randomId }: VolumePartsOptions): VolumeParts {
  return {
    async mount(root, subpath) {
      await using found = await openSubpath(root, subpath);
      const path = join(runDirectory, randomId().slice(0, 12));
      await mkdir(runDirectory, { recursive: true, mode: DIRECTORY_MODE });
      if ((await found.stat()).isDirectory()) await mkdir(path);
      else await writeFile(path, '');
      await mounts.mountBind({ source: `/proc/${process.pid}/fd/${found.fd}`, target: path });
      return {
        path,
        async [Symbol.asyncDispose]() {
          await mounts.unmount([path], { lazy: true });
          await removePlace(path);
        },
      };
    },
    async sweep() {
      const mounted = (await mounts.list()).filter(({ target }) => target.startsWith(`${runDirectory}/`));
      await mounts.unmount(
        mounted.map(({ target }) => target),
        { lazy: true },
      );
      for (const name of await readdir(runDirectory).catch(() => [])) await removePlace(join(runDirectory, name));
    },
  };
}

/** Never recursively: should it still be mounted, that is users' data. */
async function removePlace(path: string): Promise<void> {
  await rmdir(path).catch(() => unlink(path));
}
