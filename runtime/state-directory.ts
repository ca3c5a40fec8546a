/**
 * StateDirectory: one engine's own place on disk, locked for as long as the engine lives, and its tag.
 *
 *   <root>/lock       held by the engine that uses the directory
 *   <root>/instance   the tag: 6 characters that go into the names of everything this engine makes on the host
 *   <run>/lock        the same for the run directory
 *
 * The lock is the kernel's (fcntl, taken through SQLite, since Node has no call for it): it ends with the process,
 * however that ends, and cannot be confused by a process id that is used again. Nobody else may open the lock files:
 * closing any descriptor of one would release it. Directories are private: what is inside belongs to containers, and
 * must not be reachable for the host's users (CVE-2021-41091).
 */
import { chmod, mkdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { writeDurably } from '../shared/atomic-file.ts';
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
  /** For a new directory's tag. */
  readonly randomId: () => string;
}

const TAG = /^[0-9a-z]{6}$/;
/** Entered by id, never listed: bind mounts inside it are reached by containers that are not root. */
const DIRECTORY_MODE = 0o711;

/** @throws AppError 'conflict' while another engine has either directory, 'unavailable' when one cannot be made */
export async function openStateDirectory(options: StateDirectoryOptions): Promise<StateDirectory> {
  const { root, runDir } = options;
  using undo = new DisposableStack();
  for (const path of new Set([root, runDir])) {
    await makeDirectory(path);
    undo.use(await lock(path));
  }
  const tag = await readTag(join(root, 'instance'), options.randomId);
  const owned = undo.move();
  return { root, runDir, tag, [Symbol.dispose]: () => owned.dispose() };
}

async function makeDirectory(path: string): Promise<void> {
  try {
    await mkdir(path, { recursive: true, mode: DIRECTORY_MODE });
    await chmod(path, DIRECTORY_MODE);
  } catch (cause) {
    throw new AppError('unavailable', `cannot use directory ${JSON.stringify(path)}: ${messageOf(cause)}`, { cause });
  }
}

async function lock(directory: string): Promise<Disposable> {
  const path = join(directory, 'lock');
  const database = new DatabaseSync(path, { timeout: 0 });
  try {
    database.exec('pragma journal_mode=off; begin exclusive');
  } catch (cause) {
    database.close();
    if (!/locked|busy/i.test(messageOf(cause)))
      throw new AppError('unavailable', `cannot lock ${JSON.stringify(directory)}: ${messageOf(cause)}`, { cause });
    const holder = await holderOf(path);
    throw new AppError(
      'conflict',
      `cannot use ${JSON.stringify(directory)}: ${holder === undefined ? 'another engine' : `the engine with process id ${holder}`} is using it; end that one, or give this one directories of its own (--root, --run-dir)`,
    );
  }
  return { [Symbol.dispose]: () => database.close() };
}

/** Whom the kernel names for a lock on this file. */
async function holderOf(path: string): Promise<number | undefined> {
  const { ino } = await stat(path);
  for (const line of (await readFile('/proc/locks', 'utf8')).split('\n')) {
    // 1: POSIX  ADVISORY  WRITE 1234 fe:00:5678 1073741824 1073742335
    const [, kind, , , pid, device] = line.trim().split(/\s+/);
    if (kind === 'POSIX' && device?.split(':')[2] === String(ino) && Number(pid) > 0) return Number(pid);
  }
  return undefined;
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
