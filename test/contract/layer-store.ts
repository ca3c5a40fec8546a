/** The promises of runtime/layers/layer-store.ts, for every backend. One store serves all cases: each makes its own layers. */
import { randomBytes, randomUUID } from 'node:crypto';
import { readdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createLayerSource, type LayerSourceWriter } from '../../runtime/layers/layer-source.ts';
import type { Chain, Layer, LayerIngest, LayerStore } from '../../runtime/layers/layer-store.ts';
import { type LayerNode, type LayerTree, walk } from '../../runtime/layers/tree.ts';
import { chainIdOf, type Digest, digestOf } from '../../shared/digest.ts';
import type { ErrorKind } from '../../shared/errors.ts';
import type { Compression } from '../../shared/media-types.ts';
import { collect } from '../../shared/streams.ts';
import { buildLayer, type ImageLayer } from '../fixtures/images.ts';
import type { TarEntry } from '../fixtures/tar.ts';

/** The limits of a store under test, small enough to be exceeded. */
export const CONTRACT_LIMITS = {
  tarMaxBytes: 32 << 20,
  ratioMax: 100,
  ratioFromBytes: 1 << 20,
  filesMaxBytes: 1 << 30,
  entriesMax: 5_000,
  metadataMaxBytes: 32 << 20,
  xattrsMaxBytes: 64 << 10,
} as const;

export interface LayerStoreFixture extends AsyncDisposable {
  /** Over an empty state directory, with CONTRACT_LIMITS and two workers. */
  readonly store: LayerStore;
  readonly root: string;
  /** Numbers that the store must take for mounted. */
  readonly mounted: Set<number>;
}

const file = (name: string, content: string): TarEntry => ({ name, content });
const directory = (name: string, mode = 0o755): TarEntry => ({ name: `${name}/`, type: 'directory', mode });
const link = (name: string, linkname: string): TarEntry => ({ name, type: 'link', linkname });

