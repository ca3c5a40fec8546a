/**
 * What a kept context has, name by name, to compare a client's list with: a file is the same when kind, mode, size,
 * modification time and link target are. Pure but for pauses.
 */
import { setImmediate } from 'node:timers/promises';
import { AppError } from '../../shared/errors.ts';
import { type MergedNode, nameFromUtf8 } from '../layers/tree.ts';
import type { ContextEntry } from './context.ts';
import { type FileTree, walkDirectory } from './file-tree.ts';

/** By path, latin1. */
export type ContextIndex = ReadonlyMap<string, MergedNode['node']>;

const NAMES_AT_ONCE = 2000;
/** Most names; they need no conversion. */
const ASCII = /^[ -~]*$/;

export async function indexOf({ root }: FileTree): Promise<ContextIndex> {
  const index = new Map<string, MergedNode['node']>();
  if (root === undefined) return index;
  for (const { path, merged } of walkDirectory(root)) {
    index.set(path, merged.node);
    if (index.size % NAMES_AT_ONCE === 0) await setImmediate();
  }
  return index;
}

export interface Comparison {
  /** In the order given, as given. */
  readonly missing: readonly string[];
  /** Bytes of the missing files, as the client says. */
  readonly missingBytes: number;
  /** Every path of the list. */
  readonly paths: readonly string[];
  /** latin1; the topmost names that are there and that the list has not, and what becomes a directory. */
  readonly gone: readonly string[];
}

export interface CompareLimits {
  readonly entriesMax: number;
}

/** @throws AppError 'invalid' for a path that no context has, 'too-large' */
export async function compareWith(
  index: ContextIndex,
  entries: AsyncIterable<ContextEntry>,
  { entriesMax }: CompareLimits,
): Promise<Comparison> {
  const missing: string[] = [];
  const paths: string[] = [];
  const listed = new Set<string>();
  const replaced: string[] = [];
  /** Also what lies on the way to a name: whatever else was there is no part of the way. */
  const enter = (path: string) => {
    const kind = index.get(path)?.kind;
    if (kind !== undefined && kind !== 'directory') replaced.push(path);
  };
  let missingBytes = 0;
  for await (const entry of entries) {
    if (paths.length >= entriesMax)
      throw new AppError('too-large', `cannot use build context: it has more than ${entriesMax} entries`);
    const path = pathOf(entry.path);
    paths.push(entry.path);
    addParents(listed, path, enter);
    listed.add(path);
    if (entry.kind === 'directory') enter(path);
    const there = index.get(path);
    if (there !== undefined && isSame(there, entry)) continue;
    missing.push(entry.path);
    missingBytes += entry.sizeBytes;
  }
  const gone: string[] = [];
  for (const path of index.keys()) {
    if (listed.has(path)) continue;
    // Directories come before what they hold, so the last one that has gone is the only one to look at.
    const above = gone.at(-1);
    if (above === undefined || !path.startsWith(`${above}/`)) gone.push(path);
  }
  return { missing, missingBytes, paths, gone: [...gone, ...replaced] };
}

function pathOf(path: string): string {
  const isPlain = path !== '' && path.split('/').every((name) => name !== '' && name !== '.' && name !== '..');
  if (!isPlain || path.includes('\0'))
    throw new AppError('invalid', `cannot use build context: ${JSON.stringify(path)} is no path in it`);
  return ASCII.test(path) ? path : nameFromUtf8(path);
}

function addParents(listed: Set<string>, path: string, onAdded: (parent: string) => void): void {
  for (let slash = path.lastIndexOf('/'); slash > 0; slash = path.lastIndexOf('/', slash - 1)) {
    const parent = path.slice(0, slash);
    if (listed.has(parent)) return;
    listed.add(parent);
    onAdded(parent);
  }
}

function isSame(node: MergedNode['node'], entry: ContextEntry): boolean {
  if (node.kind !== entry.kind) return false;
  switch (node.kind) {
    case 'symlink':
      return node.target === nameFromUtf8(entry.target ?? '');
    // A directory's time changes with every name in it, and no step sees it.
    case 'directory':
      return node.mode === entry.mode;
    default:
      return (
        node.mode === entry.mode &&
        'sizeBytes' in node &&
        node.sizeBytes === entry.sizeBytes &&
        BigInt(node.mtimeSeconds) * 1_000_000_000n + BigInt(node.mtimeNanoseconds) === entry.mtimeNs
      );
  }
}
