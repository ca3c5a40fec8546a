import { execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createMounts } from '../../runtime/kernel/mount.ts';

const mounts = createMounts({ architecture: process.arch });
let directory: string;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'berth-mount-'));
});
afterEach(async () => {
  const left = (await mounts.list()).filter(({ target }) => target.startsWith(directory)).map(({ target }) => target);
  await mounts.unmount(left.reverse());
  await rm(directory, { recursive: true });
  expect(left).toEqual([]);
});

async function image(name: string, files: Record<string, string>): Promise<{ image: string; target: string }> {
  const source = join(directory, `${name}.src`);
  await mkdir(source);
  for (const [path, text] of Object.entries(files)) await writeFile(join(source, path), text);
  const target = join(directory, 'l', name);
  await mkdir(target, { recursive: true });
  execFileSync('mkfs.erofs', ['--quiet', join(directory, `${name}.erofs`), source], { stdio: 'ignore' });
  return { image: join(directory, `${name}.erofs`), target };
}

describe('layer images', () => {
  it('mounts a batch in one go, file-backed where the kernel can', async () => {
    const images = await Promise.all(Array.from({ length: 60 }, (_, n) => image(String(n), { [`file${n}`]: `${n}` })));
    const startedAt = performance.now();
    await mounts.mountImages(images);
    const elapsedMs = performance.now() - startedAt;
    expect(await readFile(join(directory, 'l/59/file59'), 'utf8')).toBe('59');
    const entries = (await mounts.list()).filter(({ target }) => target.startsWith(directory));
    expect(entries).toHaveLength(60);
    expect(entries[0]).toMatchObject({ type: 'erofs', source: images[0]?.image, root: '/' });
    expect(entries[0]?.options).toEqual(expect.arrayContaining(['ro', 'nosuid', 'nodev']));
    expect(elapsedMs).toBeLessThan(2000);
    await mounts.unmount(images.map(({ target }) => target));
  });

  it('refuses a broken image and leaves none of the batch mounted', async () => {
    const images = [await image('good', { a: '1' }), await image('bad', { a: '2' })];
    await writeFile(images[1]?.image ?? '', Buffer.alloc(8192, 0x41));
    await expect(mounts.mountImages(images)).rejects.toMatchObject({
      kind: 'integrity',
      message: expect.stringContaining('bad.erofs'),
    });
    expect((await mounts.list()).filter(({ target }) => target.startsWith(directory))).toEqual([]);
  });

  it('names an image that is missing, and one that is empty', async () => {
    const made = await image('gone', {});
    await expect(mounts.mountImages([{ ...made, image: `${made.image}.no` }])).rejects.toMatchObject({
      kind: 'not-found',
    });
    await truncate(made.image, 0);
    await expect(mounts.mountImages([made])).rejects.toMatchObject({
      kind: expect.stringMatching(/integrity|unavailable/),
    });
  });

  it('makes loop devices where mount(2) cannot be called', async () => {
    const loops = createMounts({ architecture: 'mips' });
    const made = await image('looped', { a: 'by loop' });
    await loops.mountImages([made]);
    expect(await readFile(join(made.target, 'a'), 'utf8')).toBe('by loop');
    expect((await loops.list()).find(({ target }) => target === made.target)?.source).toMatch(/^\/dev\/loop/);
    await loops.unmount([made.target]);
  });
});

describe('overlays', () => {
  it('stacks 500 layers by short names', async () => {
    const cwd = join(directory, 'l');
    const lowers = Array.from({ length: 500 }, (_, n) => n.toString(36).padStart(5, 'z'));
    for (const [index, lower] of lowers.entries()) {
      await mkdir(join(cwd, lower), { recursive: true });
      await writeFile(join(cwd, lower, `file${index}`), '');
    }
    const target = join(directory, 'rootfs');
    for (const name of ['upper', 'work', 'rootfs']) await mkdir(join(directory, name));
    await mounts.mountOverlay({ target, lowers, cwd, writable: { upper: '../upper', work: '../work' } });
    expect(await readdir(target)).toHaveLength(500);
    await writeFile(join(target, 'written'), '');
    expect(await readdir(join(directory, 'upper'))).toEqual(['written']);
    await mounts.unmount([target]);
  });

  it('takes names with every separator', async () => {
    const odd = 'a,b:c\\d e';
    for (const name of [`${odd}/lower`, `${odd}/upper`, `${odd}/work`, `${odd}/root`])
      await mkdir(join(directory, name), { recursive: true });
    await writeFile(join(directory, odd, 'lower/seen'), '');
    const target = join(directory, odd, 'root');
    await mounts.mountOverlay({
      target,
      lowers: [`${odd}/lower`],
      cwd: directory,
      writable: { upper: `${odd}/upper`, work: `${odd}/work` },
    });
    expect(await readdir(target)).toEqual(['seen']);
    expect((await mounts.list()).some((entry) => entry.target === target)).toBe(true);
    await mounts.unmount([target]);
  });

  it('says which limit a too long list of layers breaks', async () => {
    await expect(
      mounts.mountOverlay({ target: directory, lowers: Array(100).fill('x'.repeat(71)), cwd: '/' }),
    ).rejects.toMatchObject({ kind: 'too-large', message: expect.stringContaining('4095') });
  });
});

describe('binds and unmounting', () => {
  it('binds read-only', async () => {
    for (const name of ['from', 'to']) await mkdir(join(directory, name));
    await mounts.mountBind({ source: join(directory, 'from'), target: join(directory, 'to'), readOnly: true });
    await expect(writeFile(join(directory, 'to/x'), '')).rejects.toThrow('EROFS');
    await mounts.unmount([join(directory, 'to')]);
  });

  it('is content when nothing is mounted, refuses what is busy, and detaches it when told to', async () => {
    for (const name of ['from', 'to']) await mkdir(join(directory, name));
    const target = join(directory, 'to');
    await mounts.unmount([target, join(directory, 'absent')]);
    await mounts.mountBind({ source: join(directory, 'from'), target });
    await using _busy = await open(target);
    await expect(mounts.unmount([target])).rejects.toMatchObject({ kind: 'conflict', detail: { busy: [target] } });
    await mounts.unmount([target, join(directory, 'absent')], { lazy: true });
    expect((await mounts.list()).some((entry) => entry.target === target)).toBe(false);
  });
});
