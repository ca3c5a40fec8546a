/**
 * Settling: what the entries of a layer's tar mean above the layers below it. Entries are applied in the order of the
 * tar, as if to the merged filesystem, but no path ever leaves the root: symlinks, `..` and absolute targets are
 * resolved inside it. Whiteouts hide only what lower layers have, wherever they stand in the tar.
 * https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md
 *
 * A layer whose meaning did not depend on the layers below is `independent` and can stand above any other.
 * Pure: copying a lower file's bytes is the caller's.
 */
import { AppError } from '../../shared/errors.ts';
import {
  type Attributes,
  type DirectoryNode,
  type FileNode,
  type LayerNode,
  type LayerTree,
  type MergedDirectory,
  type MergedNode,
  nameToUtf8,
  type SymlinkNode,
  WHITEOUT,
} from './tree.ts';

/** All but directories. */
export type Leaf = Exclude<LayerNode, DirectoryNode>;

/** One entry of a layer's tar. Paths are cleaned by entryPath(); '' is the root. */
export type Change =
  | { readonly kind: 'node'; readonly path: string; readonly node: Leaf }
  | { readonly kind: 'directory'; readonly path: string; readonly attributes: Attributes }
  | { readonly kind: 'link'; readonly path: string; readonly target: string }
  | { readonly kind: 'whiteout' | 'opaque'; readonly path: string }
  /** A file under AUFS's `.wh..wh.plnk/`: not visible, only there to be linked to. */
  | { readonly kind: 'hidden'; readonly path: string; readonly node: Leaf };

export interface Settled extends LayerTree {
  /** Names in the tree, whiteouts among them, the root not. */
  readonly entryCount: number;
  /** No question to the layers below could have changed the tree. */
  readonly independent: boolean;
}

export interface SettleOptions {
  /** What the layers below show; undefined for a base layer. */
  readonly lower: MergedDirectory | undefined;
  /** Makes a copy, in this layer's image, of a file of a lower one. */
  readonly copyFile: (file: FileNode, layer: number) => FileNode;
  /** Names the tree may have, implied directories counted. */
  readonly maxEntries: number;
}

const PATH_MAX_BYTES = 4096;
const NAME_MAX_BYTES = 255;
/** As the kernel's. */
const SYMLINK_HOPS_MAX = 40;
const WHITEOUT_PREFIX = '.wh.';
const AUFS_PREFIX = '.wh..wh.';
const OPAQUE_NAME = '.wh..wh..opq';
const AUFS_LINKS = '.wh..wh.plnk';

/** What a directory is like that no entry and no lower layer describes. */
const DEFAULT_DIRECTORY: Attributes = {
  mode: 0o755,
  uid: 0,
  gid: 0,
  mtimeSeconds: 0,
  mtimeNanoseconds: 0,
  xattrs: undefined,
};

/**
 * The path of an entry or of a hard link's target: relative, without `.`, `..` and doubled slashes, '' for the root.
 * A leading slash is dropped. @throws AppError 'invalid' when `..` leads out of the root, or a name is impossible
 */
export function entryPath(path: string): string {
  if (path.length > PATH_MAX_BYTES) invalid(path.slice(0, 200), `it is longer than ${PATH_MAX_BYTES} bytes`);
  if (path.includes('\0')) invalid(path, 'it has a zero byte');
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') {
      if (parts.pop() === undefined) invalid(path, 'it leads out of the root');
      continue;
    }
    if (part.length > NAME_MAX_BYTES) invalid(path, `a name in it is longer than ${NAME_MAX_BYTES} bytes`);
    parts.push(part);
  }
  return parts.join('/');
}

/** What the name of an entry says beside naming it. `path` is what a whiteout hides or the directory that is opaque. */
export type EntryName = {
  readonly means: 'entry' | 'whiteout' | 'opaque' | 'hidden' | 'ignored';
  readonly path: string;
};

