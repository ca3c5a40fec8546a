/**
 * Bytes that went bad, on a filesystem: which version of a file somebody has read, and where bad files are put aside,
 * `<root>/quarantine/<algorithm>-<hex>`, for whoever wants to look at them. Nothing reads them again.
 */
import { statSync } from 'node:fs';
import { mkdir, rename } from 'node:fs/promises';
import { join } from 'node:path';
import { algorithmOf, type Digest, hexOf } from '../../shared/digest.ts';
import { hasCode } from '../../shared/errors.ts';

export interface Quarantine {
  /** The same text = the same bytes, as long as nothing but the disk changed them; undefined = there are none. */
  versionOf(digest: Digest): string | undefined;
  /** false = there was nothing to move. */
  moveAside(digest: Digest): Promise<boolean>;
}

export interface QuarantineOptions {
  readonly root: string;
  readonly pathOf: (digest: Digest) => string;
}

export function createQuarantine({ root, pathOf }: QuarantineOptions): Quarantine {
  const directory = join(root, 'quarantine');
  return {
    versionOf(digest) {
      const stats = statSync(pathOf(digest), { bigint: true, throwIfNoEntry: false });
      // The inode tells a pushed file from the one before; a change of its times does not make bad bytes good.
      return stats === undefined ? undefined : `${stats.ino} ${stats.birthtimeNs} ${stats.size}`;
    },

    async moveAside(digest) {
      await mkdir(directory, { recursive: true });
      try {
        await rename(pathOf(digest), join(directory, `${algorithmOf(digest)}-${hexOf(digest)}`));
        return true;
      } catch (error) {
        if (hasCode(error, 'ENOENT')) return false;
        throw error;
      }
    },
  };
}
