/**
 * A tar taken apart and written anew, entry by entry, as it flows: names and owners change, data does not. What comes
 * out is plain POSIX, whatever form came in; sparse files are filled.
 */

import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import { createTarParser, type TarEntry } from './tar.ts';

/**
 * `rewrite` answers what to write for an entry: the data follows the first of them that is a file, and is dropped when
 * there is none. What it throws ends the stream.
 * @throws AppError 'invalid', 'integrity', 'too-large' as the parser
 */
export async function* rewriteTar(
  tar: AsyncIterable<Buffer>,
  rewrite: (entry: TarEntry) => readonly TarEntry[],
): AsyncGenerator<Buffer, void, undefined> {
  let pieces: Buffer[] = [];
  let isKept = false;
  let left = 0;
  let size = 0;
  const push = (bytes: Buffer) => {
    if (!isKept) return;
    left -= bytes.length;
    pieces.push(bytes);
    if (left === 0) pieces.push(tarPadding(size));
  };
  const parser = createTarParser({
    entry(entry) {
      const written = rewrite(entry);
      for (const each of written) pieces.push(tarHeader(each));
      isKept = entry.type === 'file' && written.length > 0;
      size = entry.sizeBytes;
      left = size;
    },
    data: (bytes) => push(Buffer.from(bytes)),
    // Holes may be larger than memory.
    hole(sizeBytes) {
      for (let filled = 0; filled < sizeBytes; filled += HOLE_PIECE.length)
        push(HOLE_PIECE.subarray(0, Math.min(HOLE_PIECE.length, sizeBytes - filled)));
    },
  });
  for await (const chunk of tar) {
    parser.write(chunk);
    yield* pieces;
    pieces = [];
  }
  parser.end();
  yield* pieces;
  yield TAR_END;
}

/** Shared by all holes, so a large one takes no memory. */
const HOLE_PIECE = Buffer.alloc(1 << 20);
