/** What COPY selects and where it puts it, over real layers. */

import { Readable } from 'node:stream';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { unpackArchives } from '../../runtime/build/archives.ts';
import { copyLayer } from '../../runtime/build/copy.ts';
import { createFileDigests } from '../../runtime/build/file-digests.ts';
import type { FileTree } from '../../runtime/build/file-tree.ts';
import { digestSelection, selectFiles } from '../../runtime/build/selection.ts';
import { createIgnore } from '../../shared/dockerignore.ts';
import { type TarEntry, tarOf } from '../fixtures/tar.ts';
import { type BuildRig, buildRig, CREATED_AT, readCopy } from './build-rig.ts';

const file = (name: string, content = name, more: Partial<TarEntry> = {}): TarEntry => ({ name, content, ...more });
const directory = (name: string, mode = 0o755): TarEntry => ({ name: `${name}/`, type: 'directory', mode });
const symlink = (name: string, linkname: string): TarEntry => ({ name, type: 'symlink', linkname });

describe('COPY', () => {
  let rig: BuildRig;
  let tree: FileTree;
  let below: FileTree;
  beforeAll(async () => {
    rig = await buildRig();
    tree = await rig.tree(
      [
        file('a.txt'),
        file('b.txt'),
        file('gone.txt'),
        directory('src', 0o700),
        file('src/main.c', 'int', { mode: 0o4711, uid: 7, gid: 8, pax: { 'SCHILY.xattr.security.capability': 'cap' } }),
        file('src/main.h'),
        directory('src/deep'),
        file('src/deep/x.c'),
        { name: 'src/hard', type: 'link', linkname: 'src/main.h' },
        symlink('link', 'src/main.h'),
        symlink('up', '../../../../a.txt'),
        symlink('etc', '/src'),
        symlink('loop', 'loop'),
      ],
      [{ name: '.wh.gone.txt' }, file('b.txt', 'second')],
    );
    below = await rig.tree([
      directory('app', 0o711),
      file('app/old'),
      directory('app/dir'),
      directory('data/real'),
      symlink('app/link', '/data/real'),
      symlink('app/out', '../../../../../../data'),
      file('etc/passwd', 'root:x:0:0::/:\nweb:x:33:44::/:\n'),
      file('etc/group', 'root:x:0:\nstaff:x:50:\n'),
    ]);
  });
  afterAll(() => rig[Symbol.asyncDispose]());

  const copied = async (sources: readonly string[], destination: string, more: object = {}, select: object = {}) =>
    rig.copy({ tree, sources, ...select }, { destination, workingDirectory: '/app', below, ...more });
  const names = async (...args: Parameters<typeof copied>) => [...(await copied(...args)).keys()];

  it.each([
    [['a.txt'], 'x', ['app/x']],
    [['a.txt'], 'dir', ['app/dir/a.txt']],
    [['a.txt'], '.', ['app/a.txt']],
    [['a.txt'], 'new/', ['app/new', 'app/new/a.txt']],
    [['a.txt'], '/p/q/r', ['p', 'p/q', 'p/q/r']],
    [['a.txt', 'b.txt'], './', ['app/a.txt', 'app/b.txt']],
    [['*.txt'], './', ['app/a.txt', 'app/b.txt']],
    [['[a-b].txt', 'none*'], './', ['app/a.txt', 'app/b.txt']],
    [['s?c/*.h'], '/h/', ['h', 'h/main.h']],
    [['src'], 'dir', ['app/dir/deep', 'app/dir/deep/x.c', 'app/dir/hard', 'app/dir/main.c', 'app/dir/main.h']],
    [['src/deep/', 'a.txt'], '/n/', ['n', 'n/a.txt', 'n/x.c']],
    // Links of the target are followed inside it, and `..` of links stops at its root (CVE-2020-10696).
    [['a.txt'], 'link', ['data/real/a.txt']],
    [['a.txt'], 'link/new', ['data/real/new']],
    [['a.txt'], 'out/', ['data/a.txt']],
    [['a.txt'], '../../../x', ['x']],
    // Links of the source too; what is copied is what they lead to, by the link's own name.
    [['link'], 'dir', ['app/dir/link']],
    [['up'], 'dir', ['app/dir/up']],
    [['../../etc/deep'], '/n/', ['n', 'n/x.c']],
  ])('%j to %s', async (sources, destination, expected) => {
    expect(await names(sources, destination)).toEqual(expected);
  });

  it('gives files of a context to root and makes directories, with times in whole seconds', async () => {
    const found = await copied(['src/main.c'], '/new/d/');
    expect(found.get('new')).toMatchObject({
      type: 'directory',
      mode: 0o755,
      uid: 0,
      gid: 0,
      mtimeSeconds: CREATED_AT.getTime() / 1000,
    });
    expect(found.get('new/d/main.c')).toMatchObject({
      mode: 0o4711,
      uid: 0,
      gid: 0,
      mtimeSeconds: 1_700_000_000,
      text: 'int',
    });
  });

  it('keeps owners, attributes and hard links of a stage', async () => {
    const found = await copied(['src'], '/s', {}, { owners: 'kept' });
    expect(found.get('s/main.c')).toMatchObject({ uid: 7, gid: 8, mode: 0o4711 });
    expect(found.get('s/main.c')?.xattrs?.get('security.capability')?.toString()).toBe('cap');
    expect(found.get('s/hard')).toMatchObject({ type: 'file', text: 'src/main.h' });
    expect(found.get('s/main.h')).toMatchObject({ type: 'link', linkPath: 's/hard' });
    expect(found.get('s')).toMatchObject({ mode: 0o755 });
  });

  it.each([
    ['web', 33, 44],
    ['web:staff', 33, 50],
    ['5', 5, 5],
    ['5:staff', 5, 50],
    // A number is an id whatever names there are (CVE-2026-46680).
    ['0:7', 0, 7],
  ])('--chown=%s', async (chown, uid, gid) => {
    const found = await copied(['a.txt'], '/o/', { chown });
    expect(found.get('o/a.txt')).toMatchObject({ uid, gid });
    expect(found.get('o')).toMatchObject({ uid, gid });
  });

  it('--chown by name needs plain files of bounded size (CVE-2024-9676, CVE-2026-47262)', async () => {
    const pipe = await rig.tree([{ name: 'etc/passwd', type: 'fifo' }]);
    await expect(copied(['a.txt'], '/', { below: pipe, chown: 'web' })).rejects.toMatchObject({ kind: 'invalid' });
    const huge = await rig.tree([file('etc/passwd', 'x'.repeat(9 << 20))]);
    await expect(copied(['a.txt'], '/', { below: huge, chown: 'web' })).rejects.toMatchObject({ kind: 'too-large' });
    expect((await copied(['a.txt'], '/', { below: huge, chown: '4:5' })).get('a.txt')).toMatchObject({
      uid: 4,
      gid: 5,
    });
  });

  it('--chmod changes what is copied', async () => {
    const found = await copied(['src'], '/s/', { chmod: 'u=rwX,go=rX' });
    expect(found.get('s/deep')?.mode).toBe(0o755);
    expect(found.get('s/main.c')?.mode).toBe(0o755);
    expect(found.get('s/main.h')?.mode).toBe(0o644);
    expect((await copied(['a.txt'], '/', { chmod: '0600' })).get('a.txt')?.mode).toBe(0o600);
    await expect(copied(['a.txt'], '/', { chmod: '99' })).rejects.toThrow('invalid chmod parameter');
  });

  it('--exclude, --parents', async () => {
    expect(await names(['src'], '/s', {}, { excludes: ['**/*.c', 'hard'] })).toEqual(['s', 's/deep', 's/main.h']);
    const parents = { parents: true };
    expect(await names(['src/deep/x.c', 'a.txt'], '/s/', {}, parents)).toEqual([
      's',
      's/a.txt',
      's/src',
      's/src/deep',
      's/src/deep/x.c',
    ]);
    expect((await copied(['src/deep/x.c'], '/s/', {}, parents)).get('s/src')?.mode).toBe(0o700);
    expect(await names(['src/./**/*.c'], '/s/', {}, parents)).toEqual(['s', 's/deep', 's/deep/x.c', 's/main.c']);
  });

  it.each([
    [['a.txt', 'b.txt'], 'x', 'with more than one source file, the destination must be a directory and end with a /'],
    [['nope'], 'x', 'failed to compute cache key: failed to calculate checksum of ref: "/nope": not found'],
    [['gone.txt'], 'x', '"/gone.txt": not found'],
    [['../nope'], 'x', '"/nope": not found'],
    [['no*', 'ne*'], 'x/', 'no source files were specified'],
    [['loop'], 'x', 'too many levels of symbolic links'],
    [['['], 'x', 'syntax error in pattern'],
    [['src'], 'old', 'cannot copy to non-directory: /app/old'],
    [['a.txt'], 'old/x', 'cannot copy to non-directory: /app/old'],
  ])('%j to %s fails in known words', async (sources, destination, message) => {
    await expect(copied(sources, destination)).rejects.toThrow(message);
  });

  it('says when a missing file is ignored', async () => {
    const ignored = createIgnore(['secret*']);
    await expect(copied(['secret.txt'], '/', {}, { ignored })).rejects.toThrow('excluded by .dockerignore');
  });

  it('replaces no directory by a file, and no link by a directory', async () => {
    const clash = await rig.tree([directory('dir'), file('dir/link/x')], [file('old', 'x')]);
    await expect(
      rig.copy({ tree: clash, sources: ['.'] }, { below, destination: '/app', workingDirectory: '/' }),
    ).resolves.toBeDefined();
    const hostile = await rig.tree([file('link/x')]);
    await expect(rig.copy({ tree: hostile, sources: ['.'] }, { below, destination: '/app' })).rejects.toThrow(
      'cannot copy to non-directory: /app/link',
    );
    const file2 = await rig.tree([file('dir')]);
    await expect(rig.copy({ tree: file2, sources: ['.'] }, { below, destination: '/app' })).rejects.toThrow(
      'cannot replace to directory /app/dir with file',
    );
  });

  it('--link looks at nothing below', async () => {
    expect(await names(['a.txt'], '/app/link/x', { below: undefined })).toEqual(['app', 'app/link', 'app/link/x']);
  });

  it('writes heredocs and gives everything the time of SOURCE_DATE_EPOCH', async () => {
    const tar = await copyLayer({
      ...{
        instruction: 'COPY',
        destination: '/d/',
        workingDirectory: '/',
        below,
        createdAt: CREATED_AT,
        sourceDateEpoch: 2_000_000_000,
      },
      sources: [
        { kind: 'inline', file: { name: 'one', content: Buffer.from('1') } },
        { kind: 'selection', selection: await selectFiles({ tree, sources: ['a.txt'], owners: 'root' }) },
      ],
    });
    const found = await readCopy(tar);
    expect([...found.values()].map(({ path, mtimeSeconds, text }) => [path, mtimeSeconds, text])).toEqual([
      ['d/', 2_000_000_000, ''],
      ['d/a.txt', 2_000_000_000, 'a.txt'],
      ['d/one', 2_000_000_000, '1'],
    ]);
  });

  it('refuses a name that a layer would take for a deletion', async () => {
    await using context = await rig.contexts.receive(readable([file('.wh.x', 'kept'), file('d/.wh..wh..opq')]));
    expect(await context.text('.wh.x', 100)).toBe('kept');
    const { openFileTree } = await import('../../runtime/build/file-tree.ts');
    const own = await openFileTree(rig.layers, context.chain);
    await expect(rig.copy({ tree: own, sources: ['.'] }, {})).rejects.toThrow('means that a file is deleted');
  });

  it('names by content, not by time', async () => {
    const key = async (entries: readonly TarEntry[], select: object = {}) =>
      await digestSelection(
        await selectFiles({ tree: await rig.tree(entries), sources: ['d'], owners: 'root', ...select }),
        rig.digests,
      );
    const base = [file('d/x', 'one'), symlink('d/l', 'x')];
    const same = await key(base);
    expect(await key([file('d/x', 'one', { mtime: 5, uid: 9 }), symlink('d/l', 'x'), file('beside')])).toBe(same);
    const others = [
      [file('d/x', 'two'), symlink('d/l', 'x')],
      [file('d/y', 'one'), symlink('d/l', 'x')],
      [file('d/x', 'one', { mode: 0o600 }), symlink('d/l', 'x')],
      [file('d/x', 'one'), symlink('d/l', 'y')],
      [file('d/x', 'one'), file('d/l', 'x')],
    ];
    const keys = await Promise.all(others.map((entries) => key(entries)));
    expect(new Set([same, ...keys]).size).toBe(others.length + 1);
    const kept = { owners: 'kept' };
    expect(await key([file('d/x', 'one', { uid: 9 })], kept)).not.toBe(await key([file('d/x', 'one')], kept));
  });

  it('remembers digests after a restart and forgets those of layers that have gone', async () => {
    const big = await rig.tree([file('x', 'y'.repeat(5 << 20)), file('small', 's'), file('empty', '')]);
    const selection = await selectFiles({ tree: big, sources: ['.'], owners: 'root' });
    const first = await digestSelection(selection, rig.digests);
    await rig.digests.settled();
    // Reads no image any more.
    const later = createFileDigests({ root: rig.root, pathOf: () => '/nowhere' });
    expect(await digestSelection(selection, later)).toBe(first);
    await later.keepOnly(new Set());
    await expect(digestSelection(selection, later)).rejects.toMatchObject({ kind: 'unavailable' });
  });

  describe('ADD of archives', () => {
    const inner = [directory('in', 0o750), file('in/x', 'x', { uid: 3, gid: 4 }), symlink('in/l', '/etc')];
    const add = async (content: Buffer, destination = '/to/') => {
      const archives = await rig.tree([file('some.bin', 'plain'), { name: 'arch', content }]);
      const selection = await selectFiles({ tree: archives, sources: ['some.bin', 'arch'], owners: 'root' });
      await using lease = rig.lease();
      const sources = (await unpackArchives(selection, { layers: rig.layers, lease })).map((each) => ({
        kind: 'selection' as const,
        selection: each,
      }));
      return await readCopy(
        await copyLayer({
          instruction: 'ADD',
          sources,
          destination,
          workingDirectory: '/',
          below,
          createdAt: CREATED_AT,
        }),
      );
    };
    it('unpacks what is one, by content', async () => {
      for (const archive of [tarOf(inner), gzipSync(tarOf(inner))]) {
        const found = await add(archive);
        expect([...found.keys()]).toEqual(['to', 'to/in', 'to/in/l', 'to/in/x', 'to/some.bin']);
        expect(found.get('to/in/x')).toMatchObject({ uid: 3, gid: 4, text: 'x' });
      }
      expect([...(await add(gzipSync('no tar'))).keys()]).toEqual(['to', 'to/arch', 'to/some.bin']);
    });
    it('leaves directories as they are that the archive has no entry for', async () => {
      const found = await add(tarOf([file('app/new'), file('app/dir/sub/new'), directory('data', 0o700)]), '/');
      expect(found.get('app')).toBeUndefined();
      expect(found.get('app/dir')).toBeUndefined();
      expect(found.get('app/dir/sub')).toMatchObject({ type: 'directory', mode: 0o755 });
      expect(found.get('data')).toMatchObject({ type: 'directory', mode: 0o700 });
    });
    it('follows links to directories below, and takes the place of what is of another kind', async () => {
      const given = [
        file('link/in'),
        directory('old'),
        file('old/in'),
        file('dir', 'file'),
        directory('out'),
        file('out/in'),
      ];
      const found = await add(tarOf(given), '/app/');
      expect([...found.keys()]).toEqual([
        'app/dir',
        'app/old',
        'app/old/in',
        'app/out',
        'app/out/in',
        'app/some.bin',
        'data/real/in',
      ]);
      expect(found.get('app/dir')).toMatchObject({ type: 'file', text: 'file' });
    });
    it('stops a bomb, and leads nowhere', async () => {
      await expect(add(gzipSync(tarOf([file('zeros', '\0'.repeat(40 << 20))])))).rejects.toMatchObject({
        kind: 'too-large',
      });
      await expect(add(tarOf([file('../../etc/x')]))).rejects.toMatchObject({ kind: 'invalid' });
      // The link of the archive stays in it: what follows lands in the archive's own tree.
      const found = await add(tarOf([symlink('l', '/app'), file('l/evil')]));
      expect([...found.keys()]).toEqual(['to', 'to/app', 'to/app/evil', 'to/l', 'to/some.bin']);
    });
  });
});

function readable(entries: readonly TarEntry[]) {
  return Readable.from([tarOf(entries)]);
}
