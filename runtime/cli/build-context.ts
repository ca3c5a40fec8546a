/**
 * A directory as the context of a build: the list of its files, without what `.dockerignore` leaves out, and a tar of
 * those that the engine does not have. Neither holds a file's bytes in memory, and no link is followed: links are sent as
 * links, and files are opened so that a name that has become a link since is an error.
 */
import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  realpathSync,
} from 'node:fs';
import { join, relative } from 'node:path';
import type { Ignore, IgnoreState } from '../../shared/dockerignore.ts';
import { AppError, hasCode } from '../../shared/errors.ts';
import { TAR_END, type TarEntry, tarHeader, tarPadding } from '../../shared/tar-writer.ts';

/** As the engine's API has it: kind, path, permission bits, bytes, nanoseconds since 1970, target of a link. */
export type ListedFile = readonly [
  kind: 'f' | 'd' | 'l',
  path: string,
  mode: number,
  sizeBytes: number,
  mtimeNs: string,
  target?: string,
];

export interface WalkOptions {
  readonly root: string;
  readonly ignore: Ignore;
  /** Called for what cannot be part of a context: sockets, pipes, devices. */
  readonly onLeftOut?: (path: string, what: string) => void;
}

const BATCH = 512;

interface Frame {
  /** '' for the root, else with a slash at its end. */
  readonly prefix: string;
  readonly state: IgnoreState;
  readonly names: readonly string[];
  next: number;
  /** Itself, until something in it has made it part of the context. */
  pending: ListedFile | undefined;
}

/**
 * Every file once, directories before what is in them, names in the order of their characters. Synchronous: a promise per
 * file would cost more than asking for it. @throws AppError 'denied', 'unsupported'
 */
export function* walkContext({ root, ignore, onLeftOut }: WalkOptions): Generator<readonly ListedFile[]> {
  let batch: ListedFile[] = [];
  const stack: Frame[] = [open(root, '', { state: ignore.root, pending: undefined })];
  for (let frame = stack.at(-1); frame !== undefined; frame = stack.at(-1)) {
    const name = frame.names[frame.next++];
    if (name === undefined) {
      stack.pop();
      continue;
    }
    const path = frame.prefix + name;
    const state = frame.state.enter(name);
    if (state.isSkippable) continue;
    const file = inspect(root, path, onLeftOut);
    if (file === undefined || (state.isIgnored && file[0] !== 'd')) continue;
    if (file[0] === 'd') stack.push(open(root, `${path}/`, { state, pending: state.isIgnored ? file : undefined }));
    if (state.isIgnored) continue;
    for (const above of stack) {
      if (above.pending !== undefined && path.startsWith(above.prefix)) batch.push(above.pending);
      if (path.startsWith(above.prefix)) above.pending = undefined;
    }
    batch.push(file);
    if (batch.length >= BATCH) {
      yield batch;
      batch = [];
    }
  }
  if (batch.length > 0) yield batch;
}

function open(root: string, prefix: string, rest: Pick<Frame, 'state' | 'pending'>): Frame {
  try {
    return { prefix, names: readdirSync(join(root, prefix)).sort(), next: 0, ...rest };
  } catch (error) {
    throw unreadable(prefix === '' ? root : prefix, error);
  }
}

/** undefined for what has gone since its directory was read, and for what no image can hold. */
function inspect(root: string, path: string, onLeftOut: WalkOptions['onLeftOut']): ListedFile | undefined {
  const full = `${root}/${path}`;
  const stat = lstatSync(full, { bigint: true, throwIfNoEntry: false });
  if (stat === undefined) {
    if (path.includes('\ufffd'))
      throw new AppError('unsupported', `cannot send ${JSON.stringify(path)}: its name is not UTF-8`);
    return undefined;
  }
  const mode = Number(stat.mode) & 0o7777;
  const mtimeNs = String(stat.mtimeNs);
  if (stat.isFile()) return ['f', path, mode, Number(stat.size), mtimeNs];
  if (stat.isDirectory()) return ['d', path, mode, 0, mtimeNs];
  if (stat.isSymbolicLink()) return ['l', path, mode, 0, mtimeNs, readlinkSync(full)];
  onLeftOut?.(path, stat.isSocket() ? 'a socket' : stat.isFIFO() ? 'a pipe' : 'a device');
  return undefined;
}

function unreadable(path: string, error: unknown): unknown {
  if (hasCode(error, 'EACCES', 'EPERM'))
    return new AppError(
      'denied',
      `cannot read ${JSON.stringify(path)}: permission denied; .dockerignore can leave it out`,
      {
        cause: error,
      },
    );
  if (hasCode(error, 'ENOENT'))
    return new AppError('conflict', `cannot send ${JSON.stringify(path)}: it was removed meanwhile`, { cause: error });
  if (hasCode(error, 'ELOOP', 'ENOTDIR'))
    return new AppError('conflict', `cannot send ${JSON.stringify(path)}: it was replaced meanwhile`, { cause: error });
  return error;
}

/** What goes out at once. */
const CHUNK_BYTES = 1 << 20;

