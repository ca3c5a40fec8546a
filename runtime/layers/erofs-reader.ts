/**
 * Reads the images that erofs-writer.ts makes, without mounting them: the tree, and the bytes of its files.
 * It understands no other EROFS images (compression, shared xattrs, compact inodes) and says so.
 *
 * Reads are synchronous and lazy: opening costs two reads, a directory is read when its children are asked for.
 */
import { closeSync, createReadStream, openSync, readSync } from 'node:fs';
import { Readable } from 'node:stream';
import { setImmediate } from 'node:timers/promises';
import { AppError } from '../../shared/errors.ts';
import {
  BLOCK_BITS,
  DIRENT_BYTES,
  decodeDevice,
  decodeXattrs,
  IMPLIED_ROOT_NAME,
  INODE_BYTES,
  LAYOUT,
  MAGIC,
  SLOT_BYTES,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSET,
  XATTR_HEADER_BYTES,
} from './erofs-format.ts';
import {
  type Attributes,
  BLOCK_BYTES,
  type DataRange,
  type DirectoryNode,
  type FileNode,
  type LayerNode,
  type LayerTree,
  rangesOf,
  WHITEOUT,
  walk,
} from './tree.ts';

/** An open image. Disposing closes it; directories that were not read by then can no longer be. */
export interface ErofsImage extends Disposable {
  readonly tree: LayerTree;
  /** The bytes of a file, or of this part of it, in pieces of at most 1 MiB; each is valid until the next is asked for. */
  read(file: FileNode, part?: DataRange): Generator<Buffer, void, undefined>;
  /** Fills `target` with the bytes of a file from `offset` on, which must be there. */
  readInto(target: Buffer, file: FileNode, offset: number): void;
}

const BLOCKS_CACHED_MAX = 1024;
const PIECE_BYTES = 1 << 20;
/** Entries between two pauses of loadTree(): some 10 ms. */
const ENTRIES_AT_ONCE = 2000;

