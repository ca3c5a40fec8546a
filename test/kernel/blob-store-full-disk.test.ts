import { spawnSync } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { createFsBlobStore } from '../../shared/blob-store-fs.ts';
import { digestOf } from '../../shared/digest.ts';

const DISK_BYTES = 4 << 20;

describe('filesystem blob store on a full disk', () => {
  let root: string;
  const run = (command: string, ...args: string[]) => {
    const { status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr} (these tests need root)`);
  };
  beforeEach(async () => {
    root = await mkdtemp(`${tmpdir()}/berth-full-`);
    run('mount', '-t', 'tmpfs', '-o', `size=${DISK_BYTES}`, 'berth-full', root);
  });
  afterEach(async () => {
    run('umount', root);
    await rm(root, { recursive: true });
  });

  it('fails the one request, keeps what is there, and works again when there is room', async () => {
    const store = createFsBlobStore({ root });
    const source = (sizeBytes: number) => Readable.from([Buffer.alloc(sizeBytes)], { objectMode: false });
    const small = Buffer.alloc(1 << 20);
    {
      await using ingest = await store.ingest('small');
      await ingest.append(source(small.length));
      await ingest.commit({ digest: digestOf(small) });
    }
    const large = Buffer.alloc(3_500_000);
    {
      await using ingest = await store.ingest('large');
      await ingest.append(source(2 << 20));
      await expect(ingest.append(source(2 << 20))).rejects.toMatchObject({
        kind: 'unavailable',
        message: expect.stringContaining('the disk is full'),
      });
      expect(ingest.offset).toBeGreaterThanOrEqual(2 << 20);
      await expect(ingest.commit({ digest: digestOf(large) })).rejects.toMatchObject({ kind: 'integrity' });
    }
    expect(await store.stat(digestOf(small))).toMatchObject({ sizeBytes: small.length });
    await store.remove(digestOf(small));
    await using ingest = await store.ingest('large');
    await ingest.append(source(large.length - ingest.offset));
    expect(await ingest.commit({ digest: digestOf(large) })).toMatchObject({ sizeBytes: large.length });
  });
});
