/**
 * EROFS on disk, as far as layer images use it: uncompressed, blocks of 4096, extended inodes, inline xattrs and tails.
 * Everything is little endian; the metadata area is the whole image (its first block is 0), so that the inode of a
 * small file lies with its bytes in one block.
 * https://docs.kernel.org/filesystems/erofs.html#on-disk-details
 *
 *   0     zero      1024  superblock, 128 bytes      1152  the root's inode, xattrs, tail      4096  everything else
 */
import { AppError } from '../../shared/errors.ts';
import { BLOCK_BYTES, type LayerNode, type Xattrs } from './tree.ts';

export const MAGIC = 0xe0f5e1e2;
export const SUPERBLOCK_OFFSET = 1024;
export const SUPERBLOCK_BYTES = 128;
export const BLOCK_BITS = 12;
export const INODE_BYTES = 64;
/** Inodes are addressed in units of this. */
export const SLOT_BYTES = 32;
export const ROOT_OFFSET = SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES;
export const DIRENT_BYTES = 12;
export const XATTR_HEADER_BYTES = 12;
/** In the superblock's volume name: the tar had no entry for the root (LayerTree.rootIsImplied). */
export const IMPLIED_ROOT_NAME = 'implied-root';

export const LAYOUT = { flatPlain: 0, flatInline: 2 } as const;

export const FILE_TYPES: Readonly<Record<LayerNode['kind'], { readonly format: number; readonly dirent: number }>> = {
  file: { format: 0o100000, dirent: 1 },
  directory: { format: 0o040000, dirent: 2 },
  character: { format: 0o020000, dirent: 3 },
  block: { format: 0o060000, dirent: 4 },
  fifo: { format: 0o010000, dirent: 5 },
  socket: { format: 0o140000, dirent: 6 },
  symlink: { format: 0o120000, dirent: 7 },
  whiteout: { format: 0o020000, dirent: 3 },
};

/** Longest prefix first. A name outside them cannot be stored. */
const XATTR_PREFIXES: readonly (readonly [index: number, prefix: string])[] = [
  [2, 'system.posix_acl_access'],
  [3, 'system.posix_acl_default'],
  [1, 'user.'],
  [4, 'trusted.'],
  [6, 'security.'],
];
const OPAQUE_XATTR = 'trusted.overlay.opaque';
const OPAQUE_VALUE = Buffer.from('y');

function prefixOf(name: string): readonly [number, string] | undefined {
  return XATTR_PREFIXES.find(([index, prefix]) =>
    index === 2 || index === 3 ? name === prefix : name.startsWith(prefix),
  );
}

/** False for namespaces that neither EROFS nor Linux's file systems for containers keep. */
export function isStorableXattr(name: string): boolean {
  const [, prefix] = prefixOf(name) ?? [];
  if (prefix === undefined) return false;
  return name.length > prefix.length || prefix.startsWith('system.');
}

/** The xattr area that follows an inode, empty without xattrs. `opaque` adds overlayfs's mark. */
export function encodeXattrs(xattrs: Xattrs | undefined, options: { readonly opaque?: boolean } = {}): Buffer {
  const all: [string, Uint8Array][] = [...(xattrs ?? [])];
  if (options.opaque === true) all.push([OPAQUE_XATTR, OPAQUE_VALUE]);
  if (all.length === 0) return Buffer.alloc(0);
  const parts = [Buffer.alloc(XATTR_HEADER_BYTES)];
  for (const [name, value] of all) {
    const [index, prefix] = prefixOf(name) ?? [];
    if (index === undefined || prefix === undefined)
      throw new AppError('unsupported', `cannot store the extended attribute ${JSON.stringify(name)} in a layer image`);
    const suffix = Buffer.from(name.slice(prefix.length), 'latin1');
    const entry = Buffer.alloc(align(4 + suffix.length + value.length, 4));
    entry.writeUInt8(suffix.length, 0);
    entry.writeUInt8(index, 1);
    entry.writeUInt16LE(value.length, 2);
    suffix.copy(entry, 4);
    entry.set(value, 4 + suffix.length);
    parts.push(entry);
  }
  return Buffer.concat(parts);
}

export interface DecodedXattrs {
  readonly xattrs: Xattrs | undefined;
  readonly opaque: boolean;
}

/** The inverse of encodeXattrs. */
export function decodeXattrs(area: Buffer): DecodedXattrs {
  const xattrs = new Map<string, Uint8Array>();
  let opaque = false;
  let at = XATTR_HEADER_BYTES;
  while (at + 4 <= area.length) {
    const nameBytes = area.readUInt8(at);
    const prefix = XATTR_PREFIXES.find(([index]) => index === area.readUInt8(at + 1))?.[1] ?? '';
    const valueAt = at + 4 + nameBytes;
    const end = valueAt + area.readUInt16LE(at + 2);
    if (end > area.length)
      throw new AppError('integrity', 'cannot read a layer image: an extended attribute is cut off');
    const name = prefix + area.toString('latin1', at + 4, valueAt);
    if (name === OPAQUE_XATTR) opaque = true;
    else xattrs.set(name, Buffer.from(area.subarray(valueAt, end)));
    at = align(end, 4);
  }
  return { xattrs: xattrs.size === 0 ? undefined : xattrs, opaque };
}

/** Linux's encoding of a device number in 32 bits. */
export function encodeDevice(major: number, minor: number): number {
  return ((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)) >>> 0;
}

export function decodeDevice(device: number): { readonly major: number; readonly minor: number } {
  return { major: (device >>> 8) & 0xfff, minor: (device & 0xff) | ((device >>> 12) & 0xfff00) };
}

export function align(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

export function alignToBlock(value: number): number {
  return align(value, BLOCK_BYTES);
}
