import { appendFile, mkdtemp, open, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { createFsBlobStore, type FsBlobStore } from '../../shared/blob-store-fs.ts';
import { createMemoryBlobStore } from '../../shared/blob-store-memory.ts';
import { digestOf, hexOf } from '../../shared/digest.ts';
import { blobStoreContract } from './blob-store.ts';

blobStoreContract('memory', async () => {
  const store = createMemoryBlobStore();
  // Memory does not outlive its process: what is left to promise is that the same store goes on.
  return { store, reopen: async () => store, [Symbol.asyncDispose]: async () => {} };
});

blobStoreContract('filesystem', async () => {
  const root = await mkdtemp(join(tmpdir(), 'berth-blobs-'));
  return {
    store: createFsBlobStore({ root }),
    reopen: async () => createFsBlobStore({ root }),
    [Symbol.asyncDispose]: () => rm(root, { recursive: true }),
  };
});

describe('filesystem blob store', () => {
  let root: string;
  let store: FsBlobStore;
  const bytes = (text: string) => Readable.from([Buffer.from(text)], { objectMode: false });
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), 'berth-blobs-'));
    store = createFsBlobStore({ root, now: () => new Date('2020-01-02T03:04:05Z') });
  });
  afterEach(() => rm(root, { recursive: true }));

  it('begins anew after the disk has failed to keep bytes, which a later fsync would not tell', async () => {
    await using handle = await open(join(root, 'any'), 'w');
    const failing = vi.spyOn(Object.getPrototypeOf(handle), 'datasync');
    failing.mockRejectedValueOnce(Object.assign(new Error('EIO: i/o error'), { code: 'EIO' }));
    try {
      await using ingest = await store.ingest('u1');
      await ingest.append(bytes('abc'));
      await expect(ingest.commit({ digest: digestOf('abc') })).rejects.toMatchObject({ kind: 'unavailable' });
    } finally {
      failing.mockRestore();
    }
    await using again = await store.ingest('u1');
    expect(again.offset).toBe(0);
    expect(await store.stat(digestOf('abc'))).toBeUndefined();
  });

  it('lays blobs out as an OCI image layout does', async () => {
    await using ingest = await store.ingest('u1');
    await ingest.append(bytes('abc'));
    expect(await readFile(store.ingestPathOf('u1'), 'utf8')).toBe('abc');
    await ingest.commit({ digest: digestOf('abc') });
    expect(store.pathOf(digestOf('abc'))).toBe(join(root, 'blobs', 'sha256', hexOf(digestOf('abc'))));
    expect(await readFile(store.pathOf(digestOf('abc')), 'utf8')).toBe('abc');
  });

  it('counts the age of a blob from its commit', async () => {
    await using ingest = await store.ingest('u1');
    await ingest.append(bytes('abc'));
    const { modifiedAt } = await ingest.commit({ digest: digestOf('abc') });
    expect(modifiedAt).toEqual(new Date('2020-01-02T03:04:05Z'));
    expect((await stat(store.pathOf(digestOf('abc')))).mtime).toEqual(modifiedAt);
  });

  it('never publishes bytes that a power failure tore', async () => {
    await using _prepared = await store.ingest('other');
    await writeFile(store.ingestPathOf('torn'), Buffer.concat([Buffer.from('ab'), Buffer.alloc(1)]));
    await using ingest = await store.ingest('torn');
    await ingest.append(bytes('def'));
    await expect(ingest.commit({ digest: digestOf('abcdef') })).rejects.toMatchObject({ kind: 'integrity' });
    expect(await store.stat(digestOf('abcdef'))).toBeUndefined();
  });

  it('does not trust its hash when another process has written to the file', async () => {
    {
      await using ingest = await store.ingest('u1');
      await ingest.append(bytes('abc'));
    }
    await appendFile(store.ingestPathOf('u1'), 'XYZ');
    await using ingest = await store.ingest('u1');
    expect(ingest.offset).toBe(6);
    await expect(ingest.commit({ digest: digestOf('abc') })).rejects.toMatchObject({ kind: 'integrity' });
    await appendFile(store.ingestPathOf('u1'), '!');
    await expect(ingest.commit({ digest: digestOf('abcXYZ') })).rejects.toMatchObject({ kind: 'integrity' });
  });

  it('replaces a blob whose file is damaged', async () => {
    for (const id of ['first', 'second']) {
      await using ingest = await store.ingest(id);
      await ingest.append(bytes('abc'));
      await ingest.commit({ digest: digestOf('abc') });
      if (id === 'first') await writeFile(store.pathOf(digestOf('abc')), 'rot');
    }
    expect(await readFile(store.pathOf(digestOf('abc')), 'utf8')).toBe('abc');
  });

  it('ignores foreign files among the blobs', async () => {
    await using _prepared = await store.ingest('u1');
    await writeFile(join(root, 'blobs', 'sha256', 'README'), 'x');
    for await (const info of store.list()) expect.fail(`listed ${info.digest}`);
  });
});
