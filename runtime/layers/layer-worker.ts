/**
 * The worker thread of layer-pool.ts: reads a blob behind its watermark, decompresses, checks the diffID, builds the
 * image in a staging file and makes it durable. Nothing here is visible to anyone: naming the image is the store's.
 *
 * A job has two halves. Streaming keeps the thread busy, unless the download stands still; after it, the job waits as a
 * value for the layers below without holding the thread, which goes on with another layer meanwhile (two workers can
 * therefore unpack any stack).
 */
import { createHash } from 'node:crypto';
import { closeSync, fdatasync, fstatSync, fsync, openSync, readSync } from 'node:fs';
import { pipeline } from 'node:stream/promises';
import { setImmediate } from 'node:timers/promises';
import { type MessagePort, parentPort } from 'node:worker_threads';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { algorithmOf, type Digest, digestFromHex } from '../../shared/digest.ts';
import { diskBytesOf } from '../../shared/disk-bytes.ts';
import { AppError, type ErrorKind, hasCode, messageOf } from '../../shared/errors.ts';
import type { Compression } from '../../shared/media-types.ts';
import { openErofs } from './erofs-reader.ts';
import {
  createCachedOutput,
  createPagedBuffers,
  DirectOutput,
  type ImageOutput,
  type PagedBuffers,
} from './image-output.ts';
import { type BuiltLayer, createLayerBuilder, type LayerBuilder, type LayerLimits } from './layer-builder.ts';
import { feedChunks, type LayerFeed, wakeFeed } from './layer-feed.ts';
import { type LayerSource, SOURCE_STATE } from './layer-source.ts';

export interface UnpackRequest {
  /** undefined = whatever it turns out to be. */
  readonly diffId: Digest | undefined;
  readonly compression: Compression;
  readonly source: LayerSource | LayerFeed;
  /** See MakeOptions. */
  readonly files?: { readonly removed: readonly string[] } | undefined;
  /** Must not exist. The caller removes it, whatever happens. */
  readonly stagingPath: string;
  /** Nobody is about to read all of the image: its bytes need not stay in memory. */
  readonly bypassesCache: boolean;
  readonly limits: LayerLimits;
}

export interface UnpackedLayer extends BuiltLayer {
  readonly diffId: Digest;
  /** st_blocks × 512 of the image. */
  readonly diskBytes: number;
}

export type ToWorker =
  | { readonly type: 'unpack'; readonly job: number; readonly request: UnpackRequest }
  /** Image files below, base first. Sent at any time, and at most once. */
  | { readonly type: 'lower'; readonly job: number; readonly paths: readonly string[] }
  | { readonly type: 'cancel'; readonly job: number };

export type FromWorker =
  | { readonly type: 'progress'; readonly job: number; readonly consumedBytes: number }
  /** The thread is free for another job. */
  | { readonly type: 'streamed'; readonly job: number }
  | { readonly type: 'done'; readonly job: number; readonly layer: UnpackedLayer }
  | { readonly type: 'failed'; readonly job: number; readonly error: TransferredError };

/** An error as it crosses threads. kind undefined = not one of ours. */
export interface TransferredError {
  readonly kind: ErrorKind | undefined;
  readonly message: string;
  readonly stack: string | undefined;
}

/** Larger chunks than zlib's 16 KiB halve the time of gunzip. */
const CHUNK_BYTES = 1 << 18;
/** Not CHUNK_BYTES: what is read from the blob is never released. */
const READ_BYTES = 1 << 17;
const PROGRESS_INTERVAL_MS = 100;
/** A download that gives nothing for so long does not keep the thread from other layers. */
const WAIT_MS = 500;
const CHUNKS_PER_TURN = 16;
/** Written bytes after which they are sent to the disk in the background, so that the last fsync finds little to do. */
const SYNC_EVERY_BYTES = 64 << 20;

/** Pairs of buffers of this thread; layers beyond them go through the page cache. */
const PAGED_BUFFERS_MAX = 4;

interface Job {
  readonly request: UnpackRequest;
  readonly cancel: AbortController;
  readonly lower: PromiseWithResolvers<readonly string[]>;
}

if (parentPort !== null) serve(parentPort);

function serve(port: MessagePort): void {
  const jobs = new Map<number, Job>();
  const openOutput = createOutputs();
  const post = (message: FromWorker) => port.postMessage(message);
  port.on('message', (message: ToWorker) => {
    switch (message.type) {
      case 'unpack': {
        const job: Job = { request: message.request, cancel: new AbortController(), lower: Promise.withResolvers() };
        jobs.set(message.job, job);
        unpack(job, {
          openOutput,
          onProgress: (consumedBytes) => post({ type: 'progress', job: message.job, consumedBytes }),
          onStreamed: () => post({ type: 'streamed', job: message.job }),
        })
          .then(
            (layer) => post({ type: 'done', job: message.job, layer }),
            (error: unknown) => post({ type: 'failed', job: message.job, error: transferred(error) }),
          )
          .finally(() => jobs.delete(message.job));
        break;
      }
      case 'lower':
        jobs.get(message.job)?.lower.resolve(message.paths);
        break;
      case 'cancel': {
        const job = jobs.get(message.job);
        job?.cancel.abort();
        // Wakes it should it wait for the download; other readers look around and wait on.
        if (job !== undefined) wake(job.request.source);
        job?.lower.reject(new AppError('timeout', 'cannot unpack the layer: it was cancelled'));
        job?.lower.promise.catch(() => {});
        break;
      }
      default:
        message satisfies never;
    }
  });
}

