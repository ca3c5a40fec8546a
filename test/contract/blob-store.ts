/** The promises of shared/blob-store.ts, for every backend. */
import { Readable } from 'node:stream';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { BlobStore } from '../../shared/blob-store.ts';
import { type Digest, digestOf } from '../../shared/digest.ts';
import { collect } from '../../shared/streams.ts';

export interface BlobStoreFixture extends AsyncDisposable {
  readonly store: BlobStore;
  /** A store over the same bytes, as another process would open it after this one died. */
  reopen(): Promise<BlobStore>;
}

const bytesOf = (...parts: (string | Buffer)[]) =>
  Readable.from(
    parts.map((part) => Buffer.from(part)),
    { objectMode: false },
  );
/** 0, 1, 2 … so that a chunk in the wrong place changes the digest. */
const pattern = (sizeBytes: number) => {
  const buffer = Buffer.alloc(sizeBytes);
  for (let at = 0; at + 4 <= sizeBytes; at += 4) buffer.writeUInt32LE(at, at);
  return buffer;
};

async function all<T>(items: AsyncIterable<T>): Promise<T[]> {
  const found: T[] = [];
  for await (const item of items) found.push(item);
  return found;
}

/** Runs the suite; `make` gives a new, empty store each time. */
export function blobStoreContract(name: string, make: () => Promise<BlobStoreFixture>): void {
  describe(`BlobStore contract: ${name}`, () => {
    let fixture: BlobStoreFixture;
    let store: BlobStore;
    beforeEach(async () => {
      fixture = await make();
      store = fixture.store;
    });
    afterEach(() => fixture[Symbol.asyncDispose]());

    const put = async (text: string | Buffer, id = 'put'): Promise<Digest> => {
      await using ingest = await store.ingest(id);
      await ingest.append(bytesOf(text));
      return (await ingest.commit({ digest: digestOf(text), sizeBytes: Buffer.byteLength(text) })).digest;
    };
    const read = async (digest: Digest, range?: { start: number; end?: number }, from = store) =>
      (await collect(await from.open(digest, range), 1 << 24, { what: 'blob' })).toString('latin1');

    describe('writing', () => {
      it('shows nothing before commit, and the whole blob after it', async () => {
        await using ingest = await store.ingest('u1');
        expect(await ingest.append(bytesOf('ab', 'c'))).toBe(3);
        expect(await store.stat(digestOf('abc'))).toBeUndefined();
        expect(await all(store.list())).toEqual([]);
        const info = await ingest.commit({ digest: digestOf('abc'), sizeBytes: 3 });
        expect(info).toMatchObject({ digest: digestOf('abc'), sizeBytes: 3 });
        expect(await store.stat(digestOf('abc'))).toMatchObject({ digest: digestOf('abc'), sizeBytes: 3 });
        expect(await all(store.ingests())).toEqual([]);
        expect(await read(digestOf('abc'))).toBe('abc');
      });

      it('stores chunks whole that it may take, and goes on after them', async () => {
        const whole = pattern(3 << 20);
        await using ingest = await store.ingest('u1');
        for (const start of [0, 1 << 20]) {
          const part = whole.subarray(start, start === 0 ? 1 << 20 : undefined);
          const chunks = Array.from({ length: part.length >> 16 }, (_, i) => {
            const chunk = Buffer.allocUnsafeSlow(1 << 16);
            part.copy(chunk, 0, i << 16);
            return chunk;
          });
          await ingest.append(Readable.from(chunks), { takesChunks: true });
        }
        await ingest.commit({ digest: digestOf(whole), sizeBytes: whole.length });
        expect(digestOf(Buffer.from(await read(digestOf(whole)), 'latin1'))).toBe(digestOf(whole));
      });

      it('takes empty blobs', async () => {
        const digest = await put('');
        expect(await store.stat(digest)).toMatchObject({ sizeBytes: 0 });
        expect(await read(digest)).toBe('');
      });

      it('takes blobs of many chunks, and tells how far it is', async () => {
        const bytes = pattern(5_000_001);
        const chunks = [bytes.subarray(0, 1), bytes.subarray(1, 3_000_000), bytes.subarray(3_000_000)];
        await using ingest = await store.ingest('large');
        const seen: number[] = [];
        await ingest.append(bytesOf(...chunks), { onAdvance: (offset) => seen.push(offset) });
        expect(seen.at(-1)).toBe(bytes.length);
        expect(seen).toEqual([...seen].sort((a, b) => a - b));
        await ingest.commit({ digest: digestOf(bytes) });
        expect((await read(digestOf(bytes))) === bytes.toString('latin1')).toBe(true);
      });

      it('appends in several steps, also across reopening', async () => {
        {
          await using ingest = await store.ingest('u1');
          await ingest.append(bytesOf('abc'));
          expect(await ingest.append(bytesOf('def'))).toBe(6);
        }
        expect(await store.ingestInfo('u1')).toMatchObject({ id: 'u1', offset: 6 });
        await using ingest = await store.ingest('u1');
        expect(ingest.offset).toBe(6);
        await ingest.append(bytesOf('ghi'));
        await ingest.commit({ digest: digestOf('abcdefghi'), sizeBytes: 9 });
        expect(await read(digestOf('abcdefghi'))).toBe('abcdefghi');
      });

      it.each(['sha256', 'sha512'] as const)('commits by %s, whatever was announced', async (algorithm) => {
        for (const announced of ['sha256', 'sha512'] as const) {
          await using ingest = await store.ingest(`a-${announced}`, { algorithm: announced });
          await ingest.append(bytesOf('abc'));
          await ingest.commit({ digest: digestOf('abc', algorithm) });
        }
        expect(await read(digestOf('abc', algorithm))).toBe('abc');
      });

      it('keeps what arrived when the sender fails, and goes on from there', async () => {
        await using ingest = await store.ingest('u1');
        const broken = Readable.from(
          (async function* () {
            yield Buffer.from('abc');
            throw new Error('hung up');
          })(),
          { objectMode: false },
        );
        await expect(ingest.append(broken)).rejects.toThrow('hung up');
        expect(ingest.offset).toBe(3);
        await ingest.append(bytesOf('def'));
        await ingest.commit({ digest: digestOf('abcdef') });
        expect(await read(digestOf('abcdef'))).toBe('abcdef');
      });

      it('keeps what arrived when it is cancelled', async () => {
        await using ingest = await store.ingest('u1');
        const controller = new AbortController();
        const endless = new Readable({ read() {} });
        endless.push('abc');
        const appended = ingest.append(endless, { signal: controller.signal });
        setImmediate(() => controller.abort());
        await expect(appended).rejects.toThrow(/abort/i);
        expect(endless.destroyed).toBe(true);
        expect(ingest.offset).toBe(3);
        await expect(ingest.append(bytesOf('x'), { signal: controller.signal })).rejects.toThrow(/abort/i);
        expect(ingest.offset).toBe(3);
      });

      it('discards on abort, once and for all', async () => {
        const ingest = await store.ingest('u1');
        await ingest.append(bytesOf('abc'));
        await ingest.abort();
        await ingest.abort();
        expect(await store.ingestInfo('u1')).toBeUndefined();
        await using again = await store.ingest('u1');
        expect(again.offset).toBe(0);
      });

      it('leaves the blob alone when a committed ingest is aborted', async () => {
        const ingest = await store.ingest('u1');
        await ingest.append(bytesOf('abc'));
        await ingest.commit({ digest: digestOf('abc') });
        await ingest.abort();
        expect(await read(digestOf('abc'))).toBe('abc');
        await expect(ingest.append(bytesOf('d'))).rejects.toMatchObject({ kind: 'conflict' });
      });
    });

    describe('refusing', () => {
      it.each([
        ['digest', { digest: digestOf('abd') }],
        ['sha512 digest', { digest: digestOf('abd', 'sha512') }],
        ['size', { digest: digestOf('abc'), sizeBytes: 4 }],
      ])('shows nothing under a wrong %s, and lets the sender try again', async (_what, expected) => {
        await using ingest = await store.ingest('u1');
        await ingest.append(bytesOf('abc'));
        await expect(ingest.commit(expected)).rejects.toMatchObject({ kind: 'integrity' });
        expect(await all(store.list())).toEqual([]);
        expect(ingest.offset).toBe(3);
        await ingest.append(bytesOf('d'));
        await ingest.commit({ digest: digestOf('abcd'), sizeBytes: 4 });
        expect(await read(digestOf('abcd'))).toBe('abcd');
      });

      it('lets one ingest of an id be open at a time', async () => {
        const first = await store.ingest('u1');
        await expect(store.ingest('u1')).rejects.toMatchObject({ kind: 'conflict' });
        await using _other = await store.ingest('u2');
        await first[Symbol.asyncDispose]();
        await first[Symbol.asyncDispose]();
        await using _second = await store.ingest('u1');
      });

      it('refuses a second append while one runs', async () => {
        await using ingest = await store.ingest('u1');
        const slow = new Readable({ read() {} });
        const running = ingest.append(slow);
        await expect(ingest.append(bytesOf('x'))).rejects.toMatchObject({ kind: 'conflict' });
        await expect(ingest.commit({ digest: digestOf('') })).rejects.toMatchObject({ kind: 'conflict' });
        slow.push(null);
        await running;
      });

      it.each(['abort', 'dispose'] as const)('ends an append that still runs on %s', async (how) => {
        const ingest = await store.ingest('u1');
        const slow = new Readable({ read() {} });
        slow.push('abc');
        const { promise: stored, resolve } = Promise.withResolvers<void>();
        const running = ingest.append(slow, { onAdvance: () => resolve() });
        const failed = expect(running).rejects.toMatchObject({ kind: 'conflict' });
        for (let i = 0; i < 20; i++) slow.push(Buffer.alloc(1 << 16));
        await stored;
        await (how === 'abort' ? ingest.abort() : ingest[Symbol.asyncDispose]());
        await failed;
        expect(slow.destroyed).toBe(true);
        await using again = await store.ingest('u1');
        expect(again.offset > 0).toBe(how === 'dispose');
      });

      it.each(['', '..', '../x', 'a/b', 'a\0b', 'a b', 'ü', 'x'.repeat(129)])('refuses the id %j', async (id) => {
        await expect(store.ingest(id)).rejects.toMatchObject({ kind: 'invalid' });
        await expect(store.ingestInfo(id)).rejects.toMatchObject({ kind: 'invalid' });
      });
    });

    describe('reading', () => {
      it.each([
        [{ start: 0 }, '0123456789'],
        [{ start: 3 }, '3456789'],
        [{ start: 0, end: 0 }, '0'],
        [{ start: 2, end: 4 }, '234'],
        [{ start: 9, end: 9 }, '9'],
        [{ start: 8, end: 100 }, '89'],
      ])('answers the range %j', async (range, expected) => {
        expect(await read(await put('0123456789'), range)).toBe(expected);
      });

      it.each([{ start: 10 }, { start: 11, end: 12 }, { start: 5, end: 4 }, { start: -1 }])(
        'refuses the range %j',
        async (range) => {
          const digest = await put('0123456789');
          await expect(store.open(digest, range)).rejects.toMatchObject({ kind: 'range' });
        },
      );

      it('tells absence from failure', async () => {
        expect(await store.stat(digestOf('never'))).toBeUndefined();
        await expect(store.open(digestOf('never'))).rejects.toMatchObject({ kind: 'not-found' });
        expect(await store.ingestInfo('never')).toBeUndefined();
      });

      it('goes on reading a blob that is removed meanwhile', async () => {
        const bytes = pattern(3_000_000);
        const stream = await store.open(await put(bytes));
        expect(await store.remove(digestOf(bytes))).toBe(true);
        expect((await collect(stream, 1 << 24, { what: 'blob' })).equals(bytes)).toBe(true);
      });

      it('lets go of a blob whose reader gives up', async () => {
        const stream = await store.open(await put(pattern(3_000_000)));
        const closed = new Promise((resolve) => stream.once('close', resolve));
        stream.destroy();
        await closed;
      });
    });

    describe('keeping', () => {
      it('lists what is committed, and only that', async () => {
        const digests = [await put('a'), await put('b'), digestOf('c', 'sha512')];
        {
          await using ingest = await store.ingest('c');
          await ingest.append(bytesOf('c'));
          await ingest.commit({ digest: digestOf('c', 'sha512') });
        }
        await using open = await store.ingest('open');
        await open.append(bytesOf('d'));
        expect((await all(store.list())).map(({ digest }) => digest).sort()).toEqual(digests.sort());
      });

      it('removes once', async () => {
        const digest = await put('a');
        expect(await store.remove(digest)).toBe(true);
        expect(await store.remove(digest)).toBe(false);
        expect(await store.stat(digest)).toBeUndefined();
      });

      it('succeeds when the blob is there already, and makes it young again', async () => {
        const digest = await put('abc', 'first');
        const before = await store.stat(digest);
        expect(await put('abc', 'second')).toBe(digest);
        expect(await all(store.ingests())).toEqual([]);
        expect(await all(store.list())).toHaveLength(1);
        expect((await store.stat(digest))?.modifiedAt.getTime()).toBeGreaterThanOrEqual(
          before?.modifiedAt.getTime() ?? Number.POSITIVE_INFINITY,
        );
      });

      it('lets many commit the same blob at once', async () => {
        const bytes = pattern(1_000_003);
        await Promise.all(Array.from({ length: 8 }, (_, at) => put(bytes, `u${at}`)));
        expect(await all(store.list())).toHaveLength(1);
        expect((await read(digestOf(bytes))) === bytes.toString('latin1')).toBe(true);
      });
    });

    describe('after the process has died', () => {
      it('goes on with what was left', async () => {
        const abandoned = await store.ingest('u1');
        await abandoned.append(bytesOf('abc'));
        // No dispose: that is what dying is.
        const next = await fixture.reopen();
        expect((await all(next.ingests())).map(({ id, offset }) => ({ id, offset }))).toEqual([
          { id: 'u1', offset: 3 },
        ]);
        expect(await all(next.list())).toEqual([]);
        await abandoned[Symbol.asyncDispose]();
        await using ingest = await next.ingest('u1');
        expect(ingest.offset).toBe(3);
        await ingest.append(bytesOf('def'));
        await expect(ingest.commit({ digest: digestOf('def') })).rejects.toMatchObject({ kind: 'integrity' });
        await ingest.commit({ digest: digestOf('abcdef') });
        expect(await read(digestOf('abcdef'), undefined, next)).toBe('abcdef');
      });

      it('shows what was committed', async () => {
        const digest = await put('abc');
        const next = await fixture.reopen();
        expect(await read(digest, undefined, next)).toBe('abc');
      });

      it('lets stale writes be swept', async () => {
        {
          await using ingest = await store.ingest('stale');
          await ingest.append(bytesOf('abc'));
        }
        const next = await fixture.reopen();
        for await (const { id } of next.ingests()) await (await next.ingest(id)).abort();
        expect(await all(next.ingests())).toEqual([]);
      });
    });
  });
}
