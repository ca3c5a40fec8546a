/** Layer images as the kernel, erofs-utils, umoci and GNU tar see them. */
import { execFile } from 'node:child_process';
import { randomBytes, randomUUID } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createLayerSource } from '../../runtime/layers/layer-source.ts';
import type { Layer, LayerStore } from '../../runtime/layers/layer-store.ts';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from '../../runtime/layers/layer-store-erofs.ts';
import { openDatabase } from '../../shared/database.ts';
import { type Digest, digestOf } from '../../shared/digest.ts';
import { createLog } from '../../shared/log.ts';
import type { Compression } from '../../shared/media-types.ts';
import { measure } from '../../shared/streams.ts';
import { buildImage, buildLayer, debianImage, type ImageLayer, writeLayout } from '../fixtures/images.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { testHost } from './leaks.ts';

const run = promisify(execFile);
const shell = (script: string, cwd: string) => run('bash', ['-euc', script], { cwd, maxBuffer: 1 << 28 });

interface Place extends AsyncDisposable {
  readonly root: string;
  readonly store: LayerStore;
  /** Makes layers, each above the ones before it, and checks every image. */
  unpack(layers: readonly ImageLayer[]): Promise<readonly Layer[]>;
  /** The layer of a tar file. */
  unpackFile(path: string): Promise<Layer>;
  /** Mounts the stack, read-only; unmounted when the place is disposed. */
  mount(layers: readonly Layer[], options?: string): Promise<string>;
}