/** Reads whiteouts and AUFS's names out of a cleaned path. @throws AppError 'invalid' for whiteouts of '', '.' and '..' */
export function entryName(path: string): EntryName {
  if (!path.includes(WHITEOUT_PREFIX)) return { means: 'entry', path };
  const slash = path.lastIndexOf('/');
  const parent = slash === -1 ? '' : path.slice(0, slash);
  const name = path.slice(slash + 1);
  if (path.startsWith(`${AUFS_LINKS}/`) && !name.startsWith(WHITEOUT_PREFIX)) return { means: 'hidden', path };
  if (path.split('/').some((part) => part.startsWith(AUFS_PREFIX) && part !== OPAQUE_NAME))
    return { means: 'ignored', path };
  if (parent.split('/').some((part) => part.startsWith(WHITEOUT_PREFIX)))
    invalid(path, 'a whiteout is used as a directory');
  if (name === OPAQUE_NAME) return { means: 'opaque', path: parent };
  if (!name.startsWith(WHITEOUT_PREFIX)) return { means: 'entry', path };
  const hidden = name.slice(WHITEOUT_PREFIX.length);
  if (hidden === '' || hidden === '.' || hidden === '..') invalid(path, 'it is a whiteout of nothing that can exist');
  return { means: 'whiteout', path: parent === '' ? hidden : `${parent}/${hidden}` };
}

const KEEP = { keep: true, value: undefined } as const;
const DROP = { keep: false, value: undefined } as const;

/** A directory of the tree while it grows. */
interface Growing extends DirectoryNode {
  mode: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  xattrs: Attributes['xattrs'];
  opaque: boolean;
  readonly children: Map<string, LayerNode>;
}

/** Where a growing directory stands. Kept beside the node, so that the finished tree holds nothing of it. */
interface Place {
  readonly node: Growing;
  readonly parent: Place | undefined;
  readonly name: string;
  /** Without symlinks, from the root. */
  readonly path: string;
  /** The directory of the layers below that this one merges with; null = not asked yet. */
  lower: MergedDirectory | undefined | null;
}

/**
 * Applies changes, in order, above `lower`.
 * @throws AppError 'invalid' (a path through a file, a symlink loop, a hard link to nothing or to a directory), 'too-large'
 */
