/**
 * BlobStore: content-addressed bytes. The registry keeps its blobs and manifests in one, the engine its downloads;
 * backends are blob-store-fs.ts, blob-store-memory.ts and registry/storage/s3.ts, and all of them pass
 * test/contract/blob-store.ts.
 *
 * Bytes arrive through an Ingest and become visible only at its commit, whole and verified. What `stat` shows is
 * durable. A store knows nothing of repositories, references or media types.
 */
import type { Readable } from 'node:stream';
import type { Digest, DigestAlgorithm } from './digest.ts';
import { AppError } from './errors.ts';
import type { Cancelable, Expected } from './streams.ts';

export interface BlobInfo {
  readonly digest: Digest;
  readonly sizeBytes: number;
  /** When it was committed, or touched last; the age that garbage collection goes by. */
  readonly modifiedAt: Date;
}

/** Inclusive on both ends, as in HTTP. `end` undefined = to the end of the blob. */
export interface ByteRange {
  readonly start: number;
  readonly end?: number | undefined;
}

export interface BlobStore {
  /** Absence is a value here... */
  stat(digest: Digest): Promise<BlobInfo | undefined>;
  /** ...and 'not-found' here. The caller owns the stream. @throws AppError 'range' if start is at or past the end */
  open(digest: Digest, range?: ByteRange): Promise<Readable>;
  /**
   * Starts the write called id, or resumes it at `offset`. Ids are chosen by the caller: `[A-Za-z0-9_-]{1,128}`.
   * `algorithm` names the digest that commit will most likely be asked for, so that it is computed in the flow.
   * @throws AppError 'conflict' while another Ingest of this id is open
   */
  ingest(id: string, options?: IngestOptions): Promise<Ingest>;
  /** Idempotent; false = was absent. */
  remove(digest: Digest): Promise<boolean>;
  /** Committed blobs only, in any order. */
  list(): AsyncIterable<BlobInfo>;
  /** Unfinished writes: for status after a restart, and for sweeping stale ones (`ingest(id)` then `abort()`). */
  ingests(): AsyncIterable<IngestInfo>;
  ingestInfo(id: string): Promise<IngestInfo | undefined>;
}

export interface IngestInfo {
  readonly id: string;
  readonly offset: number;
  /** What it occupies by now: on a disk, whole blocks. */
  readonly diskBytes: number;
  readonly modifiedAt: Date;
}

export interface IngestOptions extends Cancelable {
  readonly algorithm?: DigestAlgorithm;
}

export interface AppendOptions extends Cancelable {
  /** Told whenever more bytes are stored (readable by others, not yet durable): offset counts from the blob's start. */
  readonly onAdvance?: (offset: number) => void;
  /**
   * The chunks of the stream are the store's: it may give their memory back as soon as they are stored, and nobody else
   * may look at them any more. In large uploads that spares most of what the garbage collector costs.
   */
  readonly takesChunks?: boolean;
}

/**
 * One unfinished write. Disposing closes it and keeps what was received, for a later resume. Whoever closes it, by that or
 * by abort(), ends an append that still runs, which then fails: a failure elsewhere need not wait for it first.
 */
export interface Ingest extends AsyncDisposable {
  /** Bytes received so far: where a resumed sender goes on. */
  readonly offset: number;
  /**
   * Appends until the stream ends; answers the new offset. On failure the bytes that did arrive are kept.
   * @throws AppError 'unavailable' when the store is full; whatever made the stream fail
   */
  append(bytes: Readable, options?: AppendOptions): Promise<number>;
  /**
   * Verifies and publishes: afterwards `stat` shows the blob, durably. Success if the blob was there already.
   * 'integrity' leaves nothing visible and keeps the ingest (abort it to give its bytes back).
   */
  commit(expected: Expected): Promise<BlobInfo>;
  /** Discards the bytes and closes. Idempotent; also after commit, where it does nothing. */
  abort(): Promise<void>;
}

const INGEST_ID = /^[A-Za-z0-9_-]{1,128}$/;

/** Every backend's first step: an id may become a file name or a key. @throws AppError 'invalid' */
export function checkIngestId(id: string): void {
  if (!INGEST_ID.test(id)) throw new AppError('invalid', `cannot use ingest id ${JSON.stringify(id.slice(0, 200))}`);
}

/** The inclusive range as first and last byte of a blob of this size. @throws AppError 'range' */
export function resolveRange(digest: Digest, sizeBytes: number, range: ByteRange): { start: number; end: number } {
  const { start, end = sizeBytes - 1 } = range;
  if (start >= 0 && start < sizeBytes && end >= start) return { start, end: Math.min(end, sizeBytes - 1) };
  throw new AppError('range', `cannot open bytes ${start}-${range.end ?? ''} of ${digest}: it has ${sizeBytes} bytes`);
}