async function place(): Promise<Place> {
  await using undo = new AsyncDisposableStack();
  const host = undo.use(await testHost());
  const database = openDatabase<LayerTables>({ path: join(host.root, 'berth.db'), migrations: LAYER_MIGRATIONS });
  undo.defer(() => database.close());
  const log = createLog({ component: 'test', level: 'silent' });
  const now = () => new Date();
  const store = createLayerStore({ root: host.root, database, log, now, randomId: randomUUID, workers: 2 });
  undo.use(store);
  const mounts = undo.use(new AsyncDisposableStack());
  let mountCount = 0;

  async function ingest(path: string, diffId: Digest, compression: Compression, lower: readonly Layer[]) {
    const writer = createLayerSource([path]);
    writer.end((await stat(path)).size);
    const chain = Promise.resolve(lower.map(({ id }) => id));
    const layer = await store.ingest({ diffId, compression, source: writer.source, lower: chain });
    await run('fsck.erofs', [store.pathOf(layer)]);
    await run('dump.erofs', [store.pathOf(layer)]);
    return layer;
  }

  async function mountOne(options: string, source: string, type: string): Promise<string> {
    mountCount += 1;
    const target = join(host.root, `m${mountCount}`);
    await mkdir(target);
    await run('mount', ['-t', type, '-o', options, source, target]);
    mounts.defer(async () => {
      await run('umount', [target]);
      await rm(target, { recursive: true });
    });
    return target;
  }

  const owned = undo.move();
  return {
    root: host.root,
    store,
    async unpack(layers) {
      const made: Layer[] = [];
      for (const layer of layers) {
        const path = join(host.root, `blob-${randomUUID()}`);
        await writeFile(path, layer.blob);
        const compression = layer.descriptor.mediaType.endsWith('gzip') ? 'gzip' : 'none';
        made.push(await ingest(path, layer.diffId, compression, made));
        await rm(path);
      }
      return made;
    },
    async unpackFile(path) {
      const measured = measure();
      for await (const _ of createReadStream(path).pipe(measured));
      return ingest(path, measured.result().digest, 'none', []);
    },
    async mount(layers, options = 'ro') {
      const targets: string[] = [];
      for (const layer of layers) targets.unshift(await mountOne(options, store.pathOf(layer), 'erofs'));
      const [only] = targets;
      if (targets.length === 1 && only !== undefined) return only;
      return mountOne(`ro,lowerdir=${targets.join(':')}`, 'overlay', 'overlay');
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Everything one can see of a tree, sorted: type, mode, owner, time, size, links, device, target, content, xattrs. */
async function seen(root: string): Promise<readonly string[]> {
  const { stdout } = await shell(
    `export LC_ALL=C
     find . ! -type d -exec stat --printf '%n %F %a %u %g %y %s %h %t:%T\\n' {} +
     find . -type d -exec stat --printf '%n %F %a %u %g %y\\n' {} +
     find . -type l -printf '%p -> %l\\n'
     find . -type f -size -1000000k -exec sha256sum {} +
     find . -exec getfattr -h -d -m - -e hex {} + 2>/dev/null | awk '/^# file:/ {f=$3} /=/ {print f, $0}'`,
    root,
  );
  return stdout.split('\n').sort();
}

async function expectSame(actual: string, expected: string): Promise<void> {
  const [a, b] = await Promise.all([seen(actual), seen(expected)]);
  const inA = new Set(a);
  const inB = new Set(b);
  expect({ extra: a.filter((line) => !inB.has(line)), missing: b.filter((line) => !inA.has(line)) }).toEqual({
    extra: [],
    missing: [],
  });
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

describe('layer images in the kernel', () => {
  it('show what umoci unpacks: hand-made layers with everything that needs settling', async () => {
    await using here = await place();
    const layers = [BASE, ...ABOVE].map((entries) => buildLayer(entries));
    await writeLayout(buildImage({ layers }), join(here.root, 'layout'));
    await run('umoci', ['unpack', '--image', `${join(here.root, 'layout')}:latest`, join(here.root, 'bundle')]);
    const mounted = await here.mount(await here.unpack(layers));
    // The root of an overlay is that of its topmost layer; giving it the base's attributes is the snapshotter's part.
    await shell('chmod 755 .; touch -d @0 .', join(here.root, 'bundle/rootfs'));
    await expectSame(mounted, join(here.root, 'bundle/rootfs'));
  });

  it('show what GNU tar unpacks of a Debian root filesystem', async () => {
    const { layers } = await debianImage();
    await using here = await place();
    const [layer] = layers;
    if (layer === undefined) throw new Error('the Debian image has no layer');
    const made = await here.unpack([layer]);
    const unpacked = join(here.root, 'tar');
    await mkdir(unpacked);
    await writeFile(join(here.root, 'blob'), layer.blob);
    await shell(`tar -xp --delay-directory-restore --numeric-owner --xattrs --xattrs-include='*' -f ../blob`, unpacked);
    await expectSame(await here.mount(made), unpacked);
  }, 300_000);

  it.each(['gnu', 'pax'])('show odd files as they were, from a tar in %s format', async (format) => {
    await using here = await place();
    const original = join(here.root, 'original');
    await mkdir(original);
    await shell(
      `truncate -s 5G sparse-5g; printf end | dd of=sparse-5g bs=1 seek=5000000000 conv=notrunc status=none
       printf start | dd of=sparse-5g conv=notrunc status=none
       truncate -s 1M all-hole
       mkdir many; (cd many; seq -f name-%g 10000 | xargs touch -d @1000000000)
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
    const mounted = await here.mount([layer]);
    if (format === 'gnu') {
      // That format has neither xattrs nor parts of seconds: compare with what it kept.
      await shell('rm -r original; mkdir original; tar -xpSf odd.tar -C original', here.root);
    }
    await expectSame(mounted, original);
    // The ends are enough, and quicker than 10 GB.
    for (const range of ['-n 1000000', '-i 4999000000 -n 9000000', '-i 5368000000'])
      await shell(`cmp ${range} ${mounted}/sparse-5g ${original}/sparse-5g`, here.root);
  });

  it('fail alone when the disk is full, and leave nothing behind', async () => {
    await using here = await place();
    const layers = join(here.root, 'layers');
    await mkdir(layers);
    await run('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', layers]);
    try {
      const large = buildLayer([file('large', randomBytes(8 << 20).toString('hex'))], 'none');
      await expect(here.unpack([large])).rejects.toMatchObject({ kind: 'unavailable' });
      expect(await readdir(join(layers, 'ingest'))).toEqual([]);
      expect(await here.store.list()).toEqual([]);
      expect(await here.unpack([buildLayer([file('small')])])).toHaveLength(1);
    } finally {
      await run('umount', [layers]);
    }
  });

  it('mount by loop device, too', async () => {
    await using here = await place();
    const [layer] = await here.unpack([buildLayer([file('f', 'x'.repeat(10_000))])]);
    if (layer === undefined) throw new Error('want a layer');
    const mounted = await here.mount([layer], 'ro,loop');
    expect((await readFile(join(mounted, 'f'))).length).toBe(10_000);
  });

  it('show what GNU tar unpacks of random trees', async () => {
    await using here = await place();
    let round = 0;
    await fc.assert(
      fc.asyncProperty(randomEntries(), async (entries) => {
        round += 1;
        const layer = buildLayer(entries, 'none');
        const made = await here.unpack([layer]);
        const unpacked = join(here.root, `tar-${round}`);
        await mkdir(unpacked);
        await writeFile(join(here.root, 'blob'), layer.blob);
        await shell(
          `tar -xp --delay-directory-restore --numeric-owner --xattrs --xattrs-include='*' -f ../blob`,
          unpacked,
        );
        await shell(`chmod 755 .; touch -d @0 .`, unpacked);
        await expectSame(await here.mount(made), unpacked);
        for (const { id } of made) expect(id).toBe(digestOf(layer.blob));
      }),
      { numRuns: 15 },
    );
  });
});

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
