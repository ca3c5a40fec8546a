/**
 * LayerSource: a blob file that a worker may read while it is still being written. The downloader moves the watermark,
 * the reader waits for it; a slow unpack never slows a download, and a resumed download is read from its start.
 *
 * The watermark lives in shared memory so that a worker can wait without messages:
 * Int32Array [state, sequence] then BigInt64Array [bytes available]. state: 0 growing, 1 complete, 2 failed.
 */

export interface LayerSource {
  /** Where the bytes are: the first path that exists when the reader opens it (staging name, then committed name). */
  readonly paths: readonly string[];
  readonly watermark: SharedArrayBuffer;
}

export const SOURCE_STATE = { growing: 0, complete: 1, failed: 2 } as const;

export interface LayerSourceWriter {
  readonly source: LayerSource;
  /** bytes of the file are now valid. */
  advance(bytes: number): void;
  /** The file is complete at `bytes`. */
  end(bytes: number): void;
  /** No more will come; readers fail. */
  fail(): void;
}

export function createLayerSource(paths: readonly string[]): LayerSourceWriter {
  const watermark = new SharedArrayBuffer(16);
  const flags = new Int32Array(watermark, 0, 2);
  const available = new BigInt64Array(watermark, 8, 1);
  const publish = (state: number, bytes: number | undefined) => {
    if (bytes !== undefined) Atomics.store(available, 0, BigInt(bytes));
    Atomics.store(flags, 0, state);
    Atomics.add(flags, 1, 1);
    Atomics.notify(flags, 1);
  };
  return {
    source: { paths, watermark },
    advance: (bytes) => publish(SOURCE_STATE.growing, bytes),
    end: (bytes) => publish(SOURCE_STATE.complete, bytes),
    fail: () => publish(SOURCE_STATE.failed, undefined),
  };
}
