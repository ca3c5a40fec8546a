import { lstat, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { buildImage, buildLayer, busyboxImage, readLayout, sharedBasePair, writeLayout } from '../fixtures/images.ts';
import { succeed } from '../fixtures/programs.ts';
import { type TestHost, testHost } from './leaks.ts';

async function unpack(host: TestHost, layout: string): Promise<string> {
  const bundle = join(host.root, 'bundle');
  await succeed('umoci', ['unpack', '--image', `${layout}:latest`, bundle], { env: host.env });
  return join(bundle, 'rootfs');
}

it.each(['none', 'gzip'] as const)('makes a busybox layout that umoci unpacks (%s)', async (compression) => {
  await using host = await testHost();
  const layout = join(host.root, 'busybox');
  const image = await busyboxImage(compression);
  await writeLayout(image, layout);
  const rootfs = await unpack(host, layout);
  const [shell, busybox] = [await lstat(join(rootfs, 'bin/sh')), await lstat(join(rootfs, 'bin/busybox'))];
  expect(shell.ino).toBe(busybox.ino);
  expect((await readLayout(layout))?.manifestDescriptor).toEqual(image.manifestDescriptor);
});

it('writes extended attributes, long names, devices and large owners as umoci reads them', async () => {
  await using host = await testHost();
  const layout = join(host.root, 'odd');
  const long = `${'d/'.repeat(60)}${'f'.repeat(90)}`;
  const layer = buildLayer([
    { name: 'owned', uid: 5_000_000, gid: 70_000, mode: 0o4755, content: 'x' },
    { name: 'null', type: 'character-device', major: 1, minor: 3, mode: 0o666 },
    { name: 'attribute', pax: { 'SCHILY.xattr.user.test': 'value' }, content: 'y' },
    { name: long, content: 'long' },
  ]);
  await writeLayout(buildImage({ layers: [layer] }), layout);
  const rootfs = await unpack(host, layout);
  const owned = await lstat(join(rootfs, 'owned'));
  expect([owned.uid, owned.gid, owned.mode & 0o7777]).toEqual([5_000_000, 70_000, 0o4755]);
  expect((await lstat(join(rootfs, 'null'))).isCharacterDevice()).toBe(true);
  expect(await readFile(join(rootfs, long), 'utf8')).toBe('long');
  const attribute = await succeed('getfattr', ['-n', 'user.test', '--only-values', join(rootfs, 'attribute')], host);
  expect(attribute).toBe('value');
});

it('makes two images that share their base', async () => {
  const { first, second } = await sharedBasePair();
  const [a, b] = [first, second].map(({ layers }) => layers.map(({ descriptor }) => descriptor.digest));
  expect(a?.slice(0, 2)).toEqual(b?.slice(0, 2));
  expect(a?.[2]).not.toBe(b?.[2]);
});