export function settle(changes: readonly Change[], options: SettleOptions): Settled {
  let entryCount = 0;
  let independent = true;
  let rootIsImplied = true;
  const places = new Map<DirectoryNode, Place>();
  const hiddenFiles = new Map<string, Leaf>();
  const copies = new Map<FileNode, FileNode>();
  const root = place(growing(DEFAULT_DIRECTORY), undefined, '');
  // Known first, because a whiteout counts even for entries that precede it in the tar.
  const masked = new Set<string>();
  const opaque = new Set<string>();
  for (const change of changes) {
    if (change.kind === 'whiteout') masked.add(change.path);
    if (change.kind === 'opaque') opaque.add(change.path);
  }

  // Entries come grouped by directory, so the last parent is nearly always the next one's, too.
  let lastParentPath = '';
  let lastParent: Place | undefined = root;
  for (const change of changes) apply(change);
  for (const change of changes) if (change.kind === 'opaque') applyOpaque(change.path);
  for (const change of changes) if (change.kind === 'whiteout') applyWhiteout(change.path);
  return { root: root.node, rootIsImplied, entryCount, independent };

  function apply(change: Change): void {
    switch (change.kind) {
      case 'node':
        put(change.path, change.node);
        break;
      case 'link':
        put(change.path, linkTarget(change));
        break;
      case 'hidden':
        hiddenFiles.set(change.path, change.node);
        break;
      case 'directory':
        putDirectory(change.path, change.attributes);
        break;
      case 'whiteout':
      case 'opaque':
        break;
      default:
        change satisfies never;
    }
  }

  function put(path: string, node: Leaf): void {
    if (path === '') invalid('/', 'only a directory can be the root');
    const [parentPath, name] = split(path);
    const parent = parentOf(parentPath);
    const old = parent.node.children.get(name);
    if (old === undefined) count(1);
    if (old?.kind === 'directory') count(-namesIn(old));
    // What was replaced may have been part of the way to the last parent.
    if (old !== undefined) lastParent = undefined;
    parent.node.children.set(name, node);
  }

  function putDirectory(path: string, attributes: Attributes): void {
    if (path === '') {
      rootIsImplied = false;
      Object.assign(root.node, attributes);
      return;
    }
    const [parentPath, name] = split(path);
    const parent = parentOf(parentPath);
    const old = parent.node.children.get(name);
    if (old?.kind === 'directory') {
      Object.assign(placeOf(old).node, attributes);
      return;
    }
    const node = growing(attributes);
    // What stood here before, in this very layer, had replaced the lower directory: it does not shine through again.
    node.opaque = old !== undefined;
    if (old === undefined) count(1);
    add(parent, name, node);
  }

  function linkTarget(change: { readonly path: string; readonly target: string }): Leaf {
    const hidden = hiddenFiles.get(change.target);
    if (hidden !== undefined) return hidden;
    const [parentPath, name] = split(change.target);
    const found =
      change.target === ''
        ? root.node
        : tentatively(parentPath, (parent) => {
            const own = parent?.node.children.get(name);
            if (parent === undefined || own !== undefined) return { keep: false, value: own };
            const copy = lowerLeaf(lowerChild(parent, name));
            if (copy === undefined || copy.kind === 'directory') return { keep: false, value: copy };
            // As overlayfs does when a lower file is linked to: the file itself comes up, and both names share it.
            count(1);
            parent.node.children.set(name, copy);
            return { keep: true, value: copy };
          });
    const refuse = (why: string) => invalid(change.path, `it is a hard link to ${quoted(change.target)}, ${why}`);
    if (found === undefined) return refuse('which does not exist');
    if (found.kind === 'directory') return refuse('which is a directory');
    return found;
  }

  /** What a hard link to something of a lower layer names: names that are links of one file there share one copy. */
  function lowerLeaf(below: MergedNode | undefined): LayerNode | undefined {
    if (below === undefined || below.node.kind !== 'file') return below?.node;
    const copy = copies.get(below.node) ?? options.copyFile(below.node, below.layer);
    copies.set(below.node, copy);
    return copy;
  }

  function applyOpaque(path: string): void {
    tentatively(path, (directory) => {
      if (directory === undefined) return DROP;
      if (directory !== root) {
        directory.node.opaque = true;
        return KEEP;
      }
      // overlayfs merges the roots of all layers whatever their xattrs say: hide the names one by one.
      for (const name of lowerOf(root)?.names() ?? []) hide(root, name);
      for (const child of root.node.children.values())
        if (child.kind === 'directory') placeOf(child).node.opaque = true;
      return KEEP;
    });
  }

  function applyWhiteout(path: string): void {
    const [parentPath, name] = split(path);
    tentatively(parentPath, (parent) => {
      if (parent === undefined || parent.node.opaque) return DROP;
      const own = parent.node.children.get(name);
      if (own?.kind === 'directory') placeOf(own).node.opaque = true;
      if (own !== undefined) return KEEP;
      // A whiteout of nothing would show up in the listing of a directory that no lower layer has.
      if (opaque.has(parent.path) || lowerOf(parent)?.get(name) === undefined) return DROP;
      hide(parent, name);
      return KEEP;
    });
  }

  function hide(parent: Place, name: string): void {
    if (parent.node.children.has(name)) return;
    count(1);
    parent.node.children.set(name, WHITEOUT);
  }

  /** The directory that holds an entry, implied ones made on the way. */
  function parentOf(path: string): Place {
    if (lastParent !== undefined && lastParentPath === path) return lastParent;
    const found = enter(path, 'create') ?? invalid(path, 'it cannot be made');
    lastParentPath = path;
    lastParent = found;
    return found;
  }

  /** Runs work in a directory that may exist only below; what had to be made to get there goes unless it is kept. */
  function tentatively<R>(
    path: string,
    work: (directory: Place | undefined) => { readonly keep: boolean; readonly value: R },
  ): R {
    const before = entryCount;
    let undo: (() => void) | undefined;
    const directory = enter(path, 'existing', (parent, name) => {
      undo ??= () => {
        parent.node.children.delete(name);
        entryCount = before;
      };
    });
    const { keep, value } = work(directory);
    if (!keep) undo?.();
    return value;
  }

  /** Walks from the root, following the symlinks of this layer and of the layers below. */
  function enter(path: string, mode: 'create' | 'existing', onMade?: (parent: Place, name: string) => void) {
    const ahead = path.split('/').reverse();
    let at = root;
    let hops = 0;
    const follow = (link: SymlinkNode) => {
      hops += 1;
      if (hops > SYMLINK_HOPS_MAX) invalid(path, 'it leads through a loop of symlinks');
      if (link.target.startsWith('/')) at = root;
      ahead.push(...link.target.split('/').reverse());
    };
    for (let name = ahead.pop(); name !== undefined; name = ahead.pop()) {
      if (name === '' || name === '.') continue;
      if (name === '..') {
        at = at.parent ?? root;
        continue;
      }
      const own = at.node.children.get(name);
      if (own !== undefined) {
        if (own.kind === 'directory') at = placeOf(own);
        else if (own.kind === 'symlink') follow(own);
        else if (mode === 'existing') return undefined;
        else invalid(path, `${quoted(name)} in it is not a directory`);
        continue;
      }
      const below = lowerChild(at, name);
      if (below?.node.kind === 'symlink') {
        follow(below.node);
        continue;
      }
      if (mode === 'existing' && below?.directory === undefined) return undefined;
      if (below !== undefined && below.directory === undefined)
        invalid(path, `${quoted(name)} in it is not a directory in a lower layer`);
      if (name.length > NAME_MAX_BYTES) invalid(path, 'it leads through a symlink with an impossible target');
      count(1);
      onMade?.(at, name);
      at = add(at, name, growing(below?.directory?.node ?? DEFAULT_DIRECTORY));
    }
    return at;
  }

  function add(parent: Place, name: string, node: Growing): Place {
    parent.node.children.set(name, node);
    const made = place(node, parent, name);
    // Symlinks can lead deeper than any one path; nobody could name what lies there.
    if (made.path.length > PATH_MAX_BYTES)
      invalid(made.path.slice(0, 200), `it is longer than ${PATH_MAX_BYTES} bytes`);
    return made;
  }

  function place(node: Growing, parent: Place | undefined, name: string): Place {
    const path = parent === undefined || parent.path === '' ? name : `${parent.path}/${name}`;
    const made: Place = { node, parent, name, path, lower: null };
    places.set(node, made);
    return made;
  }

  function placeOf(node: DirectoryNode): Place {
    const found = places.get(node);
    if (found === undefined) throw new AppError('conflict', 'cannot settle a layer: a directory is not of this layer');
    return found;
  }

  /** What shows of the lower layers under a name that this layer does not have. */
  function lowerChild(parent: Place, name: string): MergedNode | undefined {
    if (parent.node.opaque) return undefined;
    const path = parent.path === '' ? name : `${parent.path}/${name}`;
    if (opaque.has(parent.path) || masked.has(path)) return undefined;
    return lowerOf(parent)?.get(name);
  }

  function lowerOf(directory: Place): MergedDirectory | undefined {
    independent = false;
    if (directory.lower !== null) return directory.lower;
    const { parent } = directory;
    if (parent === undefined) directory.lower = options.lower;
    else directory.lower = directory.node.opaque ? undefined : lowerChild(parent, directory.name)?.directory;
    return directory.lower;
  }

  function count(more: number): void {
    entryCount += more;
    if (entryCount > options.maxEntries)
      throw new AppError('too-large', `cannot unpack the layer: it has more than ${options.maxEntries} entries`);
  }

  function namesIn(directory: DirectoryNode): number {
    let names = 0;
    const pending: LayerNode[] = [directory];
    for (let node = pending.pop(); node !== undefined; node = pending.pop()) {
      if (node.kind !== 'directory') continue;
      names += node.children.size;
      pending.push(...node.children.values());
    }
    return names;
  }
}

function growing({ mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs }: Attributes): Growing {
  return {
    kind: 'directory',
    mode,
    uid,
    gid,
    mtimeSeconds,
    mtimeNanoseconds,
    xattrs,
    opaque: false,
    children: new Map(),
  };
}

function split(path: string): readonly [string, string] {
  const slash = path.lastIndexOf('/');
  return slash === -1 ? ['', path] : [path.slice(0, slash), path.slice(slash + 1)];
}

function quoted(path: string): string {
  return JSON.stringify(nameToUtf8(path));
}

function invalid(path: string, why: string): never {
  throw new AppError('invalid', `cannot unpack layer entry ${quoted(path)}: ${why}`);
}