/** @throws AppError 'not-found', 'integrity' (not an image, or damaged) */
export function openErofs(path: string): ErofsImage {
  const fd = openFile(path);
  const cache = new Map<number, Buffer>();
  const linked = new Map<number, LayerNode>();

  function damaged(why: string): never {
    throw new AppError('integrity', `cannot read layer image ${JSON.stringify(path)}: ${why}`);
  }

  function readInto(target: Buffer, offset: number): Buffer {
    for (let done = 0; done < target.length; ) {
      const count = readSync(fd, target, done, target.length - done, offset + done);
      if (count === 0) damaged('it is cut off');
      done += count;
    }
    return target;
  }

  /** Metadata through a small cache: neighbouring inodes share blocks. */
  function bytesAt(offset: number, sizeBytes: number): Buffer {
    const block = Math.floor(offset / BLOCK_BYTES);
    const start = offset - block * BLOCK_BYTES;
    if (start + sizeBytes > BLOCK_BYTES) return readInto(Buffer.allocUnsafe(sizeBytes), offset);
    let bytes = cache.get(block);
    if (bytes === undefined) {
      bytes = readInto(Buffer.allocUnsafeSlow(BLOCK_BYTES), block * BLOCK_BYTES);
      const [oldest] = cache.keys();
      if (cache.size >= BLOCKS_CACHED_MAX && oldest !== undefined) cache.delete(oldest);
      cache.set(block, bytes);
    }
    return bytes.subarray(start, start + sizeBytes);
  }

  function contentOf(sizeBytes: number, ranges: readonly DataRange[]): Buffer {
    const content = Buffer.allocUnsafe(sizeBytes);
    let at = 0;
    for (const range of ranges) {
      readInto(content.subarray(at, at + range.sizeBytes), range.offset);
      at += range.sizeBytes;
    }
    return content;
  }

  function nodeAt(nid: number): LayerNode {
    const known = linked.get(nid);
    if (known !== undefined) return known;
    const offset = nid * SLOT_BYTES;
    const inode = bytesAt(offset, INODE_BYTES);
    const format = inode.readUInt16LE(0);
    const layout = (format >> 1) & 7;
    if ((format & 1) === 0 || (layout !== LAYOUT.flatPlain && layout !== LAYOUT.flatInline))
      damaged(`inode ${nid} has a form that this program does not write`);
    const xattrCount = inode.readUInt16LE(2);
    const xattrBytes = xattrCount === 0 ? 0 : XATTR_HEADER_BYTES + (xattrCount - 1) * 4;
    const { xattrs, opaque } =
      xattrBytes === 0 ? { xattrs: undefined, opaque: false } : decodeXattrs(bytesAt(offset + INODE_BYTES, xattrBytes));
    const typeAndMode = inode.readUInt16LE(4);
    const sizeBytes = Number(inode.readBigUInt64LE(8));
    const union = inode.readUInt32LE(16);
    const attributes: Attributes = {
      mode: typeAndMode & 0o7777,
      uid: inode.readUInt32LE(24),
      gid: inode.readUInt32LE(28),
      mtimeSeconds: Number(inode.readBigInt64LE(32)),
      mtimeNanoseconds: inode.readUInt32LE(40),
      xattrs,
    };
    const tailOffset =
      layout === LAYOUT.flatInline && sizeBytes % BLOCK_BYTES > 0 ? offset + INODE_BYTES + xattrBytes : undefined;
    const file: FileNode = { kind: 'file', ...attributes, sizeBytes, dataOffset: union * BLOCK_BYTES, tailOffset };
    const node = nodeOf();
    if (node.kind !== 'directory' && inode.readUInt32LE(44) > 1) linked.set(nid, node);
    return node;

    function nodeOf(): LayerNode {
      switch (typeAndMode & 0o170000) {
        case 0o100000:
          return file;
        case 0o040000:
          return new LazyDirectory(attributes, opaque, () => childrenOf(contentOf(sizeBytes, rangesOf(file)), nid));
        case 0o120000:
          return {
            kind: 'symlink',
            ...attributes,
            target: contentOf(sizeBytes, rangesOf(file)).toString('latin1'),
          };
        case 0o020000:
          return union === 0 ? WHITEOUT : { kind: 'character', ...attributes, ...decodeDevice(union) };
        case 0o060000:
          return { kind: 'block', ...attributes, ...decodeDevice(union) };
        case 0o010000:
          return { kind: 'fifo', ...attributes };
        case 0o140000:
          return { kind: 'socket', ...attributes };
        default:
          return damaged(`inode ${nid} has an unknown type`);
      }
    }
  }

  function childrenOf(content: Buffer, nid: number): Map<string, LayerNode> {
    const children = new Map<string, LayerNode>();
    for (let start = 0; start < content.length; start += BLOCK_BYTES) {
      const block = content.subarray(start, start + BLOCK_BYTES);
      const count = block.length < DIRENT_BYTES ? 0 : block.readUInt16LE(8) / DIRENT_BYTES;
      if (!Number.isInteger(count) || count < 1 || count * DIRENT_BYTES > block.length)
        damaged(`directory ${nid} is malformed`);
      for (let i = 0; i < count; i++) {
        const nameAt = block.readUInt16LE(i * DIRENT_BYTES + 8);
        const next = i + 1 < count ? block.readUInt16LE((i + 1) * DIRENT_BYTES + 8) : block.length;
        const zero = block.indexOf(0, nameAt);
        const name = block.toString('latin1', nameAt, zero === -1 ? next : Math.min(zero, next));
        if (name !== '.' && name !== '..') children.set(name, nodeAt(Number(block.readBigUInt64LE(i * DIRENT_BYTES))));
      }
    }
    return children;
  }

  try {
    const superblock = readInto(Buffer.alloc(SUPERBLOCK_BYTES), SUPERBLOCK_OFFSET);
    if (superblock.readUInt32LE(0) !== MAGIC) damaged('it is not an EROFS image');
    if (
      superblock.readUInt8(12) !== BLOCK_BITS ||
      superblock.readUInt32LE(40) !== 0 ||
      superblock.readUInt32LE(80) !== 0
    )
      damaged('it has features that this program does not write');
    const root = nodeAt(superblock.readUInt16LE(14));
    if (root.kind !== 'directory') return damaged('its root is not a directory');
    const rootIsImplied = superblock.toString('latin1', 64, 80).startsWith(IMPLIED_ROOT_NAME);
    return {
      tree: { root, rootIsImplied },
      *read(file, part = { offset: 0, sizeBytes: file.sizeBytes }) {
        const piece = Buffer.allocUnsafe(Math.min(PIECE_BYTES, Math.max(part.sizeBytes, 1)));
        for (const { offset, sizeBytes } of rangesWithin(rangesOf(file), part))
          for (let at = 0; at < sizeBytes; at += piece.length)
            yield readInto(piece.subarray(0, Math.min(piece.length, sizeBytes - at)), offset + at);
      },
      readInto(target, file, offset) {
        let done = 0;
        for (const range of rangesWithin(rangesOf(file), { offset, sizeBytes: target.length })) {
          readInto(target.subarray(done, done + range.sizeBytes), range.offset);
          done += range.sizeBytes;
        }
      },
      [Symbol.dispose]: () => closeSync(fd),
    };
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** The part of a file, as ranges of its image. */
function rangesWithin(ranges: readonly DataRange[], part: DataRange): readonly DataRange[] {
  const within: DataRange[] = [];
  let at = 0;
  for (const range of ranges) {
    const from = Math.max(part.offset, at);
    const to = Math.min(part.offset + part.sizeBytes, at + range.sizeBytes);
    if (from < to) within.push({ offset: range.offset + from - at, sizeBytes: to - from });
    at += range.sizeBytes;
  }
  return within;
}

/** The whole tree in memory, read without holding up the event loop for long. */
export async function loadTree(path: string): Promise<LayerTree> {
  using image = openErofs(path);
  let entries = 0;
  for (const _ of walk(image.tree)) {
    entries += 1;
    if (entries % ENTRIES_AT_ONCE === 0) await setImmediate();
  }
  return image.tree;
}

/** The bytes of a file of the image at `path`. The caller owns the stream. */
export function openFileInImage(path: string, file: FileNode): Readable {
  return Readable.from(piecesInImage(path, file), { objectMode: false });
}

async function* piecesInImage(path: string, file: FileNode): AsyncGenerator<Buffer, void, undefined> {
  for (const { offset, sizeBytes } of rangesOf(file))
    yield* createReadStream(path, { start: offset, end: offset + sizeBytes - 1, highWaterMark: PIECE_BYTES });
}

/** A directory whose children are read when they are first asked for. */
class LazyDirectory implements DirectoryNode {
  readonly kind = 'directory';
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly xattrs: Attributes['xattrs'];
  readonly opaque: boolean;
  readonly #load: () => Map<string, LayerNode>;
  #children: ReadonlyMap<string, LayerNode> | undefined;

  constructor(attributes: Attributes, opaque: boolean, load: () => Map<string, LayerNode>) {
    this.mode = attributes.mode;
    this.uid = attributes.uid;
    this.gid = attributes.gid;
    this.mtimeSeconds = attributes.mtimeSeconds;
    this.mtimeNanoseconds = attributes.mtimeNanoseconds;
    this.xattrs = attributes.xattrs;
    this.opaque = opaque;
    this.#load = load;
  }

  get children(): ReadonlyMap<string, LayerNode> {
    this.#children ??= this.#load();
    return this.#children;
  }
}

function openFile(path: string): number {
  try {
    return openSync(path, 'r');
  } catch (error) {
    throw new AppError('not-found', `cannot open layer image ${JSON.stringify(path)}`, { cause: error });
  }
}
