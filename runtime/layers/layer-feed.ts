/**
 * LayerFeed: a tar that is written into a worker's hands, through a ring of shared memory, at the worker's pace. Unlike a
 * LayerSource there is no file: what the reader has used up is gone.
 *
 * Int32Array [state, writes, reads], then at byte 16 BigInt64Array [bytes written, bytes read], then at byte 64 the ring.
 * state: 0 open, 1 complete, 2 failed. Bytes count up for ever; their place is their number modulo the ring's size.
 */
import { AppError } from '../../shared/errors.ts';

export interface LayerFeed {
  readonly ring: SharedArrayBuffer;
}

const STATE = { open: 0, complete: 1, failed: 2 } as const;
const RING_AT = 64;
const RING_BYTES = 4 << 20;
/** The reader hands on pieces of this; the rest of the ring fills up meanwhile. */
const PIECE_BYTES = 1 << 18;

export interface LayerFeedWriter {
  readonly feed: LayerFeed;
  /** Copies the bytes, waiting for room. @throws the signal's reason */
  write(bytes: Uint8Array, signal: AbortSignal): Promise<void>;
  end(): void;
  /** No more will come; the reader fails. */
  fail(): void;
}

interface Views {
  readonly flags: Int32Array;
  readonly counts: BigInt64Array;
  readonly data: Buffer;
}

function viewsOf({ ring }: LayerFeed): Views {
  return {
    flags: new Int32Array(ring, 0, 3),
    counts: new BigInt64Array(ring, 16, 2),
    data: Buffer.from(ring, RING_AT, RING_BYTES),
  };
}

export function createLayerFeed(): LayerFeedWriter {
  const feed: LayerFeed = { ring: new SharedArrayBuffer(RING_AT + RING_BYTES) };
  const { flags, counts, data } = viewsOf(feed);
  let written = 0;
  const tell = () => {
    Atomics.add(flags, 1, 1);
    Atomics.notify(flags, 1);
  };
  const finish = (state: number) => {
    Atomics.store(flags, 0, state);
    tell();
  };
  return {
    feed,
    async write(bytes, signal) {
      for (let at = 0; at < bytes.length; ) {
        signal.throwIfAborted();
        // In this order: what is read after the sequence was looked at wakes the wait below.
        const sequence = Atomics.load(flags, 2);
        const room = RING_BYTES - (written - Number(Atomics.load(counts, 1)));
        if (room === 0) {
          await changed(flags, { index: 2, sequence, signal });
          continue;
        }
        const place = written % RING_BYTES;
        const count = Math.min(room, bytes.length - at, RING_BYTES - place);
        data.set(bytes.subarray(at, at + count), place);
        at += count;
        written += count;
        Atomics.store(counts, 0, BigInt(written));
        tell();
      }
    },
    end: () => finish(STATE.complete),
    fail: () => finish(STATE.failed),
  };
}

/** Wakes a reader or writer that waits, so that it looks at its signal. */
export function wakeFeed({ ring }: LayerFeed): void {
  const flags = new Int32Array(ring, 0, 3);
  Atomics.notify(flags, 1);
  Atomics.notify(flags, 2);
}

export interface FeedHooks {
  readonly signal: AbortSignal;
  readonly onConsumed: (bytes: number) => void;
}

/** The bytes to their end. Each piece, shared memory, is good until the next is asked for. */
export async function* feedChunks(feed: LayerFeed, { signal, onConsumed }: FeedHooks): AsyncGenerator<Buffer, void> {
  const { flags, counts, data } = viewsOf(feed);
  let position = 0;
  for (;;) {
    if (signal.aborted) throw new AppError('timeout', 'cannot make the layer: it was cancelled');
    const sequence = Atomics.load(flags, 1);
    const state = Atomics.load(flags, 0);
    const end = Number(Atomics.load(counts, 0));
    if (state === STATE.failed) throw new AppError('unavailable', 'cannot make the layer: its source failed');
    if (position < end) {
      const place = position % RING_BYTES;
      const count = Math.min(end - position, PIECE_BYTES, RING_BYTES - place);
      yield data.subarray(place, place + count);
      position += count;
      Atomics.store(counts, 1, BigInt(position));
      Atomics.add(flags, 2, 1);
      Atomics.notify(flags, 2);
      onConsumed(position);
    } else if (state === STATE.complete) return;
    else await changed(flags, { index: 1, sequence, signal });
  }
}

interface Change {
  readonly index: 1 | 2;
  readonly sequence: number;
  readonly signal: AbortSignal;
}

/** Until the other side has moved, or the signal is given. */
async function changed(flags: Int32Array, { index, sequence, signal }: Change): Promise<void> {
  const wake = () => Atomics.notify(flags, index);
  signal.addEventListener('abort', wake, { once: true });
  try {
    await Atomics.waitAsync(flags, index, sequence).value;
  } finally {
    signal.removeEventListener('abort', wake);
  }
}
