/**
 * Local tar archives that ADD unpacks: told by their content, never by their name, and made a layer of their own first.
 * So the limits of layers stop a bomb, and what an archive holds can lead nowhere but into its own tree.
 */
import { Readable } from 'node:stream';
import { isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { decompress } from '../images/decompress.ts';
import type { Lease } from '../images/images.ts';
import type { Chain, LayerId, LayerStore } from '../layers/layer-store.ts';
import { createTarParser, isTarHeader, TAR_BLOCK_BYTES } from '../layers/tar.ts';
import { type FileTree, openFileTree } from './file-tree.ts';
import { type SelectedEntry, type SelectedItem, type Selection, selectFiles } from './selection.ts';

export interface UnpackOptions extends Cancelable {
  readonly layers: LayerStore;
  /** Protects the layers of the archives. */
  readonly lease: Lease;
  /** Called with each of them, also when it is not used in the end. */
  readonly onUnpacked?: (layer: LayerId) => void;
}

/**
 * The selection with each archive replaced by what is in it, in the same order; owners in archives are kept. What lies in
 * a selected directory is copied as it is.
 * @throws AppError 'too-large' (bomb), 'invalid', 'unsupported' (a device), 'integrity' (cut off)
 */
export async function unpackArchives(selection: Selection, options: UnpackOptions): Promise<readonly Selection[]> {
  const found: Selection[] = [];
  for (const item of selection.items) {
    const unpacked = item.kind === 'single' ? await unpack(selection.tree, item, options) : undefined;
    if (unpacked === undefined) found.push({ ...selection, items: [item] });
    else found.push(await selectUnpacked(unpacked, options.layers));
  }
  return found;
}

async function selectUnpacked({ chain, directories }: Unpacked, layers: LayerStore): Promise<Selection> {
  const tree = await openFileTree(layers, chain);
  const selection = await selectFiles({ tree, sources: ['/'], owners: 'kept' });
  return { ...selection, items: selection.items.map((item) => asUnpacked(item, directories)) };
}

function asUnpacked(item: SelectedItem, directories: ReadonlySet<string>): SelectedItem {
  if (item.kind === 'single') return item;
  const isImplied = ({ path, merged }: SelectedEntry) => merged.directory !== undefined && !directories.has(path);
  return {
    ...item,
    isUnpacked: true,
    entries: item.entries.map((entry) => (isImplied(entry) ? { ...entry, isImplied: true } : entry)),
  };
}

interface Unpacked {
  readonly chain: Chain;
  /** Directories that the archive has entries for: latin1, relative. */
  readonly directories: ReadonlySet<string>;
}

type SingleItem = Extract<SelectedItem, { readonly kind: 'single' }>;

async function unpack(
  tree: FileTree,
  item: SingleItem,
  { layers, lease, signal, onUnpacked }: UnpackOptions,
): Promise<Unpacked | undefined> {
  const { node, layer } = item.merged;
  if (node.kind !== 'file' || node.sizeBytes === 0) return undefined;
  const open = () => tree.open({ path: item.path, node, layer });
  if (!(await isArchive(await open()))) return undefined;
  const directories = new Set<string>();
  const tar = Readable.from(noteDirectories(await decompress(await open()), directories), { objectMode: false });
  const made = await layers.make(tar, [], { signal, files: { removed: [] }, protect: (id) => lease.protect(id) });
  onUnpacked?.(made.id);
  return { chain: [made.id], directories };
}

/** Passes the archive on. The rest is for who makes the layer to judge. */
async function* noteDirectories(tar: AsyncIterable<Buffer>, directories: Set<string>) {
  const parser = createTarParser({
    entry({ type, path }) {
      if (type === 'directory') directories.add(plainPath(path));
    },
    data() {},
    hole() {},
  });
  for await (const chunk of tar) {
    parser.write(chunk);
    yield chunk;
  }
}

function plainPath(path: string): string {
  return path
    .split('/')
    .filter((name) => name !== '' && name !== '.')
    .join('/');
}

/** Reads no more than the beginning. */
async function isArchive(blob: Readable): Promise<boolean> {
  const head: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of await decompress(blob)) {
      head.push(chunk);
      bytes += chunk.length;
      if (bytes >= TAR_BLOCK_BYTES) break;
    }
  } catch (error) {
    // Something else that begins like a compressed file; but a missing program is said.
    if (isKind(error, 'unsupported')) throw error;
    return false;
  } finally {
    blob.destroy();
  }
  return bytes >= TAR_BLOCK_BYTES && isTarHeader(Buffer.concat(head).subarray(0, TAR_BLOCK_BYTES));
}
