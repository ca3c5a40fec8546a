/**
 * Transfers: blobs on their way into the content store, each at most once at a time.
 *
 * Whoever wants a blob joins the transfer that runs, or starts one; it is cancelled when the last of them leaves. The
 * file may be read while it grows (LayerSource). What arrived stays in the ingest, whatever ends the transfer, and the
 * next one goes on from there, also after a restart; an ingest whose bytes turn out to be wrong is discarded.
 */
import { setMaxListeners } from 'node:events';
import type { Readable } from 'node:stream';
import type { FsBlobStore } from '../../shared/blob-store-fs.ts';
import { algorithmOf, type Digest, hexOf } from '../../shared/digest.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { createLayerSource, type LayerSource, type LayerSourceWriter } from '../layers/layer-source.ts';

/** Where a blob's bytes come from, from an offset on. The stream is the transfer's. */
export type BlobOrigin = (start: number, options: Cancelable) => Promise<Readable>;

export interface TransferRequest {
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly origin: BlobOrigin;
}

export type TransferPhase = 'waiting' | 'downloading' | 'verifying-checksum' | 'download-complete';

/** One party's interest in a transfer. */
export interface TransferTicket {
  /** Readable from now on, while the bytes arrive. */
  readonly source: LayerSource;
  /** The blob is committed. Rejects when the transfer fails, or this party's signal aborts. */
  readonly done: Promise<void>;
  /** Gives the interest up; the last one cancels the transfer. Idempotent. */
  leave(): void;
}

export interface Transfers {
  /** A blob that is here is a transfer that has ended. */
  join(request: TransferRequest, options?: TransferOptions): Promise<TransferTicket>;
}

export interface TransferOptions extends Cancelable {
  readonly onProgress?: ((phase: TransferPhase, bytes: number) => void) | undefined;
}

export interface TransferPorts {
  readonly blobs: FsBlobStore;
  /** Transfers that run at a time; the others wait. */
  readonly parallel: number;
  /** Called once per blob that was committed, before the transfer is done. */
  readonly onCommitted: (digest: Digest, sizeBytes: number) => Promise<void>;
}

interface Running {
  readonly sizeBytes: number;
  readonly abort: AbortController;
  readonly writer: LayerSourceWriter;
  readonly listeners: Set<(phase: TransferPhase, bytes: number) => void>;
  readonly ended: Promise<void>;
  parties: number;
  phase: TransferPhase;
  bytes: number;
}

