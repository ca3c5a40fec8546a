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
import type { TarEntry } from './tar.ts';
import { rewriteTar } from './tar-rewrite.ts';
import { nameToUtf8 } from './tree.ts';

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

export interface DiffOptions {
  /** Whether a changed path, absolute, belongs into the layer; default all of them. */
  readonly includes?: (path: string) => boolean;
  /** Later times become this one; seconds since 1970. */
  readonly latestSeconds?: number | undefined;
}

/** The changes in an upper directory as a layer tar, the same bytes for the same changes. The caller owns the stream. */
export function diffUpper(upper: string, { includes = () => true, latestSeconds }: DiffOptions = {}): Readable {
  const clamp = (entry: TarEntry): TarEntry =>
    latestSeconds === undefined ? entry : { ...entry, mtimeSeconds: Math.min(entry.mtimeSeconds, latestSeconds) };
  const layer = rewriteTar(readUpper(upper), (entry) => layerEntries(clamp(entry), includes));
  return Readable.from(layer, { objectMode: false, highWaterMark: 1 << 20 });
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
function layerEntries(entry: TarEntry, includes: (path: string) => boolean): readonly TarEntry[] {
  const path = relative(entry.path);
  // The root's attributes are the image's business; its time changes with every file.
  if (path === '' || !includes(`/${nameToUtf8(path)}`)) return [];
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
