import { execFileSync } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { createLayerSource } from '../../runtime/layers/layer-source.ts';
import type { Layer } from '../../runtime/layers/layer-store.ts';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from '../../runtime/layers/layer-store-erofs.ts';
import { createOverlaySnapshotter } from '../../runtime/layers/overlay.ts';
import { openDatabase } from '../../shared/database.ts';
import { createLog } from '../../shared/log.ts';
import { buildLayer } from '../fixtures/images.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { testHost } from './leaks.ts';

const LOWER: readonly TarEntry[] = [
  { name: 'etc/', type: 'directory', mode: 0o755 },
  { name: 'etc/gone', content: 'lower' },
  { name: 'etc/kept', content: 'lower' },
  { name: 'old/', type: 'directory', mode: 0o700 },
  { name: 'old/hidden', content: 'lower' },
];
const UPPER: readonly TarEntry[] = [
  { name: './', type: 'directory', mode: 0o751 },
  { name: 'etc/.wh.gone', content: '' },
  { name: 'old/', type: 'directory', mode: 0o711, uid: 7, gid: 8, pax: { mtime: '12.5' } },
  { name: 'old/.wh..wh..opq', content: '' },
  {
    name: 'old/new',
    content: 'x'.repeat(3_000_001),
    mode: 0o4755,
    uid: 70_000,
    pax: { mtime: '-1.25', 'SCHILY.xattr.user.k': 'v' },
  },
  { name: 'old/hard', type: 'link', linkname: 'old/new' },
  { name: 'soft', type: 'symlink', linkname: '/etc/kept' },
  { name: 'null', type: 'character-device', major: 1, minor: 3, mode: 0o666 },
  { name: 'pipe', type: 'fifo' },
  { name: 'n'.repeat(200), content: 'long' },
];

it('a container sees the same, whether its layers are mounted or unpacked', async () => {
  await using host = await testHost();
  const { root } = host;
  const database = openDatabase<LayerTables>({ path: join(root, 'berth.db'), migrations: LAYER_MIGRATIONS });
  await using _database = { [Symbol.asyncDispose]: () => database.close() };
  await using layers = createLayerStore({
    root,
    database,
    log: createLog({ component: 'test', level: 'silent' }),
    now: () => new Date(),
    randomId: randomUUID,
    workers: 1,
  });
  const chain: Layer[] = [];
  for (const entries of [LOWER, UPPER]) {
    const { blob, diffId } = buildLayer(entries);
    const path = join(root, `blob${chain.length}`);
    await writeFile(path, blob);
    const source = createLayerSource([path]);
    source.end(blob.length);
    chain.push(
      await layers.ingest({
        diffId,
        compression: 'gzip',
        source: source.source,
        lower: Promise.resolve(chain.map(({ id }) => id)),
      }),
    );
  }
  const ids = chain.map(({ id }) => id);
  const mounts = createMounts({ architecture: process.arch });
  const listings: string[] = [];
  for (const unpack of [false, true]) {
    const snapshots = createOverlaySnapshotter({ root, layers, mounts, unpack });
    await snapshots.prepare('k', ids);
    {
      await using mounted = await snapshots.mount('k');
      const find = ['.', '-printf', '%P %y %m %U %G %s %l %n\n'];
      // Sizes of directories are the filesystem's own, and the root's time is the container's.
      const listing = execFileSync('find', find, { cwd: mounted.rootfs })
        .toString()
        .replace(/ d (\d+ \d+ \d+) \d+ /g, ' d $1 ')
        .replace(/( d .*) \d+\n/g, '$1\n');
      const times = execFileSync('find', ['.', '-mindepth', '1', '-not', '-name', 'etc', '-printf', '%P %T@\n'], {
        cwd: mounted.rootfs,
      }).toString();
      const xattrs = execFileSync('getfattr', ['-R', '-h', '-d', '-m', '-', '.'], { cwd: mounted.rootfs }).toString();
      const devices = execFileSync('stat', ['-c', '%t:%T', 'null'], { cwd: mounted.rootfs }).toString();
      const data = execFileSync('sha256sum', ['old/new', 'old/hard', 'etc/kept'], { cwd: mounted.rootfs }).toString();
      listings.push(
        [listing, times, xattrs].map((text) => text.split('\n').sort().join('\n')).join('\n') + devices + data,
      );
    }
    if (unpack) expect(await snapshots.unpackedBytes()).toBe(await diskUsage(join(root, 'layers/unpacked/')));
    else expect(await snapshots.unpackedBytes()).toBe(0);
    await snapshots.remove('k');
    await snapshots.release(ids);
    expect(await snapshots.unpackedBytes()).toBe(0);
    expect(await readdir(join(root, 'layers/l'))).toEqual([]);
  }
  expect(listings[0]).toContain('old/new f 4755 70000 0 3000001');
  expect(listings[0]).not.toContain('gone');
  expect(listings[0]).not.toContain('hidden');
  expect(listings[1]).toBe(listings[0]);
  expect(await readdir(join(root, 'layers/unpacked'))).toEqual([]);

  const copies = () => readdir(join(root, 'layers/unpacked')).then((names) => names.toSorted());
  {
    await using ahead = createOverlaySnapshotter({ root, layers, mounts, unpack: true });
    for (const layer of chain) ahead.anticipate(layer);
    await ahead.prepare('ahead', ids);
    const mounted = await ahead.mount('ahead');
    expect(await readFile(join(mounted.rootfs, 'etc/kept'), 'utf8')).toBe('lower');
    expect(await copies()).toEqual(['1', '2']);
    await ahead.remove('ahead');
    await ahead.release(ids);
    // Removed, or ended with the engine, while it is under way: nothing of it comes later.
    for (const layer of chain) ahead.anticipate(layer);
    await ahead.release(ids);
    expect(await copies()).toEqual([]);
    for (const layer of chain) ahead.anticipate(layer);
  }
  expect(await copies()).toEqual([]);

  const snapshots = createOverlaySnapshotter({ root, layers, mounts, unpack: true });
  await mkdir(join(root, 'layers/unpacked/9z/left'), { recursive: true });
  await mkdir(join(root, 'layers/unpacked/1.part'), { recursive: true });
  await snapshots.sweep(new Set());
  expect(await readdir(join(root, 'layers/unpacked'))).toEqual([]);
});

/** What `du` says of all that lies in a directory; of hard links it counts one. */
async function diskUsage(directory: string): Promise<number> {
  const names = (await readdir(directory)).map((name) => join(directory, name));
  const total =
    execFileSync('du', ['-s', '-c', '-B1', ...names])
      .toString()
      .trimEnd()
      .split('\n')
      .at(-1) ?? '';
  return Number.parseInt(total, 10);
}
