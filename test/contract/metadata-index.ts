/** What every MetadataIndex promises. Times come from the clock that `make` is given. */
import { describe, expect, it } from 'vitest';
import type { MetadataIndex, NewManifest, TagGuard } from '../../registry/metadata/index.ts';
import { type Digest, digestOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';

export const GRACE_MS = 60 * 60_000;

export interface Clock {
  now(): Date;
  advance(ms: number): void;
}

export function createClock(): Clock {
  let time = Date.UTC(2026, 0, 1);
  return {
    now: () => new Date(time),
    advance(ms) {
      time += ms;
    },
  };
}

export type OpenIndex = MetadataIndex & AsyncDisposable;

const free: TagGuard = () => {};

export function manifestOf(text: string, more: Partial<NewManifest> = {}): NewManifest {
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, text }));
  return { digest: digestOf(bytes), mediaType: MEDIA_TYPES.ociManifest, bytes, references: [], ...more };
}

async function linkText(index: MetadataIndex, repository: string, text: string): Promise<Digest> {
  const digest = digestOf(text);
  await index.pinBlob(digest);
  await index.linkBlob(repository, { digest, sizeBytes: text.length });
  return digest;
}

export function metadataIndexContract(name: string, make: (clock: Clock) => Promise<OpenIndex>): void {
  describe(`MetadataIndex contract: ${name}`, () => {
    it('answers a manifest by tag and by digest with the bytes and type that were put', async () => {
      await using index = await make(createClock());
      const manifest = manifestOf('one');
      await index.putManifest('a/b', manifest, { tags: ['v1', 'latest'], guard: free });
      for (const reference of [{ tag: 'v1' }, { tag: 'latest' }, { digest: manifest.digest }]) {
        const found = await index.resolve('a/b', reference);
        expect(found?.digest).toBe(manifest.digest);
        expect(found?.mediaType).toBe(manifest.mediaType);
        expect(Buffer.from(found?.bytes ?? []).equals(manifest.bytes)).toBe(true);
      }
      expect(await index.resolve('a/b', { tag: 'v2' })).toBeUndefined();
      expect(await index.resolve('a', { digest: manifest.digest })).toBeUndefined();
    });

    it('stores neither manifest nor tag while a reference is missing, and names what is missing', async () => {
      await using index = await make(createClock());
      const [there, absent] = [await linkText(index, 'r', 'there'), digestOf('absent')];
      const manifest = manifestOf('m', { references: [there, absent] });
      await expect(index.putManifest('r', manifest, { tags: ['v1'], guard: free })).rejects.toMatchObject({
        kind: 'not-found',
        detail: { missing: [absent] },
      });
      expect(await index.resolve('r', { tag: 'v1' })).toBeUndefined();
      expect(await index.resolve('r', { digest: manifest.digest })).toBeUndefined();
    });

    it('takes manifests as references of an index, of its own repository only', async () => {
      await using index = await make(createClock());
      const child = manifestOf('child');
      const parent = manifestOf('parent', { references: [child.digest], mediaType: MEDIA_TYPES.ociIndex });
      await index.putManifest('other', child, { tags: [], guard: free });
      await expect(index.putManifest('r', parent, { tags: [], guard: free })).rejects.toMatchObject({
        kind: 'not-found',
      });
      await index.putManifest('r', child, { tags: [], guard: free });
      await index.putManifest('r', parent, { tags: ['list'], guard: free });
      expect((await index.resolve('r', { tag: 'list' }))?.digest).toBe(parent.digest);
    });

    it('asks the guard of a removal about tags of indexes that hold the manifest, however deep', async () => {
      await using index = await make(createClock());
      const child = manifestOf('child');
      const middle = manifestOf('middle', { references: [child.digest], mediaType: MEDIA_TYPES.ociIndex });
      const top = manifestOf('top', { references: [middle.digest], mediaType: MEDIA_TYPES.ociIndex });
      await index.putManifest('r', child, { tags: ['child'], guard: free });
      await index.putManifest('r', middle, { tags: [], guard: free });
      await index.putManifest('r', top, { tags: ['v1'], guard: free });
      const asked: string[] = [];
      const guard = ({ tag }: { readonly tag: string }) => {
        asked.push(tag);
        if (tag === 'v1') throw new AppError('denied', 'it is immutable');
      };
      await expect(index.removeManifest('r', child.digest, { guard })).rejects.toMatchObject({ kind: 'denied' });
      expect(asked).toEqual(['child', 'v1']);
      expect(await index.resolve('r', { tag: 'child' })).toBeDefined();
      expect(await index.removeManifest('r', child.digest, { guard: free })).toBe(true);
      expect(await index.resolve('r', { tag: 'v1' })).toBeDefined();
    });

    it('stores a manifest of thousands of references', async () => {
      await using index = await make(createClock());
      const digest = await linkText(index, 'r', 'x');
      const references = Array.from({ length: 3000 }, (_, i) => digestOf(`missing ${i}`));
      const put = index.putManifest('r', manifestOf('m', { references: [digest, ...references] }), {
        tags: [],
        guard: free,
      });
      await expect(put).rejects.toMatchObject({ detail: { missing: expect.objectContaining({ length: 3000 }) } });
    });

    it('refuses the same bytes under another media type (CVE-2021-41190)', async () => {
      await using index = await make(createClock());
      const manifest = manifestOf('m');
      await index.putManifest('r', manifest, { tags: [], guard: free });
      await index.putManifest('r', manifest, { tags: ['again'], guard: free });
      const other = { ...manifest, mediaType: MEDIA_TYPES.ociIndex };
      await expect(index.putManifest('r', other, { tags: [], guard: free })).rejects.toMatchObject({
        kind: 'conflict',
      });
    });

    it('asks the guard once for each tag that changes, with the truth of the transaction', async () => {
      await using index = await make(createClock());
      const [one, two] = [manifestOf('one'), manifestOf('two')];
      const asked: unknown[] = [];
      const guard: TagGuard = (change) => asked.push(change);
      await index.putManifest('r', one, { tags: ['v1'], guard });
      await index.putManifest('r', one, { tags: ['v1'], guard });
      await index.putManifest('r', two, { tags: ['v1', 'v2'], guard });
      await index.removeManifest('r', two.digest, { guard });
      expect(asked).toEqual([
        { tag: 'v1', from: undefined, to: one.digest },
        { tag: 'v1', from: one.digest, to: two.digest },
        { tag: 'v2', from: undefined, to: two.digest },
        { tag: 'v1', from: two.digest },
        { tag: 'v2', from: two.digest },
      ]);
    });

    it('changes nothing when the guard refuses, also by digest (PROJQUAY-10504)', async () => {
      await using index = await make(createClock());
      const [one, two] = [manifestOf('one'), manifestOf('two')];
      await index.putManifest('r', one, { tags: ['v1'], guard: free });
      const guard: TagGuard = ({ from }) => {
        if (from !== undefined) throw new AppError('denied', 'immutable');
      };
      const denied = { kind: 'denied' };
      await expect(index.putManifest('r', two, { tags: ['new', 'v1'], guard })).rejects.toMatchObject(denied);
      await expect(index.removeTag('r', 'v1', { guard })).rejects.toMatchObject(denied);
      await expect(index.removeManifest('r', one.digest, { guard })).rejects.toMatchObject(denied);
      expect((await index.resolve('r', { tag: 'v1' }))?.digest).toBe(one.digest);
      expect(await index.resolve('r', { tag: 'new' })).toBeUndefined();
      expect(await index.resolve('r', { digest: two.digest })).toBeUndefined();
    });

    it('lets one of two first pushes of a create-only tag win', async () => {
      await using index = await make(createClock());
      const guard: TagGuard = ({ from }) => {
        if (from !== undefined) throw new AppError('denied', 'immutable');
      };
      const results = await Promise.allSettled(
        ['one', 'two', 'three'].map((text) => index.putManifest('r', manifestOf(text), { tags: ['v1'], guard })),
      );
      expect(results.filter(({ status }) => status === 'fulfilled')).toHaveLength(1);
    });

    it('removes a tag alone, and a manifest with all its tags', async () => {
      await using index = await make(createClock());
      const manifest = manifestOf('m');
      await index.putManifest('r', manifest, { tags: ['a', 'b', 'c'], guard: free });
      expect(await index.removeTag('r', 'a', { guard: free })).toBe(true);
      expect(await index.removeTag('r', 'a', { guard: free })).toBe(false);
      expect(await index.resolve('r', { digest: manifest.digest })).toBeDefined();
      expect(await index.removeManifest('r', manifest.digest, { guard: free })).toBe(true);
      expect(await index.removeManifest('r', manifest.digest, { guard: free })).toBe(false);
      expect(await index.tags('r', { limit: 10 })).toEqual({ entries: [], more: false });
    });

    it('pages tags and repositories by bytes, exclusively after a name that need not exist', async () => {
      await using index = await make(createClock());
      const tags = ['b', 'B', 'a', 'a.1', 'a-1', '_x', '10', '9'];
      await index.putManifest('r', manifestOf('m'), { tags, guard: free });
      const sorted = ['10', '9', 'B', '_x', 'a', 'a-1', 'a.1', 'b'];
      expect(await index.tags('r', { limit: 100 })).toEqual({ entries: sorted, more: false });
      expect(await index.tags('r', { limit: 3 })).toEqual({ entries: sorted.slice(0, 3), more: true });
      expect(await index.tags('r', { limit: 5, after: 'B' })).toEqual({ entries: sorted.slice(3), more: false });
      expect(await index.tags('r', { limit: 1, after: 'C' })).toEqual({ entries: ['_x'], more: true });
      expect(await index.tags('r', { limit: 0 })).toEqual({ entries: [], more: false });
      expect(await index.tags('unknown', { limit: 1 })).toBeUndefined();

      for (const repository of ['a/b', 'a', 'a-b'])
        await index.putManifest(repository, manifestOf('m'), { tags: [], guard: free });
      await linkText(index, 'empty', 'x');
      expect(await index.repositories({ limit: 10 })).toEqual({ entries: ['a', 'a-b', 'a/b', 'r'], more: false });
      expect(await index.repositories({ limit: 2, after: 'a' })).toEqual({ entries: ['a-b', 'a/b'], more: true });
    });

    it('lists referrers of a subject that need not exist, filtered and paged', async () => {
      await using index = await make(createClock());
      const subject = digestOf('subject');
      const put = async (text: string, artifactType: string, annotations?: Record<string, string>) => {
        const manifest = manifestOf(text, { subject, artifactType, annotations });
        await index.putManifest('r', manifest, { tags: [], guard: free });
        return manifest;
      };
      const [one, two] = [await put('1', 'text/a', { k: 'v' }), await put('2', 'text/b')];
      const all = await index.referrers('r', subject, { limit: 10 });
      expect(all.entries.map(({ digest }) => digest)).toEqual([one.digest, two.digest].toSorted());
      const filtered = await index.referrers('r', subject, { limit: 10, artifactType: 'text/a' });
      expect(filtered.entries).toEqual([
        {
          mediaType: one.mediaType,
          digest: one.digest,
          size: one.bytes.length,
          artifactType: 'text/a',
          annotations: { k: 'v' },
        },
      ]);
      const [first, second] = all.entries;
      expect(await index.referrers('r', subject, { limit: 1 })).toEqual({ entries: [first], more: true });
      expect(await index.referrers('r', subject, { limit: 1, after: first?.digest })).toEqual({
        entries: [second],
        more: false,
      });
      expect(await index.referrers('unknown', subject, { limit: 1 })).toEqual({ entries: [], more: false });
    });

    it('shows a blob only through the repositories that link it (CVE-2024-39897)', async () => {
      await using index = await make(createClock());
      const digest = await linkText(index, 'private', 'secret');
      expect(await index.blob('private', digest)).toEqual({ digest, sizeBytes: 6 });
      for (const ask of [index.blob, index.touchBlob]) expect(await ask('public', digest)).toBeUndefined();
      expect(await index.mountBlob('public', 'elsewhere', { digest })).toBeUndefined();
      expect(await index.repositoriesWithBlob(digest, { limit: 9 })).toEqual({ entries: ['private'], more: false });
      expect(await index.mountBlob('public', 'private', { digest })).toEqual({ digest, sizeBytes: 6 });
      expect(await index.blob('public', digest)).toBeDefined();
      expect(await index.unlinkBlob('private', digest)).toBe(true);
      expect(await index.unlinkBlob('private', digest)).toBe(false);
      expect(await index.blob('private', digest)).toBeUndefined();
      expect(await index.blob('public', digest)).toBeDefined();
    });

    it('keeps a blob that a manifest of the repository refers to', async () => {
      await using index = await make(createClock());
      const digest = await linkText(index, 'r', 'layer');
      const manifest = manifestOf('m', { references: [digest] });
      await index.putManifest('r', manifest, { tags: ['v1'], guard: free });
      await expect(index.unlinkBlob('r', digest)).rejects.toMatchObject({ kind: 'conflict' });
      await index.removeManifest('r', manifest.digest, { guard: free });
      expect(await index.unlinkBlob('r', digest)).toBe(true);
    });

    it('binds upload sessions to repository and owner (CVE-2026-32589) and bounds them', async () => {
      const clock = createClock();
      await using index = await make(clock);
      const session = { id: 'u1', repository: 'r', owner: 'ann', algorithm: 'sha512', startedAt: clock.now() } as const;
      await index.createUpload(session, { maxOpen: 1 });
      expect(await index.upload('u1', { repository: 'r', owner: 'ann' })).toEqual(session);
      expect(await index.upload('u1', { repository: 'r', owner: 'bob' })).toBeUndefined();
      expect(await index.upload('u1', { repository: 'r2', owner: 'ann' })).toBeUndefined();
      await expect(index.createUpload({ ...session, id: 'u2' }, { maxOpen: 1 })).rejects.toMatchObject({
        kind: 'conflict',
      });
      await index.createUpload({ ...session, id: 'u3', owner: 'bob' }, { maxOpen: 1 });
      expect(await index.removeUpload('u1')).toBe(true);
      expect(await index.removeUpload('u1')).toBe(false);
      expect(await index.upload('u1', { repository: 'r', owner: 'ann' })).toBeUndefined();
    });
  });
}
