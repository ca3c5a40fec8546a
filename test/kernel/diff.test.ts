import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { chmod, chown, link, mkdir, rename, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { diffUpper } from '../../runtime/layers/diff.ts';
import { createTarParser, type TarEntry } from '../../runtime/layers/tar.ts';
import { collect } from '../../shared/streams.ts';
import { testHost } from './leaks.ts';

function parse(tar: Buffer): { readonly entries: readonly TarEntry[]; readonly text: string } {
  const entries: TarEntry[] = [];
  let text = '';
  const parser = createTarParser({
    entry: (entry) => void entries.push(entry),
    data: (bytes) => {
      text += bytes.toString();
    },
    hole: () => {},
  });
  parser.write(tar);
  parser.end();
  return { entries, text };
}

it('tells what a container changed, as a layer', async () => {
  await using host = await testHost();
  const mounts = createMounts({ architecture: process.arch });
  const at = (...names: string[]) => join(host.root, ...names);
  for (const name of ['lower/kept', 'lower/replaced', 'upper', 'work', 'rootfs'])
    await mkdir(at(name), { recursive: true });
  for (const name of ['lower/gone', 'lower/kept/old', 'lower/kept/changed', 'lower/replaced/old'])
    await writeFile(at(name), 'lower');
  await mounts.mountOverlay({
    target: at('rootfs'),
    lowers: ['lower'],
    writable: { upper: 'upper', work: 'work' },
    cwd: host.root,
  });
  const long = 'n'.repeat(120);
  await rm(at('rootfs/gone'));
  await rm(at('rootfs/kept/old'));
  await writeFile(at('rootfs/kept/changed'), 'upper');
  await rm(at('rootfs/replaced'), { recursive: true });
  await mkdir(at('rootfs/replaced'));
  await writeFile(at('rootfs/replaced/new'), 'new');
  await mkdir(at('rootfs', long));
  await writeFile(at('rootfs', long, 'ünï'), 'x'.repeat(1000));
  await chown(at('rootfs', long, 'ünï'), 3_000_000, 5);
  await chmod(at('rootfs', long, 'ünï'), 0o4755);
  await symlink('target', at('rootfs/soft'));
  await link(at('rootfs/soft'), at('rootfs/hard'));
  await writeFile(at('rootfs/tool'), 'tool');
  execFileSync('setcap', ['cap_net_raw+ep', at('rootfs/tool')]);
  execFileSync('setfattr', ['-n', 'user.k', '-v', 'v', at('rootfs/tool')]);
  execFileSync('mkfifo', [at('rootfs/pipe')]);
  await mounts.unmount([at('rootfs')]);

  const tar = await collect(diffUpper(at('upper')), 1 << 20, { what: 'diff' });
  const { entries, text } = parse(tar);
  const utf8 = (path: string) => Buffer.from(path, 'latin1').toString();
  expect(entries.map(({ type, path }) => `${type} ${utf8(path)}`)).toEqual(
    [
      'file .wh.gone',
      'symlink hard',
      'directory kept/',
      'file kept/changed',
      'file kept/.wh.old',
      `directory ${long}/`,
      `file ${long}/ünï`,
      'fifo pipe',
      'directory replaced/',
      'file replaced/.wh..wh..opq',
      'file replaced/new',
      'link soft',
      'file tool',
    ].map((line) => expect.stringMatching(`^${line.replaceAll('.', '\\.').replace(/\/$/, '/?')}$`)),
  );
  expect(text).toBe(`upper${'x'.repeat(1000)}newtool`);
  const owned = entries.find(({ path }) => path.endsWith(Buffer.from('ünï').toString('latin1')));
  expect(owned).toMatchObject({ mode: 0o4755, uid: 3_000_000, gid: 5 });
  const tool = entries.find(({ path }) => path === 'tool');
  expect([...(tool?.xattrs?.keys() ?? [])].sort()).toEqual(['security.capability', 'user.k']);
  expect(
    entries.flatMap(({ xattrs }) => [...(xattrs?.keys() ?? [])]).filter((name) => name.includes('overlay')),
  ).toEqual([]);
  // Others read it, too.
  expect(execFileSync('tar', ['-t'], { input: tar }).toString()).toContain('replaced/.wh..wh..opq');
});

it('gives the same bytes for the same changes, wherever and whenever they were made', async () => {
  await using host = await testHost();
  const digests: string[] = [];
  for (const [index, names] of [
    ['a', 'b', 'c'],
    ['c', 'b', 'a'],
  ].entries()) {
    const upper = join(host.root, `upper${index}`);
    await mkdir(join(upper, 'd'), { recursive: true });
    for (const name of names) await writeFile(join(upper, 'd', `${name}.part`), name);
    for (const name of names) await rename(join(upper, 'd', `${name}.part`), join(upper, 'd', name));
    for (const name of [...names, '']) await utimes(join(upper, 'd', name), 0, 1000 + index / 10);
    const tar = await collect(diffUpper(upper), 1 << 20, { what: 'diff' });
    digests.push(createHash('sha256').update(tar).digest('hex'));
  }
  expect(digests[0]).toBe(digests[1]);
});

it('streams large files, and ends tar when nobody reads on', async () => {
  await using host = await testHost();
  await writeFile(join(host.root, 'large'), Buffer.alloc(40 << 20, 1));
  let bytes = 0;
  for await (const chunk of diffUpper(host.root)) bytes += chunk.length;
  expect(bytes).toBeGreaterThan(40 << 20);
  for await (const _chunk of diffUpper(host.root)) break;
});

it('fails when there is nothing to read', async () => {
  await expect(collect(diffUpper('/no/such/directory'), 1 << 20, { what: 'diff' })).rejects.toMatchObject({
    kind: 'unavailable',
  });
});
