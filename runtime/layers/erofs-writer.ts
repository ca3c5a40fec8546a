/**
 * Writes one EROFS image in one pass: file data and file inodes as they come, everything else at finish(). It knows
 * nothing of tar or settling. The image is written front to back through one buffer; only link counts that turn out
 * greater than one, and records that outlive the buffer, are patched behind it.
 *
 * A file's last partial block lies beside its inode ("flat inline") whenever both fit a block, and such records are
 * packed together, so that an image of small files is smaller than the same files in a directory.
 * The caller owns the output: it waits for it, and makes it durable.
 */
import { AppError } from '../../shared/errors.ts';
import {
  align,
  alignToBlock,
  BLOCK_BITS,
  DIRENT_BYTES,
  encodeDevice,
  encodeXattrs,
  FILE_TYPES,
  IMPLIED_ROOT_NAME,
  INODE_BYTES,
  LAYOUT,
  MAGIC,
  ROOT_OFFSET,
  SLOT_BYTES,
  SUPERBLOCK_BYTES,
  SUPERBLOCK_OFFSET,
  XATTR_HEADER_BYTES,
} from './erofs-format.ts';
import type { ImageOutput } from './image-output.ts';
import {
  type Attributes,
  BLOCK_BYTES,
  type DirectoryNode,
  type FileNode,
  type LayerNode,
  type LayerTree,
  sortedChildren,
} from './tree.ts';

export interface ErofsWriter {
  /** Bytes of the image so far. */
  readonly position: number;
  /** Begins a file; data() and hole() must then give exactly `sizeBytes` before anything else is asked. */
  beginFile(attributes: Attributes, sizeBytes: number): FileNode;
  data(bytes: Uint8Array): void;
  hole(sizeBytes: number): void;
  /**
   * Writes the rest. The files of the tree are this writer's own; those it does not name stay behind as garbage.
   * @throws AppError 'unavailable' when the disk is full, as all methods do
   */
  finish(tree: LayerTree): void;
}

/** Blocks with room left that further records may still go to. More of them waste less room, and search longer. */
const OPEN_BLOCKS_MAX = 16;
/** Block addresses have 32 bits. */
const IMAGE_MAX_BYTES = BLOCK_BYTES * 0xffff_ffff;

interface OpenBlock {
  readonly address: number;
  used: number;
}

interface CurrentFile {
  readonly attributes: Attributes;
  readonly sizeBytes: number;
  readonly xattrs: Buffer;
  readonly dataOffset: number;
  readonly recordAddress: number;
  readonly inlineTail: boolean;
  /** Still to come for whole blocks, and for the inline tail. */
  plainLeft: number;
  tailLeft: number;
}

interface Inode {
  readonly format: number;
  readonly attributes: Attributes;
  readonly sizeBytes: number;
  /** First block or device number. */
  readonly union: number;
  readonly links: number;
  readonly inlineTail: boolean;
  readonly xattrBytes: number;
}

