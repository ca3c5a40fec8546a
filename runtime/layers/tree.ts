/**
 * The tree of a layer: every name with its metadata and where its bytes lie in the layer's image; and the merged view
 * that overlayfs would give of several of them.
 *
 * Names, link targets and xattr names are latin1 strings: one character is one byte, so every name that a tar can hold
 * is exact and `<` compares bytes. Use nameToUtf8() for people. Two names with the same node object are hard links.
 * Pure: no I/O here (a reader may load children when they are first asked for).
 */

/** Where data begins on a block; whole blocks of a file are never split. */
export const BLOCK_BYTES = 4096;

export type Xattrs = ReadonlyMap<string, Uint8Array>;

export interface Attributes {
  /** Permission bits with setuid, setgid and sticky: 0o7777 at most. */
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  /** Seconds since the epoch, negative before it. */
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  readonly xattrs: Xattrs | undefined;
}

export interface FileNode extends Attributes {
  readonly kind: 'file';
  readonly sizeBytes: number;
  /** Offset in the image of the whole blocks (of everything when tailOffset is undefined). */
  readonly dataOffset: number;
  /** Offset in the image of the last `sizeBytes % BLOCK_BYTES` bytes when they lie elsewhere. */
  readonly tailOffset: number | undefined;
}

export interface DirectoryNode extends Attributes {
  readonly kind: 'directory';
  /** Hides what lower layers have inside this directory. */
  readonly opaque: boolean;
  /** In no particular order; sortedChildren() gives the order of names. */
  readonly children: ReadonlyMap<string, LayerNode>;
}

export interface SymlinkNode extends Attributes {
  readonly kind: 'symlink';
  readonly target: string;
}

export interface DeviceNode extends Attributes {
  readonly kind: 'character' | 'block';
  readonly major: number;
  readonly minor: number;
}

export interface PipeNode extends Attributes {
  readonly kind: 'fifo' | 'socket';
}

/** Hides the lower layers' entry of this name; overlayfs wants a character device 0:0. */
export interface WhiteoutNode {
  readonly kind: 'whiteout';
}
export const WHITEOUT: WhiteoutNode = { kind: 'whiteout' };

export type LayerNode = FileNode | DirectoryNode | SymlinkNode | DeviceNode | PipeNode | WhiteoutNode;

export interface LayerTree {
  readonly root: DirectoryNode;
  /** The layer does not mention `/`: the attributes of a lower layer's root hold, root's here are a default. */
  readonly rootIsImplied: boolean;
}

/** A run of bytes of a layer's image. */
export interface DataRange {
  readonly offset: number;
  readonly sizeBytes: number;
}

/** Where a file's bytes are, in order; at most two ranges, none for an empty file. */
export function rangesOf(file: Pick<FileNode, 'sizeBytes' | 'dataOffset' | 'tailOffset'>): readonly DataRange[] {
  const tailBytes = file.tailOffset === undefined ? 0 : file.sizeBytes % BLOCK_BYTES;
  const ranges: DataRange[] = [];
  if (file.sizeBytes > tailBytes) ranges.push({ offset: file.dataOffset, sizeBytes: file.sizeBytes - tailBytes });
  if (file.tailOffset !== undefined && tailBytes > 0) ranges.push({ offset: file.tailOffset, sizeBytes: tailBytes });
  return ranges;
}

/** For messages and JSON: the bytes of a name read as UTF-8, wrong ones replaced. */
export function nameToUtf8(name: string): string {
  return Buffer.from(name, 'latin1').toString('utf8');
}

/** The bytes of a UTF-8 name as a tree holds them. */
export function nameFromUtf8(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

export function sortedChildren(directory: DirectoryNode): readonly (readonly [string, LayerNode])[] {
  return [...directory.children].sort(([a], [b]) => (a < b ? -1 : 1));
}

export interface TreeEntry {
  /** Relative, `usr/bin/env`; the root is ''. */
  readonly path: string;
  readonly node: LayerNode;
}

/** Every entry, the root first and each directory before what it holds, names in byte order. */
export function* walk(tree: LayerTree): Generator<TreeEntry, void, undefined> {
  // A stack of our own: hostile trees are deeper than a call stack should be.
  const pending: TreeEntry[] = [{ path: '', node: tree.root }];
  for (let entry = pending.pop(); entry !== undefined; entry = pending.pop()) {
    yield entry;
    if (entry.node.kind !== 'directory') continue;
    for (const [name, node] of sortedChildren(entry.node).toReversed())
      pending.push({ path: entry.path === '' ? name : `${entry.path}/${name}`, node });
  }
}

/** What a chain shows under a name. `layer` is the index of the tree that the node, and its bytes, come from. */
export interface MergedNode {
  readonly node: Exclude<LayerNode, WhiteoutNode>;
  readonly layer: number;
  /** Set exactly for directories. */
  readonly directory: MergedDirectory | undefined;
}

export interface MergedDirectory {
  /** The topmost layer's: its attributes are the ones that show. */
  readonly node: DirectoryNode;
  get(name: string): MergedNode | undefined;
  /** Visible names, in no particular order. */
  names(): Iterable<string>;
}

/** What overlayfs shows for these layers, base first; undefined for none. Nothing is copied: directories merge when asked. */
export function mergeTrees(trees: readonly LayerTree[]): MergedDirectory | undefined {
  const roots = trees.map(({ root }, layer) => ({ node: root, layer })).reverse();
  return merge(roots);
}

interface Stacked {
  readonly node: DirectoryNode;
  readonly layer: number;
}

/** `stack` is topmost first. */
function merge(stack: readonly Stacked[]): MergedDirectory | undefined {
  const [top] = stack;
  if (top === undefined) return undefined;
  return {
    node: top.node,
    get(name) {
      const below: Stacked[] = [];
      for (const { node, layer } of stack) {
        const child = node.children.get(name);
        if (child === undefined) continue;
        if (child.kind !== 'directory') {
          if (below.length === 0 && child.kind !== 'whiteout') return { node: child, layer, directory: undefined };
          break;
        }
        below.push({ node: child, layer });
        if (child.opaque) break;
      }
      const [first] = below;
      return first === undefined ? undefined : { ...first, directory: merge(below) };
    },
    *names() {
      const decided = new Set<string>();
      for (const { node } of stack)
        for (const [name, child] of node.children) {
          if (decided.has(name)) continue;
          decided.add(name);
          if (child.kind !== 'whiteout') yield name;
        }
    },
  };
}
