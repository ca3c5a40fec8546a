/**
 * A layer's image unpacked to a directory that overlayfs can stack, for kernels without EROFS. Whiteouts become devices
 * 0:0, opaque directories get overlayfs's attribute.
 *
 * The host's tar makes the files, since Node has neither mknod nor extended attributes. It never sees the tar that came
 * from outside: its archive is generated from the settled tree, where every name is plain and below its parent.
 */
import { lstat, mkdir, rename, rm } from 'node:fs/promises';
import { dirname } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { syncDirectory } from '../../shared/atomic-file.ts';
import { hasCode } from '../../shared/errors.ts';
import { feedCommand, runCommand } from '../kernel/command.ts';
import { type ErofsImage, openErofs } from './erofs-reader.ts';
import type { TarEntry } from './tar.ts';
import { TAR_END, tarHeader, tarPadding } from './tar-writer.ts';
import { type LayerNode, walk } from './tree.ts';

const OPAQUE = 'trusted.overlay.opaque';
const BATCH_BYTES = 1 << 20;

/** Makes `target` from the image. Idempotent; target is whole and durable or does not exist. */
export async function unpackImage(image: string, target: string): Promise<void> {
  if (await exists(target)) return;
  const staging = `${target}.part`;
  await rm(staging, { recursive: true, force: true });
  await mkdir(staging, { recursive: true, mode: 0o700 });
  try {
    using opened = openErofs(image);
    await feedCommand(
      'tar',
      [
        '--extract',
        '--file=-',
        `--directory=${staging}`,
        '--numeric-owner',
        '--same-owner',
        '--same-permissions',
        '--xattrs',
        '--xattrs-include=*',
      ],
      archiveOf(opened),
    );
    await runCommand('sync', ['--file-system', staging]);
    await rename(staging, target);
    await syncDirectory(dirname(target));
  } catch (error) {
    await rm(staging, { recursive: true, force: true });
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    throw error;
  }
}

/** Pieces are gathered: a pipe likes a few large ones. */
async function* archiveOf(image: ErofsImage): AsyncGenerator<Buffer, void, undefined> {
  let batch: Buffer[] = [];
  let bytes = 0;
  for (const piece of piecesOf(image)) {
    // The reader uses its buffer again for the next piece.
    batch.push(Buffer.from(piece));
    bytes += piece.length;
    if (bytes < BATCH_BYTES) continue;
    yield Buffer.concat(batch, bytes);
    batch = [];
    bytes = 0;
    await setImmediate();
  }
  yield Buffer.concat(batch, bytes);
}

function* piecesOf(image: ErofsImage): Generator<Buffer, void, undefined> {
  const { tree } = image;
  const paths = new Map<LayerNode, string>();
  for (const { path, node } of walk(tree)) {
    const first = node.kind === 'directory' || node.kind === 'whiteout' ? undefined : paths.get(node);
    const entry = tarEntryOf(path === '' ? '.' : path, node, first);
    // Sockets are of no use in an image, and no tar holds them.
    if (entry === undefined) continue;
    yield tarHeader(entry);
    if (first !== undefined) continue;
    paths.set(node, path);
    if (node.kind !== 'file') continue;
    yield* image.read(node);
    yield tarPadding(node.sizeBytes);
  }
  yield TAR_END;
}

const PLAIN = { linkPath: '', sizeBytes: 0, major: 0, minor: 0 };
const NOBODY = { mode: 0, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, xattrs: undefined };

/** How a node stands in a tar; `first` is the name of a hard link to it. undefined = no tar holds such a thing. */
export function tarEntryOf(path: string, node: LayerNode, first: string | undefined): TarEntry | undefined {
  if (node.kind === 'whiteout') return { ...PLAIN, ...NOBODY, type: 'character', path };
  const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds } = node;
  const xattrs = new Map([...(node.xattrs ?? [])].map(([name, value]) => [name, Buffer.from(value)]));
  const common = { ...PLAIN, path, mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs };
  if (first !== undefined) return { ...common, type: 'link', linkPath: first, xattrs: undefined };
  switch (node.kind) {
    case 'file':
      return { ...common, type: 'file', sizeBytes: node.sizeBytes };
    case 'directory':
      if (node.opaque) xattrs.set(OPAQUE, Buffer.from('y'));
      return { ...common, type: 'directory' };
    case 'symlink':
      return { ...common, type: 'symlink', linkPath: node.target };
    case 'character':
    case 'block':
      return { ...common, type: node.kind, major: node.major, minor: node.minor };
    case 'fifo':
      return { ...common, type: 'fifo' };
    case 'socket':
      return undefined;
    default:
      throw node satisfies never;
  }
}
