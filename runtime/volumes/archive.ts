/**
 * A tar from outside, taken apart and written anew before the host's tar sees it: every name is below the directory it
 * is unpacked to, and nothing but names, types, attributes and data gets through.
 */
import type { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import { TAR_END, tarHeader, tarPadding } from '../../shared/tar-writer.ts';
import { createTarParser, type TarEntry } from '../layers/tar.ts';
import { nameToUtf8 } from '../layers/tree.ts';

const HOLE_BYTES = 1 << 20;

/** @throws AppError 'invalid' for a path that leads out or no tar at all, 'integrity' for one that is cut off */
export async function* plainArchive(tar: Readable): AsyncGenerator<Buffer, void, undefined> {
  let pieces: Buffer[] = [];
  let left = 0;
  let size = 0;
  const push = (bytes: Buffer) => {
    pieces.push(bytes);
    left -= bytes.length;
    if (left === 0) pieces.push(tarPadding(size));
  };
  const parser = createTarParser({
    entry(entry) {
      pieces.push(tarHeader(plainEntry(entry)));
      size = entry.sizeBytes;
      left = size;
    },
    data: (bytes) => push(Buffer.from(bytes)),
    hole(sizeBytes) {
      for (let rest = sizeBytes; rest > 0; rest -= HOLE_BYTES) push(Buffer.alloc(Math.min(rest, HOLE_BYTES)));
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

function plainEntry(entry: TarEntry): TarEntry {
  const path = plainPath(entry.path);
  return entry.type === 'link' ? { ...entry, path, linkPath: plainPath(entry.linkPath) } : { ...entry, path };
}

function plainPath(path: string): string {
  const names = path.split('/').filter((name) => name !== '' && name !== '.');
  if (path.startsWith('/') || names.includes('..'))
    throw new AppError('invalid', `cannot unpack ${JSON.stringify(nameToUtf8(path))}: it leads out of the volume`);
  return names.length === 0 ? '.' : names.join('/');
}
