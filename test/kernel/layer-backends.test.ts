/**
 * What layers show when they are mounted, and what they leave, for both ways of showing them: images that the kernel
 * mounts, and directories that the host's tar has unpacked. Each case holds for both, against umoci and GNU tar.
 * Layout directories below BERTH_TEST_IMAGES, if it is set, are compared too.
 */
import { execFile } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { createLayerSource } from '../../runtime/layers/layer-source.ts';
import type { Layer, LayerBackend, LayerStore } from '../../runtime/layers/layer-store.ts';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from '../../runtime/layers/layer-store-erofs.ts';
import { createOverlaySnapshotter } from '../../runtime/layers/overlay.ts';
import type { Snapshotter } from '../../runtime/layers/snapshotter.ts';
import { openDatabase } from '../../shared/database.ts';
import { type Digest, digestOf, hexOf } from '../../shared/digest.ts';
import { createLog } from '../../shared/log.ts';
import { type Compression, layerCompression } from '../../shared/media-types.ts';
import { parseImageConfig, parseManifest } from '../../shared/oci.ts';
import { measure } from '../../shared/streams.ts';
import { buildImage, buildLayer, busyboxImage, debianImage, type ImageLayer, writeLayout } from '../fixtures/images.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { testHost } from './leaks.ts';

const run = promisify(execFile);
const shell = (script: string, cwd: string) => run('bash', ['-euc', script], { cwd, maxBuffer: 1 << 28 });

/** For a busy host; the longest case takes ten seconds on a quiet one. */
const LONG = { timeout: 300_000 };
/** Tens of thousands of files come and go: on ext4, which avoids inodes that were freed just now, that takes minutes. */
const MEMORY = '/dev/shm';
const MORE_IMAGES = process.env.BERTH_TEST_IMAGES;
const BACKENDS: readonly LayerBackend[] = ['erofs', 'directory'];

interface Place extends AsyncDisposable {
  readonly root: string;
  readonly store: LayerStore;
  /** Makes layers, each above the ones before it, and checks every image. */
  unpack(layers: readonly ImageLayer[]): Promise<readonly Layer[]>;
  /** The layer of a tar file. */
  unpackFile(path: string): Promise<Layer>;
  /** The layers of the only image of an OCI layout. */
  unpackLayout(path: string): Promise<readonly Layer[]>;
  snapshotter(backend: LayerBackend): Snapshotter;
  /** Shows the layers as a backend does, below an empty writable one; they are released before it resolves. */
  show<T>(backend: LayerBackend, layers: readonly Layer[], look: (rootfs: string) => Promise<T>): Promise<T>;
}

