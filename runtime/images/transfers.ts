/**
 * Transfers: blobs on their way into the content store, each at most once at a time.
 *
 * Whoever wants a blob joins the transfer that runs, or starts one; it is cancelled when the last of them leaves. The
 * file may be read while it grows (LayerSource). What arrived stays in the ingest, whatever ends the transfer, and the
 * next one goes on from there, also after a restart; an ingest whose bytes turn out to be wrong is discarded.
 *
 * Those who join may bring another registry along. The transfer goes on from there when the one that it reads from
 * fails, or would keep everybody waiting; it waits for nobody's slots but those of the registry that it reads from.
 */
import { setMaxListeners } from 'node:events';
import type { Readable } from 'node:stream';
import type { Ingest } from '../../shared/blob-store.ts';
import type { FsBlobStore } from '../../shared/blob-store-fs.ts';
import { algorithmOf, type Digest, hexOf } from '../../shared/digest.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import { createSlots } from '../../shared/slots.ts';
import type { Cancelable } from '../../shared/streams.ts';
import { createLayerSource, type LayerSource, type LayerSourceWriter } from '../layers/layer-source.ts';

/** Where a blob's bytes come from, from an offset on. The stream is the transfer's. */
export type BlobOrigin = (start: number, options: Cancelable) => Promise<Readable>;

export interface TransferRequest {
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** Names the registry, or whatever else the bytes come from. */
  readonly from: string;
  readonly origin: BlobOrigin;
}

export type TransferPhase = 'waiting' | 'downloading' | 'verifying-checksum' | 'download-complete';

/** One party's interest in a transfer. */
export interface TransferTicket {
  /** Readable from now on, while the bytes arrive. */
  readonly source: LayerSource;
  /** The blob is committed. Rejects when the transfer fails, or this party's signal aborts. */
  readonly done: Promise<void>;
  /** Whether bytes came from elsewhere than this party would have them from: then a failure may be somebody else's. */
  isShared(): boolean;
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

export interface TransferPatience {
  readonly afterMs: number;
  readonly leftMs: number;
}

export interface TransferPorts {
  readonly blobs: FsBlobStore;
  /** Transfers from one place that run at a time; the others wait. */
  readonly parallel: number;
  /** How long a place may take until another one is tried, and what is left may take to stay with it. */
  readonly patience?: TransferPatience | undefined;
  /** Called once per blob that was committed, before the transfer is done. */
  readonly onCommitted: (digest: Digest, sizeBytes: number) => Promise<void>;
}

const PATIENCE = { afterMs: 3_000, leftMs: 10_000 } as const;

/** A place to read from. */
interface Origin {
  /** One for each party that wants the bytes from there; it must not be asked when that party has left. */
  readonly openers: Set<BlobOrigin>;
  /** As it was seen last; undefined = not tried yet. */
  bytesPerMs: number | undefined;
}

interface Running {
  readonly sizeBytes: number;
  /** By the names of the places, in the order in which they came. */
  readonly origins: Map<string, Origin>;
  /** Places that bytes came from. */
  readonly used: Set<string>;
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
  const { afterMs, leftMs } = ports.patience ?? PATIENCE;
  const running = new Map<Digest, Running>();
  const slots = createSlots(ports.parallel);

