/**
 * What a container or build step changed, from overlayfs's upper directory, as a layer: a tar whose whiteouts are files
 * named `.wh.`, as https://github.com/opencontainers/image-spec/blob/v1.1.1/layer.md#representing-changes asks.
 *
 * The host's tar reads the directory, since Node cannot read extended attributes; its archive is taken apart and written
 * anew, so that equal directories give equal bytes and nothing of overlayfs's own bookkeeping gets out. Sockets are left
 * out, as every tar does.
 */
import { Readable } from 'node:stream';
import { streamCommand } from '../kernel/command.ts';
import { createTarParser, type TarEntry } from './tar.ts';
import { TAR_END, tarHeader, tarPadding } from './tar-writer.ts';

const READ = [
  '--create',
  '--format=posix',
  '--sort=name',
  '--numeric-owner',
  '--xattrs',
  '--xattrs-include=*',
  '--warning=no-file-ignored',
  '--file=-',
];
/** tar(1): some file changed while it was read. What is written then is what it was at some moment. */
const ACCEPTED = [0, 1];
const OPAQUE = 'trusted.overlay.opaque';
const OPAQUE_FILE = '.wh..wh..opq';
/** overlayfs's own, and labels, which are the host's. */
const PRIVATE_XATTR = /^(?:(?:trusted|user)\.overlay\.|security\.selinux$)/;

/** The changes in an upper directory as a layer tar, the same bytes for the same changes. The caller owns the stream. */
export function diffUpper(upper: string): Readable {
  return Readable.from(layerTar(upper), { objectMode: false, highWaterMark: 1 << 20 });
}

async function* layerTar(upper: string): AsyncGenerator<Buffer, void, undefined> {
  for await (const { header, data, trailer } of changedEntries(upper)) {
    if (header !== undefined) yield header;
    if (data !== undefined) yield data;
    if (trailer !== undefined) yield trailer;
  }
  yield TAR_END;
}

interface Piece {
  readonly header?: Buffer;
  readonly data?: Buffer;
  readonly trailer?: Buffer;
}

async function* changedEntries(upper: string): AsyncGenerator<Piece, void, undefined> {
  let pieces: Piece[] = [];
  let left = 0;
  let size = 0;
  const push = (bytes: Buffer) => {
    left -= bytes.length;
    pieces.push(left === 0 ? { data: bytes, trailer: tarPadding(size) } : { data: bytes });
  };
  const parser = createTarParser({
    entry(entry) {
      for (const layerEntry of layerEntries(entry)) pieces.push({ header: tarHeader(layerEntry) });
      size = entry.sizeBytes;
      left = size;
    },
    data: (bytes) => push(Buffer.from(bytes)),
    hole: (sizeBytes) => push(Buffer.alloc(sizeBytes)),
  });
  for await (const chunk of readUpper(upper)) {
    parser.write(chunk);
    yield* pieces;
    pieces = [];
  }
  parser.end();
  yield* pieces;
}

function readUpper(upper: string): AsyncGenerator<Buffer, void, undefined> {
  return streamCommand('tar', [...READ, `--directory=${upper}`, '.'], { accepted: ACCEPTED });
}

function isWhiteout({ type, major, minor }: TarEntry): boolean {
  return type === 'character' && major === 0 && minor === 0;
}

function isOpaque({ xattrs }: TarEntry): boolean {
  return xattrs?.get(OPAQUE)?.toString() === 'y';
}

/** One entry of the upper directory in the language of layers: none, itself, or itself and a whiteout of all below. */
function layerEntries(entry: TarEntry): readonly TarEntry[] {
  const path = relative(entry.path);
  // The root's attributes are the image's business; its time changes with every file.
  if (path === '') return [];
  if (isWhiteout(entry)) return [whiteout(entry, whiteoutPath(path))];
  const xattrs = new Map([...(entry.xattrs ?? [])].filter(([name]) => !PRIVATE_XATTR.test(name)));
  const own: TarEntry = {
    ...entry,
    path,
    linkPath: entry.type === 'link' ? relative(entry.linkPath) : entry.linkPath,
    // Fractions of seconds would make every layer differ for nothing.
    mtimeNanoseconds: 0,
    xattrs,
  };
  if (!isOpaque(entry)) return [own];
  return [own, whiteout(entry, `${path}/${OPAQUE_FILE}`)];
}

function relative(path: string): string {
  return path
    .replace(/^(?:\.?\/)+/, '')
    .replace(/\/+$/, '')
    .replace(/^\.$/, '');
}

function whiteoutPath(path: string): string {
  const slash = path.lastIndexOf('/') + 1;
  return `${path.slice(0, slash)}.wh.${path.slice(slash)}`;
}

function whiteout(entry: TarEntry, path: string): TarEntry {
  return {
    ...entry,
    type: 'file',
    path,
    linkPath: '',
    mode: 0,
    mtimeNanoseconds: 0,
    uid: 0,
    gid: 0,
    sizeBytes: 0,
    major: 0,
    minor: 0,
    xattrs: undefined,
  };
}
