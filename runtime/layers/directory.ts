/**
 * A layer's image unpacked to a directory that overlayfs can stack, for kernels without EROFS. Whiteouts become devices
 * 0:0, opaque directories get overlayfs's attribute.
 *
 * The host's tar makes the files, since Node has neither mknod nor extended attributes. It never sees the tar that came
 * from outside: its archive is generated from the settled tree, where every name is plain and below its parent.
 */
import { stat } from 'node:fs/promises';
import { setImmediate } from 'node:timers/promises';
import { diskBytesOf } from '../../shared/disk-bytes.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import { feedCommand } from '../kernel/command.ts';
import { type ErofsImage, openErofs } from './erofs-reader.ts';
import type { TarEntry } from './tar.ts';
import { type DataRange, type FileNode, type LayerNode, walk } from './tree.ts';

const OPAQUE = 'trusted.overlay.opaque';
const BATCH_BYTES = 1 << 20;
/** In blocks of 512: by default tar reads, and writes to files, 10 KiB at a time. */
const RECORD_BLOCKS = 512;
/** Holes are looked for in pieces of this size, in files that have at least one such piece. */
const HOLE_BYTES = 1 << 16;
const ZEROS = Buffer.alloc(HOLE_BYTES);
const HOLES_AT_ONCE_BYTES = 16 << 20;
/** More parts than this of one file are not told apart: the last one has all that follows. */
const PARTS_MAX = 50_000;

/**
 * Copies all of an image into a directory, which must be empty; nothing is synced. Cancelled, it has stopped writing.
 * @throws AppError 'unavailable' (disk full), 'integrity'; an AbortError when cancelled
 */
export async function unpackImage(image: string, directory: string, { signal }: Cancelable = {}): Promise<void> {
  using opened = openErofs(image);
  const stats = await stat(image);
  const extract = ['--extract', '--file=-', `--blocking-factor=${RECORD_BLOCKS}`, `--directory=${directory}`];
  const exactly = ['--numeric-owner', '--same-owner', '--same-permissions', '--xattrs', '--xattrs-include=*'];
  try {
    await feedCommand(
      'tar',
      [...extract, ...exactly],
      archiveOf(opened, { hasHoles: diskBytesOf(stats) + HOLE_BYTES <= stats.size }),
      { signal },
    );
  } catch (error) {
    if (isKind(error, 'unavailable') && /Wrote only|No space left|Disk quota/.test(error.message))
      throw new AppError('unavailable', 'cannot unpack the layer to a directory: the disk is full', { cause: error });
    throw error;
  }
}

interface Holes {
  /** Whether files may have any: looking for them reads each file once more. */
  readonly hasHoles: boolean;
}

/** What comes next in an archive: bytes, or those of a file. */
type Piece = Buffer | { readonly file: FileNode; readonly part: DataRange };

/** In large batches, each in the memory of the one before: files are read to where the pipe takes them from. */
async function* archiveOf(image: ErofsImage, holes: Holes): AsyncGenerator<Buffer, void, undefined> {
  const batch = Buffer.allocUnsafeSlow(BATCH_BYTES);
  let filled = 0;
  for await (const piece of piecesOf(image, holes)) {
    const sizeBytes = Buffer.isBuffer(piece) ? piece.length : piece.part.sizeBytes;
    for (let at = 0; at < sizeBytes; ) {
      if (filled === batch.length) {
        yield batch;
        filled = 0;
        await setImmediate();
      }
      const taken = Math.min(batch.length - filled, sizeBytes - at);
      if (Buffer.isBuffer(piece)) piece.copy(batch, filled, at, at + taken);
      else image.readInto(batch.subarray(filled, filled + taken), piece.file, piece.part.offset + at);
      filled += taken;
      at += taken;
    }
  }
  yield batch.subarray(0, filled);
}

async function* piecesOf(image: ErofsImage, { hasHoles }: Holes): AsyncGenerator<Piece, void, undefined> {
  const { tree } = image;
  const paths = new Map<LayerNode, string>();
  for (const { path, node } of walk(tree)) {
    const first = node.kind === 'directory' || node.kind === 'whiteout' ? undefined : paths.get(node);
    const entry = tarEntryOf(path === '' ? '.' : path, node, first);
    // Sockets are of no use in an image, and no tar holds them.
    if (entry === undefined) continue;
    const isFile = first === undefined && node.kind === 'file';
    const parts = isFile && hasHoles ? await partsOf(image, node) : undefined;
    yield tarHeader(entry, parts);
    if (first !== undefined) continue;
    paths.set(node, path);
    if (!isFile) continue;
    for (const part of parts ?? [{ offset: 0, sizeBytes: node.sizeBytes }]) {
      yield { file: node, part };
      yield tarPadding(part.sizeBytes);
    }
  }
  yield TAR_END;
}

/** Where a file has anything but zeros; undefined when that is everywhere. */
async function partsOf(image: ErofsImage, file: FileNode): Promise<readonly DataRange[] | undefined> {
  if (file.sizeBytes < HOLE_BYTES) return undefined;
  const parts: DataRange[] = [];
  let at = 0;
  for (const piece of image.read(file)) {
    for (let start = 0; start < piece.length; start += HOLE_BYTES) {
      const sizeBytes = Math.min(HOLE_BYTES, piece.length - start);
      const last = parts.at(-1);
      const isHole = parts.length < PARTS_MAX && piece.compare(ZEROS, 0, sizeBytes, start, start + sizeBytes) === 0;
      if (!isHole) {
        if (last === undefined || (last.offset + last.sizeBytes < at && parts.length < PARTS_MAX))
          parts.push({ offset: at, sizeBytes });
        else parts[parts.length - 1] = { ...last, sizeBytes: at + sizeBytes - last.offset };
      }
      at += sizeBytes;
    }
    if (at % HOLES_AT_ONCE_BYTES === 0) await setImmediate();
  }
  const last = parts.at(-1);
  if (last?.offset === 0 && last.sizeBytes === file.sizeBytes) return undefined;
  // A part of nothing says where a file ends that ends in a hole.
  const end = { offset: file.sizeBytes, sizeBytes: 0 };
  return last !== undefined && last.offset + last.sizeBytes === file.sizeBytes ? parts : [...parts, end];
}

const PLAIN = { linkPath: '', sizeBytes: 0, major: 0, minor: 0 };
const NOBODY = { mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, xattrs: undefined };

/** How a node stands in a tar; `first` is the name of a hard link to it. undefined = no tar holds such a thing. */
export function tarEntryOf(path: string, node: LayerNode, first: string | undefined): TarEntry | undefined {
  if (node.kind === 'whiteout') return { ...PLAIN, ...NOBODY, type: 'character', path };
  const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = node;
  const xattrs = new Map([...(node.xattrs ?? [])].map(([name, value]) => [name, Buffer.from(value)]));
  const common = { ...PLAIN, path, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs };
  if (first !== undefined) return { ...common, type: 'link', linkPath: first, xattrs: undefined };
  switch (node.kind) {
    case 'file':
      return { ...common, type: 'file', sizeBytes: node.sizeBytes };
    case 'directory':
      if (node.opaque) xattrs.set(OPAQUE, Buffer.from('y'));
      return { ...common, type: 'directory' };
    case 'symlink':
      return { ...common, type: 'symlink', linkPath: node.target };
    case 'character':
    case 'block':
      return { ...common, type: node.kind, major: node.major, minor: node.minor };
    case 'fifo':
      return { ...common, type: 'fifo' };
    case 'socket':
      return undefined;
    default:
      throw node satisfies never;
  }
}