  const start = (request: TransferRequest, open: BlobOrigin): Running => {
    const { digest } = request;
    const paths = [blobs.ingestPathOf(hexOf(digest)), blobs.pathOf(digest)];
    const abort = new AbortController();
    setMaxListeners(0, abort.signal);
    const writer = createLayerSource(paths);
    const ended = Promise.withResolvers<void>();
    ended.promise.catch(() => {});
    const transfer: Running = {
      sizeBytes: request.sizeBytes,
      origins: new Map([[request.from, { openers: new Set([open]), bytesPerMs: undefined }]]),
      used: new Set(),
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
    const { digest, sizeBytes } = request;
    const { writer } = transfer;
    const { signal } = transfer.abort;
    const tell = (phase: TransferPhase, bytes: number) => {
      transfer.phase = phase;
      transfer.bytes = bytes;
      for (const listener of transfer.listeners) listener(phase, bytes);
    };
    await using undo = new AsyncDisposableStack();
    let ingest: Ingest | undefined;
    for (let from: string | undefined; ingest === undefined || ingest.offset < sizeBytes; ) {
      from = nextOrigin(transfer, from);
      using watch = watchRate(transfer, from, () => ingest?.offset ?? 0);
      try {
        using _slot = await slots.acquire(from, watch.signal);
        ingest ??= undo.use(await blobs.ingest(hexOf(digest), { algorithm: algorithmOf(digest), signal }));
        const opened = ingest;
        writer.advance(Math.min(opened.offset, sizeBytes));
        tell('downloading', opened.offset);
        if (opened.offset < sizeBytes) await appendFrom(transfer, { from, ingest: opened, signal: watch.signal, tell });
      } catch (error) {
        if (signal.aborted || (!watch.isGivenUp() && transfer.origins.size === 0)) throw error;
      }
    }
    if (ingest.offset > sizeBytes) {
      await ingest.abort();
      throw new AppError(
        'integrity',
        `cannot accept blob ${digest}: the registry sent more than its ${sizeBytes} bytes`,
      );
    }
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

  interface Appending extends Cancelable {
    readonly from: string;
    readonly ingest: Ingest;
    readonly tell: (phase: TransferPhase, bytes: number) => void;
  }

  /** What this place has of the rest. One that fails is not asked again. */
  const appendFrom = async (transfer: Running, { from, ingest, signal, tell }: Appending): Promise<void> => {
    const { sizeBytes, writer } = transfer;
    const origin = transfer.origins.get(from);
    const [open] = origin?.openers ?? [];
    if (origin === undefined || open === undefined) return;
    transfer.used.add(from);
    try {
      const body = await open(ingest.offset, { signal });
      const onAdvance = (bytes: number) => {
        if (bytes > sizeBytes) body.destroy();
        else {
          writer.advance(bytes);
          tell('downloading', bytes);
        }
      };
      await ingest.append(body, { signal, onAdvance, takesChunks: true });
      if (ingest.offset < sizeBytes)
        throw new AppError('unavailable', `cannot download: it ended after ${ingest.offset} of ${sizeBytes} bytes`);
    } catch (error) {
      if (ingest.offset > sizeBytes) return;
      if (signal?.aborted !== true) removeOpener(transfer, { from, open });
      throw error;
    }
  };

  /** Gives a place up, by its signal, when it keeps everybody waiting and another may do better. */
  const watchRate = (transfer: Running, from: string, offset: () => number) => {
    const stop = new AbortController();
    let before = offset();
    const look = setInterval(() => {
      const origin = transfer.origins.get(from);
      const bytesPerMs = (offset() - before) / afterMs;
      before = offset();
      if (origin !== undefined) origin.bytesPerMs = bytesPerMs;
      const isSlow = transfer.sizeBytes - before > bytesPerMs * leftMs;
      const mayBeQuicker = ([name, other]: [string, Origin]) =>
        name !== from && (other.bytesPerMs === undefined || other.bytesPerMs > 2 * bytesPerMs);
      if (isSlow && [...transfer.origins].some(mayBeQuicker)) stop.abort(new Error('another place may be quicker'));
    }, afterMs).unref();
    return {
      signal: AbortSignal.any([transfer.abort.signal, stop.signal]),
      isGivenUp: () => stop.signal.aborted,
      [Symbol.dispose]: () => clearInterval(look),
    };
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
        return { source: writer.source, done: Promise.resolve(), isShared: () => false, leave() {} };
      }
      const { from } = request;
      // A function of its own: two parties may bring the same one.
      const open: BlobOrigin = (start, cancelable) => request.origin(start, cancelable);
      const transfer = running.get(digest) ?? start(request, open);
      if (transfer.sizeBytes !== sizeBytes) throw wrongSize(digest, transfer.sizeBytes, sizeBytes);
      transfer.parties++;
      const origin = transfer.origins.get(from) ?? { openers: new Set(), bytesPerMs: undefined };
      origin.openers.add(open);
      transfer.origins.set(from, origin);
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
        removeOpener(transfer, { from, open });
        if (--transfer.parties === 0) transfer.abort.abort(signal?.reason);
      };
      signal?.addEventListener('abort', leave, { once: true });
      const done = untilAborted(transfer.ended, signal).finally(leave);
      done.catch(() => {});
      const isShared = () => [...transfer.used].some((name) => name !== from);
      return { source: transfer.writer.source, done, isShared, leave };
    },
  };
}

/** One that was not tried yet, or else the quickest; another than the last one, if there is another. */
function nextOrigin({ origins, abort }: Running, last: string | undefined): string {
  const others = [...origins].filter(([name]) => name !== last);
  const rank = ([, { bytesPerMs }]: [string, Origin]) => bytesPerMs ?? Number.POSITIVE_INFINITY;
  const [best] = others.toSorted((a, b) => (rank(a) === rank(b) ? 0 : rank(b) - rank(a)));
  if (best !== undefined) return best[0];
  if (last !== undefined && origins.has(last)) return last;
  throw abort.signal.reason ?? new AppError('unavailable', 'cannot download: there is no place left to ask');
}

function removeOpener(
  { origins }: Running,
  { from, open }: { readonly from: string; readonly open: BlobOrigin },
): void {
  const origin = origins.get(from);
  origin?.openers.delete(open);
  if (origin?.openers.size === 0) origins.delete(from);
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
