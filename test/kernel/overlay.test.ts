import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, lstat, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { createMounts, type Mounts } from '../../runtime/kernel/mount.ts';
import { isLayerMounted } from '../../runtime/layers/layer-mounts.ts';
import type { Chain, Layer, LayerStore } from '../../runtime/layers/layer-store.ts';
import { createOverlaySnapshotter } from '../../runtime/layers/overlay.ts';
import type { Snapshotter } from '../../runtime/layers/snapshotter.ts';
import { digestFromHex } from '../../shared/digest.ts';
import { testHost } from './leaks.ts';

type Layers = Pick<LayerStore, 'get' | 'list' | 'pathOf'>;
interface Place {
  readonly root: string;
  readonly mounts: Mounts;
  readonly layers: Layers;
  /** Makes a layer of these files; `directory` unpacks it instead. */
  add(
    files: Record<string, string>,
    options?: { readonly directory?: boolean; readonly rootMode?: number },
  ): Promise<Layer>;
  open(): Snapshotter;
}

async function place(root: string): Promise<Place> {
  const mounts = createMounts({ architecture: process.arch });
  const known: Layer[] = [];
  await mkdir(join(root, 'layers'), { mode: 0o700 });
  const pathOf = (layer: Layer) =>
    join(root, 'layers', `${layer.id.slice(7)}${layer.backend === 'erofs' ? '.erofs' : ''}`);
  const layers: Layers = {
    get: async (id) => known.find((layer) => layer.id === id),
    list: async () => known,
    pathOf,
  };
  return {
    root,
    mounts,
    layers,
    async add(files, options = {}) {
      const id = digestFromHex('sha256', createHash('sha256').update(`layer ${known.length}`).digest('hex'));
      const layer: Layer = {
        id,
        diffId: id,
        backend: options.directory === true ? 'directory' : 'erofs',
        number: known.length + 1,
        diskBytes: 0,
        apparentBytes: 0,
        entryCount: 0,
        root: options.rootMode === undefined ? undefined : { mode: options.rootMode, uid: 0, gid: 7 },
        createdAt: new Date(0),
      };
      const source = options.directory === true ? pathOf(layer) : await mkdtemp(join(root, 'source-'));
      await mkdir(source, { recursive: true });
      for (const [name, text] of Object.entries(files)) await writeFile(join(source, name), text);
      if (layer.backend === 'erofs')
        execFileSync('mkfs.erofs', ['--quiet', pathOf(layer), source], { stdio: 'ignore' });
      known.push(layer);
      return layer;
    },
    open: () => createOverlaySnapshotter({ root, layers, mounts }),
  };
}

const ids = (layers: readonly Layer[]): Chain => layers.map(({ id }) => id);
async function mountedBelow({ mounts, root }: Place, path: string): Promise<readonly string[]> {
  const prefix = join(root, path);
  return (await mounts.list()).map(({ target }) => target).filter((target) => target.startsWith(prefix));
}

