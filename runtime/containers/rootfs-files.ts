/**
 * Reads small files inside a container's root filesystem as the container would see them: symbolic links are followed
 * within it, `..` stops at its root, and only a regular file is read.
 *
 * The content is hostile and may change while we look. So every step is taken from a descriptor of the directory before
 * it (/proc/self/fd/<n>/<name>, never following a link), which no later swap can move out of the root; and nothing is
 * opened for reading that could make us wait, such as a pipe (CVE-2024-9676).
 */
import { constants } from 'node:fs';
import { type FileHandle, open, readlink } from 'node:fs/promises';
import { AppError, hasCode } from '../../shared/errors.ts';

/** Linux's; Node has no name for it. The descriptor names a file without opening it. */
const O_PATH = 0o10000000;
const LINKS_MAX = 40;

export interface ReadOptions {
  readonly maxBytes: number;
}

/**
 * undefined = there is no such file, or it is not a regular one.
 * @throws AppError 'too-large'
 */
export async function readInside(rootfs: string, path: string, { maxBytes }: ReadOptions): Promise<Buffer | undefined> {
  await using opened = new AsyncDisposableStack();
  const step = async (name: string): Promise<FileHandle> => {
    const handle = await open(name, O_PATH | constants.O_NOFOLLOW);
    opened.use(handle);
    return handle;
  };
  const root = await open(rootfs, O_PATH | constants.O_DIRECTORY);
  opened.use(root);

  /** From the root to where we are. */
  let trail: FileHandle[] = [root];
  const pending = path.split('/');
  let links = 0;
  try {
    for (let name = pending.shift(); name !== undefined; name = pending.shift()) {
      if (name === '' || name === '.') continue;
      if (name === '..') {
        if (trail.length > 1) trail.pop();
        continue;
      }
      const here = trail.at(-1) ?? root;
      const next = await step(`/proc/self/fd/${here.fd}/${name}`);
      if (!(await next.stat()).isSymbolicLink()) {
        trail.push(next);
        continue;
      }
      links += 1;
      if (links > LINKS_MAX) return undefined;
      const target = await readlink(`/proc/self/fd/${here.fd}/${name}`);
      if (target.startsWith('/')) trail = [root];
      pending.unshift(...target.split('/'));
    }
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENOTDIR', 'ELOOP', 'EINVAL', 'ENAMETOOLONG')) return undefined;
    throw error;
  }
  const found = trail.at(-1) ?? root;
  if (!(await found.stat()).isFile()) return undefined;
  // Awaited here: the descriptors close when this function returns.
  return await readBounded(found, path, maxBytes);
}

/** Reopening by the descriptor gives exactly the file that was looked at. */
async function readBounded(file: FileHandle, path: string, maxBytes: number): Promise<Buffer> {
  await using handle = await open(
    `/proc/self/fd/${file.fd}`,
    constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY,
  );
  const tooLarge = () =>
    new AppError('too-large', `cannot read ${JSON.stringify(path)} of the image: it is larger than ${maxBytes} bytes`);
  if ((await handle.stat()).size > maxBytes) throw tooLarge();
  const chunks: Buffer[] = [];
  let total = 0;
  // The size is a claim; it may grow while we read.
  for (;;) {
    const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(64 * 1024));
    if (bytesRead === 0) return Buffer.concat(chunks, total);
    total += bytesRead;
    if (total > maxBytes) throw tooLarge();
    chunks.push(buffer.subarray(0, bytesRead));
  }
}
