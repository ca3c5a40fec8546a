/**
 * The layer of a COPY or ADD, as a tar: where each file goes, seen from the tree below, and what it is like there. The
 * rules are BuildKit's: what exists keeps its attributes unless it is copied over, directories that are missing are made,
 * a file does not replace a directory and the other way round.
 *
 * Every name of the tar lies below the destination with all links of the tree below resolved (CVE-2020-10696), or is a
 * directory on the way there. The same input gives the same bytes: names are in byte order, times are whole seconds.
 */
import { setImmediate } from 'node:timers/promises';
import { AppError } from '../../shared/errors.ts';
import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import type { TarEntry } from '../layers/tar.ts';
import {
  type Attributes,
  type FileNode,
  type LayerNode,
  type MergedDirectory,
  type MergedNode,
  nameFromUtf8,
  nameToUtf8,
} from '../layers/tree.ts';
import { type FileTree, lookUp, type TreeReader } from './file-tree.ts';
import { parseModeChange, resolveOwner } from './ownership.ts';
import type { SelectedEntry, Selection } from './selection.ts';

/** What the instruction itself holds: a heredoc. */
export interface InlineFile {
  readonly name: string;
  readonly content: Uint8Array;
}

export type CopySource =
  | { readonly kind: 'selection'; readonly selection: Selection }
  | { readonly kind: 'inline'; readonly file: InlineFile };

export interface CopyRequest {
  /** `COPY` or `ADD`, for messages. */
  readonly instruction: string;
  readonly sources: readonly CopySource[];
  /** As written, variables expanded. */
  readonly destination: string;
  /** Absolute. */
  readonly workingDirectory: string;
  /** What is below the layer; undefined = not looked at, for `--link` and an empty stage. */
  readonly below: FileTree | undefined;
  readonly chown?: string | undefined;
  readonly chmod?: string | undefined;
  /** Time of directories that are made on the way, and of inline files. */
  readonly createdAt: Date;
  /** Seconds since 1970: what every time becomes. */
  readonly sourceDateEpoch?: number | undefined;
}

/** Names planned between two pauses: some 5 ms. */
const NAMES_AT_ONCE = 2000;
/** Pieces are gathered to this: between two of them others get their turn. */
const CHUNK_BYTES = 1 << 19;
const WHITEOUT_PREFIX = '.wh.';

interface Planned {
  readonly kind: TarEntry['type'];
  readonly attributes: Attributes;
  readonly target: string;
  readonly device: { readonly major: number; readonly minor: number };
  readonly content: Content | undefined;
}

type Content =
  /** `item` sets apart what is a hard link to what: names of one source only. */
  | { readonly node: FileNode; readonly layer: number; readonly tree: FileTree; readonly item: object }
  | { readonly bytes: Uint8Array };

/**
 * Checks first, then streams. The caller reads the stream to its end or returns it.
 * @throws AppError 'invalid' in Docker's words, 'unsupported' for names that a layer cannot hold; later what reading layers throws
 */
export async function copyLayer(request: CopyRequest): Promise<AsyncGenerator<Buffer, void, undefined>> {
  const plan = await planCopy(request);
  return archive(plan);
}

