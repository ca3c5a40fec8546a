import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { NewManifest } from '../../registry/metadata/index.ts';
import { METADATA_MIGRATIONS, type MetadataTables } from '../../registry/metadata/schema.ts';
import { createSqlIndex, type SqlIndex } from '../../registry/metadata/sql.ts';
import { findInconsistencies } from '../../registry/upkeep/fsck.ts';
import { bytesOf, collectGarbage, type GarbageBytes, untouchedBytesOf } from '../../registry/upkeep/gc.ts';
import type { BlobStore } from '../../shared/blob-store.ts';
import { createMemoryBlobStore } from '../../shared/blob-store-memory.ts';
import { type Database, openDatabase } from '../../shared/database.ts';
import { type Digest, digestOf } from '../../shared/digest.ts';
import { type Clock, createClock, GRACE_MS, manifestOf } from './metadata-index.ts';

const TTL_MS = 2 * GRACE_MS;

describe('garbage collection', () => {
  let clock: Clock;
  let database: Database<MetadataTables>;
  let index: SqlIndex;
  let blobs: BlobStore;

  beforeEach(() => {
    clock = createClock();
    database = openDatabase<MetadataTables>({ path: ':memory:', migrations: METADATA_MIGRATIONS });
    index = createSqlIndex(database, { now: clock.now, gcGraceMs: GRACE_MS });
    blobs = createMemoryBlobStore({ now: clock.now });
  });
  afterEach(() => database.close());

  const collect = (more: { untagged?: boolean; bytes?: GarbageBytes } = {}) =>
    collectGarbage(
      { index, bytes: more.bytes ?? bytesOf(blobs), now: clock.now, randomId: randomUUID },
      { gcGraceMs: GRACE_MS, uploadTtlMs: TTL_MS, untagged: more.untagged ?? false },
    );
  const later = () => clock.advance(GRACE_MS + 1);
  const store = async (text: string): Promise<Digest> => {
    await using ingest = await blobs.ingest(randomUUID());
    await ingest.append(Readable.from([Buffer.from(text)]));
    return (await ingest.commit({ digest: digestOf(text) })).digest;
  };
  const push = async (repository: string, text: string): Promise<Digest> => {
    const digest = digestOf(text);
    await index.pinBlob(digest);
    await store(text);
    await index.linkBlob(repository, { digest, sizeBytes: text.length });
    return digest;
  };
  const put = async (manifest: NewManifest, tags: readonly string[] = []) => {
    await index.putManifest('r', manifest, { tags, guard: () => {} });
    return manifest.digest;
  };
  const findings = async () => {
    const found: string[] = [];
    for await (const { kind } of findInconsistencies({ index, blobs })) found.push(kind);
    return found;
  };

  it('frees what no manifest refers to when it is old enough, and not before', async () => {
    const [kept, garbage] = [await push('r', 'kept layer'), await push('r', 'garbage')];
    await put(manifestOf('m', { references: [kept] }), ['v1']);
    expect(await collect()).toMatchObject({ links: 0, blobs: 0, freedBytes: 0 });
    later();
    expect(await collect()).toMatchObject({ manifests: 0, links: 1, blobs: 1, freedBytes: 'garbage'.length });
    expect(await blobs.stat(garbage)).toBeUndefined();
    expect(await blobs.stat(kept)).toBeDefined();
    expect(await index.blob('r', garbage)).toBeUndefined();
    expect(await collect()).toMatchObject({ links: 0, blobs: 0 });
    expect(await findings()).toEqual([]);
  });

  it('keeps bytes while any repository links them', async () => {
    const digest = await push('r', 'layer');
    await push('other', 'layer');
    await put(manifestOf('m', { references: [digest] }), ['v1']);
    later();
    expect(await collect()).toMatchObject({ links: 1, blobs: 0 });
    expect(await blobs.stat(digest)).toBeDefined();
  });

  it('keeps what a client was told to exist, for another grace period', async () => {
    const digest = await push('r', 'layer');
    later();
    expect(await index.touchBlob('r', digest)).toBeDefined();
    expect(await collect()).toMatchObject({ links: 0 });
    const manifest = manifestOf('m', { references: [digest] });
    await put(manifest);
    later();
    expect(await index.touchManifest('r', manifest.digest)).toBe(true);
    expect(await collect({ untagged: true })).toMatchObject({ manifests: 0 });
    later();
    expect(await collect({ untagged: true })).toMatchObject({ manifests: 1, links: 1, blobs: 1 });
  });

  it('frees the blobs of a deleted manifest in the same run', async () => {
    const manifest = await put(manifestOf('m', { references: [await push('r', 'layer')] }), ['v1']);
    later();
    await index.removeManifest('r', manifest, { guard: () => {} });
    expect(await collect()).toMatchObject({ blobs: 1, freedBytes: 5 });
  });

  it('collects untagged manifests only if asked, and never children, nor referrers of a living subject', async () => {
    const child = await put(manifestOf('child'));
    const parent = await put(manifestOf('index', { references: [child] }), ['list']);
    const referrer = await put(manifestOf('signature', { subject: parent }));
    const lonely = await put(manifestOf('lonely', { subject: digestOf('never pushed') }));
    later();
    expect(await collect()).toMatchObject({ manifests: 0 });
    expect(await collect({ untagged: true })).toMatchObject({ manifests: 1 });
    expect(await index.resolve('r', { digest: lonely })).toBeUndefined();
    for (const digest of [child, parent, referrer]) expect(await index.resolve('r', { digest })).toBeDefined();
    await index.removeTag('r', 'list', { guard: () => {} });
    expect(await collect({ untagged: true })).toMatchObject({ manifests: 3 });
    expect(await index.repositories({ limit: 9 })).toEqual({ entries: [], more: false });
  });

  it('gives up uploads that nobody continued', async () => {
    const session = { id: 'u1', repository: 'r', owner: 'ann', algorithm: 'sha256', startedAt: clock.now() } as const;
    await index.createUpload(session, { maxOpen: 9 });
    await index.createUpload({ ...session, id: 'empty' }, { maxOpen: 9 });
    {
      await using ingest = await blobs.ingest('u1');
      await ingest.append(Readable.from([Buffer.from('half')]));
    }
    later();
    expect(await collect()).toMatchObject({ uploads: 0 });
    later();
    expect(await collect()).toMatchObject({ uploads: 2, freedBytes: 4 });
    expect(await index.upload('u1', { repository: 'r', owner: 'ann' })).toBeUndefined();
    expect(await blobs.ingestInfo('u1')).toBeUndefined();
  });

  it('removes bytes whose push died before their row, but not while they are pinned', async () => {
    const digest = await store('orphan');
    later();
    await index.pinBlob(digest);
    expect(await findings()).toEqual(['orphan']);
    expect(await collect()).toMatchObject({ blobs: 0 });
    later();
    expect(await collect()).toMatchObject({ blobs: 1 });
    expect(await findings()).toEqual([]);
  });

  it('refuses to pin what is being removed, and the next run ends what a dead one began', async () => {
    const digest = await push('r', 'layer');
    later();
    const dying: GarbageBytes = { ...bytesOf(blobs), remove: () => Promise.reject(new Error('killed')) };
    await expect(collect({ bytes: dying })).rejects.toThrow('killed');
    expect(await index.blob('r', digest)).toBeUndefined();
    await expect(index.pinBlob(digest)).rejects.toMatchObject({ kind: 'unavailable' });
    expect(await collect()).toMatchObject({ blobs: 1 });
    await push('r', 'layer');
    expect(await findings()).toEqual([]);
  });

  it('keeps what is linked again between two steps of a run', async () => {
    const digest = await push('r', 'layer');
    later();
    expect(await index.collectLinks(new Date(clock.now().getTime() - GRACE_MS), undefined)).toMatchObject({
      found: [{ repository: 'r', digest }],
    });
    await index.pinBlob(digest);
    expect(await index.condemnBlobs(undefined)).toMatchObject({ found: [] });
    await index.linkBlob('r', { digest, sizeBytes: 5 });
    expect(await collect()).toMatchObject({ blobs: 0 });
  });

  it('runs once at a time, and takes over a lease whose holder died', async () => {
    await index.takeLease('gc', { holder: 'dead', ttlMs: 60_000 });
    await expect(collect()).rejects.toMatchObject({ kind: 'conflict' });
    clock.advance(60_001);
    await collect();
    await collect();
  });

  it('leaves bytes alone in a dry run', async () => {
    const digest = await push('r', 'layer');
    later();
    expect(await collect({ bytes: untouchedBytesOf(blobs) })).toMatchObject({ blobs: 1, freedBytes: 5 });
    expect(await blobs.stat(digest)).toBeDefined();
  });

  it('shows what is missing', async () => {
    const digest = await push('r', 'layer');
    await put(manifestOf('m', { references: [digest] }), ['v1']);
    await blobs.remove(digest);
    expect(await findings()).toEqual(['missing-blob']);
  });
});
