/**
 * BlobStore on a filesystem.
 *
 *   <root>/blobs/<algorithm>/<hex>   committed blobs, as in an OCI image layout
 *   <root>/ingest/<id>               unfinished writes; their length is the offset
 *
 * Order of a commit: bytes, fsync, digest, rename, fsync of the directory; a crash anywhere leaves an ingest or the
 * whole blob. Bytes are hashed as they arrive; they are read again only when the hash is not at hand: the write began
 * in another process, or commit names another algorithm. One process at a time may hold an id; processes that share a
 * directory must see to that themselves.
 */
import { createHash, type Hash } from 'node:crypto';
import { constants, type Stats } from 'node:fs';
import { type FileHandle, mkdir, open, opendir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { addAbortSignal, type Readable } from 'node:stream';
import { renameDurably, syncDirectory } from './atomic-file.ts';
import {
  type AppendOptions,
  type BlobInfo,
  type BlobStore,
  type ByteRange,
  checkIngestId,
  type Ingest,
  type IngestInfo,
  type IngestOptions,
  resolveRange,
} from './blob-store.ts';
import {
  algorithmOf,
  DIGEST_ALGORITHMS,
  type Digest,
  type DigestAlgorithm,
  digestFromHex,
  hexOf,
  isDigest,
} from './digest.ts';
import { diskBytesOf } from './disk-bytes.ts';
import { AppError, hasCode, messageOf } from './errors.ts';
import type { Expected } from './streams.ts';

export interface FsBlobStoreOptions {
  readonly root: string;
  readonly now?: () => Date;
}

export interface FsBlobStore extends BlobStore {
  /** Where the blob is, or will be. */
  pathOf(digest: Digest): string;
  /** Where the bytes of this ingest grow until its commit renames them to pathOf(). */
  ingestPathOf(id: string): string;
}

const READ_CHUNK_BYTES = 1 << 20;
/** Gathered before a write: a system call per network packet would cost more than the copying of its bytes. */
const WRITE_CHUNK_BYTES = 512 << 10;
/** A gigabyte left to one fsync at the end takes a third of a second more. */
const FLUSH_EVERY_BYTES = 64 << 20;
/** Hash states of closed ingests, some hundred bytes each; a forgotten one only costs reading its file again. */
const PARKED_MAX = 10_000;

/** The hash of a closed ingest, valid only while nobody else has written to its file. */
interface Parked {
  readonly algorithm: DigestAlgorithm;
  readonly hash: Hash;
  readonly fingerprint: string;
}

export function createFsBlobStore(options: FsBlobStoreOptions): FsBlobStore {
  const { root, now = () => new Date() } = options;
  const pathOf = (digest: Digest) => join(root, 'blobs', algorithmOf(digest), hexOf(digest));
  const ingestPathOf = (id: string) => {
    checkIngestId(id);
    return join(root, 'ingest', id);
  };
  const held = new Set<string>();
  const parked = new Map<string, Parked>();
  let prepared: Promise<void> | undefined;
  const prepare = () => {
    prepared ??= makeDirectories(root).catch((error) => {
      prepared = undefined;
      throw toAppError('prepare', root, error);
    });
    return prepared;
  };

  const ports: IngestPorts = {
    now,
    pathOf,
    ingestPathOf,
    take: (id) => {
      const state = parked.get(id);
      parked.delete(id);
      return state;
    },
    park: (id, state) => {
      const oldest = parked.keys().next();
      if (parked.size >= PARKED_MAX && oldest.done !== true) parked.delete(oldest.value);
      parked.set(id, state);
    },
    release: (id) => held.delete(id),
  };

  return {
    pathOf,
    ingestPathOf,

    async stat(digest) {
      const stats = await statIfThere(pathOf(digest));
      return stats === undefined ? undefined : infoOf(digest, stats);
    },

    async open(digest, range) {
      const handle = await openIfThere(pathOf(digest));
      if (handle === undefined) throw new AppError('not-found', `cannot open blob ${digest}: it is not in this store`);
      try {
        return readStream(handle, digest, { sizeBytes: (await handle.stat()).size, range });
      } catch (error) {
        await handle.close();
        throw error;
      }
    },

    async ingest(id, ingestOptions = {}) {
      const path = ingestPathOf(id);
      if (held.has(id)) throw new AppError('conflict', `cannot open ingest ${JSON.stringify(id)}: it is in use`);
      held.add(id);
      try {
        await prepare();
        return await FsIngest.open(id, { path, ports, options: ingestOptions });
      } catch (error) {
        held.delete(id);
        throw error;
      }
    },

    async remove(digest) {
      try {
        await rm(pathOf(digest));
        return true;
      } catch (error) {
        if (hasCode(error, 'ENOENT')) return false;
        throw toAppError('remove', digest, error);
      }
    },

    async *list() {
      for (const algorithm of DIGEST_ALGORITHMS)
        for await (const hex of namesIn(join(root, 'blobs', algorithm))) {
          const text = `${algorithm}:${hex}`;
          // A blob may go while the list is read; names that are no digest are not ours.
          const stats = isDigest(text) ? await statIfThere(pathOf(text)) : undefined;
          if (isDigest(text) && stats !== undefined) yield infoOf(text, stats);
        }
    },

    async *ingests() {
      for await (const id of namesIn(join(root, 'ingest'))) {
        const stats = await statIfThere(join(root, 'ingest', id));
        if (stats !== undefined) yield ingestInfoOf(id, stats);
      }
    },

    async ingestInfo(id) {
      const stats = await statIfThere(ingestPathOf(id));
      return stats === undefined ? undefined : ingestInfoOf(id, stats);
    },
  };
}

interface IngestPorts {
  now(): Date;
  pathOf(digest: Digest): string;
  ingestPathOf(id: string): string;
  take(id: string): Parked | undefined;
  park(id: string, state: Parked): void;
  release(id: string): void;
}

class FsIngest implements Ingest {
  readonly #id: string;
  readonly #path: string;
  readonly #ports: IngestPorts;
  readonly #handle: FileHandle;
  readonly #algorithm: DigestAlgorithm;
  /** undefined = does not cover the bytes that are there; they are read again at commit. */
  #hash: Hash | undefined;
  #offset: number;
  #flushed = 0;
  #flushing: Promise<void> | undefined;
  #state: 'open' | 'appending' | 'closed' = 'open';
  #appending: { readonly bytes: Readable; readonly ended: Promise<unknown> } | undefined;
  /** The disk has failed to keep bytes of this file. The kernel tells that once: a later fsync would succeed without them. */
  #isLost = false;

  static async open(
    id: string,
    { path, ports, options }: { path: string; ports: IngestPorts; options: IngestOptions },
  ): Promise<FsIngest> {
    options.signal?.throwIfAborted();
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW;
    const handle = await open(path, flags, 0o644).catch((error) => {
      throw toAppError('open ingest', id, error);
    });
    try {
      const stats = await handle.stat();
      const known = ports.take(id);
      const resumed = known !== undefined && known.fingerprint === fingerprintOf(stats) ? known : undefined;
      const algorithm = resumed?.algorithm ?? options.algorithm ?? 'sha256';
      const hash = resumed?.hash ?? (stats.size === 0 ? createHash(algorithm) : undefined);
      return new FsIngest({ id, path, ports, handle, algorithm, hash, offset: stats.size });
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  private constructor(start: {
    readonly id: string;
    readonly path: string;
    readonly ports: IngestPorts;
    readonly handle: FileHandle;
    readonly algorithm: DigestAlgorithm;
    readonly hash: Hash | undefined;
    readonly offset: number;
  }) {
    this.#id = start.id;
    this.#path = start.path;
    this.#ports = start.ports;
    this.#handle = start.handle;
    this.#algorithm = start.algorithm;
    this.#hash = start.hash;
    this.#offset = start.offset;
  }

  get offset(): number {
    return this.#offset;
  }

  async append(bytes: Readable, options: AppendOptions = {}): Promise<number> {
    this.#assertOpen('append to');
    this.#state = 'appending';
    const ended = this.#appendAll(bytes, options);
    this.#appending = { bytes, ended };
    return await ended;
  }

  async #appendAll(bytes: Readable, options: AppendOptions): Promise<number> {
    let gathered: Buffer[] = [];
    let gatheredBytes = 0;
    let writing: Promise<void> = Promise.resolve();
    // One write in flight while the next chunk is gathered and hashed.
    const flush = async () => {
      await writing;
      const chunks = gathered;
      const end = this.#offset + gatheredBytes;
      gathered = [];
      gatheredBytes = 0;
      writing = this.#write(chunks, end).then(() => {
        if (options.takesChunks === true) release(chunks);
        options.onAdvance?.(end);
      });
      writing.catch(() => {});
    };
    try {
      options.signal?.throwIfAborted();
      if (options.signal !== undefined) addAbortSignal(options.signal, bytes);
      try {
        for await (const chunk of bytes) {
          const buffer: Buffer = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
          this.#hash?.update(buffer);
          gathered.push(buffer);
          gatheredBytes += buffer.length;
          if (gatheredBytes >= WRITE_CHUNK_BYTES) await flush();
        }
      } finally {
        await flush();
        await writing;
      }
      return this.#offset;
    } catch (error) {
      bytes.destroy();
      throw error;
    } finally {
      this.#state = 'open';
    }
  }

  async commit(expected: Expected): Promise<BlobInfo> {
    this.#assertOpen('commit');
    const { digest, sizeBytes } = expected;
    const refuse = (why: string) => {
      throw new AppError('integrity', `cannot commit ingest ${JSON.stringify(this.#id)}: ${why}`);
    };
    if (sizeBytes !== undefined && sizeBytes !== this.#offset)
      refuse(`got ${this.#offset} bytes, want ${sizeBytes} bytes`);
    try {
      const algorithm = algorithmOf(digest);
      const got = digestFromHex(algorithm, await this.#hexDigest(algorithm));
      if (got !== digest) refuse(`got ${got} (${this.#offset} bytes), want ${digest}`);
      if ((await this.#handle.stat()).size !== this.#offset) refuse('somebody else has written to it');
      // The age of a blob begins now, not at its last byte: garbage collection goes by it.
      const modifiedAt = this.#ports.now();
      await this.#handle.utimes(modifiedAt, modifiedAt);
      await this.#flushing;
      await this.#sync();
      // Also over a blob that is there already: whoever removes that one at this moment then cannot take ours along.
      await renameDurably(this.#path, this.#ports.pathOf(digest));
      await this.#close();
      return { digest, sizeBytes: this.#offset, modifiedAt };
    } catch (error) {
      throw toAppError('commit ingest', this.#id, error);
    }
  }

  async abort(): Promise<void> {
    await this.#endAppend();
    if (this.#state === 'closed') return;
    try {
      await rm(this.#path, { force: true });
    } finally {
      await this.#close();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#endAppend();
    if (this.#state === 'closed') return;
    if (this.#isLost) return this.abort();
    if (this.#hash !== undefined && this.#offset > 0) {
      const fingerprint = fingerprintOf(await this.#handle.stat());
      this.#ports.park(this.#id, { algorithm: this.#algorithm, hash: this.#hash, fingerprint });
    }
    await this.#close();
  }

  async #endAppend(): Promise<void> {
    const { bytes, ended } = this.#appending ?? {};
    if (this.#state !== 'appending' || bytes === undefined) return;
    bytes.destroy(new AppError('conflict', `cannot append to ingest ${JSON.stringify(this.#id)}: it was closed`));
    await ended?.catch(() => {});
  }

  async #close(): Promise<void> {
    this.#state = 'closed';
    try {
      await this.#handle.close();
    } finally {
      this.#ports.release(this.#id);
    }
  }

  async #write(chunks: readonly Buffer[], end: number): Promise<void> {
    if (chunks.length === 0) return;
    try {
      let rest = chunks;
      while (this.#offset < end) {
        const { bytesWritten } = await this.#handle.writev(rest, this.#offset);
        this.#offset += bytesWritten;
        if (this.#offset < end) rest = [Buffer.concat(rest).subarray(bytesWritten)];
      }
      this.#flushEarly();
    } catch (error) {
      // The hash has seen bytes that are not in the file.
      this.#hash = undefined;
      throw toAppError('append to ingest', this.#id, error);
    }
  }

  /** Lets the disk work while bytes still arrive: else all of it would have to wait at commit. */
  #flushEarly(): void {
    if (this.#flushing !== undefined || this.#offset - this.#flushed < FLUSH_EVERY_BYTES) return;
    const offset = this.#offset;
    const flushing = this.#sync().then(() => {
      this.#flushed = offset;
      this.#flushing = undefined;
    });
    // A failure stays in #flushing, for commit: the kernel reports a lost write only once.
    flushing.catch(() => {});
    this.#flushing = flushing;
  }

  async #sync(): Promise<void> {
    try {
      await this.#handle.datasync();
    } catch (error) {
      this.#isLost = true;
      throw error;
    }
  }

  async #hexDigest(algorithm: DigestAlgorithm): Promise<string> {
    // A copy, because a finished hash cannot go on, and this ingest can if the digest turns out wrong.
    if (this.#hash !== undefined && algorithm === this.#algorithm) return this.#hash.copy().digest('hex');
    const hash = createHash(algorithm);
    const buffer = Buffer.allocUnsafe(READ_CHUNK_BYTES);
    let position = 0;
    for (;;) {
      const { bytesRead } = await this.#handle.read(buffer, 0, buffer.length, position);
      if (bytesRead === 0) break;
      hash.update(buffer.subarray(0, bytesRead));
      position += bytesRead;
    }
    return hash.digest('hex');
  }

  #assertOpen(action: string): void {
    if (this.#state === 'open') return;
    const state = this.#state === 'closed' ? 'it is closed' : 'an append is running';
    throw new AppError('conflict', `cannot ${action} ingest ${JSON.stringify(this.#id)}: ${state}`);
  }
}

/** Frees what is outside the heap now instead of at a collection, which such memory would force all the time. */
function release(chunks: readonly Buffer[]): void {
  for (const { buffer, byteLength } of chunks)
    if (buffer instanceof ArrayBuffer && buffer.byteLength === byteLength) buffer.transfer(0);
}

async function makeDirectories(root: string): Promise<void> {
  for (const path of [...DIGEST_ALGORITHMS.map((algorithm) => join(root, 'blobs', algorithm)), join(root, 'ingest')])
    await mkdir(path, { recursive: true });
  await syncDirectory(join(root, 'blobs'));
  await syncDirectory(root);
}

function readStream(
  handle: FileHandle,
  digest: Digest,
  { sizeBytes, range }: { sizeBytes: number; range: ByteRange | undefined },
): Readable {
  const bounds = range === undefined ? {} : resolveRange(digest, sizeBytes, range);
  return handle.createReadStream({ ...bounds, highWaterMark: READ_CHUNK_BYTES });
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw toAppError('open', path, error);
  }
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    const stats = await stat(path);
    return stats.isFile() ? stats : undefined;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw toAppError('look at', path, error);
  }
}

async function* namesIn(path: string): AsyncGenerator<string> {
  let directory: Awaited<ReturnType<typeof opendir>>;
  try {
    directory = await opendir(path, { bufferSize: 256 });
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return;
    throw toAppError('list', path, error);
  }
  for await (const entry of directory) if (entry.isFile()) yield entry.name;
}

function infoOf(digest: Digest, stats: Stats): BlobInfo {
  return { digest, sizeBytes: stats.size, modifiedAt: stats.mtime };
}

function ingestInfoOf(id: string, stats: Stats): IngestInfo {
  return { id, offset: stats.size, diskBytes: diskBytesOf(stats), modifiedAt: stats.mtime };
}

/** Tells whether a file is as it was left: any write changes size or time, a new file the inode. */
function fingerprintOf(stats: Stats): string {
  return `${stats.ino} ${stats.size} ${stats.mtimeMs}`;
}

function toAppError(action: string, what: string, error: unknown): unknown {
  if (error instanceof AppError) return error;
  const quoted = JSON.stringify(what);
  if (hasCode(error, 'ENOSPC', 'EDQUOT'))
    return new AppError('unavailable', `cannot ${action} ${quoted}: the disk is full`, { cause: error });
  if (hasCode(error, 'EIO', 'EROFS', 'EMFILE', 'ENFILE', 'ESTALE', 'EACCES', 'EPERM', 'ENOENT', 'ENOTDIR', 'ELOOP'))
    return new AppError('unavailable', `cannot ${action} ${quoted}: ${messageOf(error)}`, { cause: error });
  return error;
}
