import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { readInside } from '../../runtime/containers/rootfs-files.ts';

let outside: string;
let rootfs: string;
const read = (path: string) => readInside(rootfs, path, { maxBytes: 1000 })?.toString();

const SWAP = `
  const { renameSync } = require('node:fs');
  const { parentPort, workerData: rootfs } = require('node:worker_threads');
  parentPort.postMessage('begun');
  for (;;) {
    renameSync(rootfs + '/swap', rootfs + '/kept');
    renameSync(rootfs + '/evil', rootfs + '/swap');
    renameSync(rootfs + '/swap', rootfs + '/evil');
    renameSync(rootfs + '/kept', rootfs + '/swap');
  }`;

beforeAll(async () => {
  outside = await mkdtemp(join(tmpdir(), 'berth-inside-'));
  rootfs = join(outside, 'rootfs');
  await mkdir(join(rootfs, 'etc/deep'), { recursive: true });
  await writeFile(join(outside, 'secret'), 'secret');
  await writeFile(join(rootfs, 'etc/passwd'), 'inside');
  await writeFile(join(rootfs, 'etc/large'), 'x'.repeat(1001));
  execFileSync('mkfifo', [join(rootfs, 'etc/pipe')]);
  for (const [name, target] of Object.entries({
    absolute: '/etc/passwd',
    relative: 'deep/../passwd',
    chain: 'relative',
    loop: 'loop',
    out: '../../../../secret',
    far: `${'../'.repeat(30)}${outside}/secret`,
    pipelink: 'pipe',
  }))
    await symlink(target, join(rootfs, 'etc', name));
  await symlink('/etc', join(rootfs, 'conf'));
  await symlink('/', join(rootfs, 'all'));
});
afterAll(async () => {
  await rm(outside, { recursive: true });
});

describe('reading inside a root filesystem', () => {
  it.each([
    ['/etc/passwd', 'inside'],
    ['etc//./passwd', 'inside'],
    ['/etc/absolute', 'inside'],
    ['/etc/chain', 'inside'],
    ['/conf/passwd', 'inside'],
    ['/all/all/../../etc/passwd', 'inside'],
    ['/etc/absent', undefined],
    ['/etc/passwd/x', undefined],
    ['/etc/deep', undefined],
    ['/', undefined],
    ['/etc/loop', undefined],
    ['/../secret', undefined],
    ['/etc/out', undefined],
    ['/etc/far', undefined],
  ])('%s: %s', async (path, expected) => {
    expect(read(path)).toBe(expected);
  });

  it('CVE-2024-9676: does not wait for a pipe', async () => {
    expect(read('/etc/pipe')).toBeUndefined();
    expect(read('/etc/pipelink')).toBeUndefined();
  });

  it('CVE-2026-47262: reads no more than it was told', () => {
    expect(() => read('/etc/large')).toThrow(expect.objectContaining({ kind: 'too-large' }));
  });

  it('stays inside while directories are swapped for links', async () => {
    await mkdir(join(rootfs, 'swap'));
    await writeFile(join(rootfs, 'swap/secret'), 'inside');
    await symlink(outside, join(rootfs, 'evil'));
    // In a thread of its own: a read does not come to an end for others to go on.
    const swapping = new Worker(SWAP, { eval: true, workerData: rootfs });
    await once(swapping, 'message');
    const seen = new Set<string | undefined>();
    for (let round = 0; round < 3000; round += 1) seen.add(read('/swap/secret'));
    await swapping.terminate();
    // Else nothing was swapped meanwhile.
    expect(seen).toContain('inside');
    expect(seen).toContain(undefined);
    expect([...seen].filter((text) => text !== undefined && text !== 'inside')).toEqual([]);
  });
});