describe('Snapshotter over overlayfs', () => {
  it('shows the layers under a private writable one', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const [below, above] = [await here.add({ a: '1', b: '1' }), await here.add({ b: '2' })];
    const chain = ids([below, above]);
    const snapshots = here.open();
    for (const key of ['one', 'two']) await snapshots.prepare(key, chain);
    // Steps that change the same, or nothing, make the same layer.
    await snapshots.prepare('again', ids([below, above, below]));
    {
      await using again = await snapshots.mount('again');
      expect(await readFile(join(again.rootfs, 'b'), 'utf8')).toBe('1');
    }
    {
      await using one = await snapshots.mount('one');
      await using two = await snapshots.mount('two');
      expect(await readFile(join(one.rootfs, 'b'), 'utf8')).toBe('2');
      await writeFile(join(one.rootfs, 'a'), 'changed');
      expect(await readFile(join(two.rootfs, 'a'), 'utf8')).toBe('1');
      expect(await readdir(snapshots.upperOf('one'))).toEqual(['a']);
      expect(await mountedBelow(here, 'layers/l')).toHaveLength(2);
      expect(await snapshots.diskBytes('one')).toBe(8192);
      await expect(snapshots.release(chain)).rejects.toMatchObject({ kind: 'conflict' });
      expect(await isLayerMounted(join(here.root, 'layers/l'), 1)).toBe(true);
      expect(await isLayerMounted(join(here.root, 'layers/l'), 3)).toBe(false);
    }
    expect(await mountedBelow(here, 'containers')).toEqual([]);
    await using again = await snapshots.mount('one');
    expect(await readFile(join(again.rootfs, 'a'), 'utf8')).toBe('changed');
    await snapshots.unmount('one');
    await snapshots.release(chain);
    expect(await mountedBelow(here, '')).toEqual([]);
  });

  it('stacks nothing, one layer, and layers that are directories', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const image = await here.add({ image: '' });
    const directory = await here.add({ directory: '' }, { directory: true });
    const snapshots = here.open();
    for (const [key, layers, names] of [
      ['scratch', [], []],
      ['single', [image], ['image']],
      ['unpacked', [directory], ['directory']],
      ['mixed', [image, directory], ['directory', 'image']],
    ] as const) {
      await snapshots.prepare(key, ids(layers));
      await using writable = await snapshots.mount(key);
      expect(await readdir(writable.rootfs)).toEqual(names);
      await writeFile(join(writable.rootfs, 'new'), '');
      await snapshots.unmount(key);
      await using view = await snapshots.mount(key, { readOnly: true });
      expect(await readdir(view.rootfs)).toEqual([...names, 'new'].sort());
      await expect(writeFile(join(view.rootfs, 'x'), '')).rejects.toThrow('EROFS');
      await expect(snapshots.mount(key)).rejects.toMatchObject({ kind: 'conflict' });
    }
    await snapshots.sweep(new Set());
    expect(await readdir(join(here.root, 'containers'))).toEqual(['mixed', 'scratch', 'single', 'unpacked']);
    expect(await mountedBelow(here, '')).toEqual([]);
  });

  it('mounts 60 layers in one batch, and 500 at all', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const layers: Layer[] = [];
    for (let n = 0; n < 60; n += 1) layers.push(await here.add({ [`f${n}`]: '' }));
    for (let n = 60; n < 500; n += 1) layers.push(await here.add({ [`f${n}`]: '' }, { directory: true }));
    const snapshots = here.open();
    await snapshots.prepare('sixty', ids(layers.slice(0, 60)));
    await using sixty = await snapshots.mount('sixty');
    expect(await readdir(sixty.rootfs)).toHaveLength(60);
    await snapshots.prepare('all', ids(layers));
    await using all = await snapshots.mount('all');
    expect(await readdir(all.rootfs)).toHaveLength(500);
    await snapshots.sweep(new Set());
  });

  it('is found again by the next engine: mounted ones are adopted, layers in use stay', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const [used, unused] = [await here.add({ used: '' }), await here.add({ unused: '' })];
    const before = here.open();
    await before.prepare('lives', ids([used]));
    await before.prepare('gone', ids([unused]));
    await before.mount('lives');
    await before.mount('gone');

    const after = here.open();
    await after.sweep(new Set(['lives']));
    expect(await mountedBelow(here, 'layers/l')).toEqual([join(here.root, 'layers/l/1')]);
    expect(await mountedBelow(here, 'containers')).toEqual([join(here.root, 'containers/lives/rootfs')]);
    await expect(after.release(ids([used]))).rejects.toMatchObject({ kind: 'conflict' });
    await using adopted = await after.mount('lives');
    expect(await readdir(adopted.rootfs)).toEqual(['used']);
    expect(await after.remove('lives')).toBe(true);
    expect(await after.remove('lives')).toBe(false);
    await after.sweep(new Set());
    expect(await mountedBelow(here, '')).toEqual([]);
  });

  it('mounts a layer again that somebody unmounted behind our back', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const chain = ids([await here.add({ file: '' })]);
    const snapshots = here.open();
    await snapshots.prepare('k', chain);
    await (await snapshots.mount('k'))[Symbol.asyncDispose]();
    await here.mounts.unmount([join(here.root, 'layers/l/1')]);
    await using mounted = await snapshots.mount('k');
    expect(await readdir(mounted.rootfs)).toEqual(['file']);
    await snapshots.sweep(new Set());
  });

  it('throws away what a throw-away snapshot never synced, but not between two of its mounts', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const snapshots = here.open();
    await snapshots.prepare('k', []);
    for (const name of ['first', 'second']) {
      await using mounted = await snapshots.mount('k', { throwAway: true });
      await writeFile(join(mounted.rootfs, name), '');
    }
    await using mounted = await snapshots.mount('k');
    expect(await readdir(mounted.rootfs)).toEqual(['first', 'second']);
  });

  it('refuses other chains, unknown keys and layers, and keys that are paths', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const layer = await here.add({ a: '' });
    const snapshots = here.open();
    await snapshots.prepare('k', []);
    await snapshots.prepare('k', []);
    await expect(snapshots.prepare('k', ids([layer]))).rejects.toMatchObject({ kind: 'conflict' });
    await expect(snapshots.mount('unknown')).rejects.toMatchObject({ kind: 'not-found' });
    await expect(snapshots.prepare('m', [digestFromHex('sha256', 'f'.repeat(64))])).rejects.toMatchObject({
      kind: 'not-found',
    });
    await expect(snapshots.prepare('../k', [])).rejects.toMatchObject({ kind: 'invalid' });
    await rm(here.layers.pathOf(layer));
    await snapshots.prepare('broken', ids([layer]));
    await expect(snapshots.mount('broken')).rejects.toMatchObject({ kind: 'not-found' });
    await snapshots.sweep(new Set());
  });

  it('CVE-2021-41091: no other user gets at what lies below, and the root looks like the image wants it', async () => {
    await using host = await testHost();
    const here = await place(host.root);
    const chain = ids([await here.add({ a: '' }, { rootMode: 0o1751 }), await here.add({ b: '' })]);
    const snapshots = here.open();
    await snapshots.prepare('k', chain);
    await using mounted = await snapshots.mount('k');
    const root = await lstat(mounted.rootfs);
    expect(root).toMatchObject({ gid: 7, mode: 0o041751 });
    for (const path of ['containers', 'containers/k', 'layers/l'])
      expect((await stat(join(here.root, path))).mode & 0o777).toBe(0o700);
    await chmod(mounted.rootfs, 0o755);
    await snapshots.sweep(new Set());
  });
});
