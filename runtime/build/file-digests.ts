/**
 * FileDigests: SHA-256 of the files of layers, for the keys of build steps. Computed when a step first asks, many of them by
 * a worker thread, and remembered as long as the layer exists:
 *
 *   build/digests/<layer id hex>     records of 40 bytes: where the file's data is in the image (8, little endian), digest (32)
 *
 * A layer never changes, so a record is right for ever; a damaged or missing file only means to compute again.
 */
import { createHash } from 'node:crypto';
import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { writeDurably } from '../../shared/atomic-file.ts';
import { hexOf } from '../../shared/digest.ts';
import { AppError, hasCode } from '../../shared/errors.ts';
import { openImageFiles } from '../layers/image-files.ts';
import type { Layer, LayerId } from '../layers/layer-store.ts';
import { BLOCK_BYTES, type FileNode } from '../layers/tree.ts';
import type { DigestAnswer, DigestRequest } from './digest-worker.ts';

export interface FileDigests {
  /** 32 bytes each, in the order given. @throws AppError 'not-found' (the layer has gone), 'unavailable' */
  of(layer: Layer, files: readonly FileNode[]): Promise<readonly Uint8Array[]>;
  /** Waits until what was computed is on the disk, as far as the disk takes it. */
  settled(): Promise<void>;
  /** Forgets all but these layers. */
  keepOnly(layers: ReadonlySet<LayerId>): Promise<void>;
}

export interface FileDigestsOptions {
  /** The state directory. */
  readonly root: string;
  pathOf(layer: Layer): string;
}

const DIGEST_BYTES = 32;
const RECORD_BYTES = 8 + DIGEST_BYTES;
/** Files whose digests stay in memory: about 100 bytes each. */
const MEMORY_FILES_MAX = 400_000;
/** Beyond these a thread does it. */
const HERE_FILES_MAX = 1000;
const HERE_BYTES_MAX = 4 << 20;
/** Beyond this a second thread helps. */
const SPLIT_BYTES = 64 << 20;
const EMPTY: Uint8Array = createHash('sha256').digest();

type Known = Map<number, Uint8Array>;

export function createFileDigests(options: FileDigestsOptions): FileDigests {
  const directory = join(options.root, 'build', 'digests');
  /** Least recently used first. */
  const memory = new Map<LayerId, Known>();
  /** The last work on a layer: two who ask at the same time compute once. */
  const working = new Map<LayerId, Promise<unknown>>();
  let writing: Promise<void> = Promise.resolve();
  const fileOf = (id: LayerId) => join(directory, hexOf(id));

  async function known(id: LayerId): Promise<Known> {
    const found = memory.get(id) ?? (await load(fileOf(id)));
    memory.delete(id);
    memory.set(id, found);
    let files = [...memory.values()].reduce((sum, { size }) => sum + size, 0);
    for (const [oldest, { size }] of memory) {
      if (files <= MEMORY_FILES_MAX || oldest === id) break;
      memory.delete(oldest);
      files -= size;
    }
    return found;
  }

  /** Nobody waits for it: what is not written is computed again. */
  function write(id: LayerId, bytes: Buffer): void {
    writing = writing
      .then(() => mkdir(directory, { recursive: true, mode: 0o700 }))
      .then(() => writeDurably(fileOf(id), bytes))
      .catch(() => {});
  }

  async function compute(layer: Layer, files: readonly FileNode[]): Promise<readonly Uint8Array[]> {
    const digests = await known(layer.id);
    const missing = new Map<number, FileNode>();
    for (const file of files) if (file.sizeBytes > 0 && !digests.has(keyOf(file))) missing.set(keyOf(file), file);
    if (missing.size > 0) {
      for (const [key, digest] of await digestFiles(options.pathOf(layer), missing)) digests.set(key, digest);
      write(layer.id, encode(digests));
    }
    return files.map((file) => {
      const digest = file.sizeBytes === 0 ? EMPTY : digests.get(keyOf(file));
      if (digest === undefined) throw new RangeError('a digest is missing');
      return digest;
    });
  }

  return {
    async of(layer, files) {
      const before = working.get(layer.id) ?? Promise.resolve();
      const mine = before.catch(() => {}).then(() => compute(layer, files));
      working.set(layer.id, mine);
      try {
        return await mine;
      } finally {
        if (working.get(layer.id) === mine) working.delete(layer.id);
      }
    },
    settled: () => writing,
    async keepOnly(layers) {
      await writing;
      const kept = new Set([...layers].map(hexOf));
      for (const id of memory.keys()) if (!layers.has(id)) memory.delete(id);
      for (const name of await names(directory)) if (!kept.has(name)) await rm(join(directory, name), { force: true });
    },
  };
}

