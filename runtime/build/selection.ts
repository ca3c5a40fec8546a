/**
 * What the sources of a COPY or ADD select out of a tree, and the digest that a step's key has of it: paths, kinds, modes,
 * owners, link targets and contents, but no times.
 *
 * Sources are matched name by name as Go's filepath.Match does; links in them are followed inside the tree. A directory
 * gives what is in it, anything else itself.
 * https://docs.docker.com/reference/dockerfile/#copy
 */
import { createHash } from 'node:crypto';
import { setImmediate } from 'node:timers/promises';
import { type Digest, digestFromHex } from '../../shared/digest.ts';
import { createIgnore, type Ignore } from '../../shared/dockerignore.ts';
import { AppError } from '../../shared/errors.ts';
import type { FileNode, MergedDirectory, MergedNode } from '../layers/tree.ts';
import { nameFromUtf8, nameToUtf8 } from '../layers/tree.ts';
import type { FileDigests } from './file-digests.ts';
import { type FileTree, lookUp, type TreeFile, walkDirectory } from './file-tree.ts';

export interface SelectRequest {
  readonly tree: FileTree;
  /** As written, variables expanded. */
  readonly sources: readonly string[];
  /** `--exclude`. */
  readonly excludes?: readonly string[] | undefined;
  /** `--parents`. */
  readonly parents?: boolean | undefined;
  /** A context's files are root's; those of stages and images keep their owners. */
  readonly owners: 'root' | 'kept';
  /** What was left out of the context, for the message about a file that is not there. */
  readonly ignored?: Pick<Ignore, 'ignores'> | undefined;
}

/** In the order of the sources. */
export interface Selection {
  readonly tree: FileTree;
  readonly owners: 'root' | 'kept';
  readonly items: readonly SelectedItem[];
}

export interface SelectedEntry extends TreeFile {
  /** A directory that an archive only has names in: one that is there already stays as it is. */
  readonly isImplied?: boolean;
}

export type SelectedItem =
  /** What goes into the destination directory: each directory before what it holds. */
  | {
      readonly kind: 'contents';
      readonly entries: readonly SelectedEntry[];
      /** Comes out of an archive. */
      readonly isUnpacked?: boolean;
    }
  /** One thing that is no directory; `name` is latin1. */
  | { readonly kind: 'single'; readonly name: string; readonly path: string; readonly merged: MergedNode };

/** Names between two pauses. */
const NAMES_AT_ONCE = 2000;

/** @throws AppError 'not-found' in Docker's words for a source that is not there, 'invalid' for a pattern that is none */
export async function selectFiles(request: SelectRequest): Promise<Selection> {
  const { tree, owners } = request;
  const excludes = createIgnore(request.excludes ?? []);
  const items: SelectedItem[] = [];
  for (const source of request.sources) {
    if (request.parents === true) items.push(await withParents(request, source, excludes));
    else
      for (const path of await expand(request, source)) {
        const item = await itemAt(tree, path, excludes);
        if (item !== undefined) items.push(item);
      }
  }
  if (items.length === 0 && request.sources.length > 0)
    throw new AppError('not-found', 'no source files were specified');
  return { tree, owners, items };
}

/** A name for each step's key: what would be copied, whatever its times are. */
export async function digestSelection({ tree, items, owners }: Selection, digests: FileDigests): Promise<Digest> {
  const entries = items.flatMap((item, index) =>
    item.kind === 'contents'
      ? item.entries.map(({ path, merged }) => ({ index, path, merged }))
      : [{ index, path: item.name, merged: item.merged }],
  );
  const contents = await contentDigests(tree, digests, entries);
  const hash = createHash('sha256');
  for (const [index, item] of items.entries()) hash.update(`${index} ${item.kind}\n`);
  let count = 0;
  for (const { index, path, merged } of entries) {
    const { node } = merged;
    const owner = owners === 'kept' ? [node.uid, node.gid] : [];
    const xattrs = [...(node.xattrs ?? [])].map(([name, value]) => [name, Buffer.from(value).toString('hex')]).sort();
    const content = node.kind === 'file' ? contents.get(node) : undefined;
    const about = [index, path, node.kind, node.mode, owner, xattrs, special(node), content?.toString('hex')];
    hash.update(`${JSON.stringify(about)}\n`);
    count += 1;
    if (count % NAMES_AT_ONCE === 0) await setImmediate();
  }
  return digestFromHex('sha256', hash.digest('hex'));
}

function special(node: MergedNode['node']): string {
  if (node.kind === 'symlink') return node.target;
  return node.kind === 'character' || node.kind === 'block' ? `${node.major}:${node.minor}` : '';
}

async function contentDigests(
  { layers }: FileTree,
  digests: FileDigests,
  entries: readonly { readonly merged: MergedNode }[],
): Promise<ReadonlyMap<FileNode, Buffer>> {
  const byLayer = new Map<number, FileNode[]>();
  for (const { merged } of entries) {
    if (merged.node.kind !== 'file') continue;
    const files = byLayer.get(merged.layer);
    if (files === undefined) byLayer.set(merged.layer, [merged.node]);
    else files.push(merged.node);
  }
  const found = new Map<FileNode, Buffer>();
  for (const [index, files] of byLayer) {
    const layer = layers[index];
    if (layer === undefined) throw new RangeError('a file is of no layer of its tree');
    const all = await digests.of(layer, files);
    for (const [at, file] of files.entries()) found.set(file, Buffer.from(all[at] ?? []));
  }
  return found;
}

