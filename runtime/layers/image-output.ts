/**
 * Where the bytes of an image go: large pieces one after the other, and corrections of what was written before.
 *
 * A layer that is pulled goes past the page cache, which saves the kernel a page, a copy and a writeback for each 4 KiB,
 * and leaves what the host has in memory where it is. Its last piece, which has the directories, stays cached.
 */
import { closeSync, constants, ftruncateSync, openSync, write, writeSync } from 'node:fs';
import { AppError, hasCode } from '../../shared/errors.ts';

export interface ImageOutput {
  /** Memory for the next piece, which may be as large as it; another one after each write(). */
  readonly buffer: Buffer;
  /** Writes the first `sizeBytes` of `buffer` to `offset`, behind all pieces before. @throws AppError 'unavailable' (disk full) */
  write(sizeBytes: number, offset: number): void;
  /** Replaces bytes of earlier pieces. @throws as write */
  correct(bytes: Uint8Array, offset: number): void;
  /** The file has this size, whatever was left out at its end. */
  end(sizeBytes: number): void;
  /** Everything is in the kernel's hands, or the disk's. @throws as write */
  settled(): Promise<void>;
}

/** One write(2) each; large enough to be cheap, small beside a worker's other memory. */
const PIECE_BYTES = 4 << 20;
const WASM_PAGE_BYTES = 1 << 16;
/** Its memory begins on a page, as writing past the cache wants it; no other memory here promises that. */
declare const WebAssembly: {
  readonly Memory: new (size: { readonly initial: number }) => { readonly buffer: ArrayBuffer };
};

/** The descriptor stays the caller's. */
export function createCachedOutput(fd: number): ImageOutput {
  return {
    buffer: Buffer.allocUnsafe(PIECE_BYTES),
    write(sizeBytes, offset) {
      writeFully(fd, this.buffer.subarray(0, sizeBytes), offset);
    },
    correct: (bytes, offset) => writeFully(fd, bytes, offset),
    end: (sizeBytes) => ftruncateSync(fd, sizeBytes),
    settled: async () => {},
  };
}

/** Two pieces of memory that begin on a page: one fills while the other is written. */
export type PagedBuffers = readonly [Buffer, Buffer];

export function createPagedBuffers(): PagedBuffers {
  const { buffer } = new WebAssembly.Memory({ initial: (2 * PIECE_BYTES) / WASM_PAGE_BYTES });
  return [Buffer.from(buffer, 0, PIECE_BYTES), Buffer.from(buffer, PIECE_BYTES)];
}

interface Flight {
  readonly from: number;
  readonly to: number;
  readonly landed: Promise<void>;
}

/**
 * Past the page cache as far as the filesystem lets it. `fd` and the buffers stay the caller's; disposing waits for what is
 * under way, and then `release` may give the buffers to another.
 */
export class DirectOutput implements ImageOutput, AsyncDisposable {
  readonly #fd: number;
  readonly #buffers: PagedBuffers;
  readonly #release: () => void;
  /** undefined = the filesystem does not know it. */
  #direct: number | undefined;
  #filling = 0;
  #flight: Flight | undefined;
  #failure: unknown;
  /** Of the bytes in flight. */
  readonly #corrections: { readonly bytes: Buffer; readonly offset: number }[] = [];

  constructor(fd: number, buffers: PagedBuffers, release: () => void) {
    this.#fd = fd;
    this.#buffers = buffers;
    this.#release = release;
    this.#direct = openDirect(fd);
  }

  get buffer(): Buffer {
    return this.#buffers[this.#filling as 0 | 1];
  }

  write(sizeBytes: number, offset: number): void {
    if (this.#failure !== undefined) throw this.#failure;
    const { buffer } = this;
    // While one piece is on its way the next waits for the disk like any other: it is two pieces ahead.
    if (this.#flight !== undefined || this.#direct === undefined || sizeBytes < PIECE_BYTES) {
      writeFully(this.#fd, buffer.subarray(0, sizeBytes), offset);
      return;
    }
    const landed = this.#launch(this.#direct, buffer, offset)
      .finally(() => {
        this.#flight = undefined;
      })
      .then(() => this.#correctLater())
      .catch((error: unknown) => {
        this.#failure = error;
      });
    this.#flight = { from: offset, to: offset + sizeBytes, landed };
    this.#filling = 1 - this.#filling;
  }

  async #launch(direct: number, buffer: Buffer, offset: number): Promise<void> {
    let written = 0;
    try {
      written = await new Promise<number>((resolve, reject) => {
        write(direct, buffer, 0, buffer.length, offset, (error, count) => (error ? reject(error) : resolve(count)));
      });
    } catch (error) {
      // Some filesystems open a file so and then refuse to write, or want other units.
      if (!hasCode(error, 'EINVAL')) throw diskError(error);
      closeSync(direct);
      this.#direct = undefined;
    }
    if (written < buffer.length) writeFully(this.#fd, buffer.subarray(written), offset + written);
  }

  #correctLater(): void {
    for (const { bytes, offset } of this.#corrections.splice(0)) this.correct(bytes, offset);
  }

  correct(bytes: Uint8Array, offset: number): void {
    const flight = this.#flight;
    const isInFlight = flight !== undefined && offset < flight.to && offset + bytes.length > flight.from;
    if (isInFlight) this.#corrections.push({ bytes: Buffer.from(bytes), offset });
    else writeFully(this.#fd, bytes, offset);
  }

  end(sizeBytes: number): void {
    ftruncateSync(this.#fd, sizeBytes);
  }

  async settled(): Promise<void> {
    await this.#flight?.landed;
    if (this.#failure !== undefined) throw this.#failure;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#flight?.landed;
    if (this.#direct !== undefined) closeSync(this.#direct);
    this.#direct = undefined;
    this.#release();
  }
}

function openDirect(fd: number): number | undefined {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_WRONLY | constants.O_DIRECT);
  } catch (error) {
    if (hasCode(error, 'EINVAL', 'ENOENT', 'EACCES')) return undefined;
    throw error;
  }
}

function writeFully(fd: number, bytes: Uint8Array, at: number): void {
  try {
    for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, at + done);
  } catch (error) {
    throw diskError(error);
  }
}

function diskError(error: unknown): unknown {
  if (!hasCode(error, 'ENOSPC', 'EDQUOT')) return error;
  return new AppError('unavailable', 'cannot write a layer image: the disk is full', { cause: error });
}
