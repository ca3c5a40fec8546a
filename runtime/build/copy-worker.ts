/** The thread of copy-thread.ts: plans one copy and hands its tar over, a few pieces ahead of the reader. */
import { once } from 'node:events';
import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { AppError, type TransferredError, transferredError } from '../../shared/errors.ts';
import { type ErofsImage, openErofs, openFileInImage } from '../layers/erofs-reader.ts';
import type { Layer } from '../layers/layer-store.ts';
import { selectAgain } from './archives.ts';
import { type CopyRequest, type CopySource, copyLayer, type InlineFile } from './copy.ts';
import { type FileTree, openFileTree } from './file-tree.ts';
import type { SelectionOrder } from './selection.ts';

/** Layers with their images, base first. */
export type JobTree = readonly { readonly layer: Layer; readonly path: string }[];

export type JobSource =
  | { readonly kind: 'inline'; readonly file: InlineFile }
  | { readonly kind: 'selection'; readonly tree: JobTree; readonly order: SelectionOrder };

export interface CopyJob extends Omit<CopyRequest, 'sources' | 'below'> {
  readonly sources: readonly JobSource[];
  readonly below: JobTree | undefined;
}

export type FromCopyWorker =
  | { readonly kind: 'planned' }
  /** The other side answers when it wants more. */
  | { readonly kind: 'piece'; readonly bytes: Uint8Array<ArrayBuffer> }
  | { readonly kind: 'done' }
  | { readonly kind: 'failed'; readonly error: TransferredError };

/** Pieces of half a MiB that lie between the two threads. */
const AHEAD = 4;

if (parentPort !== null) await serve(parentPort, workerData);

async function serve(port: MessagePort, job: CopyJob): Promise<void> {
  const post = (message: FromCopyWorker, transfer: ArrayBuffer[] = []) => port.postMessage(message, transfer);
  let ahead = 0;
  port.on('message', () => {
    ahead -= 1;
  });
  using images = new DisposableStack();
  try {
    const tar = await copyLayer(await requestOf(job, images));
    post({ kind: 'planned' });
    for await (const piece of tar) {
      const bytes = movable(piece);
      post({ kind: 'piece', bytes }, [bytes.buffer]);
      ahead += 1;
      while (ahead >= AHEAD) await once(port, 'message');
    }
    post({ kind: 'done' });
  } catch (error) {
    post({ kind: 'failed', error: transferredError(error) });
  } finally {
    port.close();
  }
}

async function requestOf(job: CopyJob, images: DisposableStack): Promise<CopyRequest> {
  const { sources, below, ...rest } = job;
  const opened = new Map<string, ErofsImage>();
  const open = (path: string) => {
    const image = opened.get(path) ?? images.use(openErofs(path));
    opened.set(path, image);
    return image;
  };
  const treeOf = (tree: JobTree): Promise<FileTree> => {
    const find = (id: Layer['id']) => {
      const found = tree.find(({ layer }) => layer.id === id);
      if (found === undefined) throw new AppError('not-found', `cannot find layer ${id}`);
      return found;
    };
    const store: Parameters<typeof openFileTree>[0] = {
      get: async (id) => find(id).layer,
      tree: async (id) => open(find(id).path).tree,
      openFile: async (layer, { node }) => openFileInImage(find(layer.id).path, node),
      pathOf: (layer) => find(layer.id).path,
    };
    return openFileTree(
      store,
      tree.map(({ layer }) => layer.id),
    );
  };
  const sourceOf = async (source: JobSource): Promise<CopySource> => {
    if (source.kind === 'inline') return source;
    return { kind: 'selection', selection: await selectAgain(await treeOf(source.tree), source.order) };
  };
  const all: CopySource[] = [];
  for (const source of sources) all.push(await sourceOf(source));
  return { ...rest, sources: all, below: below && (await treeOf(below)) };
}

/** What is a part of a larger buffer is copied: that one is not ours alone. */
function movable(piece: Buffer): Uint8Array<ArrayBuffer> {
  const { buffer, byteLength } = piece;
  if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength) return new Uint8Array(buffer);
  return new Uint8Array(piece);
}