async function planCopy(request: CopyRequest): Promise<ReadonlyMap<string, Planned>> {
  const { below, instruction } = request;
  const owner = request.chown === undefined ? undefined : await resolveOwner(request.chown, below);
  const changeMode = request.chmod === undefined ? undefined : parseModeChange(request.chmod);
  const { sourceDateEpoch: epoch } = request;
  const plan = new Map<string, Planned>();
  const lower = createLower(below);
  /** What is below there counts no more. */
  const replaced = new Set<string>();
  const destination = resolveDestination(request);
  const count = request.sources.reduce(
    (sum, source) => sum + (source.kind === 'inline' ? 1 : source.selection.items.length),
    0,
  );
  if (count > 1 && !destination.isDirectory)
    throw new AppError(
      'invalid',
      `When using ${instruction} with more than one source file, the destination must be a directory and end with a /`,
    );

  const made: Attributes = {
    mode: 0o755,
    uid: owner?.uid ?? 0,
    gid: owner?.gid ?? 0,
    mtimeSeconds: epoch ?? Math.floor(request.createdAt.getTime() / 1000),
    mtimeNanoseconds: 0,
    xattrs: undefined,
  };
  const kindAt = (path: string): LayerNode['kind'] | undefined => {
    const planned = plan.get(path)?.kind;
    if (planned === undefined && replaced.has(path)) return undefined;
    if (planned === undefined) return path === '' ? 'directory' : lower(path)?.node.kind;
    return planned === 'link' ? 'file' : planned;
  };
  const plannedDirectory = (attributes: Attributes): Planned => ({
    kind: 'directory',
    attributes,
    target: '',
    device: NO_DEVICE,
    content: undefined,
  });
  /** The directory, and those above it: made where nothing is. */
  const ensure = (path: string): void => {
    const kind = kindAt(path);
    if (kind === 'directory') return;
    if (kind !== undefined) throw new AppError('invalid', `cannot copy to non-directory: /${nameToUtf8(path)}`);
    ensure(parentOf(path));
    plan.set(path, plannedDirectory(made));
  };
  const attributesOf = (
    node: Attributes,
    about: { owners: Selection['owners']; kind: TarEntry['type'] },
  ): Attributes => {
    const isDirectory = about.kind === 'directory';
    const mode =
      changeMode === undefined || about.kind === 'symlink' ? node.mode : changeMode(node.mode, { isDirectory });
    const kept = about.owners === 'kept' ? node : { uid: 0, gid: 0 };
    const { uid, gid } = owner ?? kept;
    return { mode, uid, gid, mtimeSeconds: epoch ?? node.mtimeSeconds, mtimeNanoseconds: 0, xattrs: node.xattrs };
  };
  const put = (path: string, planned: Planned): void => {
    const there = kindAt(path);
    if (planned.kind === 'directory') {
      if (there !== undefined && there !== 'directory')
        throw new AppError('invalid', `cannot copy to non-directory: /${nameToUtf8(path)}`);
    } else if (there === 'directory')
      throw new AppError('invalid', `cannot replace to directory /${nameToUtf8(path)} with file`);
    checkName(path);
    ensure(parentOf(path));
    plan.set(path, planned);
  };
  /** A path without links of the tree below, but for those that this layer replaces. */
  const follow = (path: string): string => {
    let at = '';
    for (const name of path.split('/')) {
      const next = inside(at, name);
      const isLink = below !== undefined && !plan.has(next) && lower(next)?.node.kind === 'symlink';
      at = isLink ? lookUp(below, nameToUtf8(next)).path : next;
    }
    return at;
  };
  /** Where something out of an archive goes. It takes the place of what is of another kind, as when tar unpacks it. */
  const unpackedAt = (path: string, { directory }: MergedNode): string => {
    const parent = follow(parentOf(path));
    const at = inside(parent, nameOf(path));
    const there = kindAt(at);
    if (there === undefined || (there === 'directory') === (directory !== undefined)) return at;
    for (const planned of plan.keys()) if (planned === at || planned.startsWith(`${at}/`)) plan.delete(planned);
    replaced.add(at);
    return at;
  };
  const targetOf = (name: string): string => {
    const { path, isDirectory } = destination;
    return isDirectory || kindAt(path) === 'directory' ? inside(path, name) : path;
  };

  for (const source of request.sources) {
    if (source.kind === 'inline') {
      const { name, content } = source.file;
      const attributes = attributesOf({ ...made, mode: 0o644 }, { owners: 'root', kind: 'file' });
      put(targetOf(nameFromUtf8(name)), {
        kind: 'file',
        attributes,
        target: '',
        device: NO_DEVICE,
        content: { bytes: content },
      });
      continue;
    }
    const { tree, owners, items } = source.selection;
    for (const item of items) {
      const entries: readonly SelectedEntry[] =
        item.kind === 'contents' ? item.entries : [{ path: '', merged: item.merged }];
      if (item.kind === 'contents') ensure(destination.path);
      const base = item.kind === 'contents' ? destination.path : targetOf(item.name);
      let count = 0;
      for (const { path, merged, isImplied } of entries) {
        const { node, layer } = merged;
        count += 1;
        if (count % NAMES_AT_ONCE === 0) await setImmediate();
        if (node.kind === 'socket') continue;
        const at =
          item.kind === 'contents' && item.isUnpacked === true
            ? unpackedAt(inside(base, path), merged)
            : inside(base, path);
        if (isImplied === true) {
          ensure(follow(at));
          continue;
        }
        put(at, {
          kind: node.kind,
          attributes: attributesOf(node, { owners, kind: node.kind }),
          target: node.kind === 'symlink' ? node.target : '',
          device: node.kind === 'character' || node.kind === 'block' ? node : NO_DEVICE,
          content: node.kind === 'file' ? { node, layer, tree, item } : undefined,
        });
      }
    }
  }
  return plan;
}

const NO_DEVICE = { major: 0, minor: 0 } as const;

