/**
 * Many files out of one layer image, read forwards: neighbours come with one read, so thousands of small files cost
 * little more than their bytes. For one file openFileInImage() of erofs-reader.ts is enough.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { AppError } from '../../shared/errors.ts';
import { type FileNode, rangesOf } from './tree.ts';

/** Disposing closes the image. */
export interface ImageFiles extends AsyncDisposable {
  /** The file's bytes as far as they have been read with its neighbours', which most of many small files have. */
  known(file: FileNode): readonly Buffer[] | undefined;
  /** The file's bytes. The pieces stay valid. One call at a time. */
  read(file: FileNode): AsyncGenerator<Buffer, void, undefined>;
}

const WINDOW_BYTES = 1 << 20;
/** A small file's last bytes lie with its inode, a little before its blocks. */
const WINDOWS = 3;

interface Window {
  readonly offset: number;
  readonly bytes: Buffer;
}

/** @throws AppError 'not-found' */
export async function openImageFiles(path: string): Promise<ImageFiles> {
  const handle = await open(path, 'r').catch((cause: unknown) => {
    throw new AppError('not-found', `cannot open layer image ${JSON.stringify(path)}`, { cause });
  });
  const windows: Window[] = [];

  function knownWindow(offset: number): Window | undefined {
    const index = windows.findIndex(
      (window) => offset >= window.offset && offset < window.offset + window.bytes.length,
    );
    // The one that was used last goes last.
    if (index !== -1 && index !== windows.length - 1) windows.push(...windows.splice(index, 1));
    return index === -1 ? undefined : windows.at(-1);
  }

  async function windowAt(offset: number): Promise<Window> {
    const known = knownWindow(offset);
    if (known !== undefined) return known;
    const bytes = await readAt(handle, offset, path);
    const window = { offset, bytes };
    if (windows.length >= WINDOWS) windows.shift();
    windows.push(window);
    return window;
  }

  return {
    known(file) {
      const pieces: Buffer[] = [];
      for (const { offset, sizeBytes } of rangesOf(file)) {
        const window = knownWindow(offset);
        const start = offset - (window?.offset ?? 0);
        if (window === undefined || start + sizeBytes > window.bytes.length) return undefined;
        pieces.push(window.bytes.subarray(start, start + sizeBytes));
      }
      return pieces;
    },
    async *read(file) {
      for (const { offset, sizeBytes } of rangesOf(file))
        for (let at = offset; at < offset + sizeBytes; ) {
          const window = await windowAt(at);
          const start = at - window.offset;
          const piece = window.bytes.subarray(start, Math.min(window.bytes.length, start + offset + sizeBytes - at));
          at += piece.length;
          yield piece;
        }
    },
    [Symbol.asyncDispose]: () => handle.close(),
  };
}

async function readAt(handle: FileHandle, offset: number, path: string): Promise<Buffer> {
  const buffer = Buffer.allocUnsafeSlow(WINDOW_BYTES);
  const { bytesRead } = await handle.read(buffer, 0, buffer.length, offset);
  if (bytesRead === 0)
    throw new AppError('integrity', `cannot read layer image ${JSON.stringify(path)}: it is cut off`);
  return buffer.subarray(0, bytesRead);
}
