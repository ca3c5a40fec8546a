/**
 * What a writable layer changes against the layers below: `docker diff`. Names only, no contents.
 *
 * The container may be running and hostile. Each directory is entered from the descriptor of the one above it and never
 * through a link, so a directory that is swapped for a link while we look leads nowhere.
 */
import { constants } from 'node:fs';
import { type FileHandle, open, readdir } from 'node:fs/promises';
import { hasCode } from '../../shared/errors.ts';
import { type MergedDirectory, nameToUtf8 } from './tree.ts';

export interface LayerChange {
  /** Absolute. */
  readonly path: string;
  readonly kind: 'modified' | 'added' | 'deleted';
}

/** Made for the runtime to mount on; Docker hides them in a layer of its own. */
const MOUNT_POINTS = new Set([
  '/dev',
  '/proc',
  '/sys',
  '/etc/hosts',
  '/etc/hostname',
  '/etc/resolv.conf',
  '/.dockerenv',
]);

/** Linux's; Node has no name for it. The descriptor names a file without opening it: a pipe would make us wait. */
const O_PATH = 0o10000000;

export interface ChangesOptions {
  /** Absolute paths inside where something else was mounted: neither they nor what was made to hold them count. */
  readonly mountPoints?: readonly string[];
}

/** `upper` is overlayfs's upper directory. In byte order, each directory before what it holds. */
export async function changesOf(
  upper: string,
  lower: MergedDirectory | undefined,
  { mountPoints = [] }: ChangesOptions = {},
): Promise<readonly LayerChange[]> {
  const found: LayerChange[] = [];
  const hidden = new Set([...MOUNT_POINTS, ...mountPoints]);
  const above = new Set(mountPoints.flatMap(ancestorsOf));
  await using root = await open(upper, O_PATH | constants.O_DIRECTORY);
  await collectChanges(root, '', { lower, found, hidden, above });
  return found;
}

/** `/a/b/c` → `/a`, `/a/b`. */
function ancestorsOf(path: string): readonly string[] {
  const names = path.split('/').slice(1, -1);
  return names.map((_, index) => `/${names.slice(0, index + 1).join('/')}`);
}

interface Walk {
  readonly lower: MergedDirectory | undefined;
  readonly found: LayerChange[];
  readonly hidden: ReadonlySet<string>;
  /** Directories above mount points. */
  readonly above: ReadonlySet<string>;
}

async function collectChanges(directory: FileHandle, path: string, walk: Walk): Promise<void> {
  const { lower, found, hidden, above } = walk;
  const here = `/proc/self/fd/${directory.fd}`;
  const names = (await readdir(here, { encoding: 'latin1' })).sort((a, b) => (a < b ? -1 : 1));
  for (const name of names) {
    const inside = `${path}/${nameToUtf8(name)}`;
    if (hidden.has(inside)) continue;
    const below = lower?.get(name);
    await using entry = await enter(Buffer.from(`${here}/${name}`, 'latin1'));
    if (entry === undefined) continue;
    const info = await entry.stat();
    // overlayfs's whiteout: a character device 0:0.
    if (info.isCharacterDevice() && info.rdev === 0) {
      if (below !== undefined) found.push({ path: inside, kind: 'deleted' });
      continue;
    }
    const at = found.length;
    found.push({ path: inside, kind: below === undefined ? 'added' : 'modified' });
    if (!info.isDirectory()) continue;
    const before = below?.directory;
    await collectChanges(entry, inside, { ...walk, lower: before });
    // Copied up, or made, only because something was mounted inside it.
    const isSame =
      before !== undefined &&
      before.node.mode === (info.mode & 0o7777) &&
      before.node.uid === info.uid &&
      before.node.gid === info.gid;
    const isMade = before === undefined && above.has(inside);
    if ((isSame || isMade) && found.length === at + 1) found.pop();
  }
}

/** undefined = it has gone meanwhile. */
async function enter(path: Buffer): Promise<FileHandle | undefined> {
  try {
    return await open(path, O_PATH | constants.O_NOFOLLOW);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}