interface Destination {
  /** latin1, without links; '' is the root. */
  readonly path: string;
  readonly isDirectory: boolean;
}

function resolveDestination({ destination, workingDirectory, below }: CopyRequest): Destination {
  const isDirectory = /(?:^|\/)\.{0,2}$/.test(destination);
  const path = destination.startsWith('/') ? destination : `${workingDirectory}/${destination}`;
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') parts.pop();
    else parts.push(part);
  }
  const clean = parts.join('/');
  return { path: below === undefined ? nameFromUtf8(clean) : lookUp(below, clean).path, isDirectory };
}

/** What is below at a path without links; directories are remembered. */
function createLower(below: FileTree | undefined) {
  const directories = new Map<string, MergedDirectory | undefined>([['', below?.root]]);
  const directoryAt = (path: string): MergedDirectory | undefined => {
    if (directories.has(path)) return directories.get(path);
    const found = directoryAt(parentOf(path))?.get(nameOf(path))?.directory;
    directories.set(path, found);
    return found;
  };
  return (path: string) => directoryAt(parentOf(path))?.get(nameOf(path));
}

function checkName(path: string): void {
  if (path === '') throw new AppError('invalid', 'cannot replace to directory / with file');
  if (nameOf(path).startsWith(WHITEOUT_PREFIX))
    throw new AppError(
      'unsupported',
      `cannot copy to ${JSON.stringify(`/${nameToUtf8(path)}`)}: in a layer a name that begins with ${WHITEOUT_PREFIX} means that a file is deleted`,
    );
}

function parentOf(path: string): string {
  const slash = path.lastIndexOf('/');
  return slash === -1 ? '' : path.slice(0, slash);
}

function nameOf(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1);
}

function inside(directory: string, path: string): string {
  if (path === '') return directory;
  return directory === '' ? path : `${directory}/${path}`;
}

async function* archive(plan: ReadonlyMap<string, Planned>): AsyncGenerator<Buffer, void, undefined> {
  await using readers = new AsyncDisposableStack();
  const opened = new Map<FileTree, TreeReader>();
  const links = new Map<object, Map<FileNode, string>>();
  let pieces: Buffer[] = [];
  let gathered = 0;
  const add = (piece: Buffer) => {
    pieces.push(piece);
    gathered += piece.length;
  };
  const take = () => {
    const chunk = Buffer.concat(pieces, gathered);
    pieces = [];
    gathered = 0;
    return chunk;
  };
  const firstOf = (content: Content | undefined, path: string): string | undefined => {
    if (content === undefined || 'bytes' in content) return undefined;
    const known = links.get(content.item) ?? new Map<FileNode, string>();
    links.set(content.item, known);
    const first = known.get(content.node);
    if (first === undefined) known.set(content.node, path);
    return first;
  };
  for (const path of [...plan.keys()].sort((a, b) => (a < b ? -1 : 1))) {
    const planned = plan.get(path);
    if (planned === undefined) continue;
    const { content } = planned;
    const first = firstOf(content, path);
    const sizeBytes = content === undefined || first !== undefined ? 0 : sizeOf(content);
    add(
      tarHeader({
        ...planned.attributes,
        ...planned.device,
        type: first === undefined ? planned.kind : 'link',
        path,
        linkPath: first ?? planned.target,
        sizeBytes,
        xattrs: portableXattrs(planned.attributes),
      }),
    );
    if (sizeBytes > 0 && content !== undefined) {
      if ('bytes' in content) add(Buffer.from(content.bytes));
      else {
        const reader = opened.get(content.tree) ?? readers.use(content.tree.reader());
        opened.set(content.tree, reader);
        // Without a promise where none is needed: there may be many small files.
        const known = reader.known(content);
        for (const piece of known ?? []) add(piece);
        if (known === undefined)
          for await (const piece of reader.read(content)) {
            add(piece);
            if (gathered >= CHUNK_BYTES) yield take();
          }
      }
      add(tarPadding(sizeBytes));
    }
    if (gathered >= CHUNK_BYTES) yield take();
  }
  add(TAR_END);
  yield take();
}

function sizeOf(content: Content): number {
  return 'bytes' in content ? content.bytes.length : content.node.sizeBytes;
}

/** Labels are the host's. */
function portableXattrs({ xattrs }: Attributes): TarEntry['xattrs'] {
  if (xattrs === undefined) return undefined;
  return new Map(
    [...xattrs].filter(([name]) => name !== 'security.selinux').map(([name, value]) => [name, Buffer.from(value)]),
  );
}
