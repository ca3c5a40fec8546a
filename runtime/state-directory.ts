/**
 * StateDirectory: one engine's own place on disk, locked for as long as the engine lives, and its tag.
 *
 *   <root>/lock       held by the engine that uses the directory
 *   <root>/instance   the tag: 6 characters that go into the names of everything this engine makes on the host
 *   <run>/lock        the same for the run directory
 *
 * Directories are private: what is inside belongs to containers, and must not be reachable for the host's users
 * (CVE-2021-41091).
 */
import { chmod, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeDurably } from '../shared/atomic-file.ts';
import { lockDirectory } from '../shared/directory-lock.ts';
import { AppError, hasCode, messageOf } from '../shared/errors.ts';

export interface StateDirectory extends Disposable {
  readonly root: string;
  readonly runDir: string;
  /** Stays the same for the life of the directory. */
  readonly tag: string;
}

export interface StateDirectoryOptions {
  readonly root: string;
  readonly runDir: string;
  /** Nobody else may enter: where no container needs a way in. */
  readonly isPrivate?: boolean | undefined;
  /** For a new directory's tag. */
  readonly randomId: () => string;
}

const TAG = /^[0-9a-z]{6}$/;
/** Entered by id, never listed: bind mounts inside it are reached by containers that are not root. */
const DIRECTORY_MODE = 0o711;
const PRIVATE_MODE = 0o700;

const LOCKED_BY = { who: 'engine', mend: 'give this one directories of its own (--root, --run-dir)' };

/** @throws AppError 'conflict' while another engine has either directory, 'unavailable' when one cannot be made */
export async function openStateDirectory(options: StateDirectoryOptions): Promise<StateDirectory> {
  const { root, runDir } = options;
  using undo = new DisposableStack();
  for (const path of new Set([root, runDir])) {
    await makeDirectory(path, options.isPrivate === true ? PRIVATE_MODE : DIRECTORY_MODE);
    undo.use(await lockDirectory(path, LOCKED_BY));
  }
  const tag = await readTag(join(root, 'instance'), options.randomId);
  const owned = undo.move();
  return { root, runDir, tag, [Symbol.dispose]: () => owned.dispose() };
}

async function makeDirectory(path: string, mode: number): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode });
    await chmod(path, mode);
  } catch (cause) {
    throw new AppError('unavailable', `cannot use directory ${JSON.stringify(path)}: ${messageOf(cause)}`, { cause });
  }
}

async function readTag(path: string, randomId: () => string): Promise<string> {
  try {
    const tag = (await readFile(path, 'utf8')).trim();
    if (TAG.test(tag)) return tag;
    throw new AppError('integrity', `cannot use ${JSON.stringify(path)}: it does not hold 6 letters and digits`);
  } catch (error) {
    if (!hasCode(error, 'ENOENT')) throw error;
  }
  const tag = randomId()
    .replaceAll(/[^0-9a-z]/g, '')
    .slice(0, 6);
  await writeDurably(path, `${tag}\n`, { mode: 0o600 });
  return tag;
}