export function createErofsWriter(output: ImageOutput): ErofsWriter {
  let { buffer } = output;
  let flushed = 0;
  let filled = 0;
  let openBlocks: OpenBlock[] = [];
  let inodeCount = 0;
  let file: CurrentFile | undefined;
  const nids = new Map<LayerNode, number>();

  // The first block is the superblock's and the root's; both are known last.
  zeros(BLOCK_BYTES);

  function flush(): void {
    output.write(filled, flushed);
    ({ buffer } = output);
    flushed += filled;
    filled = 0;
    openBlocks = [];
  }

  function append(bytes: Uint8Array): void {
    let at = 0;
    while (at < bytes.length) {
      if (filled === buffer.length) flush();
      const taken = Math.min(bytes.length - at, buffer.length - filled);
      buffer.set(at === 0 && taken === bytes.length ? bytes : bytes.subarray(at, at + taken), filled);
      filled += taken;
      at += taken;
    }
  }

  function zeros(sizeBytes: number): void {
    let left = sizeBytes;
    while (left > 0) {
      if (filled === buffer.length) flush();
      const taken = Math.min(left, buffer.length - filled);
      buffer.fill(0, filled, filled + taken);
      filled += taken;
      left -= taken;
    }
  }

  function position(): number {
    return flushed + filled;
  }

  /** Leaves whole blocks unwritten: they read as zeros and occupy nothing. */
  function skipBlocks(sizeBytes: number): void {
    flush();
    flushed += sizeBytes;
    checkSize(0);
  }

  function checkSize(more: number): void {
    if (position() + more > IMAGE_MAX_BYTES)
      throw new AppError('too-large', `cannot write a layer image: it would be larger than ${IMAGE_MAX_BYTES} bytes`);
  }

  function padToBlock(): void {
    zeros(alignToBlock(position()) - position());
  }

  /** Writes what was reserved before. */
  function writeAt(address: number, bytes: Buffer): void {
    const inBuffer = address - flushed;
    if (inBuffer >= 0) bytes.copy(buffer, inBuffer);
    else if (address + bytes.length <= flushed) output.correct(bytes, address);
    else {
      output.correct(bytes.subarray(0, -inBuffer), address);
      bytes.copy(buffer, 0, -inBuffer);
    }
  }

  /** Room for a record, zeroed: within one block if it fits, else blocks of its own. Call between files only. */
  function reserve(sizeBytes: number): number {
    const size = align(sizeBytes, SLOT_BYTES);
    let best: OpenBlock | undefined;
    for (const block of openBlocks)
      if (block.used + size <= BLOCK_BYTES && (best === undefined || block.used > best.used)) best = block;
    if (best !== undefined) {
      const address = best.address + best.used;
      best.used += size;
      if (best.used === BLOCK_BYTES) openBlocks = openBlocks.filter((block) => block !== best);
      return address;
    }
    if (filled === buffer.length) flush();
    checkSize(size);
    const address = position();
    zeros(alignToBlock(size));
    if (size < BLOCK_BYTES) {
      openBlocks.push({ address, used: size });
      if (openBlocks.length > OPEN_BLOCKS_MAX) {
        const fullest = openBlocks.reduce((a, b) => (a.used >= b.used ? a : b));
        openBlocks = openBlocks.filter((block) => block !== fullest);
      }
    }
    return address;
  }

  function encodeInode({ format, attributes, sizeBytes, union, links, inlineTail, xattrBytes }: Inode): Buffer {
    inodeCount += 1;
    const inode = Buffer.alloc(INODE_BYTES);
    inode.writeUInt16LE(1 | ((inlineTail ? LAYOUT.flatInline : LAYOUT.flatPlain) << 1), 0);
    inode.writeUInt16LE(xattrBytes === 0 ? 0 : 1 + (xattrBytes - XATTR_HEADER_BYTES) / 4, 2);
    inode.writeUInt16LE(format | attributes.mode, 4);
    inode.writeBigUInt64LE(BigInt(sizeBytes), 8);
    inode.writeUInt32LE(union, 16);
    inode.writeUInt32LE(inodeCount, 20);
    inode.writeUInt32LE(attributes.uid, 24);
    inode.writeUInt32LE(attributes.gid, 28);
    inode.writeBigInt64LE(BigInt(attributes.mtimeSeconds), 32);
    inode.writeUInt32LE(attributes.mtimeNanoseconds, 40);
    inode.writeUInt32LE(links, 44);
    return inode;
  }

  function beginFile(attributes: Attributes, sizeBytes: number): FileNode {
    if (file !== undefined) throw new RangeError('the file before is not complete');
    checkSize(sizeBytes + 2 * BLOCK_BYTES);
    const xattrs = encodeXattrs(attributes.xattrs);
    const tailBytes = sizeBytes % BLOCK_BYTES;
    const inlineTail = tailBytes > 0 && INODE_BYTES + xattrs.length + tailBytes <= BLOCK_BYTES;
    const recordAddress = reserve(INODE_BYTES + xattrs.length + (inlineTail ? tailBytes : 0));
    const plainLeft = inlineTail ? sizeBytes - tailBytes : sizeBytes;
    file = {
      attributes,
      sizeBytes,
      xattrs,
      dataOffset: position(),
      recordAddress,
      inlineTail,
      plainLeft,
      tailLeft: inlineTail ? tailBytes : 0,
    };
    const head = encodeInode({
      format: FILE_TYPES.file.format,
      attributes,
      sizeBytes,
      union: plainLeft === 0 ? 0 : file.dataOffset / BLOCK_BYTES,
      links: 1,
      inlineTail,
      xattrBytes: xattrs.length,
    });
    writeAt(recordAddress, xattrs.length === 0 ? head : Buffer.concat([head, xattrs]));
    const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = attributes;
    const node: FileNode = {
      kind: 'file',
      mode,
      uid,
      gid,
      mtimeSeconds,
      mtimeNanoseconds,
      xattrs: attributes.xattrs,
      sizeBytes,
      dataOffset: file.dataOffset,
      tailOffset: inlineTail ? recordAddress + INODE_BYTES + xattrs.length : undefined,
    };
    nids.set(node, recordAddress / SLOT_BYTES);
    endFileIfComplete(file);
    return node;
  }

  function current(): CurrentFile {
    if (file === undefined) throw new RangeError('there is no file to write to');
    return file;
  }

  function endFileIfComplete(current: CurrentFile): void {
    if (current.plainLeft > 0 || current.tailLeft > 0) return;
    padToBlock();
    file = undefined;
  }

  function data(bytes: Uint8Array): void {
    const now = current();
    const plain = Math.min(now.plainLeft, bytes.length);
    if (bytes.length - plain > now.tailLeft) throw new RangeError('a file got more bytes than its size');
    if (plain > 0) append(plain === bytes.length ? bytes : bytes.subarray(0, plain));
    now.plainLeft -= plain;
    if (plain < bytes.length) {
      writeAt(tailPosition(now), Buffer.from(bytes.buffer, bytes.byteOffset + plain, bytes.length - plain));
      now.tailLeft -= bytes.length - plain;
    }
    endFileIfComplete(now);
  }

  function tailPosition(now: CurrentFile): number {
    return now.recordAddress + INODE_BYTES + now.xattrs.length + ((now.sizeBytes % BLOCK_BYTES) - now.tailLeft);
  }

  function hole(sizeBytes: number): void {
    const now = current();
    const plain = Math.min(now.plainLeft, sizeBytes);
    if (sizeBytes - plain > now.tailLeft) throw new RangeError('a file got more bytes than its size');
    const head = Math.min(plain, alignToBlock(position()) - position());
    const whole = Math.floor((plain - head) / BLOCK_BYTES) * BLOCK_BYTES;
    zeros(head);
    if (whole > 0) skipBlocks(whole);
    zeros(plain - head - whole);
    now.plainLeft -= plain;
    now.tailLeft -= sizeBytes - plain; // reserved room is zero already
    endFileIfComplete(now);
  }

  function finish(tree: LayerTree): void {
    if (file !== undefined) throw new RangeError('the last file is not complete');
    const links = new Map<LayerNode, number>();
    const directories: PlannedDirectory[] = [];
    const plan = (node: DirectoryNode, parent: number) => {
      const planned = planDirectory(node, { parent, isRoot: directories.length === 0 });
      directories.push(planned);
    };
    plan(tree.root, ROOT_OFFSET / SLOT_BYTES);
    // Grows while it is walked: parents come before their children, whose `..` needs them.
    for (const directory of directories)
      for (const [, child] of directory.children) {
        if (child.kind === 'directory') plan(child, directory.nid);
        else links.set(child, (links.get(child) ?? 0) + 1);
      }
    for (const [node, count] of links) {
      if (node.kind === 'directory') continue;
      if (node.kind !== 'file') nids.set(node, writeLeaf(node, count) / SLOT_BYTES);
      else if (count > 1) {
        const patch = Buffer.alloc(4);
        patch.writeUInt32LE(count);
        writeAt(nidOf(node) * SLOT_BYTES + 44, patch);
      }
    }
    for (const directory of directories) writeDirectory(directory);
    padToBlock();
    writeSuperblock(tree);
    flush();
    // Holes at the very end were never written; the file must cover all its blocks.
    output.end(flushed);
  }

  function nidOf(node: LayerNode): number {
    const nid = nids.get(node);
    if (nid === undefined) throw new RangeError('a file of the tree was not written by this writer');
    return nid;
  }

  function writeLeaf(node: Exclude<LayerNode, FileNode | DirectoryNode>, links: number): number {
    const isWhiteout = node.kind === 'whiteout';
    const attributes: Attributes = node.kind === 'whiteout' ? WHITEOUT_ATTRIBUTES : node;
    const xattrs = encodeXattrs(attributes.xattrs);
    const target = Buffer.from(node.kind === 'symlink' ? node.target : '', 'latin1');
    const inlineTail = target.length > 0 && INODE_BYTES + xattrs.length + target.length <= BLOCK_BYTES;
    const address = reserve(INODE_BYTES + xattrs.length + (inlineTail ? target.length : 0));
    let union = 0;
    if (node.kind === 'character' || node.kind === 'block') union = encodeDevice(node.major, node.minor);
    if (isWhiteout) union = 0;
    if (target.length > 0 && !inlineTail) {
      union = position() / BLOCK_BYTES;
      append(target);
      padToBlock();
    }
    const { format } = FILE_TYPES[node.kind];
    const head = encodeInode({
      format,
      attributes,
      sizeBytes: target.length,
      union,
      links,
      inlineTail,
      xattrBytes: xattrs.length,
    });
    writeAt(address, Buffer.concat(inlineTail ? [head, xattrs, target] : [head, xattrs]));
    return address;
  }

  interface PlannedDirectory {
    readonly node: DirectoryNode;
    readonly nid: number;
    readonly parent: number;
    readonly xattrs: Buffer;
    readonly children: readonly (readonly [string, LayerNode])[];
    readonly blocks: readonly DirectoryBlock[];
    readonly inlineTail: boolean;
  }

  function planDirectory(node: DirectoryNode, at: { parent: number; isRoot: boolean }): PlannedDirectory {
    const children = sortedChildren(node);
    // `.` and `..` are sorted among the others: `!` and `-` come before them.
    const names = [...children.map(([name]) => name), '.', '..'].sort((a, b) => (a < b ? -1 : 1));
    const blocks = splitNames(names);
    const tailBytes = blocks.at(-1)?.sizeBytes ?? 0;
    const xattrs = encodeXattrs(node.xattrs, { opaque: node.opaque && !at.isRoot });
    const room = at.isRoot ? BLOCK_BYTES - ROOT_OFFSET : BLOCK_BYTES;
    const head = INODE_BYTES + xattrs.length;
    if (at.isRoot && head > room)
      throw new AppError('too-large', 'cannot write a layer image: the extended attributes of its root are too large');
    const inlineTail = head + tailBytes <= room;
    const address = at.isRoot ? ROOT_OFFSET : reserve(head + (inlineTail ? tailBytes : 0));
    const nid = address / SLOT_BYTES;
    nids.set(node, nid);
    return { node, nid, parent: at.parent, xattrs, children, blocks, inlineTail };
  }

  function writeDirectory({ node, nid, parent, xattrs, children, blocks, inlineTail }: PlannedDirectory): void {
    const nodes = new Map<string, LayerNode>(children);
    const encoded = blocks.map(({ names, sizeBytes }) => {
      const block = Buffer.alloc(sizeBytes);
      let nameAt = names.length * DIRENT_BYTES;
      names.forEach((name, i) => {
        const child = nodes.get(name);
        const target = child === undefined ? (name === '.' ? nid : parent) : nidOf(child);
        block.writeBigUInt64LE(BigInt(target), i * DIRENT_BYTES);
        block.writeUInt16LE(nameAt, i * DIRENT_BYTES + 8);
        block.writeUInt8(FILE_TYPES[child?.kind ?? 'directory'].dirent, i * DIRENT_BYTES + 10);
        nameAt += block.write(name, nameAt, 'latin1');
      });
      return block;
    });
    const tail = inlineTail ? encoded.pop() : undefined;
    const union = encoded.length === 0 ? 0 : position() / BLOCK_BYTES;
    for (const block of encoded) {
      append(block);
      padToBlock();
    }
    const subdirectories = children.filter(([, child]) => child.kind === 'directory').length;
    const head = encodeInode({
      format: FILE_TYPES.directory.format,
      attributes: node,
      sizeBytes: (blocks.length - 1) * BLOCK_BYTES + (blocks.at(-1)?.sizeBytes ?? 0),
      union,
      links: 2 + subdirectories,
      inlineTail,
      xattrBytes: xattrs.length,
    });
    writeAt(nid * SLOT_BYTES, Buffer.concat(tail === undefined ? [head, xattrs] : [head, xattrs, tail]));
  }

  function writeSuperblock(tree: LayerTree): void {
    const superblock = Buffer.alloc(SUPERBLOCK_BYTES);
    superblock.writeUInt32LE(MAGIC, 0);
    superblock.writeUInt8(BLOCK_BITS, 12);
    superblock.writeUInt16LE(ROOT_OFFSET / SLOT_BYTES, 14);
    superblock.writeBigUInt64LE(BigInt(inodeCount), 16);
    superblock.writeUInt32LE(position() / BLOCK_BYTES, 36);
    if (tree.rootIsImplied) superblock.write(IMPLIED_ROOT_NAME, 64, 'latin1');
    writeAt(SUPERBLOCK_OFFSET, superblock);
  }

  return {
    get position() {
      return position();
    },
    beginFile,
    data,
    hole,
    finish,
  };
}

const WHITEOUT_ATTRIBUTES: Attributes = {
  mode: 0,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  xattrs: undefined,
};

interface DirectoryBlock {
  readonly names: readonly string[];
  /** Used bytes; 4096 at most. */
  readonly sizeBytes: number;
}

/** Fills blocks with as many sorted names as fit each. */
function splitNames(names: readonly string[]): readonly DirectoryBlock[] {
  const blocks: { names: string[]; sizeBytes: number }[] = [];
  let last: { names: string[]; sizeBytes: number } | undefined;
  for (const name of names) {
    const needed = DIRENT_BYTES + name.length;
    if (last === undefined || last.sizeBytes + needed > BLOCK_BYTES) {
      last = { names: [], sizeBytes: 0 };
      blocks.push(last);
    }
    last.names.push(name);
    last.sizeBytes += needed;
  }
  return blocks;
}
