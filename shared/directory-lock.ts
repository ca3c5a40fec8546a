/**
 * A directory that one process works in at a time.
 *
 * The lock is the kernel's (fcntl on `<directory>/lock`, taken through SQLite, since Node has no call for it): it ends
 * with the process, however that ends, and cannot be confused by a process id that is used again. Nobody else may open
 * the lock file: closing any descriptor of it would release the lock.
 */
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { AppError, messageOf } from './errors.ts';

export interface DirectoryUse {
  /** What kind of program it is, for the message: `engine`. */
  readonly who: string;
  /** What a user can do instead of ending the other one. */
  readonly mend: string;
}

/** Holds the lock until disposed. @throws AppError 'conflict' while another process has it, 'unavailable' */
export async function lockDirectory(directory: string, { who, mend }: DirectoryUse): Promise<Disposable> {
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
      `cannot use ${JSON.stringify(directory)}: ${holder === undefined ? `another ${who}` : `the ${who} with process id ${holder}`} is using it; end that one, or ${mend}`,
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