/** The paths that a source names, UTF-8, absolute; wildcards in byte order. A wildcard may name nothing. */
async function expand(request: SelectRequest, source: string): Promise<readonly string[]> {
  const parts = cleanParts(source);
  const first = parts.findIndex((part) => WILDCARD.test(part));
  if (first === -1) {
    const path = `/${parts.join('/')}`;
    if (parts.length > 0 && lookUp(request.tree, path).found === undefined) throw missing(request, path);
    return [path];
  }
  const before = parts.slice(0, first);
  const { path: real, found } = lookUp(request.tree, before.join('/'));
  if (found?.directory === undefined) return [];
  let heads: { readonly path: string; readonly directory: MergedDirectory | undefined }[] = [
    { path: nameToUtf8(real), directory: found.directory },
  ];
  for (const part of parts.slice(first)) {
    const pattern = createNamePattern(part);
    const wanted = nameFromUtf8(part.replaceAll(/\\(.)/g, '$1'));
    const next: typeof heads = [];
    for (const { path, directory } of heads) {
      const names = [...(directory?.names() ?? [])]
        .filter((name) => (pattern === undefined ? name === wanted : pattern(nameToUtf8(name))))
        .sort((a, b) => (a < b ? -1 : 1));
      for (const name of names)
        next.push({ path: `${path}/${nameToUtf8(name)}`, directory: directory?.get(name)?.directory });
      await setImmediate();
    }
    heads = next;
  }
  return heads.map(({ path }) => (path.startsWith('/') ? path : `/${path}`));
}

const WILDCARD = /[*?[\\]/;

/** Of one name; undefined = no wildcard is in it. */
function createNamePattern(part: string): ((name: string) => boolean) | undefined {
  if (!WILDCARD.test(part)) return undefined;
  const pattern = createIgnore([plainPattern(part)]);
  return (name) => pattern.ignores(name);
}

/** A `!` at the beginning is part of the name here. */
function plainPattern(text: string): string {
  return text.startsWith('!') ? `\\${text}` : text;
}

/** The names of a path, `.` and `..` taken away as in the root. */
function cleanParts(path: string): readonly string[] {
  const parts: string[] = [];
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') parts.pop();
    else parts.push(part);
  }
  return parts;
}

async function itemAt(tree: FileTree, path: string, excludes: Ignore): Promise<SelectedItem | undefined> {
  const { path: real, found } = lookUp(tree, path);
  if (found === undefined) {
    // A link that leads nowhere is itself what is copied.
    const link = lookUp(tree, path, { followLast: false }).found;
    if (link === undefined && cleanParts(path).length === 0) return { kind: 'contents', entries: [] };
    throw new AppError('not-found', notFound(path));
  }
  if (found.directory !== undefined) return { kind: 'contents', entries: await contentsOf(found.directory, excludes) };
  const name = nameFromUtf8(cleanParts(path).at(-1) ?? '');
  if (excludes.ignores(nameToUtf8(name)) || found.node.kind === 'socket') return undefined;
  return { kind: 'single', name, path: real, merged: found };
}

async function contentsOf(directory: MergedDirectory, excludes: Ignore): Promise<readonly TreeFile[]> {
  const entries: TreeFile[] = [];
  const isExcluded = ({ path }: TreeFile) => excludes.ignores(nameToUtf8(path));
  const enter = (file: TreeFile) => excludes.hasExceptions || !isExcluded(file);
  let count = 0;
  for (const file of walkDirectory(directory, { enter })) {
    count += 1;
    if (count % NAMES_AT_ONCE === 0) await setImmediate();
    if (file.merged.node.kind !== 'socket' && !isExcluded(file)) entries.push(file);
  }
  return entries;
}

/** `--parents`: what matches keeps the directories above it, from the root or from what is left of `/./`. */
async function withParents(request: SelectRequest, source: string, excludes: Ignore): Promise<SelectedItem> {
  const pivot = source.indexOf('/./');
  const base = pivot === -1 ? '/' : `/${cleanParts(source.slice(0, pivot)).join('/')}`;
  const parts = cleanParts(pivot === -1 ? source : source.slice(pivot + 3));
  const wanted = parts.join('/');
  const { found } = lookUp(request.tree, base);
  if (found?.directory === undefined) throw missing(request, base);
  const all = await contentsOf(found.directory, excludes);
  if (wanted === '') return { kind: 'contents', entries: all };
  const pattern = createIgnore([plainPattern(wanted)]);
  const matched = all.filter(({ path }) => pattern.ignores(nameToUtf8(path)));
  if (matched.length === 0 && !parts.some((part) => WILDCARD.test(part)))
    throw missing(request, `${base === '/' ? '' : base}/${wanted}`);
  const above = new Set<string>();
  for (const { path } of matched)
    for (let slash = path.lastIndexOf('/'); slash > 0; slash = path.lastIndexOf('/', slash - 1))
      above.add(path.slice(0, slash));
  const isMatched = new Set(matched);
  return { kind: 'contents', entries: all.filter((file) => isMatched.has(file) || above.has(file.path)) };
}

function notFound(path: string): string {
  return `failed to compute cache key: failed to calculate checksum of ref: ${JSON.stringify(path)}: not found`;
}

function missing({ ignored }: SelectRequest, path: string): AppError {
  const isIgnored = ignored?.ignores(path.slice(1)) === true;
  return new AppError('not-found', `${notFound(path)}${isIgnored ? ': it is excluded by .dockerignore' : ''}`);
}