async function place(): Promise<Place> {
  await using undo = new AsyncDisposableStack();
  const host = undo.use(await testHost({ parent: MEMORY }));
  const { root } = host;
  const database = openDatabase<LayerTables>({ path: join(root, 'berth.db'), migrations: LAYER_MIGRATIONS });
  undo.defer(() => database.close());
  const log = createLog({ component: 'test', level: 'silent' });
  const store = createLayerStore({ root, database, log, now: () => new Date(), randomId: randomUUID, workers: 2 });
  undo.use(store);
  const mounts = createMounts({ architecture: process.arch });

  interface Blob {
    readonly path: string;
    readonly diffId: Digest;
    readonly compression: Compression;
  }
  async function ingest({ path, diffId, compression }: Blob, lower: readonly Layer[]): Promise<Layer> {
    const writer = createLayerSource([path]);
    writer.end((await stat(path)).size);
    const chain = Promise.resolve(lower.map(({ id }) => id));
    const layer = await store.ingest({ diffId, compression, source: writer.source, lower: chain });
    await run('fsck.erofs', [store.pathOf(layer)]);
    await run('dump.erofs', [store.pathOf(layer)]);
    return layer;
  }
  const compressionOf = (mediaType: string) => layerCompression(mediaType) ?? 'none';
  const snapshotter = (backend: LayerBackend) =>
    createOverlaySnapshotter({ root, layers: store, mounts, unpack: backend === 'directory' });

  const owned = undo.move();
  return {
    root,
    store,
    snapshotter,
    async unpack(layers) {
      const made: Layer[] = [];
      for (const { blob, diffId, descriptor } of layers) {
        const path = join(root, `blob-${randomUUID()}`);
        await writeFile(path, blob);
        made.push(await ingest({ path, diffId, compression: compressionOf(descriptor.mediaType) }, made));
        await rm(path);
      }
      return made;
    },
    async unpackFile(path) {
      const measured = measure();
      for await (const _ of createReadStream(path).pipe(measured));
      return ingest({ path, diffId: measured.result().digest, compression: 'none' }, []);
    },
    async unpackLayout(path) {
      const blobPath = (digest: Digest) => join(path, 'blobs/sha256', hexOf(digest));
      const index = parseManifest(await readFile(join(path, 'index.json')));
      const [image] = index.kind === 'index' ? index.manifests : [];
      const manifest = image && parseManifest(await readFile(blobPath(image.digest)));
      if (manifest?.kind !== 'manifest') throw new Error(`${path} holds no image`);
      const { diffIds } = parseImageConfig(await readFile(blobPath(manifest.config.digest)));
      const made: Layer[] = [];
      for (const [i, { digest, mediaType }] of manifest.layers.entries()) {
        const diffId = diffIds[i] ?? digest;
        made.push(await ingest({ path: blobPath(digest), diffId, compression: compressionOf(mediaType) }, made));
      }
      return made;
    },
    async show(backend, layers, look) {
      const snapshots = snapshotter(backend);
      const chain = layers.map(({ id }) => id);
      await snapshots.prepare('shown', chain);
      try {
        return await look((await snapshots.mount('shown')).rootfs);
      } finally {
        await snapshots.remove('shown');
        await snapshots.release(chain);
      }
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Everything one can see of a tree, sorted: type, mode, owner, time, size, links, device, target, content, xattrs. */
async function seen(root: string): Promise<readonly string[]> {
  // The time of the root is that of the writable layer above it. overlayfs's own attributes are never taken from a layer.
  const { stdout } = await shell(
    `export LC_ALL=C
     find . ! -type d -exec stat --printf '%n %F %a %u %g %y %s %h %t:%T\\n' {} +
     find . -mindepth 1 -type d -exec stat --printf '%n %F %a %u %g %y\\n' {} +
     stat --printf '%n %F %a %u %g\\n' .
     find . -type l -printf '%p -> %l\\n'
     find . -type f -size -1000000k -exec sha256sum {} +
     find . -exec getfattr -h -d -m - -e hex {} + 2>/dev/null | awk '/^# file:/ {f=$3} /=/ && !/^trusted.overlay/ {print f, $0}'`,
    root,
  );
  return stdout.split('\n').sort();
}

interface Comparison {
  readonly here: Place;
  readonly layers: readonly Layer[];
  /** A directory that shows what both backends must show. */
  readonly expected: string;
  /** Looked at while it is shown, too. */
  readonly also?: (rootfs: string, backend: LayerBackend) => Promise<void>;
}

async function expectSame({ here, layers, expected, also }: Comparison): Promise<void> {
  const wanted = await seen(expected);
  const inWanted = new Set(wanted);
  for (const backend of BACKENDS) {
    const shown = await here.show(backend, layers, async (rootfs) => {
      await also?.(rootfs, backend);
      return seen(rootfs);
    });
    const inShown = new Set(shown);
    expect({
      backend,
      extra: shown.filter((line) => !inWanted.has(line)),
      missing: wanted.filter((line) => !inShown.has(line)),
    }).toEqual({ backend, extra: [], missing: [] });
  }
}

/** What umoci unpacks of the only image of a layout. */
async function unpackedByUmoci(here: Place, layout: string): Promise<string> {
  const { stdout } = await run('umoci', ['list', '--layout', layout]);
  const bundle = await mkdtemp(join(here.root, 'umoci-'));
  await run('umoci', ['unpack', '--image', `${layout}:${stdout.trim()}`, bundle]);
  return join(bundle, 'rootfs');
}

const directory = (name: string, more: Partial<TarEntry> = {}): TarEntry => ({
  name: `${name}/`,
  type: 'directory',
  ...more,
});
const file = (name: string, content = name, more: Partial<TarEntry> = {}): TarEntry => ({ name, content, ...more });
const symlink = (name: string, linkname: string): TarEntry => ({ name, type: 'symlink', linkname });
const hardLink = (name: string, linkname: string): TarEntry => ({ name, type: 'link', linkname });

const CAPABILITY = Buffer.from('0100000200040000000000000000000000000000', 'hex');
const BASE: readonly TarEntry[] = [
  directory('.', { mode: 0o711, mtime: 5 }),
  directory('tmp', { mode: 0o1777, mtime: 10 }),
  directory('usr', { mtime: 11 }),
  directory('usr/lib', { mode: 0o750, uid: 3, gid: 4, mtime: 12 }),
  symlink('lib', 'usr/lib'),
  file('usr/lib/old.so', 'old '.repeat(3000), { uid: 70_000, gid: 100_000 }),
  file('usr/lib/gone.so'),
  file('setuid', 'x', { mode: 0o4755, uid: 1000 }),
  file('capable', 'x', { mode: 0o755, pax: { 'SCHILY.xattr.security.capability': CAPABILITY } }),
  file('attributes', '', { pax: { 'SCHILY.xattr.user.one': '1', 'SCHILY.xattr.user.two': Buffer.from([0, 255]) } }),
  directory('full', { mtime: 13 }),
  file('full/a'),
  file('full/b'),
  directory('swap', { mtime: 14 }),
  file('swap/x'),
  file('becomes-directory'),
  { name: 'null', type: 'character-device', major: 1, minor: 3, mode: 0o666 },
  { name: 'disk', type: 'block-device', major: 259, minor: 300 },
  { name: 'pipe', type: 'fifo' },
];
const ABOVE: readonly (readonly TarEntry[])[] = [
  [
    file('tmp/x'), // implied parent
    file('lib/new.so', 'new'), // through a lower symlink
    hardLink('usr/copy.so', 'usr/lib/old.so'),
    file('lib/.wh.gone.so', ''),
    file('.wh.not-there', ''),
    file('full/c'),
    file('full/.wh..wh..opq', ''),
    file('swap'), // a directory becomes a file
    directory('becomes-directory', { mtime: 20 }),
    file('becomes-directory/y'),
    file('large', 'x'.repeat(3_000_001), { mode: 0o4711, pax: { mtime: '-1.25', 'SCHILY.xattr.user.k': 'v' } }),
    hardLink('large-linked', 'large'),
    file('n'.repeat(200), 'long'),
  ],
  [
    file('again', 'first'),
    file('again', 'second', { mode: 0o600 }),
    hardLink('again-linked', './again'),
    directory('made/below', { mtime: 21 }),
    directory('made', { mode: 0o700, mtime: 22 }),
    file('.wh.setuid', ''),
    directory('tmp', { mode: 0o1777, mtime: 30 }),
    file('tmp/.wh.x', ''),
  ],
];

describe('layers, as images and as directories', () => {
  it('show what umoci unpacks: hand-made layers with everything that needs settling', async () => {
    await using here = await place();
    const layers = [BASE, ...ABOVE].map((entries) => buildLayer(entries));
    const layout = join(here.root, 'layout');
    await writeLayout(buildImage({ layers }), layout);
    await expectSame({ here, layers: await here.unpack(layers), expected: await unpackedByUmoci(here, layout) });
  });

  it('show what umoci unpacks of images that others made', {
    timeout: MORE_IMAGES === undefined ? 300_000 : 3_600_000,
  }, async () => {
    await using here = await place();
    const layouts: string[] = [];
    for (const [name, image] of [
      ['busybox', await busyboxImage()],
      ['sixty', sixtyLayers((await busyboxImage()).layers)],
      ['debian', await debianImage()],
    ] as const) {
      layouts.push(join(here.root, name));
      await writeLayout(image, join(here.root, name));
    }
    layouts.push(await changedByUmoci(here, join(here.root, 'debian')));
    for (const entry of MORE_IMAGES === undefined ? [] : await readdir(MORE_IMAGES, { withFileTypes: true }))
      if (entry.isDirectory() && !entry.name.startsWith('.')) layouts.push(join(entry.parentPath, entry.name));
    for (const layout of layouts) {
      const expected = await unpackedByUmoci(here, layout);
      await expectSame({ here, layers: await here.unpackLayout(layout), expected });
      await rm(expected, { recursive: true });
    }
  });

  it.each(['gnu', 'pax'])('show odd files as they were, from a tar in %s format', LONG, async (format) => {
    await using here = await place();
    const original = join(here.root, 'original');
    await mkdir(original);
    await shell(
      `truncate -s 5G sparse-5g; printf end | dd of=sparse-5g bs=1 seek=5000000000 conv=notrunc status=none
       printf start | dd of=sparse-5g conv=notrunc status=none
       truncate -s 1M all-hole; truncate -s 3M starts; printf x | dd of=starts conv=notrunc status=none
       mkdir many; (cd many; seq -f name-%g 3000 | xargs touch -d @1000000000)
       touch "$(printf 'n%.0s' $(seq 255))" "$(printf 'b\\xff\\xfe')" $'new\\nline'
       ln -s "$(printf 't%.0s' $(seq 4000))" long-link; ln -s x short-link
       for size in 1 4031 4032 4033 4095 4096 4097 8191 8192 8193; do head -c $size /dev/urandom > size-$size; done
       ln size-8193 linked; touch owned; chown 4000000000:70000 owned; chmod 6711 owned
       setfattr -n user.large -v "$(printf 'v%.0s' $(seq 3000))" size-1
       mkdir -p $(printf 'deep/%.0s' $(seq 100)); mkfifo fifo; mknod tty c 5 0; mknod sda b 8 0
       tar -c -S --format=${format} ${format === 'pax' ? `--xattrs --xattrs-include='*'` : ''} --sort=name -f ../odd.tar .`,
      original,
    );
    const layer = await here.unpackFile(join(here.root, 'odd.tar'));
    expect(layer.apparentBytes).toBeGreaterThan(5e9);
    expect(layer.diskBytes).toBeLessThan(4 << 20);
    if (format === 'gnu') {
      // That format has neither xattrs nor parts of seconds: compare with what it kept.
      await shell('rm -r original; mkdir original; tar -xpSf odd.tar -C original', here.root);
    }
    await expectSame({
      here,
      layers: [layer],
      expected: original,
      async also(rootfs, backend) {
        // The ends are enough, and quicker than 10 GB.
        for (const range of ['-n 1000000', '-i 4999000000 -n 9000000', '-i 5368000000'])
          await shell(`cmp ${range} ${rootfs}/sparse-5g ${original}/sparse-5g`, here.root);
        // Holes stay holes.
        expect(await here.snapshotter(backend).unpackedBytes()).toBeLessThan(4 << 20);
      },
    });
  });

  it('show 125 layers', async () => {
    await using here = await place();
    const layers = await here.unpack(
      Array.from({ length: 125 }, (_, i) => buildLayer([directory('d'), file(`d/${i}`), file('last', `${i}`)], 'none')),
    );
    for (const backend of BACKENDS)
      await here.show(backend, layers, async (rootfs) => {
        expect(await readdir(join(rootfs, 'd'))).toHaveLength(125);
        expect(await readFile(join(rootfs, 'last'), 'utf8')).toBe('124');
      });
  });

  it('fail alone when the disk is full, and leave nothing behind', async () => {
    await using here = await place();
    const layers = join(here.root, 'layers');
    await mkdir(layers);
    await shell('truncate -s 24M disk; mkfs.ext4 -q -N 2000 disk; mount -o loop disk layers', here.root);
    try {
      const large = (mib: number) => buildLayer([file('large', randomBytes(mib << 19).toString('hex'))], 'none');
      await expect(here.unpack([large(32)])).rejects.toMatchObject({ kind: 'unavailable' });
      expect(await readdir(join(layers, 'ingest'))).toEqual([]);
      expect(await here.store.list()).toEqual([]);
      // Its image fits, its copy does not.
      const half = await here.unpack([large(12)]);
      await expect(here.show('directory', half, (rootfs) => readdir(rootfs))).rejects.toMatchObject({
        kind: 'unavailable',
        message: expect.stringContaining('the disk is full'),
      });
      expect(await readdir(join(layers, 'unpacked'))).toEqual([]);
      // Where ext4 puts what it holds: apart.
      expect((await run('lsattr', ['-d', join(layers, 'unpacked')])).stdout).toMatch(/^\S*T/);
      const small = await here.unpack([buildLayer([file('small')])]);
      for (const backend of BACKENDS)
        expect(await here.show(backend, small, (rootfs) => readFile(join(rootfs, 'small'), 'utf8'))).toBe('small');
      expect(await here.show('erofs', half, (rootfs) => readdir(rootfs))).toEqual(['large']);
    } finally {
      await run('umount', [layers]);
    }
  });

  it('mount by loop device, too', async () => {
    await using here = await place();
    const [layer] = await here.unpack([buildLayer([file('f', 'x'.repeat(10_000))])]);
    if (layer === undefined) throw new Error('want a layer');
    const target = join(here.root, 'mounted');
    await mkdir(target);
    await run('mount', ['-t', 'erofs', '-o', 'ro,loop', here.store.pathOf(layer), target]);
    try {
      expect((await readFile(join(target, 'f'))).length).toBe(10_000);
    } finally {
      await run('umount', [target]);
    }
  });

  it('show what GNU tar unpacks of random trees', LONG, async () => {
    await using here = await place();
    let round = 0;
    await fc.assert(
      fc.asyncProperty(randomEntries(), async (entries) => {
        round += 1;
        const layer = buildLayer(entries, 'none');
        const made = await here.unpack([layer]);
        const expected = join(here.root, `tar-${round}`);
        await mkdir(expected);
        await writeFile(join(here.root, 'blob'), layer.blob);
        await shell(
          `tar -xp --delay-directory-restore --numeric-owner --xattrs --xattrs-include='*' -f ../blob; chmod 755 .`,
          expected,
        );
        await expectSame({ here, layers: made, expected });
        for (const { id } of made) expect(id).toBe(digestOf(layer.blob));
      }),
      { numRuns: 10 },
    );
  });
});

/** Sixty small layers over these: files that change again and again, and whiteouts of older ones. */
function sixtyLayers(base: readonly ImageLayer[]) {
  const above = Array.from({ length: 59 }, (_, i) => {
    const entries = [
      directory('data'),
      directory(`data/${i}`),
      file(`data/${i}/f`, `${i}`.repeat(3000)),
      file('latest', `${i}`),
    ];
    return buildLayer(i % 10 === 9 ? [...entries, file(`data/${i - 5}/.wh.f`, '')] : entries);
  });
  return buildImage({ layers: [...base, ...above] });
}

/** A layer over Debian that umoci makes of what a user did: packages removed, users added, links, modes, attributes. */
async function changedByUmoci(here: Place, debian: string): Promise<string> {
  const layout = join(here.root, 'changed');
  const bundle = join(here.root, 'changing');
  await run('cp', ['-r', debian, layout]);
  await run('umoci', ['unpack', '--image', `${layout}:latest`, bundle]);
  await shell(
    `echo 'app:x:1000:1000::/srv/app:/bin/sh' >>etc/passwd; mkdir -p srv/app/deep; cp -a usr/bin/tar srv/app/
     ln srv/app/tar srv/app/deep/again; ln -s ../../../etc srv/app/deep/etc; chown -R 1000:1000 srv/app; chmod 4755 srv/app/tar
     rm -r usr/share/doc/base-files usr/share/locale var/cache/debconf; mkdir usr/share/locale; touch usr/share/locale/new
     rm -r usr/share/man; echo file >usr/share/man; rm etc/issue; mkdir etc/issue; mknod dev/null2 c 1 3; mkfifo run/pipe
     setfattr -n security.capability -v 0x0100000200040000000000000000000000000000 usr/bin/grep
     touch -d @1234567890.5 var; chmod 1777 srv; mv usr/bin/awk usr/bin/moved; printf x >>usr/bin/perl-new`,
    join(bundle, 'rootfs'),
  );
  await run('umoci', ['repack', '--image', `${layout}:changed`, bundle]);
  await run('umoci', ['remove', '--image', `${layout}:latest`]);
  await rm(bundle, { recursive: true });
  return layout;
}

/** Trees whose parents come first, with hard links to earlier files; every name once. */
function randomEntries(): fc.Arbitrary<readonly TarEntry[]> {
  const name = fc.stringMatching(/^[a-zA-Z0-9!.ü-]{1,12}$/).filter((text) => !/^\.{1,2}$|^\.wh\./.test(text));
  const item = fc.record({
    name,
    parent: fc.nat(),
    kind: fc.constantFrom('file', 'file', 'directory', 'symlink', 'link', 'fifo'),
    sizeBytes: fc.oneof(fc.nat(100), fc.integer({ min: 3900, max: 4200 }), fc.nat(20_000)),
    mode: fc.integer({ min: 0, max: 0o7777 }),
    uid: fc.nat(100_000),
    mtime: fc.nat(2_000_000_000),
    xattr: fc.option(fc.string({ minLength: 1, maxLength: 200 }), { nil: undefined }),
  });
  return fc.array(item, { maxLength: 60 }).map((items) => {
    const directories = [''];
    const files: string[] = [];
    const used = new Set<string>();
    const entries: TarEntry[] = [];
    for (const { name, parent, kind, sizeBytes, mode, uid, mtime, xattr } of items) {
      const path = `${directories[parent % directories.length] ?? ''}${name}`;
      if (used.has(path)) continue;
      used.add(path);
      const pax = xattr === undefined || kind === 'symlink' || kind === 'fifo' ? {} : { 'SCHILY.xattr.user.x': xattr };
      const common = { uid, gid: uid + 1, mtime, pax };
      const target = files[parent % Math.max(files.length, 1)];
      if (kind === 'directory') {
        directories.push(`${path}/`);
        entries.push({ ...common, name: `${path}/`, type: 'directory', mode: mode | 0o700 });
      } else if (kind === 'link') {
        if (target !== undefined) entries.push({ name: path, type: 'link', linkname: target });
      } else if (kind === 'file') {
        files.push(path);
        entries.push({ ...common, name: path, mode, content: `${path}\n`.repeat(sizeBytes).slice(0, sizeBytes) });
      } else entries.push({ ...common, name: path, type: kind, mode: kind === 'fifo' ? mode : 0o777, linkname: 'to' });
    }
    return entries;
  });
}
