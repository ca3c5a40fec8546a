import { mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { renameDurably, syncFile, writeDurably } from '../../shared/atomic-file.ts';

describe('atomic file', () => {
  let directory: string;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'berth-atomic-'));
  });
  afterEach(() => rm(directory, { recursive: true }));

  it('replaces a file whole, with the mode asked for, and leaves nothing else', async () => {
    const path = join(directory, 'a');
    await writeDurably(path, 'old');
    await writeDurably(path, Buffer.from('new'), { mode: 0o600 });
    expect(await readFile(path, 'utf8')).toBe('new');
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect(await readdir(directory)).toEqual(['a']);
  });

  it('leaves the old file and no litter when it cannot', async () => {
    const path = join(directory, 'a');
    await writeDurably(join(directory, 'b'), 'x');
    await expect(writeDurably(join(directory, 'missing', 'a'), 'x')).rejects.toThrow('ENOENT');
    await expect(writeDurably(directory, 'x')).rejects.toThrow();
    await writeFile(path, 'old');
    expect((await readdir(directory)).sort()).toEqual(['a', 'b']);
  });

  it('is whole for readers while many write', async () => {
    const path = join(directory, 'a');
    await Promise.all(Array.from({ length: 20 }, (_, at) => writeDurably(path, String(at % 10).repeat(10_000))));
    expect(new Set(await readFile(path, 'utf8')).size).toBe(1);
    expect(await readdir(directory)).toEqual(['a']);
  });

  it('renames and syncs', async () => {
    await writeFile(join(directory, 'a'), 'x');
    await syncFile(join(directory, 'a'));
    await renameDurably(join(directory, 'a'), join(directory, 'b'));
    expect(await readdir(directory)).toEqual(['b']);
  });
});
