/** The worker thread of file-digests.ts: reads files out of one layer image and hashes them, then ends. */
import { createHash, hash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { messageOf } from '../../shared/errors.ts';
import { type FileNode, rangesOf } from '../layers/tree.ts';

export interface DigestRequest {
  readonly path: string;
  readonly files: readonly Pick<FileNode, 'sizeBytes' | 'dataOffset' | 'tailOffset'>[];
}

export type DigestAnswer =
  /** 32 bytes a file. */
  { readonly kind: 'done'; readonly digests: Uint8Array } | { readonly kind: 'failed'; readonly message: string };

const PIECE_BYTES = 1 << 20;
const DIGEST_BYTES = 32;

if (parentPort !== null) parentPort.postMessage(answer(workerData));

function answer(request: DigestRequest): DigestAnswer {
  try {
    return { kind: 'done', digests: digests(request) };
  } catch (error) {
    return { kind: 'failed', message: messageOf(error) };
  }
}

function digests({ path, files }: DigestRequest): Uint8Array {
  const found = new Uint8Array(files.length * DIGEST_BYTES);
  const buffer = Buffer.allocUnsafeSlow(PIECE_BYTES);
  const fd = openSync(path, 'r');
  try {
    for (const [index, file] of files.entries()) found.set(digestOf(fd, file, buffer), index * DIGEST_BYTES);
  } finally {
    closeSync(fd);
  }
  return found;
}

function digestOf(fd: number, file: DigestRequest['files'][number], buffer: Buffer): Uint8Array {
  const ranges = rangesOf(file);
  const fill = (target: Buffer, offset: number) => {
    for (let done = 0; done < target.length; ) {
      const count = readSync(fd, target, done, target.length - done, offset + done);
      if (count === 0) throw new RangeError('the image is cut off');
      done += count;
    }
    return target;
  };
  if (file.sizeBytes <= buffer.length) {
    let at = 0;
    for (const { offset, sizeBytes } of ranges) {
      fill(buffer.subarray(at, at + sizeBytes), offset);
      at += sizeBytes;
    }
    return hash('sha256', buffer.subarray(0, at), 'buffer');
  }
  const running = createHash('sha256');
  for (const { offset, sizeBytes } of ranges)
    for (let at = 0; at < sizeBytes; at += buffer.length)
      running.update(fill(buffer.subarray(0, Math.min(buffer.length, sizeBytes - at)), offset + at));
  return running.digest();
}