/** Where its data begins in the image, which no other file of the image shares. */
function keyOf({ sizeBytes, dataOffset, tailOffset }: FileNode): number {
  return tailOffset !== undefined && sizeBytes < BLOCK_BYTES ? tailOffset : dataOffset;
}

function encode(digests: Known): Buffer {
  const bytes = Buffer.allocUnsafe(digests.size * RECORD_BYTES);
  let at = 0;
  for (const [key, digest] of digests) {
    bytes.writeBigUInt64LE(BigInt(key), at);
    bytes.set(digest, at + 8);
    at += RECORD_BYTES;
  }
  return bytes;
}

async function load(path: string): Promise<Known> {
  const known: Known = new Map();
  let bytes: Buffer;
  try {
    bytes = await readFile(path);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return known;
    throw error;
  }
  if (bytes.length % RECORD_BYTES !== 0) return known;
  for (let at = 0; at < bytes.length; at += RECORD_BYTES)
    known.set(Number(bytes.readBigUInt64LE(at)), bytes.subarray(at + 8, at + RECORD_BYTES));
  return known;
}

/** In the order of the image, so that the disk is read forwards. */
async function digestFiles(
  path: string,
  files: ReadonlyMap<number, FileNode>,
): Promise<readonly (readonly [number, Uint8Array])[]> {
  const sorted = [...files].sort(([a], [b]) => a - b);
  if (isLittle(sorted)) return await digestHere(path, sorted);
  const parts = split(sorted);
  const found = await Promise.all(
    parts.map((part) =>
      runWorker({
        path,
        files: part.map(([, { sizeBytes, dataOffset, tailOffset }]) => ({ sizeBytes, dataOffset, tailOffset })),
      }),
    ),
  );
  return parts.flatMap((part, index) => {
    const digests = found[index] ?? new Uint8Array();
    return part.map(([key], at) => [key, digests.subarray(at * DIGEST_BYTES, (at + 1) * DIGEST_BYTES)] as const);
  });
}

/** Less work than to start a thread for it. */
function isLittle(files: readonly (readonly [number, FileNode])[]): boolean {
  return (
    files.length <= HERE_FILES_MAX && files.reduce((sum, [, { sizeBytes }]) => sum + sizeBytes, 0) <= HERE_BYTES_MAX
  );
}

async function digestHere(
  path: string,
  files: readonly (readonly [number, FileNode])[],
): Promise<readonly (readonly [number, Uint8Array])[]> {
  await using image = await openImageFiles(path);
  const found: (readonly [number, Uint8Array])[] = [];
  for (const [key, file] of files) {
    const hash = createHash('sha256');
    for await (const piece of image.read(file)) hash.update(piece);
    found.push([key, hash.digest()]);
  }
  return found;
}

function split<T extends readonly [number, FileNode]>(files: readonly T[]): readonly (readonly T[])[] {
  const total = files.reduce((sum, [, { sizeBytes }]) => sum + sizeBytes, 0);
  if (total <= SPLIT_BYTES) return [files];
  let half = 0;
  const middle = files.findIndex(([, { sizeBytes }]) => {
    half += sizeBytes;
    return half >= total / 2;
  });
  return [files.slice(0, middle), files.slice(middle)].filter((part) => part.length > 0);
}

function runWorker(request: DigestRequest): Promise<Uint8Array> {
  const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>();
  const worker = new Worker(new URL('./digest-worker.ts', import.meta.url), { workerData: request });
  worker.on('message', (answer: DigestAnswer) => {
    if (answer.kind === 'done') resolve(answer.digests);
    else reject(new AppError('unavailable', `cannot compute digests of a layer's files: ${answer.message}`));
  });
  worker.on('error', (cause) =>
    reject(new AppError('unavailable', "cannot compute digests of a layer's files: the worker failed", { cause })),
  );
  worker.on('exit', () =>
    reject(new AppError('unavailable', "cannot compute digests of a layer's files: the worker ended")),
  );
  return promise;
}

async function names(directory: string): Promise<readonly string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return [];
    throw error;
  }
}
