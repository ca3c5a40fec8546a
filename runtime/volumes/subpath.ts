/**
 * A path below a volume's root, opened without following links: what is in a volume belongs to containers, which may
 * change it while we look. Each step starts at the descriptor of the one before, so no swap leads out of the volume.
 */
import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { AppError, hasCode } from '../../shared/errors.ts';
import { checkSubpath } from './names.ts';

/** Linux's; Node has no name for it. The descriptor names a file without opening it. */
const O_PATH = 0o10000000;

/** The caller closes it; /proc/<pid>/fd/<fd> is exactly what was found. @throws AppError 'not-found', 'invalid' */
export async function openSubpath(root: string, subpath: string): Promise<FileHandle> {
  checkSubpath(subpath);
  let here = await open(root, O_PATH | constants.O_DIRECTORY);
  try {
    for (const name of subpath.split('/').filter((part) => part !== '' && part !== '.')) {
      const next = await open(`/proc/self/fd/${here.fd}/${name}`, O_PATH | constants.O_NOFOLLOW);
      await here.close();
      here = next;
      if ((await here.stat()).isSymbolicLink())
        throw new AppError(
          'invalid',
          `cannot mount volume subpath ${JSON.stringify(subpath)}: ${JSON.stringify(name)} is a symbolic link`,
        );
    }
    return here;
  } catch (error) {
    await here.close();
    if (hasCode(error, 'ENOENT', 'ENOTDIR'))
      throw new AppError(
        'not-found',
        `cannot access path ${JSON.stringify(subpath)} of the volume: no such file or directory`,
      );
    throw error;
  }
}