export function createTransfers(ports: TransferPorts): Transfers {
  const { blobs } = ports;
  const running = new Map<Digest, Running>();
  const slots = createSlots(ports.parallel);

  const start = (request: TransferRequest): Running => {
    const { digest } = request;
    const paths = [blobs.ingestPathOf(hexOf(digest)), blobs.pathOf(digest)];
    const abort = new AbortController();
    setMaxListeners(0, abort.signal);
    const writer = createLayerSource(paths);
    const ended = Promise.withResolvers<void>();
    ended.promise.catch(() => {});
    const transfer: Running = {
      sizeBytes: request.sizeBytes,
      abort,
      writer,
      listeners: new Set(),
      ended: ended.promise,
      parties: 0,
      phase: 'waiting',
      bytes: 0,
    };
    running.set(digest, transfer);
    void run(request, transfer)
      .finally(() => running.delete(digest))
      .then(ended.resolve, (error) => {
        writer.fail();
        ended.reject(error);
      });
    return transfer;
  };

  const run = async (request: TransferRequest, transfer: Running): Promise<void> => {
    const { digest, sizeBytes, origin } = request;
    const { writer } = transfer;
    const { signal } = transfer.abort;
    const tell = (phase: TransferPhase, bytes: number) => {
      transfer.phase = phase;
      transfer.bytes = bytes;
      for (const listener of transfer.listeners) listener(phase, bytes);
    };
    using _slot = await slots.acquire(signal);
    await using ingest = await blobs.ingest(hexOf(digest), { algorithm: algorithmOf(digest), signal });
    writer.advance(Math.min(ingest.offset, sizeBytes));
    tell('downloading', ingest.offset);
    if (ingest.offset < sizeBytes) {
      const body = await origin(ingest.offset, { signal });
      const onAdvance = (bytes: number) => {
        if (bytes > sizeBytes) body.destroy();
        else {
          writer.advance(bytes);
          tell('downloading', bytes);
        }
      };
      await ingest.append(body, { signal, onAdvance, takesChunks: true }).catch((error) => {
        if (ingest.offset <= sizeBytes) throw error;
      });
    }
    if (ingest.offset > sizeBytes) {
      await ingest.abort();
      throw new AppError(
        'integrity',
        `cannot accept blob ${digest}: the registry sent more than its ${sizeBytes} bytes`,
      );
    }
    if (ingest.offset < sizeBytes)
      throw new AppError(
        'unavailable',
        `cannot download ${digest}: the registry ended after ${ingest.offset} of ${sizeBytes} bytes`,
      );
    tell('verifying-checksum', ingest.offset);
    try {
      await ingest.commit({ digest, sizeBytes });
    } catch (error) {
      if (isKind(error, 'integrity')) {
        await ingest.abort();
        throw new AppError('integrity', `cannot verify blob ${digest}: the registry sent other bytes`, {
          cause: error,
        });
      }
      throw error;
    }
    writer.end(sizeBytes);
    await ports.onCommitted(digest, sizeBytes);
    tell('download-complete', sizeBytes);
  };

  return {
    async join(request, options = {}) {
      const { signal, onProgress } = options;
      const { digest, sizeBytes } = request;
      // One that its last party has left is on its way out; it still holds the ingest.
      while (running.get(digest)?.abort.signal.aborted === true) await running.get(digest)?.ended.catch(() => {});
      const present = running.has(digest) ? undefined : await blobs.stat(digest);
      signal?.throwIfAborted();
      if (present !== undefined) {
        if (present.sizeBytes !== sizeBytes) throw wrongSize(digest, present.sizeBytes, sizeBytes);
        const writer = createLayerSource([blobs.pathOf(digest)]);
        writer.end(sizeBytes);
        onProgress?.('download-complete', sizeBytes);
        return { source: writer.source, done: Promise.resolve(), leave() {} };
      }
      const transfer = running.get(digest) ?? start(request);
      if (transfer.sizeBytes !== sizeBytes) throw wrongSize(digest, transfer.sizeBytes, sizeBytes);
      transfer.parties++;
      if (onProgress !== undefined) {
        transfer.listeners.add(onProgress);
        onProgress(transfer.phase, transfer.bytes);
      }
      let left = false;
      const leave = () => {
        if (left) return;
        left = true;
        signal?.removeEventListener('abort', leave);
        if (onProgress !== undefined) transfer.listeners.delete(onProgress);
        if (--transfer.parties === 0) transfer.abort.abort(signal?.reason);
      };
      signal?.addEventListener('abort', leave, { once: true });
      const done = untilAborted(transfer.ended, signal).finally(leave);
      done.catch(() => {});
      return { source: transfer.writer.source, done, leave };
    },
  };
}

function wrongSize(digest: Digest, got: number, want: number): AppError {
  return new AppError('integrity', `cannot accept blob ${digest}: it has ${got} bytes, the manifest says ${want}`);
}

function untilAborted(work: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop));
  });
}

export interface Slots {
  /** Waits for a free slot. Disposing gives it back. */
  acquire(signal?: AbortSignal): Promise<Disposable>;
}

/** At most `count` holders at a time, first come, first served. */
export function createSlots(count: number): Slots {
  let free = count;
  const waiting: (() => void)[] = [];
  return {
    acquire(signal) {
      return new Promise((resolve, reject) => {
        if (signal?.aborted === true) return reject(signal.reason);
        const take = () => {
          signal?.removeEventListener('abort', give);
          let held = true;
          resolve({
            [Symbol.dispose]() {
              if (!held) return;
              held = false;
              const next = waiting.shift();
              if (next === undefined) free++;
              else next();
            },
          });
        };
        const give = () => {
          waiting.splice(waiting.indexOf(take), 1);
          reject(signal?.reason);
        };
        if (free > 0) {
          free--;
          take();
        } else {
          waiting.push(take);
          signal?.addEventListener('abort', give, { once: true });
        }
      });
    },
  };
}