function wake(source: LayerSource | LayerFeed): void {
  if ('ring' in source) wakeFeed(source);
  else Atomics.notify(new Int32Array(source.watermark, 0, 2), 1);
}

type OpenOutput = (fd: number, request: UnpackRequest) => ImageOutput & AsyncDisposable;

interface UnpackHooks {
  readonly openOutput: OpenOutput;
  readonly onProgress: (consumedBytes: number) => void;
  readonly onStreamed: () => void;
}

async function unpack(job: Job, { openOutput, onProgress, onStreamed }: UnpackHooks): Promise<UnpackedLayer> {
  const { request } = job;
  const fd = openSync(request.stagingPath, 'wx+');
  const background = createBackgroundSync(fd);
  try {
    await using output = openOutput(fd, request);
    const builder = createLayerBuilder(output, request.limits, { files: request.files });
    const diffId = await stream(request, builder, {
      signal: job.cancel.signal,
      onProgress,
      onWaiting: onStreamed,
      onWritten: background.wrote,
    });
    const alone = builder.settleAlone();
    onStreamed();
    const built = alone ?? settleAbove(builder, await job.lower.promise);
    await output.settled();
    await background.idle();
    await synced(fd);
    return { ...built, diffId, diskBytes: diskBytesOf(fstatSync(fd)) };
  } finally {
    await background.idle();
    closeSync(fd);
  }
}

/** Buffers go from layer to layer. */
function createOutputs(): OpenOutput {
  const free: PagedBuffers[] = [];
  let made = 0;
  const take = (): PagedBuffers | undefined => {
    const kept = free.pop();
    if (kept !== undefined || made === PAGED_BUFFERS_MAX) return kept;
    made += 1;
    return createPagedBuffers();
  };
  return (fd, { bypassesCache }) => {
    const buffers = bypassesCache ? take() : undefined;
    if (buffers === undefined) return Object.assign(createCachedOutput(fd), { [Symbol.asyncDispose]: async () => {} });
    return new DirectOutput(fd, buffers, () => free.push(buffers));
  };
}

function settleAbove(builder: LayerBuilder, paths: readonly string[]): BuiltLayer {
  using images = new DisposableStack();
  return builder.settle(paths.map((path) => images.use(openErofs(path))));
}

interface StreamHooks {
  readonly signal: AbortSignal;
  readonly onProgress: (consumedBytes: number) => void;
  readonly onWaiting: () => void;
  readonly onWritten: (tarBytes: number) => void;
}

async function stream(request: UnpackRequest, builder: LayerBuilder, hooks: StreamHooks): Promise<Digest> {
  const { diffId, compression, limits } = request;
  const algorithm = diffId === undefined ? 'sha256' : algorithmOf(diffId);
  const hash = createHash(algorithm);
  // Never the name of an image's layer: there the same bytes can mean another tree.
  if (request.files !== undefined) hash.update(`files ${JSON.stringify(request.files.removed)}\n`);
  let consumed = 0;
  let tarBytes = 0;
  let reportedAt = 0;
  const take = async (chunks: AsyncIterable<Buffer>) => {
    for await (const chunk of chunks) {
      tarBytes += chunk.length;
      checkBomb(tarBytes, consumed, limits);
      hash.update(chunk);
      builder.write(chunk);
      release(chunk);
      hooks.onWritten(tarBytes);
    }
  };
  const reading: BlobHooks = {
    signal: hooks.signal,
    onWaiting: hooks.onWaiting,
    onConsumed(bytes) {
      consumed = bytes;
      const now = performance.now();
      if (now - reportedAt < PROGRESS_INTERVAL_MS) return;
      reportedAt = now;
      hooks.onProgress(bytes);
    },
  };
  const { source } = request;
  const blob = 'ring' in source ? feedChunks(source, reading) : blobChunks(source, reading);
  try {
    if (compression === 'none') await pipeline(blob, take, { signal: hooks.signal });
    else await pipeline(blob, decompressor(compression), take, { signal: hooks.signal });
  } catch (error) {
    throw decompressionError(error);
  }
  hooks.onProgress(consumed);
  const got = digestFromHex(algorithm, hash.digest('hex'));
  // Before the parser's opinion: a cut or altered stream should be called that, not a malformed tar.
  if (diffId !== undefined && got !== diffId)
    throw new AppError('integrity', `cannot unpack the layer: its diffID is ${got}, want ${diffId}`);
  builder.endTar();
  return got;
}

function decompressor(compression: Exclude<Compression, 'none'>) {
  // One chunk at a time: the next is asked for when the last is used up, and may stand in the same memory.
  const options = { chunkSize: CHUNK_BYTES, writableHighWaterMark: 1 };
  return compression === 'gzip' ? createGunzip(options) : createZstdDecompress(options);
}

