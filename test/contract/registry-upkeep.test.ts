/** Scrub, retention and removal of repositories, on a disk. */
import { randomUUID } from 'node:crypto';
import { mkdtempDisposable, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { PROGRAM } from '../../registry/config.ts';
import type { NewManifest } from '../../registry/metadata/index.ts';
import { type OpenStorage, openStorage, upkeepPorts } from '../../registry/registry.ts';
import type { UpkeepPorts } from '../../registry/upkeep/background.ts';
import { findInconsistencies } from '../../registry/upkeep/fsck.ts';
import { collectGarbage } from '../../registry/upkeep/gc.ts';
import { removeRepository } from '../../registry/upkeep/removal.ts';
import { applyRetention, createRetention, retentionOption } from '../../registry/upkeep/retention.ts';
import { type BadBlob, type ScrubPorts, scrub } from '../../registry/upkeep/scrub.ts';
import { loadConfig } from '../../shared/config.ts';
import { type Digest, digestOf } from '../../shared/digest.ts';
import { type Clock, createClock, GRACE_MS, manifestOf } from './metadata-index.ts';

describe('upkeep', () => {
  let clock: Clock;
  let root: string;
  let storage: OpenStorage;
  let ports: UpkeepPorts;
  let undo: AsyncDisposableStack;

  beforeEach(async () => {
    undo = new AsyncDisposableStack();
    const directory = await mkdtempDisposable(join(tmpdir(), 'berth-upkeep-'));
    undo.defer(() => directory.remove());
    root = directory.path;
    clock = createClock();
    const argv = ['--root', root, '--gc-grace-ms', `${GRACE_MS}ms`];
    const { config } = loadConfig(PROGRAM, { argv, env: {} });
    storage = undo.use(await openStorage(config, { now: clock.now }));
    ports = upkeepPorts(storage, { config, now: clock.now, randomId: randomUUID });
  });
  afterEach(() => undo.disposeAsync());

  const later = () => clock.advance(GRACE_MS + 1);
  const push = async (repository: string, text: string): Promise<Digest> => {
    const digest = digestOf(text);
    await storage.index.pinBlob(digest);
    await using ingest = await storage.blobs.ingest(randomUUID());
    await ingest.append(Readable.from([Buffer.from(text)]));
    await ingest.commit({ digest });
    await storage.index.linkBlob(repository, { digest, sizeBytes: text.length });
    return digest;
  };
  const put = async (repository: string, manifest: NewManifest, tags: readonly string[] = []) => {
    await storage.index.putManifest(repository, manifest, { tags, guard: () => {} });
    return manifest.digest;
  };
  const has = async (digest: Digest) => (await storage.index.resolve('r', { digest })) !== undefined;
  const findings = async () => {
    const found: string[] = [];
    for await (const { kind } of findInconsistencies(storage)) found.push(kind);
    return found;
  };

  describe('scrub', () => {
    const run = async (more: Partial<ScrubPorts> = {}, signal?: AbortSignal) => {
      const bad: BadBlob[] = [];
      const onBad = (found: BadBlob) => bad.push(found);
      const report = await scrub({ ...ports, ...more }, { scrubBytesPerSecond: 0, onBad, signal });
      return { ...report, found: bad.map(({ digest, why, manifests }) => ({ digest, why, manifests })) };
    };

    it('takes bad and missing blobs away, names who needs them, and a push heals them', async () => {
      const [good, rotten, lost] = [await push('r', 'good'), await push('r', 'rotten'), await push('r', 'lost')];
      const manifest = await put('r', manifestOf('m', { references: [good, rotten, lost] }), ['v1']);
      later();
      await writeFile(storage.blobs.pathOf(rotten), 'ROTTEN');
      await rm(storage.blobs.pathOf(lost));
      const { found, ...counts } = await run();
      expect(counts).toEqual({ blobs: 3, bytes: 14, bad: 2 });
      const manifests = [{ repository: 'r', digest: manifest }];
      expect(new Map(found.map((bad) => [bad.digest, bad]))).toEqual(
        new Map([
          [rotten, { digest: rotten, why: `its bytes are those of ${digestOf('ROTTEN')}`, manifests }],
          [lost, { digest: lost, why: 'its bytes are missing', manifests }],
        ]),
      );
      for (const digest of [rotten, lost]) {
        expect(await storage.index.blob('r', digest)).toBeUndefined();
        expect(await storage.index.touchBlob('r', digest)).toBeUndefined();
        expect(await storage.index.mountBlob('other', 'r', { digest })).toBeUndefined();
        await expect(put('r', manifestOf('new', { references: [digest] }))).rejects.toMatchObject({
          kind: 'not-found',
        });
      }
      expect(await findings()).toEqual(['quarantined', 'quarantined']);
      const aside = await readdir(join(root, 'quarantine'));
      expect(aside).toEqual([rotten.replace(':', '-')]);
      expect(await readFile(join(root, 'quarantine', aside[0] ?? ''), 'utf8')).toBe('ROTTEN');

      for (const text of ['rotten', 'lost']) await push('r', text);
      expect(await findings()).toEqual([]);
      expect(await run()).toMatchObject({ blobs: 3, bad: 0 });
    });

    it('leaves the file while somebody may push it, and moves it with a later pass', async () => {
      const digest = await push('r', 'rotten');
      await writeFile(storage.blobs.pathOf(digest), 'ROTTEN');
      expect(await run()).toMatchObject({ bad: 1 });
      expect(await storage.index.blob('r', digest)).toBeUndefined();
      expect(await storage.blobs.stat(digest)).toBeDefined();
      later();
      expect(await run()).toMatchObject({ bad: 0 });
      expect(await storage.blobs.stat(digest)).toBeUndefined();
    });

    it('does not condemn what was pushed again while it read', async () => {
      const digest = await push('r', 'rotten');
      await writeFile(storage.blobs.pathOf(digest), 'ROTTEN');
      const open: ScrubPorts['blobs']['open'] = async (asked) => {
        const stream = await storage.blobs.open(asked);
        await push('r', 'rotten');
        return stream;
      };
      expect(await run({ blobs: { open } })).toMatchObject({ bad: 0 });
      expect(await storage.index.blob('r', digest)).toBeDefined();
    });

    it('goes on where an interrupted pass stands', async () => {
      for (const text of ['a', 'b', 'c', 'd']) await push('r', text);
      const stop = new AbortController();
      let opened = 0;
      const open: ScrubPorts['blobs']['open'] = (digest) => {
        opened += 1;
        if (opened === 3) stop.abort();
        return storage.blobs.open(digest);
      };
      await expect(run({ blobs: { open } }, stop.signal)).rejects.toThrow();
      expect(await run()).toMatchObject({ blobs: 2 });
      expect(await run()).toMatchObject({ blobs: 4 });
    });

    it('runs once at a time', async () => {
      await storage.index.takeLease('scrub', { holder: 'other', ttlMs: 60_000 });
      await expect(run()).rejects.toMatchObject({ kind: 'conflict' });
    });
  });

  describe('retention', () => {
    const apply = (rules: readonly object[], isImmutable = (_repository: string, _tag: string) => false) =>
      applyRetention(ports, {
        retention: createRetention(
          retentionOption.schema.parse(rules.map((rule) => ({ repositories: ['**'], ...rule }))),
        ),
        gcGraceMs: GRACE_MS,
        isImmutable,
      });
    const free = () => collectGarbage(ports, { gcGraceMs: GRACE_MS, uploadTtlMs: GRACE_MS, untagged: false });

    it('removes old tags with what only they held, and the disk is freed at once', async () => {
      const shared = await push('r', 'shared');
      const child = await put('r', manifestOf('child', { references: [await push('r', 'only in old')] }));
      const old = await put('r', manifestOf('old', { references: [child, shared] }), ['old']);
      const signature = await put('r', manifestOf('signature', { subject: old }));
      later();
      const kept = await put('r', manifestOf('kept', { references: [shared] }), ['new']);
      later();
      expect(await apply([{ keepLast: 1 }])).toEqual({ tags: 1, manifests: 3 });
      for (const digest of [child, old, signature]) expect(await has(digest)).toBe(false);
      expect(await has(kept)).toBe(true);
      expect(await free()).toMatchObject({ blobs: 1, freedBytes: 'only in old'.length });
      expect(await findings()).toEqual([]);
    });

    it('keeps what is young, immutable, tagged twice, held by an index, or described by something tagged', async () => {
      const held = await put('r', manifestOf('held'));
      const index = await put('r', manifestOf('index', { references: [held] }), ['list']);
      await put('r', manifestOf('held'), ['also']);
      const twice = await put('r', manifestOf('twice'), ['one', 'keep-two']);
      const described = await put('r', manifestOf('described'));
      await put('r', manifestOf('sbom', { subject: described }), ['keep-sbom']);
      await put('r', manifestOf('fixed'), ['v1']);
      later();
      await put('r', manifestOf('young'), ['young']);
      const rules = [
        { tags: ['keep-*', 'list'], keepLast: 9 },
        { keepLast: 0, removeUntaggedAfter: '1m' },
      ];
      expect(await apply(rules, (_repository, tag) => tag === 'v1')).toEqual({ tags: 2, manifests: 0 });
      const left = await storage.index.tags('r', { limit: 9 });
      expect(left?.entries).toEqual(['keep-sbom', 'keep-two', 'list', 'v1', 'young']);
      for (const digest of [held, index, twice, described]) expect(await has(digest)).toBe(true);
    });

    it('keeps what was pulled lately, and removes untagged manifests when they are old enough', async () => {
      const pulled = await put('r', manifestOf('pulled'), ['pulled']);
      const untagged = await put('r', manifestOf('untagged'));
      later();
      await storage.index.recordPulls([{ repository: 'r', digest: pulled, at: clock.now() }]);
      expect(await apply([{ keepPulledWithin: '1h', removeUntaggedAfter: '2h' }])).toEqual({ tags: 0, manifests: 0 });
      later();
      expect(await apply([{ keepPulledWithin: '1h', removeUntaggedAfter: '2h' }])).toEqual({ tags: 1, manifests: 2 });
      expect(await has(untagged)).toBe(false);
    });

    it('does not remove a tag that moved since it was looked at', async () => {
      await put('r', manifestOf('one'), ['t']);
      const { found } = await storage.index.tagRecords('r', undefined);
      clock.advance(1);
      await put('r', manifestOf('two'), ['t']);
      expect(await storage.index.dropTags('r', found)).toEqual([]);
    });
  });

  it('removes a repository and leaves what others share', async () => {
    const [own, shared] = [await push('r', 'own'), await push('r', 'shared')];
    await push('other', 'shared');
    await put('other', manifestOf('m', { references: [shared] }), ['v1']);
    const tags = Array.from({ length: 700 }, (_, i) => `t${i}`);
    await put('r', manifestOf('many', { references: [own, shared] }), tags);
    await storage.database.write(async (transaction) => {
      const like = await transaction.selectFrom('manifest').selectAll().executeTakeFirstOrThrow();
      const rows = Array.from({ length: 600 }, (_, i) => ({ ...like, digest: digestOf(`m${i}`) }));
      const { id } = await transaction
        .selectFrom('repository')
        .where('name', '=', 'r')
        .select('id')
        .executeTakeFirstOrThrow();
      await transaction
        .insertInto('manifest')
        .values(rows.map((row) => ({ ...row, repositoryId: id })))
        .execute();
    });
    const refuse = () => {
      throw new Error('immutable');
    };
    await expect(removeRepository(ports.index, 'r', { guard: refuse })).rejects.toThrow('immutable');
    expect((await storage.index.tags('r', { limit: 9 }))?.entries).toHaveLength(9);
    expect(await removeRepository(ports.index, 'r', { guard: () => {} })).toBe(601);
    expect(await removeRepository(ports.index, 'r', { guard: () => {} })).toBeUndefined();
    expect(await storage.index.tags('r', { limit: 9 })).toBeUndefined();
    later();
    const report = await collectGarbage(ports, { gcGraceMs: GRACE_MS, uploadTtlMs: GRACE_MS, untagged: false });
    expect(report).toMatchObject({ blobs: 1, freedBytes: 3 });
    expect(await findings()).toEqual([]);
  });
});
