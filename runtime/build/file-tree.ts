/**
 * FileTree: the files of a chain (a context, a stage, an image), as its layers show them together, read without mounting
 * anything. Links lead through the tree itself and `..` stops at its root, so no path leads out of it.
 */
import type { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import { collect } from '../../shared/streams.ts';
import { type ImageFiles, openImageFiles } from '../layers/image-files.ts';
import type { Chain, Layer, LayerStore } from '../layers/layer-store.ts';
import { type FileNode, type MergedDirectory, type MergedNode, mergeTrees, nameFromUtf8 } from '../layers/tree.ts';

export interface FileTree {
  /** Base first; MergedNode.layer is an index of it. */
  readonly layers: readonly Layer[];
  /** undefined = a tree without any layer: nothing is in it. */
  readonly root: MergedDirectory | undefined;
  /** The caller owns the stream. */
  open(file: { readonly path: string; readonly node: FileNode; readonly layer: number }): Promise<Readable>;
  /** For many files. Each layer's image is opened when the first file of it is read. */
  reader(): TreeReader;
}

export interface TreeReader extends AsyncDisposable {
  /** See ImageFiles. */
  known(file: { readonly node: FileNode; readonly layer: number }): readonly Buffer[] | undefined;
  /** The pieces stay valid. One call at a time. */
  read(file: { readonly node: FileNode; readonly layer: number }): AsyncGenerator<Buffer, void, undefined>;
}

const LINKS_MAX = 255;

/** @throws AppError 'not-found' when a layer has gone */
export async function openFileTree(
  store: Pick<LayerStore, 'get' | 'tree' | 'openFile' | 'pathOf'>,
  chain: Chain,
): Promise<FileTree> {
  const layers = await Promise.all(
    chain.map(async (id) => {
      const layer = await store.get(id);
      if (layer === undefined) throw new AppError('not-found', `cannot find layer ${id}`);
      return layer;
    }),
  );
  const trees = await Promise.all(chain.map((id) => store.tree(id)));
  return {
    layers,
    root: mergeTrees(trees),
    async open({ path, node, layer }) {
      const from = layers[layer];
      if (from === undefined) throw new RangeError('a file is of no layer of its tree');
      return await store.openFile(from, { path, node });
    },
    reader: () => createReader(layers.map((layer) => store.pathOf(layer))),
  };
}

function createReader(paths: readonly string[]): TreeReader {
  const images = new Map<number, ImageFiles>();
  return {
    known: ({ node, layer }) => images.get(layer)?.known(node),
    async *read({ node, layer }) {
      const path = paths[layer];
      if (path === undefined) throw new RangeError('a file is of no layer of its tree');
      const image = images.get(layer) ?? (await openImageFiles(path));
      images.set(layer, image);
      yield* image.read(node);
    },
    async [Symbol.asyncDispose]() {
      for (const image of images.values()) await image[Symbol.asyncDispose]();
      images.clear();
    },
  };
}

/** Where a path leads. */
export interface Place {
  /** Without links, from the root, latin1 as in trees; '' is the root. */
  readonly path: string;
  /** undefined = nothing is there. */
  readonly found: MergedNode | undefined;
}

export interface LookUpOptions {
  /** Whether a link at the very end is followed; default true. */
  readonly followLast?: boolean;
}

/**
 * Follows a path, UTF-8, through the tree. What does not exist is entered all the same, by its name: the place is where it
 * would be made.
 * @throws AppError 'invalid' for a loop of links
 */
export function lookUp(tree: FileTree, path: string, { followLast = true }: LookUpOptions = {}): Place {
  const ahead = nameFromUtf8(path).split('/').reverse();
  const trail: { readonly name: string; readonly found: MergedNode | undefined }[] = [];
  let links = 0;
  for (let name = ahead.pop(); name !== undefined; name = ahead.pop()) {
    if (name === '' || name === '.') continue;
    if (name === '..') {
      trail.pop();
      continue;
    }
    const here = trail.length === 0 ? tree.root : trail.at(-1)?.found?.directory;
    const found = here?.get(name);
    const isLast = ahead.every((rest) => rest === '' || rest === '.');
    if (found?.node.kind !== 'symlink' || (isLast && !followLast)) {
      trail.push({ name, found });
      continue;
    }
    links += 1;
    if (links > LINKS_MAX)
      throw new AppError('invalid', `cannot follow ${JSON.stringify(path)}: too many levels of symbolic links`);
    if (found.node.target.startsWith('/')) trail.length = 0;
    ahead.push(...found.node.target.split('/').reverse());
  }
  const at = trail.map(({ name }) => name).join('/');
  return { path: at, found: trail.length === 0 ? rootOf(tree) : trail.at(-1)?.found };
}

function rootOf({ root, layers }: FileTree): MergedNode | undefined {
  return root && { node: root.node, layer: layers.length - 1, directory: root };
}

/** The text of a file; undefined = there is no file at the path. @throws AppError 'too-large' */
export async function readText(tree: FileTree, path: string, maxBytes: number): Promise<string | undefined> {
  const { path: at, found } = lookUp(tree, path);
  if (found?.node.kind !== 'file') return undefined;
  const { node, layer } = found;
  if (node.sizeBytes > maxBytes)
    throw new AppError('too-large', `cannot read ${JSON.stringify(path)}: it is larger than ${maxBytes} bytes`);
  return (await collect(await tree.open({ path: at, node, layer }), maxBytes, { what: path })).toString('utf8');
}

export interface TreeFile {
  /** Relative to the directory; '' is the directory itself. */
  readonly path: string;
  readonly merged: MergedNode;
}

/** Everything below a directory: each directory before what it holds, names in byte order. `enter` may keep it out of one. */
export function* walkDirectory(
  directory: MergedDirectory,
  { enter = () => true }: { readonly enter?: (file: TreeFile) => boolean } = {},
): Generator<TreeFile, void, undefined> {
  const pending: TreeFile[] = [];
  const open = (path: string, at: MergedDirectory) => {
    const names = [...at.names()].sort((a, b) => (a < b ? 1 : -1));
    for (const name of names) {
      const merged = at.get(name);
      if (merged !== undefined) pending.push({ path: path === '' ? name : `${path}/${name}`, merged });
    }
  };
  open('', directory);
  for (let file = pending.pop(); file !== undefined; file = pending.pop()) {
    yield file;
    if (file.merged.directory !== undefined && enter(file)) open(file.path, file.merged.directory);
  }
}
