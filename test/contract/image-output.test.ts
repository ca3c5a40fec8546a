import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  createCachedOutput,
  createPagedBuffers,
  DirectOutput,
  type ImageOutput,
} from '../../runtime/layers/image-output.ts';

let directory: string;
let fd: number;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-output-'));
  fd = openSync(join(directory, 'image'), 'wx+');
});

afterEach(() => {
  closeSync(fd);
  rmSync(directory, { recursive: true });
});

/** Whole pieces, a short one, a hole, corrections of what is under way and of what is not. */
async function writeAll(output: ImageOutput): Promise<Buffer> {
  const piece = output.buffer.length;
  const want = Buffer.alloc(4 * piece + 8192);
  const put = (sizeBytes: number, offset: number) => {
    const bytes = randomBytes(sizeBytes);
    bytes.copy(output.buffer);
    bytes.copy(want, offset);
    output.write(sizeBytes, offset);
  };
  const correct = (offset: number) => {
    const bytes = randomBytes(100);
    bytes.copy(want, offset);
    output.correct(bytes, offset);
  };
  put(piece, 0);
  correct(piece - 100);
  put(piece, piece);
  for (const offset of [0, piece - 50, 2 * piece - 100]) correct(offset);
  await output.settled();
  put(piece, 2 * piece);
  correct(5000);
  put(4096, 3 * piece);
  output.end(want.length);
  await output.settled();
  return want;
}

describe('outputs of images', () => {
  it('holds in the file what was written and corrected, through the page cache', async () => {
    const want = await writeAll(createCachedOutput(fd));
    expect(readFileSync(join(directory, 'image')).equals(want)).toBe(true);
  });

  it('holds the same past the page cache, and gives its buffers back', async () => {
    let released = 0;
    const buffers = createPagedBuffers();
    for (let round = 0; round < 2; round++) {
      await using output = new DirectOutput(fd, buffers, () => void released++);
      const want = await writeAll(output);
      expect(readFileSync(join(directory, 'image')).equals(want)).toBe(true);
    }
    expect(released).toBe(2);
  });

  it('says that the disk is full, at the latest when it settles', async () => {
    const full = openSync('/dev/full', 'r+');
    try {
      const output = new DirectOutput(full, createPagedBuffers(), () => {});
      const writing = async () => {
        output.write(output.buffer.length, 0);
        await output.settled();
      };
      await expect(writing()).rejects.toMatchObject({ kind: 'unavailable' });
      await output[Symbol.asyncDispose]();
    } finally {
      closeSync(full);
    }
  });
});
