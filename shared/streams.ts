/**
 * Bytes in motion. Everything here keeps one promise: wrong bytes make the stream fail, they never make it end.
 * Consumers must therefore run to EOF before they believe what they read.
 */
import { createHash } from 'node:crypto';
import { type Readable, Transform } from 'node:stream';
import { algorithmOf, type Digest, type DigestAlgorithm, digestFromHex } from './digest.ts';
import { AppError } from './errors.ts';

export interface Cancelable {
  readonly signal?: AbortSignal | undefined;
}

/** What bytes must turn out to be. sizeBytes undefined = any size. */
export interface Expected {
  readonly digest: Digest;
  readonly sizeBytes?: number | undefined;
}

/** Passes bytes through; fails instead of ending with AppError 'integrity' if they are not `expected`. */
export function verify(expected: Expected): Transform {
  const { digest, sizeBytes } = expected;
  const algorithm = algorithmOf(digest);
  const hash = createHash(algorithm);
  let seen = 0;
  return new Transform({
    highWaterMark: 1 << 20,
    transform(chunk: Buffer, _encoding, done) {
      seen += chunk.length;
      if (sizeBytes !== undefined && seen > sizeBytes)
        return done(
          new AppError('integrity', `cannot verify ${digest}: got more than the ${sizeBytes} bytes expected`),
        );
      hash.update(chunk);
      done(null, chunk);
    },
    flush(done) {
      const got = digestFromHex(algorithm, hash.digest('hex'));
      const same = got === digest && (sizeBytes === undefined || seen === sizeBytes);
      const want = sizeBytes === undefined ? digest : `${digest} (${sizeBytes} bytes)`;
      done(same ? null : new AppError('integrity', `cannot verify content: got ${got} (${seen} bytes), want ${want}`));
    },
  });
}

export interface Measured {
  readonly digest: Digest;
  readonly sizeBytes: number;
}

/** Passes bytes through and tells afterwards what they were; `result()` is valid once the stream has ended. */
export function measure(algorithm: DigestAlgorithm = 'sha256'): Transform & { result(): Measured } {
  const hash = createHash(algorithm);
  let sizeBytes = 0;
  let measured: Measured | undefined;
  const transform = new Transform({
    highWaterMark: 1 << 20,
    transform(chunk: Buffer, _encoding, done) {
      sizeBytes += chunk.length;
      hash.update(chunk);
      done(null, chunk);
    },
    flush(done) {
      measured = { digest: digestFromHex(algorithm, hash.digest('hex')), sizeBytes };
      done();
    },
  });
  return Object.assign(transform, {
    result(): Measured {
      if (measured === undefined) throw new AppError('conflict', 'cannot tell what a stream held before it has ended');
      return measured;
    },
  });
}

/** Waits for it, but no longer than until the signal. The work itself goes on. @throws the signal's reason */
export async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await work;
  const aborted = Promise.withResolvers<never>();
  const stop = () => aborted.reject(signal.reason);
  signal.addEventListener('abort', stop, { once: true });
  if (signal.aborted) stop();
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

/** Fails with 'too-large' once more than maxBytes have passed. */
export function limit(maxBytes: number, what: string): Transform {
  let seen = 0;
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      seen += chunk.length;
      if (seen > maxBytes)
        done(new AppError('too-large', `cannot accept ${what}: it is larger than ${maxBytes} bytes`));
      else done(null, chunk);
    },
  });
}

export interface CollectOptions extends Cancelable {
  /** Names the thing in the error. */
  readonly what: string;
}

/** Reads a stream whole. The stream is destroyed on any failure. @throws AppError 'too-large' beyond maxBytes */
export async function collect(stream: Readable, maxBytes: number, options: CollectOptions): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let seen = 0;
  const stop = () => stream.destroy(new AppError('timeout', `cannot read ${options.what}: it was cancelled`));
  // A file that nobody reads or closes ends the process when its handle is collected.
  if (options.signal?.aborted === true) stream.destroy();
  options.signal?.throwIfAborted();
  options.signal?.addEventListener('abort', stop, { once: true });
  try {
    for await (const chunk of stream) {
      const bytes: Buffer = typeof chunk === 'string' ? Buffer.from(chunk) : chunk;
      seen += bytes.length;
      if (seen > maxBytes)
        throw new AppError('too-large', `cannot accept ${options.what}: it is larger than ${maxBytes} bytes`);
      chunks.push(bytes);
    }
  } finally {
    options.signal?.removeEventListener('abort', stop);
  }
  return Buffer.concat(chunks, seen);
}
