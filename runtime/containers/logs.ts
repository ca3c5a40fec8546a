/**
 * ContainerLog: what a container has printed, as a stream that can be read from any position, again, and after a crash.
 * conmon writes it, we read it; attach and logs are the same reading.
 *
 *   <directory>/current       conmon appends here
 *   <directory>/<number>      older segments; `current` is the one after the highest number
 *
 * Rotation: rename `current`, tell conmon to reopen, and only a segment that conmon has left is ever unlinked. A file is
 * never truncated, since conmon's reopened descriptor does not append. Readers keep their segment open, so unlinking
 * takes nothing from them; a reader that pins keeps the segments that it has still to read as well, another one that is
 * too slow skips them. One ContainerLog per container: it alone rotates, so positions are never ambiguous.
 */
import { type FSWatcher, watch } from 'node:fs';
import { type FileHandle, mkdir, open, readdir, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { diskBytesOf } from '../../shared/disk-bytes.ts';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { OutputChunk } from './containers.ts';
import { createLogDecoder, type DecodeOptions, findTail } from './log-format.ts';

const CURRENT = 'current';
/** A reader starts small, since most logs are; one that lags reads in large pieces. */
const READ_MIN_BYTES = 64 * 1024;
const READ_MAX_BYTES = 1 << 20;
const TAIL_BLOCK_BYTES = 64 * 1024;
const LAG_CHECK_MS = 50;
/** How long a follower lets a busy log grow before it reads on: short for eyes, long for a processor. */
const PACE_MS = 4;
const REOPEN_TIMEOUT_MS = 10_000;
const NEWLINE = 0x0a;

/** A byte of the output stream; valid across rotations and restarts of the container, within this process. */
export interface LogPosition {
  readonly segment: number;
  readonly byte: number;
}

export interface LogLimits {
  /** Of one segment; it is rotated soon after it has grown beyond. */
  readonly maxBytes: number;
  /** Segments kept, `current` included; at least 1. */
  readonly maxFiles: number;
}

export interface LogReadOptions extends DecodeOptions, Cancelable {
  readonly from: LogPosition;
  /** Goes on with what is written until this resolves, then to the end of that. Absent: stops at the end. */
  readonly follow?: Promise<unknown> | undefined;
  /** Nothing that this reader has still to read is unlinked. */
  readonly pin?: boolean | undefined;
  /** Waited for, with the place behind what has been read, each time the reader's reader has taken all of it. */
  readonly onRead?: ((position: LogPosition) => Promise<void>) | undefined;
  /** Told how many bytes of log lie before the reader: while the log grows, and as the reader moves on. */
  readonly onLag?: ((bytes: number) => void) | undefined;
}

/** The conmon that writes the log. */
export interface LogWriter {
  /** Tells it to close what it has open, then to open `path` anew. */
  reopen(): Promise<void>;
  /** Resolves when it writes no more. */
  readonly gone: Promise<unknown>;
}

export interface ContainerLog {
  /** Where conmon is told to write. */
  readonly path: string;
  /** The oldest byte that is still there. */
  start(): Promise<LogPosition>;
  /** The first byte that is not written yet. */
  end(): Promise<LogPosition>;
  /** Where the last `lines` lines begin. */
  tail(lines: number): Promise<LogPosition>;
  /** Output in the order in which it was written. A chunk's bytes are gone when the next one is asked for. */
  read(options: LogReadOptions): AsyncGenerator<OutputChunk, void, undefined>;
  /** Begins a new segment when `current` is larger than the limit, or always: what an earlier process left must be rotated first. */
  rotate(writer: LogWriter, options?: { readonly always?: boolean }): Promise<void>;
  /** Bytes on disk. */
  diskBytes(): Promise<number>;
}

/** The directory is made if it is absent. The writer, if there is one, writes to `path`. */
export async function openContainerLog(directory: string, limits: LogLimits): Promise<ContainerLog> {
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const names = await readdir(directory);
  const segments = names
    .filter((name) => /^[1-9]\d*$/.test(name))
    .map(Number)
    .sort((a, b) => a - b);
  return new SegmentedLog(directory, { limits, segments });
}

interface Found {
  readonly limits: LogLimits;
  readonly segments: readonly number[];
}

class SegmentedLog implements ContainerLog {
  readonly path: string;
  readonly #directory: string;
  readonly #limits: LogLimits;
  /** Older segments that exist, oldest first. */
  #segments: number[];
  #current: number;
  /** The newest segment that the writer is known to have left. */
  #sealed: number;
  #rotation: Promise<void> = Promise.resolve();
  readonly #pins = new Set<{ segment: number }>();
  readonly #listeners = new Set<() => void>();
  #watcher: FSWatcher | undefined;

  constructor(directory: string, { limits, segments }: Found) {
    this.#directory = directory;
    this.#limits = limits;
    this.path = join(directory, CURRENT);
    this.#segments = [...segments];
    this.#current = (segments.at(-1) ?? 0) + 1;
    this.#sealed = this.#current - 1;
  }

  async start(): Promise<LogPosition> {
    return { segment: this.#segments[0] ?? this.#current, byte: 0 };
  }

  async end(): Promise<LogPosition> {
    await this.#rotation;
    const segment = this.#writing();
    const handle = await this.#open(segment);
    if (handle === undefined) return { segment, byte: 0 };
    try {
      // A record may be half written just now: the end is after the last whole one.
      let byte = (await handle.stat()).size;
      const block = Buffer.allocUnsafe(TAIL_BLOCK_BYTES);
      while (byte > 0) {
        const from = Math.max(0, byte - block.length);
        const { bytesRead } = await handle.read(block, 0, byte - from, from);
        const newline = block.subarray(0, bytesRead).lastIndexOf(NEWLINE);
        if (newline !== -1) return { segment, byte: from + newline + 1 };
        byte = from;
      }
      return { segment, byte: 0 };
    } finally {
      await handle.close();
    }
  }

  async tail(lines: number): Promise<LogPosition> {
    const end = await this.end();
    let position = end;
    let wanted = lines;
    for (const segment of [...this.#segments, this.#current].filter((number) => number <= end.segment).reverse()) {
      if (wanted === 0) break;
      const handle = await this.#open(segment);
      if (handle === undefined) continue;
      try {
        const size = segment === end.segment ? end.byte : (await handle.stat()).size;
        const { byte, found } = await findTailInFile(handle, { size, lines: wanted });
        position = { segment, byte };
        wanted -= found;
      } finally {
        await handle.close();
      }
    }
    return position;
  }

  async *read(options: LogReadOptions): AsyncGenerator<OutputChunk, void, undefined> {
    const { signal, follow } = options;
    const decoder = createLogDecoder(options);
    const cursor = { segment: options.from.segment };
    let byte = options.from.byte;
    let handle: FileHandle | undefined;
    let buffer = Buffer.allocUnsafeSlow(READ_MIN_BYTES);
    /** Of a record that is not whole yet; at the buffer's beginning. */
    let kept = 0;

    let isDone = follow === undefined;
    let isIdle = false;
    let isHeld = false;
    let wake: (() => void) | undefined;
    const onChange = () => wake?.();
    const finish = () => {
      isDone = true;
      onChange();
    };
    const { onLag } = options;
    const reportLag = () => {
      if (onLag !== undefined) this.#bytesAfter({ segment: cursor.segment, byte }).then(onLag, () => {});
    };
    // Only while the reader's reader holds it up; otherwise it keeps up by itself.
    const lagTimer = onLag === undefined ? undefined : setInterval(() => isHeld && reportLag(), LAG_CHECK_MS);
    follow?.then(finish, finish);
    signal?.addEventListener('abort', onChange, { once: true });
    if (options.pin === true) this.#pins.add(cursor);
    try {
      for (;;) {
        signal?.throwIfAborted();
        // Looked at before reading: what is read afterwards is then surely the last of it.
        const isSealed = cursor.segment <= this.#sealed;
        const isLast = isDone && !isSealed;
        const changed = isIdle ? new Promise<void>((resolve) => (wake = resolve)) : undefined;
        handle ??= await this.#open(cursor.segment);
        const space = buffer.length - kept;
        const bytesRead = handle === undefined ? 0 : (await handle.read(buffer, kept, space, byte)).bytesRead;
        if (bytesRead > 0) {
          byte += bytesRead;
          const filled = kept + bytesRead;
          const { chunks, consumed } = decoder.decode(buffer.subarray(0, filled));
          isHeld = true;
          yield* chunks;
          kept = filled - consumed;
          await options.onRead?.({ segment: cursor.segment, byte: byte - kept });
          isHeld = false;
          if (decoder.isPast) return;
          const next =
            filled === buffer.length && filled < READ_MAX_BYTES ? Buffer.allocUnsafeSlow(READ_MAX_BYTES) : buffer;
          buffer.copy(next, 0, consumed, filled);
          buffer = next;
          if (bytesRead === space) {
            reportLag();
          } else if (!isLast && !isSealed) {
            // What prints much is not watched line by line: that would cost more than the reading.
            this.#unlisten(onChange);
            isIdle = false;
            await delay(PACE_MS);
          }
          continue;
        }
        if (isSealed) {
          await handle?.close();
          handle = undefined;
          const { segment } = cursor;
          cursor.segment = this.#segments.find((number) => number > segment) ?? this.#current;
          byte = 0;
          // Torn by a crash: the writer begins a segment with a whole record.
          kept = 0;
          if (options.pin === true) await this.#prune();
          continue;
        }
        if (isLast) {
          // A rotation under way may still turn up another segment.
          await this.#rotation;
          if (cursor.segment === this.#writing()) return;
          continue;
        }
        // Watched from before the next look, so that nothing comes between look and watch.
        if (changed !== undefined) await changed;
        else this.#listen(onChange);
        isIdle = true;
      }
    } finally {
      clearInterval(lagTimer);
      signal?.removeEventListener('abort', onChange);
      this.#unlisten(onChange);
      await handle?.close();
      if (this.#pins.delete(cursor)) await this.#prune();
    }
  }

  rotate(writer: LogWriter, options: { readonly always?: boolean } = {}): Promise<void> {
    const rotation = this.#rotation.then(() => this.#rotate(writer, options.always === true));
    this.#rotation = rotation.catch(() => {});
    return rotation;
  }

  async #rotate(writer: LogWriter, always: boolean): Promise<void> {
    const info = await stat(this.path).catch(absent);
    if (info !== undefined) {
      if (!always && info.size < this.#limits.maxBytes) return;
      await rename(this.path, join(this.#directory, String(this.#current)));
      this.#segments.push(this.#current);
      this.#current += 1;
    }
    try {
      await this.#reopened(writer);
    } finally {
      // Also when the writer has gone: what it wrote is in the segments, and the next one begins with `current`.
      this.#sealed = this.#current - 1;
      for (const listener of this.#listeners) listener();
    }
    await this.#prune();
  }

  /** Waits until the writer has left its old segment: it opens the new one after closing the old one. */
  async #reopened(writer: LogWriter): Promise<void> {
    const changed = Promise.withResolvers<void>();
    let next = changed;
    const onChange = () => next.resolve();
    this.#listen(onChange);
    const deadline = Promise.withResolvers<never>();
    const timer = setTimeout(
      () => deadline.reject(new AppError('timeout', `cannot rotate ${JSON.stringify(this.path)}: nobody reopened it`)),
      REOPEN_TIMEOUT_MS,
    );
    let isGone = false;
    const gone = writer.gone.then(() => {
      isGone = true;
    });
    try {
      await Promise.race([writer.reopen(), gone]);
      while (!isGone && (await stat(this.path).catch(absent)) === undefined) {
        await Promise.race([next.promise, gone, deadline.promise]);
        next = Promise.withResolvers<void>();
      }
    } finally {
      clearTimeout(timer);
      this.#unlisten(onChange);
    }
  }

  async diskBytes(): Promise<number> {
    const paths = [...this.#segments.map((number) => join(this.#directory, String(number))), this.path];
    const infos = await Promise.all(paths.map((path) => stat(path).catch(absent)));
    return infos.reduce((sum, info) => sum + (info === undefined ? 0 : diskBytesOf(info)), 0);
  }

  /** The segment that output goes to now; `current` may not exist yet. */
  #writing(): number {
    return this.#sealed + 1;
  }

  async #open(segment: number): Promise<FileHandle | undefined> {
    for (;;) {
      const isCurrent = segment === this.#current;
      const path = isCurrent ? this.path : join(this.#directory, String(segment));
      const handle = await open(path, 'r').catch(absent);
      // It was renamed meanwhile: what was opened may be its successor.
      if (!isCurrent || segment === this.#current) return handle;
      await handle?.close();
    }
  }

  async #bytesAfter({ segment, byte }: LogPosition): Promise<number> {
    let bytes = -byte;
    for (const number of [...this.#segments, this.#current].filter((number) => number >= segment)) {
      const path = number === this.#current ? this.path : join(this.#directory, String(number));
      bytes += (await stat(path).catch(absent))?.size ?? 0;
    }
    return Math.max(0, bytes);
  }

  async #prune(): Promise<void> {
    const oldestPinned = Math.min(...[...this.#pins].map(({ segment }) => segment));
    const surplus = this.#segments.length + 1 - this.#limits.maxFiles;
    const doomed = this.#segments.slice(0, Math.max(0, surplus)).filter((number) => number < oldestPinned);
    const removable = doomed.filter((number) => number <= this.#sealed);
    this.#segments = this.#segments.filter((number) => !removable.includes(number));
    await Promise.all(removable.map((number) => rm(join(this.#directory, String(number)), { force: true })));
  }

  #listen(listener: () => void): void {
    this.#listeners.add(listener);
    this.#watcher ??= watch(this.#directory, () => {
      for (const each of this.#listeners) each();
    }).on('error', () => {});
  }

  #unlisten(listener: () => void): void {
    this.#listeners.delete(listener);
    if (this.#listeners.size > 0) return;
    this.#watcher?.close();
    this.#watcher = undefined;
  }
}

async function findTailInFile(
  handle: FileHandle,
  options: { readonly size: number; readonly lines: number },
): Promise<{ readonly byte: number; readonly found: number }> {
  const { size, lines } = options;
  let from = size;
  let bytes = Buffer.alloc(0);
  for (;;) {
    const length = Math.min(TAIL_BLOCK_BYTES, from);
    const block = Buffer.alloc(length);
    await handle.read(block, 0, length, from - length);
    from -= length;
    bytes = Buffer.concat([block, bytes]);
    // A newline before the first byte of the file makes its first record a whole one.
    const whole = from === 0 ? Buffer.concat([Buffer.of(NEWLINE), bytes]) : bytes;
    const { offset, found } = findTail(whole, lines);
    if (from === 0) return { byte: offset - 1, found };
    if (found === lines && offset > 0 && isLineEndBefore(whole, offset)) return { byte: from + offset, found };
  }
}

/** findTail stops for want of bytes, or because the record before is another line; only then is it sure. */
function isLineEndBefore(bytes: Buffer, offset: number): boolean {
  return bytes.lastIndexOf(NEWLINE, offset - 2) !== -1;
}

function absent(error: unknown): undefined {
  if (hasCode(error, 'ENOENT')) return undefined;
  throw error;
}
