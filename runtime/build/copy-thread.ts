/**
 * Copies of many files, planned and written in a thread of their own: some ten microseconds a name would keep everybody
 * else waiting for seconds. The thread opens the same layer images and selects the same files again, which costs less
 * than to hand them over. Few files are copied in the caller's thread, which is quicker than to start another.
 */
import { on } from 'node:events';
import { Worker } from 'node:worker_threads';
import { AppError, receivedError } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Layer } from '../layers/layer-store.ts';
import { type CopyRequest, type CopySource, copyLayer } from './copy.ts';
import type { CopyJob, FromCopyWorker, JobSource, JobTree } from './copy-worker.ts';
import type { FileTree } from './file-tree.ts';

export interface CopyPorts {
  /** Of a layer's image. */
  pathOf(layer: Layer): string;
}

const NAMES_HERE_MAX = 1000;

/** As copyLayer(), wherever it is done. */
export async function copyTar(
  ports: CopyPorts,
  request: CopyRequest,
  { signal }: Cancelable = {},
): Promise<AsyncGenerator<Buffer, void, undefined>> {
  if (namesOf(request.sources) <= NAMES_HERE_MAX) return await copyLayer(request);
  const tar = copyAside(jobOf(ports, request), signal);
  // Until it has been planned. From then on whoever ends the reading ends the thread, too.
  await tar.next();
  return tar;
}

function namesOf(sources: readonly CopySource[]): number {
  let names = 0;
  for (const source of sources)
    for (const item of source.kind === 'selection' ? source.selection.items : [])
      names += item.kind === 'contents' ? item.entries.length : 1;
  return names;
}

function jobOf({ pathOf }: CopyPorts, request: CopyRequest): CopyJob {
  const { sources, below, ...rest } = request;
  const treeOf = ({ layers }: FileTree): JobTree => layers.map((layer) => ({ layer, path: pathOf(layer) }));
  return {
    ...rest,
    below: below && treeOf(below),
    sources: sources.map(
      (source): JobSource =>
        source.kind === 'inline'
          ? source
          : { kind: 'selection', tree: treeOf(source.selection.tree), order: source.selection.order },
    ),
  };
}

/** First an empty piece, when the copy is planned; then the tar. */
async function* copyAside(job: CopyJob, signal: AbortSignal | undefined): AsyncGenerator<Buffer, void, undefined> {
  const worker = new Worker(new URL('./copy-worker.ts', import.meta.url), { workerData: job });
  try {
    const messages: AsyncIterable<FromCopyWorker[]> = on(worker, 'message', { signal, close: ['exit'] });
    for await (const message of flat(messages)) {
      switch (message.kind) {
        case 'planned':
          yield Buffer.alloc(0);
          break;
        case 'piece':
          yield Buffer.from(message.bytes.buffer, message.bytes.byteOffset, message.bytes.byteLength);
          worker.postMessage('taken');
          break;
        case 'done':
          return;
        case 'failed':
          throw receivedError(message.error);
        default:
          message satisfies never;
      }
    }
    throw new AppError('unavailable', 'cannot copy: the thread that copies has ended');
  } finally {
    await worker.terminate();
  }
}

/** Events with their arguments, as single messages. */
async function* flat<T>(events: AsyncIterable<readonly T[]>): AsyncGenerator<T, void, undefined> {
  for await (const messages of events) yield* messages;
}
