/**
 * Local tar archives that ADD unpacks: told by their content, never by their name, and made a layer of their own first.
 * So the limits of layers stop a bomb, and what an archive holds can lead nowhere but into its own tree.
 */
import type { Readable } from 'node:stream';
import { isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { decompress, peekForm } from '../images/decompress.ts';
import type { Lease } from '../images/images.ts';
import type { Chain, LayerStore } from '../layers/layer-store.ts';
import { isTarHeader, TAR_BLOCK_BYTES } from '../layers/tar.ts';
import { type FileTree, openFileTree } from './file-tree.ts';
import { type SelectedItem, type Selection, selectFiles } from './selection.ts';

export interface UnpackOptions extends Cancelable {
  readonly layers: LayerStore;
  /** Protects the layers of the archives. */
  readonly lease: Lease;
}

/**
 * The selection with each archive replaced by what is in it, in the same order; owners in archives are kept. What lies in
 * a selected directory is copied as it is.
 * @throws AppError 'too-large' (bomb), 'invalid', 'unsupported' (a device), 'integrity' (cut off)
 */
export async function unpackArchives(selection: Selection, options: UnpackOptions): Promise<readonly Selection[]> {
  const found: Selection[] = [];
  for (const item of selection.items) {
    const chain = item.kind === 'single' ? await unpack(selection.tree, item, options) : undefined;
    if (chain === undefined) found.push({ ...selection, items: [item] });
    else
      found.push(
        await selectFiles({ tree: await openFileTree(options.layers, chain), sources: ['/'], owners: 'kept' }),
      );
  }
  return found;
}

type SingleItem = Extract<SelectedItem, { readonly kind: 'single' }>;

async function unpack(
  tree: FileTree,
  item: SingleItem,
  { layers, lease, signal }: UnpackOptions,
): Promise<Chain | undefined> {
  const { node, layer } = item.merged;
  if (node.kind !== 'file' || node.sizeBytes === 0) return undefined;
  const open = () => tree.open({ path: item.path, node, layer });
  if (!(await isArchive(await open()))) return undefined;
  const blob = await open();
  const form = await peekForm(blob);
  const isOurs = form !== 'bzip2' && form !== 'xz';
  const made = await layers.make(isOurs ? blob : await decompress(blob), [], {
    ...{ signal, compression: isOurs ? form : 'none', files: { removed: [] } },
    protect: (id) => lease.protect(id),
  });
  return [made.id];
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
