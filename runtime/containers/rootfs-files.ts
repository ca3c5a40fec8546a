/**
 * Reads small files inside a container's root filesystem as the container would see them: symbolic links are followed
 * within it, `..` stops at its root, and only a regular file is read.
 *
 * The content is hostile and may change while we look. So every step is taken from a descriptor of the directory before
 * it (/proc/self/fd/<n>/<name>, never following a link), which no later swap can move out of the root; and nothing is
 * opened for reading that could make us wait, such as a pipe (CVE-2024-9676).
 */
import { closeSync, constants, fstatSync, openSync, readlinkSync, readSync } from 'node:fs';
import { AppError, hasCode } from '../../shared/errors.ts';
import { USER_FILE_MAX_BYTES, type UserFiles } from './users.ts';

/** Linux's; Node has no name for it. The descriptor names a file without opening it. */
const O_PATH = 0o10000000;
const LINKS_MAX = 40;
const PIECE_BYTES = 64 * 1024;

export interface ReadOptions {
  readonly maxBytes: number;
}

/**
 * undefined = there is no such file, or it is not a regular one. It reads at once: a start asks for files of some hundred
 * bytes, by twenty calls of a few microseconds each, and a thread for each call would take longer than all of them.
 * @throws AppError 'too-large'
 */
export function readInside(rootfs: string, path: string, { maxBytes }: ReadOptions): Buffer | undefined {
  using opened = new DisposableStack();
  const opening = (name: string, flags: number): number => opened.adopt(openSync(name, flags), closeSync);
  const root = opening(rootfs, O_PATH | constants.O_DIRECTORY);

  /** From the root to where we are. */
  let trail = [root];
  const pending = path.split('/');
  let links = 0;
  try {
    for (let name = pending.shift(); name !== undefined; name = pending.shift()) {
      if (name === '' || name === '.') continue;
      if (name === '..') {
        if (trail.length > 1) trail.pop();
        continue;
      }
      const step = `/proc/self/fd/${trail.at(-1) ?? root}/${name}`;
      const next = opening(step, O_PATH | constants.O_NOFOLLOW);
      if (!fstatSync(next).isSymbolicLink()) {
        trail.push(next);
        continue;
      }
      links += 1;
      if (links > LINKS_MAX) return undefined;
      const target = readlinkSync(step);
      if (target.startsWith('/')) trail = [root];
      pending.unshift(...target.split('/'));
    }
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENOTDIR', 'ELOOP', 'EINVAL', 'ENAMETOOLONG')) return undefined;
    throw error;
  }
  const found = trail.at(-1) ?? root;
  if (!fstatSync(found).isFile()) return undefined;
  // Reopening by the descriptor gives exactly the file that was looked at.
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;
  return readBounded(opening(`/proc/self/fd/${found}`, flags), path, maxBytes);
}

/** Who is who there. @throws AppError 'too-large' */
export function userFilesIn(rootfs: string): UserFiles {
  const read = (path: string) => readInside(rootfs, path, { maxBytes: USER_FILE_MAX_BYTES })?.toString('utf8');
  return { passwd: read('/etc/passwd'), group: read('/etc/group') };
}

function readBounded(file: number, path: string, maxBytes: number): Buffer {
  const tooLarge = () =>
    new AppError('too-large', `cannot read ${JSON.stringify(path)} of the image: it is larger than ${maxBytes} bytes`);
  if (fstatSync(file).size > maxBytes) throw tooLarge();
  const pieces: Buffer[] = [];
  let total = 0;
  // The size is a claim; it may grow while we read.
  for (;;) {
    const piece = Buffer.allocUnsafe(PIECE_BYTES);
    const count = readSync(file, piece);
    if (count === 0) return Buffer.concat(pieces, total);
    total += count;
    if (total > maxBytes) throw tooLarge();
    pieces.push(piece.subarray(0, count));
  }
}