export function layerStoreContract(name: string, make: () => Promise<LayerStoreFixture>): void {
  describe(`LayerStore contract: ${name}`, () => {
    let fixture: LayerStoreFixture;
    let store: LayerStore;
    beforeAll(async () => {
      fixture = await make();
      store = fixture.store;
    });
    afterAll(() => fixture[Symbol.asyncDispose]());
    // Whatever a case did, nothing unfinished is left and every file has its layer.
    afterEach(async () => {
      const layers = await store.list();
      const named = new Set(layers.map((layer) => store.pathOf(layer)));
      const found = (await readdir(join(fixture.root, 'layers'))).filter((entry) => !['ingest', 'l'].includes(entry));
      expect(new Set(found.map((entry) => join(fixture.root, 'layers', entry)))).toEqual(named);
      // A cancelled unpack ends a moment after its caller was answered.
      await expect.poll(() => readdir(join(fixture.root, 'layers', 'ingest')).catch(() => [])).toEqual([]);
    });

    /** A finished download. */
    async function downloaded(blob: Buffer): Promise<LayerSourceWriter> {
      const path = join(fixture.root, `blob-${randomUUID()}`);
      await writeFile(path, blob);
      const source = createLayerSource([path]);
      source.end(blob.length);
      return source;
    }

    async function request(layer: ImageLayer, lower: Chain | Promise<Chain>, more: Partial<LayerIngest> = {}) {
      const { source } = await downloaded(layer.blob);
      const compression: Compression = layer.descriptor.mediaType.endsWith('gzip')
        ? 'gzip'
        : layer.descriptor.mediaType.endsWith('zstd')
          ? 'zstd'
          : 'none';
      return { diffId: layer.diffId, compression, source, lower: Promise.resolve(lower), ...more };
    }

    async function ingest(entries: readonly TarEntry[], lower: readonly Layer[] = []): Promise<Layer> {
      return store.ingest(await request(buildLayer(entries), idsOf(lower)));
    }

    async function failsWith(kind: ErrorKind, layer: ImageLayer, more: Partial<LayerIngest> = {}): Promise<void> {
      await expect(store.ingest(await request(layer, [], more))).rejects.toMatchObject({ kind });
      expect(await store.find(more.diffId ?? layer.diffId, [])).toBeUndefined();
    }

    async function content(layer: Layer, path: string): Promise<string> {
      const node = nodeAt(await store.tree(layer.id), path);
      if (node?.kind !== 'file') throw new Error(`${path} is not a file`);
      return (await collect(await store.openFile(layer, { path, node }), 1 << 24, { what: path })).toString();
    }

    it.each(['none', 'gzip', 'zstd'] as const)('makes a layer of a %s blob', async (compression) => {
      const big = randomBytes(1 << 20).toString('hex');
      const built = buildLayer(
        [directory('d', 0o1711), file(`d/${compression}`, big), file('small', 'x')],
        compression,
      );
      const progress: number[] = [];
      const layer = await store.ingest(await request(built, [], { onProgress: (bytes) => progress.push(bytes) }));
      expect(layer).toMatchObject({ id: built.diffId, diffId: built.diffId, entryCount: 3, root: undefined });
      expect(layer.apparentBytes).toBe(big.length + 1);
      expect(layer.diskBytes).toBeGreaterThan(big.length);
      expect(progress.at(-1)).toBe(built.blob.length);
      expect(await content(layer, `d/${compression}`)).toBe(big);
      expect(await content(layer, 'small')).toBe('x');
      const node = nodeAt(await store.tree(layer.id), 'd');
      expect(node).toMatchObject({ kind: 'directory', mode: 0o1711 });
      expect(await store.get(layer.id)).toEqual(layer);
      expect(await store.find(built.diffId, [])).toEqual(layer);
    });

    describe('made of a tar that nobody has named', () => {
      /** In pieces, so that the reader waits in between. */
      const pieces = (bytes: Buffer, size = 70_000) =>
        Readable.from(
          Array.from({ length: Math.ceil(bytes.length / size) }, (_, index) =>
            bytes.subarray(index * size, (index + 1) * size),
          ),
        );

      it('is the layer that ingest makes, and the other way round', async () => {
        // More than the ring holds.
        const built = buildLayer([directory('m'), file('m/big', randomBytes(9 << 20).toString('latin1'))], 'none');
        const protectedIds: Digest[] = [];
        const made = await store.make(pieces(built.blob), [], {
          protect: async (id) => {
            expect(await store.get(id)).toBeUndefined();
            protectedIds.push(id);
          },
        });
        expect(made).toMatchObject({ id: built.diffId, diffId: built.diffId, entryCount: 2 });
        expect(protectedIds).toEqual([built.diffId]);
        expect(await store.ingest(await request(built, []))).toEqual(made);
        const both = [store.make(pieces(built.blob), []), store.make(pieces(built.blob), [])];
        expect(await Promise.all(both)).toEqual([made, made]);
        const gzipped = buildLayer([file('m/zipped', 'x')], 'gzip');
        const unzipped = await store.make(pieces(gzipped.blob), [], { compression: 'gzip' });
        expect(unzipped.diffId).toBe(gzipped.diffId);
      });

      it('is published once by two who make it at the same time', async () => {
        const { blob, diffId } = buildLayer([file('m/twice', randomBytes(1000).toString('hex'))], 'none');
        const made = await Promise.all([1, 2, 3].map(() => store.make(pieces(blob, 500), [])));
        expect(new Set(made.map(({ number }) => number)).size).toBe(1);
        expect(await content(made[0] as Layer, 'm/twice')).not.toBe('');
        expect((await store.find(diffId, []))?.number).toBe(made[0]?.number);
      });

      it('settles above the layers below', async () => {
        const base = await ingest([{ name: 'deep/', type: 'directory', mode: 0o1700, uid: 9 }, file('deep/base', 'x')]);
        const { blob } = buildLayer([file('deep/above', 'x'), file('.wh.none', 'x')], 'none');
        const made = await store.make(pieces(blob), [base.id]);
        expect(made.id).toBe(chainIdOf([base.diffId, made.diffId]));
        expect(nodeAt(await store.tree(made.id), 'deep')).toMatchObject({ mode: 0o1700, uid: 9 });
      });

      it('holds plain files when asked, whatever they are called', async () => {
        const base = await store.make(
          pieces(buildLayer([file('f/.wh.x', 'name'), file('f/gone', 'x'), file('f/x', 'x')], 'none').blob),
          [],
          {
            files: { removed: [] },
          },
        );
        expect(await content(base, 'f/.wh.x')).toBe('name');
        const { blob, diffId } = buildLayer([file('f/.wh..wh..opq', 'x')], 'none');
        const above = await store.make(pieces(blob), [base.id], { files: { removed: ['f/gone', 'f/nothing'] } });
        expect(above.diffId).not.toBe(diffId);
        expect(nodeAt(await store.tree(above.id), 'f/gone')).toMatchObject({ kind: 'whiteout' });
        expect(nodeAt(await store.tree(above.id), 'f/nothing')).toBeUndefined();
        const device = buildLayer([{ name: 'f/x', type: 'character-device' }], 'none').blob;
        await expect(store.make(pieces(device), [], { files: { removed: [] } })).rejects.toMatchObject({
          kind: 'unsupported',
        });
      });

      it('leaves nothing of one that fails', async () => {
        const { blob } = buildLayer([file('m/fails', 'x'.repeat(100_000))], 'none');
        const cut = pieces(blob.subarray(0, 50_000));
        await expect(store.make(cut, [])).rejects.toMatchObject({ kind: 'integrity' });
        expect(cut.destroyed).toBe(true);
        const hostile = buildLayer([file('../x', 'x')], 'none').blob;
        await expect(store.make(pieces(hostile), [])).rejects.toMatchObject({ kind: 'invalid' });
        const huge = buildLayer([file('m/huge', '\0'.repeat(33 << 20))], 'none').blob;
        await expect(store.make(pieces(huge), [])).rejects.toMatchObject({ kind: 'too-large' });
        // Its source waits for ever, and nobody would tell it to stop.
        const stuck = new Readable({ read() {} });
        stuck.push(blob.subarray(0, 10_000));
        const abort = new AbortController();
        const making = store.make(stuck, [], { signal: abort.signal });
        abort.abort();
        await expect(making).rejects.toMatchObject({ kind: 'timeout' });
        expect(stuck.destroyed).toBe(true);
        const broken = new Readable({ read() {} });
        const failing = store.make(broken, []);
        broken.destroy(new Error('no more'));
        await expect(failing).rejects.toThrow('no more');
        await expect(store.make(pieces(blob), [digestOf('nothing')])).rejects.toMatchObject({ kind: 'not-found' });
      });
    });

    it('makes an empty layer', async () => {
      expect(await ingest([])).toMatchObject({ entryCount: 0, apparentBytes: 0 });
    });

    it('keeps attributes of the root', async () => {
      const layer = await ingest([{ name: './', type: 'directory', mode: 0o700, uid: 5, gid: 6 }]);
      expect(layer.root).toEqual({ mode: 0o700, uid: 5, gid: 6 });
      const { root, rootIsImplied } = await store.tree(layer.id);
      expect({ mode: root.mode, uid: root.uid, rootIsImplied }).toEqual({ mode: 0o700, uid: 5, rootIsImplied: false });
    });

    it('keeps owners, times, xattrs, links, devices and names of any bytes', async () => {
      const layer = await ingest([
        {
          name: 'f',
          content: 'f',
          mode: 0o6755,
          uid: 70_000,
          gid: 80_000,
          pax: { mtime: '12.5', 'SCHILY.xattr.user.k': 'v' },
        },
        link('hard', 'f'),
        { name: 'soft', type: 'symlink', linkname: 't'.repeat(4000) },
        { name: 'c', type: 'character-device', major: 10, minor: 300 },
        { name: 'p', type: 'fifo' },
        { name: 'long', pax: { path: Buffer.concat([Buffer.alloc(254, 'n'), Buffer.from([0xff])]) } },
        {
          name: 'overlay',
          pax: { 'SCHILY.xattr.trusted.overlay.redirect': '/etc', 'SCHILY.xattr.user.overlay.x': 'y' },
        },
      ]);
      const tree = await store.tree(layer.id);
      const f = nodeAt(tree, 'f');
      expect(f).toMatchObject({
        mode: 0o6755,
        uid: 70_000,
        gid: 80_000,
        mtimeSeconds: 12,
        mtimeNanoseconds: 500_000_000,
      });
      expect(f?.kind === 'file' && Buffer.from(f.xattrs?.get('user.k') ?? []).toString()).toBe('v');
      expect(nodeAt(tree, 'hard')).toBe(f);
      expect(nodeAt(tree, 'soft')).toMatchObject({ kind: 'symlink', target: 't'.repeat(4000) });
      expect(nodeAt(tree, 'c')).toMatchObject({ kind: 'character', major: 10, minor: 300 });
      expect(nodeAt(tree, 'p')?.kind).toBe('fifo');
      expect(nodeAt(tree, `${'n'.repeat(254)}\xff`)?.kind).toBe('file');
      expect(nodeAt(tree, 'overlay')).toMatchObject({ xattrs: undefined });
    });

    it('keeps a directory of many names', async () => {
      const names = Array.from({ length: 2_000 }, (_, i) => `d/name-${i}`);
      const layer = await ingest([directory('d'), ...names.map((entry) => file(entry, ''))]);
      const paths = [...walk(await store.tree(layer.id))].map(({ path }) => path);
      expect(paths).toEqual(['', 'd', ...names].sort((a, b) => (a < b ? -1 : 1)));
    });

    it('keeps a sparse file without writing its holes', async () => {
      const pax = { 'GNU.sparse.size': String(900 << 20), 'GNU.sparse.map': `${800 << 20},4,${900 << 20},0` };
      const layer = await ingest([{ name: 'sparse', content: 'data', pax }, file('after', 'after')]);
      expect(layer.apparentBytes).toBe((900 << 20) + 5);
      expect(layer.diskBytes).toBeLessThan(1 << 20);
      expect(await content(layer, 'after')).toBe('after');
    });

    it('shares a layer that needs nothing below, and names others by their chain', async () => {
      const base = await ingest([directory('tmp', 0o1777), file('base', '1')]);
      const other = await ingest([directory('tmp', 0o700), file('base', '2')]);
      const alone = buildLayer([file(`alone-${randomUUID()}`, '')]);
      const first = await store.ingest(await request(alone, [base.id]));
      expect(first.id).toBe(alone.diffId);
      expect(await store.find(alone.diffId, [other.id])).toEqual(first);
      expect(await store.ingest(await request(alone, [other.id]))).toEqual(first);

      const needy = buildLayer([file(`tmp/x-${randomUUID()}`, '')]);
      const above = await store.ingest(await request(needy, [base.id]));
      expect(above.id).toBe(chainIdOf([base.diffId, needy.diffId]));
      expect(nodeAt(await store.tree(above.id), 'tmp')).toMatchObject({ mode: 0o1777 });
      expect(await store.find(needy.diffId, [other.id])).toBeUndefined();
      const elsewhere = await store.ingest(await request(needy, [other.id]));
      expect(nodeAt(await store.tree(elsewhere.id), 'tmp')).toMatchObject({ mode: 0o700 });
      expect(elsewhere.number).not.toBe(above.number);
      expect(await store.find(needy.diffId, [base.id])).toEqual(above);
    });

    it('copies what a hard link names in a lower layer', async () => {
      const text = 'lower '.repeat(2000);
      const base = await ingest([
        directory('usr'),
        file('usr/f', text),
        { name: 'u', type: 'symlink', linkname: 'usr' },
      ]);
      const above = await ingest([link('h', 'u/f'), link('h2', 'usr/f'), file('usr/.wh.u', '')], [base]);
      expect(await content(above, 'h')).toBe(text);
      const tree = await store.tree(above.id);
      expect(nodeAt(tree, 'h2')).toBe(nodeAt(tree, 'h'));
      expect(nodeAt(tree, 'usr/f')).toBe(nodeAt(tree, 'h'));
    });

    it('unpacks a stack of 125 layers that all need the one below, begun top first', async () => {
      const layers = Array.from({ length: 125 }, (_, i) => buildLayer([file(`deep/er/${i}`, String(i))], 'none'));
      const chains = layers.map(() => Promise.withResolvers<Chain>());
      chains[0]?.resolve([]);
      const done: Promise<Layer>[] = [];
      for (const [i, layer] of [...layers.entries()].reverse()) {
        const made = store.ingest(await request(layer, chains[i]?.promise ?? []));
        done.unshift(made);
        made.then(
          async (below) => chains[i + 1]?.resolve([...((await chains[i]?.promise) ?? []), below.id]),
          (error: unknown) => chains[i + 1]?.reject(error),
        );
      }
      const stack = await Promise.all(done);
      expect(stack.at(-1)?.id).toBe(chainIdOf(layers.map(({ diffId }) => diffId)));
    }, 30_000);

    describe('bad input leaves nothing', () => {
      it('a wrong diffID', async () => {
        await failsWith('integrity', buildLayer([file('a', randomUUID())]), { diffId: digestOf('other') });
      });

      it.each(['gzip', 'zstd'] as const)('a %s blob that is cut off', async (compression) => {
        const whole = buildLayer([file('a', randomBytes(100_000).toString('hex'))], compression);
        await failsWith('integrity', { ...whole, blob: whole.blob.subarray(0, whole.blob.length - 20) });
      });

      it.each(['gzip', 'zstd'] as const)('a %s blob that is damaged', async (compression) => {
        const whole = buildLayer([file('a', randomBytes(100_000).toString('hex'))], compression);
        whole.blob.fill(0, 20, 40);
        await failsWith('integrity', whole);
      });

      it('a blob shorter than was promised', async () => {
        const whole = buildLayer([file('a', randomUUID())], 'none');
        const { source, end } = await downloaded(whole.blob);
        end(whole.blob.length + 1);
        await failsWith('integrity', whole, { source, compression: 'none' });
      });

      it('a tar that ends within an entry', async () => {
        const tar = buildLayer([file('a', 'x'.repeat(2000))], 'none').blob.subarray(0, 1024);
        await failsWith('integrity', buildLayer(tar));
      });

      it.each([
        ['CVE-2014-9356: a path out of the root', [file('../../etc/cron.d/x', '')]],
        ['CVE-2014-9357: a hard link out of the root', [link('a', '../../../etc/shadow')]],
        ['a hard link to nothing', [link('a', 'nothing')]],
        ['a whiteout of nothing nameable', [file('.wh..', '')]],
        ['xattrs beyond 64 KiB', [{ name: 'a', pax: { 'SCHILY.xattr.user.a': 'x'.repeat(70_000) } }]],
        ['a symlink to nothing', [{ name: 'a', type: 'symlink', linkname: '' }]],
        ['a device number beyond the kernel', [{ name: 'a', type: 'block-device', major: 70_000 }]],
      ] as const satisfies readonly (readonly [string, readonly TarEntry[]])[])('%s', async (_, entries) => {
        await failsWith('invalid', buildLayer([...entries, file('unique', randomUUID())]));
      });

      it('a bomb: too many times its compressed size', async () => {
        await failsWith('too-large', buildLayer([file('zeros', '\0'.repeat(8 << 20))]));
      });

      it('a bomb: too large', async () => {
        await failsWith('too-large', buildLayer([file('noise', randomBytes(17 << 20).toString('hex'))], 'none'));
      });

      it('a bomb: a sparse file', async () => {
        const pax = { 'GNU.sparse.size': String(2 ** 40), 'GNU.sparse.map': `0,4,${2 ** 40},0` };
        await failsWith('too-large', buildLayer([{ name: 'a', content: 'data', pax }]));
      });

      it('a bomb: too many entries', async () => {
        await failsWith('too-large', buildLayer(Array.from({ length: 5_001 }, (_, i) => file(`${i}`, ''))));
      });

      it('layers below that fail', async () => {
        const layer = buildLayer([file('d/x', randomUUID())]);
        const lower = Promise.reject(new Error('no such parent'));
        lower.catch(() => {});
        await expect(store.ingest(await request(layer, lower))).rejects.toThrow('no such parent');
      });

      it('layers below that are not there', async () => {
        const layer = buildLayer([file('d/x', randomUUID())]);
        const missing: Digest = digestOf('missing');
        await expect(store.ingest(await request(layer, [missing]))).rejects.toMatchObject({ kind: 'not-found' });
      });
    });

    describe('a blob that still downloads', () => {
      async function growing(layer: ImageLayer) {
        const path = join(fixture.root, `blob-${randomUUID()}`);
        await writeFile(path, layer.blob);
        return { path, writer: createLayerSource([path, `${path}-committed`]) };
      }

      it('is read behind its watermark, and under its second name', async () => {
        const layer = buildLayer([file('a', randomBytes(1 << 20).toString('hex'))]);
        const { path, writer } = await growing(layer);
        const consumed = Promise.withResolvers<void>();
        const made = store.ingest(
          await request(layer, [], { source: writer.source, onProgress: () => consumed.resolve() }),
        );
        await rename(path, `${path}-committed`);
        writer.advance(1000);
        await consumed.promise;
        writer.advance(500_000);
        writer.end(layer.blob.length);
        expect((await made).id).toBe(layer.diffId);
      });

      it('fails with its download', async () => {
        const layer = buildLayer([file('a', randomUUID())]);
        const { writer } = await growing(layer);
        const made = store.ingest(await request(layer, [], { source: writer.source }));
        writer.advance(10);
        writer.fail();
        await expect(made).rejects.toMatchObject({ kind: 'unavailable' });
      });

      it('is given up when nobody waits any more', async () => {
        const layer = buildLayer([file('a', randomUUID())]);
        const { writer } = await growing(layer);
        const cancel = new AbortController();
        const made = store.ingest(await request(layer, [], { source: writer.source }), { signal: cancel.signal });
        writer.advance(10);
        cancel.abort();
        await expect(made).rejects.toMatchObject({ kind: 'timeout' });
        await expect.poll(() => readdir(join(fixture.root, 'layers', 'ingest'))).toEqual([]);
        // The same layer can be had afterwards.
        expect((await store.ingest(await request(layer, []))).id).toBe(layer.diffId);
      });

      it('is unpacked once for all who ask, and one may leave', async () => {
        const layer = buildLayer([file('d/a', randomUUID())]);
        const { writer } = await growing(layer);
        const cancel = new AbortController();
        const never = Promise.withResolvers<Chain>();
        const leaves = store.ingest(await request(layer, never.promise, { source: writer.source }), {
          signal: cancel.signal,
        });
        const stays = [
          store.ingest(await request(layer, [], { source: writer.source })),
          store.ingest(await request(layer, [], { source: writer.source })),
        ];
        writer.advance(10);
        cancel.abort();
        await expect(leaves).rejects.toMatchObject({ kind: 'timeout' });
        writer.end(layer.blob.length);
        const [first, second] = await Promise.all(stays);
        expect(second).toEqual(first);
      });

      it("is asked for again when another caller's download failed", async () => {
        const layer = buildLayer([file('a', randomUUID())]);
        const { writer } = await growing(layer);
        const fails = store.ingest(await request(layer, [], { source: writer.source }));
        const works = store.ingest(await request(layer, []));
        writer.fail();
        // It gets the other's layer if that is there before the failure is seen.
        const first = await fails.catch((error: unknown) => error);
        expect(first).toEqual(expect.toSatisfy((one) => one.id === layer.diffId || one.kind === 'unavailable'));
        expect((await works).id).toBe(layer.diffId);
      });
    });

    it('lists and removes', async () => {
      const layer = await ingest([file('a', randomUUID())]);
      expect(await store.list()).toContainEqual(layer);
      fixture.mounted.add(layer.number);
      await expect(store.remove(layer.id)).rejects.toMatchObject({ kind: 'conflict' });
      fixture.mounted.delete(layer.number);
      expect(await store.remove(layer.id)).toBe(true);
      expect(await store.remove(layer.id)).toBe(false);
      expect(await store.get(layer.id)).toBeUndefined();
      await expect(store.tree(layer.id)).rejects.toMatchObject({ kind: 'not-found' });
    });

    it('never gives a number twice', async () => {
      const entries = [file('again', randomUUID())];
      const first = await ingest(entries);
      await store.remove(first.id);
      expect((await ingest(entries)).number).toBeGreaterThan(first.number);
    });

    it('sweeps what no row names', async () => {
      const layer = await ingest([file('kept', randomUUID())]);
      const garbage = [
        join(fixture.root, 'layers', 'ingest', 'x.erofs'),
        join(fixture.root, 'layers', `${'0'.repeat(64)}.erofs`),
      ];
      for (const path of garbage) await writeFile(path, randomBytes(8192));
      expect(await store.sweep()).toBeGreaterThanOrEqual(2 * 8192);
      expect(await content(layer, 'kept')).not.toBe('');
      for (const path of garbage) await rm(path, { force: true });
    });
  });
}

function nodeAt(tree: LayerTree, path: string): LayerNode | undefined {
  let node: LayerNode | undefined = tree.root;
  for (const part of path.split('/')) node = node?.kind === 'directory' ? node.children.get(part) : undefined;
  return node;
}

function idsOf(layers: readonly Layer[]): Chain {
  return layers.map(({ id }) => id);
}