/**
 * These files as a tar, owned by root as Docker sends them. A file is sent as it is now: longer, shorter or newer than it
 * was listed makes no difference, becoming shorter while it is read does. @throws AppError 'conflict', 'denied'
 */
export function* packContext(root: string, files: Iterable<ListedFile>): Generator<Buffer> {
  let out = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  let used = 0;
  function* put(bytes: Buffer): Generator<Buffer> {
    for (let at = 0; at < bytes.length; ) {
      const copied = bytes.copy(out, used, at);
      at += copied;
      used += copied;
      if (used === CHUNK_BYTES) yield* flush();
    }
  }
  function* flush(): Generator<Buffer> {
    if (used > 0) yield out.subarray(0, used);
    out = Buffer.allocUnsafeSlow(CHUNK_BYTES);
    used = 0;
  }
  for (const file of files) {
    const [kind, path, mode, , mtimeNs, target = ''] = file;
    const entry = { ...NO_OWNER, path: bytesOf(path), mode, ...timeOf(BigInt(mtimeNs)) };
    if (kind === 'd') yield* put(tarHeader({ ...entry, type: 'directory', linkPath: '', sizeBytes: 0 }));
    if (kind === 'l') yield* put(tarHeader({ ...entry, type: 'symlink', linkPath: bytesOf(target), sizeBytes: 0 }));
    if (kind !== 'f') continue;
    using opened = openFile(root, path);
    const { descriptor, sizeBytes } = opened;
    const times = timeOf(opened.mtimeNs);
    yield* put(tarHeader({ ...entry, ...times, type: 'file', linkPath: '', mode: opened.mode, sizeBytes }));
    for (let left = sizeBytes; left > 0; ) {
      const read = readSync(descriptor, out, used, Math.min(left, CHUNK_BYTES - used), null);
      if (read === 0)
        throw new AppError('conflict', `cannot send ${JSON.stringify(path)}: it became shorter while it was read`);
      left -= read;
      used += read;
      if (used === CHUNK_BYTES) yield* flush();
    }
    yield* put(tarPadding(sizeBytes));
  }
  yield* put(TAR_END);
  yield* flush();
}

const BILLION = 1_000_000_000n;
const NO_OWNER = { uid: 0, gid: 0, major: 0, minor: 0, xattrs: undefined } as const;

interface OpenedFile extends Disposable {
  readonly descriptor: number;
  readonly mode: number;
  readonly sizeBytes: number;
  readonly mtimeNs: bigint;
}

function openFile(root: string, path: string): OpenedFile {
  let descriptor: number;
  try {
    // Not blocking: a pipe may have taken the file's place.
    descriptor = openSync(`${root}/${path}`, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    throw unreadable(path, error);
  }
  const stat = fstatSync(descriptor, { bigint: true });
  if (!stat.isFile()) {
    closeSync(descriptor);
    throw new AppError('conflict', `cannot send ${JSON.stringify(path)}: it was replaced meanwhile`);
  }
  return {
    descriptor,
    mode: Number(stat.mode) & 0o7777,
    sizeBytes: Number(stat.size),
    mtimeNs: stat.mtimeNs,
    [Symbol.dispose]: () => closeSync(descriptor),
  };
}

/** Names in a tar are bytes, one per character. */
function bytesOf(name: string): string {
  return Buffer.from(name, 'utf8').toString('latin1');
}

/** To the nanosecond, as the engine compares it the next time; what is copied into images has whole seconds. */
function timeOf(mtimeNs: bigint): Pick<TarEntry, 'mtimeSeconds' | 'mtimeNanoseconds'> {
  const nanoseconds = ((mtimeNs % BILLION) + BILLION) % BILLION;
  return { mtimeSeconds: Number((mtimeNs - nanoseconds) / BILLION), mtimeNanoseconds: Number(nanoseconds) };
}

/**
 * A file of the context that this program reads itself: the Dockerfile, `.dockerignore`. undefined when there is none.
 * @throws AppError 'denied' when a link leads out of the context (CVE-2022-4122, CVE-2022-4123), 'too-large'
 */
export function readOwnFile(root: string, path: string, maxBytes: number): string | undefined {
  const full = join(root, path);
  let real: string;
  try {
    real = realpathSync(full);
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENOTDIR')) return undefined;
    throw unreadable(path, error);
  }
  if (relative(realpathSync(root), real).split('/')[0] === '..')
    throw new AppError('denied', `cannot read ${JSON.stringify(path)}: it is a link that leads out of the context`);
  return readWhole(real, maxBytes);
}

/** @throws AppError 'not-found', 'denied', 'invalid', 'too-large' */
export function readWhole(path: string, maxBytes: number): string {
  try {
    const stat = lstatSync(path);
    if (stat.isDirectory()) throw new AppError('invalid', `cannot read ${JSON.stringify(path)}: it is a directory`);
    if (stat.size > maxBytes)
      throw new AppError('too-large', `cannot read ${JSON.stringify(path)}: it is larger than ${maxBytes} bytes`);
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (hasCode(error, 'ENOENT'))
      throw new AppError('not-found', `cannot read ${JSON.stringify(path)}: there is no such file`);
    throw unreadable(path, error);
  }
}
