/**
 * A directory of an image, as its layers show it together, without mounting anything and without asking the host's
 * filesystem for any name: links in the path lead through the image's own tree (CVE-2022-23648).
 */
import { setImmediate } from 'node:timers/promises';
import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import { tarEntryOf } from './directory.ts';
import type { Chain, Layer, LayerStore } from './layer-store.ts';
import { type LayerNode, type MergedDirectory, type MergedNode, mergeTrees, nameFromUtf8 } from './tree.ts';

export type Subtree =
  | { readonly kind: 'absent' }
  /** Something else than a directory. */
  | { readonly kind: 'file' }
  | {
      readonly kind: 'directory';
      /** Its entries below `.`; devices and sockets are left out: a volume is reached by more than this image. */
      archive(): AsyncGenerator<Buffer, void, undefined>;
    };

const LINKS_MAX = 40;

/** `path` is absolute, UTF-8. */
export async function openSubtree(store: LayerStore, chain: Chain, path: string): Promise<Subtree> {
  const layers = await Promise.all(chain.map((id) => store.get(id)));
  const root = mergeTrees(await Promise.all(chain.map((id) => store.tree(id))));
  const found = root === undefined ? undefined : find(root, nameFromUtf8(path));
  if (found === undefined) return { kind: 'absent' };
  if (found.directory === undefined) return { kind: 'file' };
  const { directory, names } = { directory: found.directory, names: found.names };
  return { kind: 'directory', archive: () => archiveOf(directory, { store, layers, prefix: names.join('/') }) };
}

interface Found {
  readonly directory: MergedDirectory | undefined;
  /** Where it really is, after links. */
  readonly names: readonly string[];
}

/** Follows links inside the tree; `..` stops at its root. */
function find(root: MergedDirectory, path: string): Found | undefined {
  let trail: { readonly name: string; readonly directory: MergedDirectory | undefined }[] = [];
  const pending = path.split('/');
  let links = 0;
  for (let name = pending.shift(); name !== undefined; name = pending.shift()) {
    if (name === '' || name === '.') continue;
    if (name === '..') {
      trail.pop();
      continue;
    }
    const here = trail.length === 0 ? root : trail.at(-1)?.directory;
    const child: MergedNode | undefined = here?.get(name);
    if (child === undefined) return undefined;
    if (child.node.kind !== 'symlink') {
      trail.push({ name, directory: child.directory });
      continue;
    }
    links += 1;
    if (links > LINKS_MAX) return undefined;
    if (child.node.target.startsWith('/')) trail = [];
    pending.unshift(...child.node.target.split('/'));
  }
  return {
    directory: trail.length === 0 ? root : trail.at(-1)?.directory,
    names: trail.map(({ name }) => name),
  };
}

interface ArchiveContext {
  readonly store: LayerStore;
  /** Base first; a node's layer is an index of it. */
  readonly layers: readonly (Layer | undefined)[];
  /** Path of the directory in its layers. */
  readonly prefix: string;
}

async function* archiveOf(top: MergedDirectory, context: ArchiveContext): AsyncGenerator<Buffer, void, undefined> {
  const paths = new Map<LayerNode, string>();
  const pending: { readonly path: string; readonly merged: MergedNode }[] = [];
  const open = (path: string, directory: MergedDirectory) => {
    for (const name of directory.names()) {
      const merged = directory.get(name);
      if (merged !== undefined) pending.push({ path: path === '' ? name : `${path}/${name}`, merged });
    }
  };
  yield headerOf('.', top.node, undefined);
  open('', top);
  for (let next = pending.pop(); next !== undefined; next = pending.pop()) {
    const { path, merged } = next;
    const { node, directory, layer } = merged;
    if (node.kind === 'character' || node.kind === 'block' || node.kind === 'socket') continue;
    const first = directory === undefined ? paths.get(node) : undefined;
    yield headerOf(path, node, first);
    if (directory !== undefined) open(path, directory);
    if (first !== undefined) continue;
    paths.set(node, path);
    if (node.kind !== 'file') continue;
    const from = context.layers[layer];
    if (from === undefined) throw new Error(`layer ${layer} of an image that is in use is gone`);
    const whole = context.prefix === '' ? path : `${context.prefix}/${path}`;
    for await (const chunk of await context.store.openFile(from, { path: whole, node })) yield chunk;
    yield tarPadding(node.sizeBytes);
    await setImmediate();
  }
  yield TAR_END;
}

function headerOf(path: string, node: LayerNode, first: string | undefined): Buffer {
  // An opaque directory is a word between layers; outside of them it is a directory.
  const entry = tarEntryOf(path, node.kind === 'directory' ? { ...node, opaque: false } : node, first);
  return entry === undefined ? Buffer.alloc(0) : tarHeader(entry);
}
