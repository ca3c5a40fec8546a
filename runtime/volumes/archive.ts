/**
 * A tar from outside, taken apart and written anew before the host's tar sees it: every name is below the directory it
 * is unpacked to, and nothing but names, types, attributes and data gets through.
 */
import type { Readable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import type { TarEntry } from '../layers/tar.ts';
import { rewriteTar } from '../layers/tar-rewrite.ts';
import { nameToUtf8 } from '../layers/tree.ts';

/** @throws AppError 'invalid' for a path that leads out or no tar at all, 'integrity' for one that is cut off */
export function plainArchive(tar: Readable): AsyncGenerator<Buffer, void, undefined> {
  return rewriteTar(tar, (entry) => [plainEntry(entry)]);
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