/**
 * Frees a full output chunk of the decompressor, which has let go of it, now instead of at a collection: memory outside
 * the heap forces those all the time, and piles up in between.
 */
function release({ buffer, byteOffset, byteLength }: Buffer): void {
  const isFull = byteOffset + byteLength === CHUNK_BYTES && buffer.byteLength === CHUNK_BYTES;
  if (isFull && buffer instanceof ArrayBuffer) buffer.transfer(0);
}

function checkBomb(tarBytes: number, consumedBytes: number, limits: LayerLimits): void {
  if (tarBytes > limits.tarMaxBytes)
    throw new AppError('too-large', `cannot unpack the layer: it is larger than ${limits.tarMaxBytes} bytes`);
  if (tarBytes > limits.ratioFromBytes && tarBytes > consumedBytes * limits.ratioMax)
    throw new AppError(
      'too-large',
      `cannot unpack the layer: it grows to more than ${limits.ratioMax} times its compressed size`,
    );
}

interface BlobHooks {
  readonly signal: AbortSignal;
  /** Once, when nothing has come for a while. */
  readonly onWaiting: () => void;
  readonly onConsumed: (bytes: number) => void;
}

/** The blob from its start to its end, waiting where it is still growing. Each chunk is good until the next is asked for. */
async function* blobChunks(
  source: LayerSource,
  { signal, onConsumed, onWaiting }: BlobHooks,
): AsyncGenerator<Buffer, void> {
  const flags = new Int32Array(source.watermark, 0, 2);
  const available = new BigInt64Array(source.watermark, 8, 1);
  let fd: number | undefined;
  let position = 0;
  let turn = 0;
  let isPatient = false;
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES);
  try {
    for (;;) {
      signal.throwIfAborted();
      // Read in this order: what is published after the sequence was read wakes the wait below.
      const sequence = Atomics.load(flags, 1);
      const state = Atomics.load(flags, 0);
      const end = Number(Atomics.load(available, 0));
      if (state === SOURCE_STATE.failed)
        throw new AppError('unavailable', 'cannot unpack the layer: its download failed');
      if (position < end) {
        fd ??= openFirst(source.paths);
        const count = readSync(fd, buffer, 0, Math.min(buffer.length, end - position), position);
        if (count === 0) throw new AppError('integrity', `cannot unpack the layer: its blob ends at byte ${position}`);
        position += count;
        onConsumed(position);
        yield buffer.subarray(0, count);
        turn += 1;
        if (turn % CHUNKS_PER_TURN === 0) await setImmediate(); // lets a cancel in
      } else if (state === SOURCE_STATE.complete) break;
      else if (isPatient) await Atomics.waitAsync(flags, 1, sequence).value;
      else if ((await Atomics.waitAsync(flags, 1, sequence, WAIT_MS).value) === 'timed-out') {
        isPatient = true;
        onWaiting();
      }
    }
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

function openFirst(paths: readonly string[]): number {
  // Twice: the file may move from its first name to its second just between two attempts.
  for (const path of [...paths, ...paths]) {
    try {
      return openSync(path, 'r');
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error;
    }
  }
  throw new AppError('not-found', `cannot unpack the layer: there is no blob at ${paths.join(' or ')}`);
}

/** Not fsyncSync: while the disk works, the thread goes on with another layer. */
function synced(fd: number): Promise<void> {
  return new Promise((resolve, reject) => fsync(fd, (error) => (error === null ? resolve() : reject(error))));
}

function createBackgroundSync(fd: number) {
  let syncedAt = 0;
  let running: Promise<void> | undefined;
  return {
    wrote(bytes: number): void {
      if (running !== undefined || bytes - syncedAt < SYNC_EVERY_BYTES) return;
      syncedAt = bytes;
      // Its error comes again from the last fsync, which counts.
      running = new Promise<void>((resolve) => fdatasync(fd, () => resolve())).then(() => {
        running = undefined;
      });
    },
    idle: async () => running,
  };
}

function decompressionError(error: unknown): unknown {
  const code = error instanceof Error && 'code' in error ? String(error.code) : '';
  if (code !== 'Z_DATA_ERROR' && code !== 'Z_BUF_ERROR' && !code.startsWith('ZSTD_error_')) return error;
  return new AppError('integrity', `cannot decompress the layer: ${messageOf(error)}`, { cause: error });
}

function transferred(error: unknown): TransferredError {
  if (error instanceof AppError) return { kind: error.kind, message: error.message, stack: undefined };
  if (hasCode(error, 'ENOSPC', 'EDQUOT'))
    return { kind: 'unavailable', message: 'cannot unpack the layer: the disk is full', stack: undefined };
  if (hasCode(error, 'ABORT_ERR'))
    return { kind: 'timeout', message: 'cannot unpack the layer: it was cancelled', stack: undefined };
  return { kind: undefined, message: messageOf(error), stack: error instanceof Error ? error.stack : undefined };
}
