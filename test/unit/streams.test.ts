import { Readable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { describe, expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { collect, limit, measure, verify } from '../../shared/streams.ts';

const source = (...parts: string[]) =>
  Readable.from(
    parts.map((part) => Buffer.from(part)),
    { objectMode: false },
  );

describe('verify', () => {
  const through = async (text: string, expected: Parameters<typeof verify>[0]) => {
    const transform = verify(expected);
    const [, bytes] = await Promise.all([pipeline(source(...text), transform), buffer(transform)]);
    return bytes.toString();
  };

  it.each(['sha256', 'sha512'] as const)('passes what it should be, by %s', async (algorithm) => {
    expect(await through('abc', { digest: digestOf('abc', algorithm), sizeBytes: 3 })).toBe('abc');
    expect(await through('', { digest: digestOf('', algorithm) })).toBe('');
  });

  it.each([
    ['other bytes', { digest: digestOf('abd') }],
    ['fewer bytes', { digest: digestOf('abcd'), sizeBytes: 4 }],
    ['more bytes', { digest: digestOf('ab'), sizeBytes: 2 }],
    ['another size', { digest: digestOf('abc'), sizeBytes: 4 }],
  ])('fails instead of ending on %s', async (_what, expected) => {
    await expect(through('abc', expected)).rejects.toMatchObject({ kind: 'integrity' });
  });

  it('stops at the first byte too many, however much would follow', async () => {
    let made = 0;
    const endless = new Readable({
      read() {
        made += 1;
        this.push(Buffer.alloc(1000));
      },
    });
    await expect(pipeline(endless, verify({ digest: digestOf('x'), sizeBytes: 5000 }), buffer)).rejects.toMatchObject({
      kind: 'integrity',
    });
    expect(made).toBeLessThan(5000);
  });
});

describe('measure', () => {
  it('tells what has passed, once it has', async () => {
    const measured = measure();
    expect(() => measured.result()).toThrow(expect.objectContaining({ kind: 'conflict' }));
    await pipeline(source('a', 'bc'), measured, buffer);
    expect(measured.result()).toEqual({ digest: digestOf('abc'), sizeBytes: 3 });
  });
});

describe('limit', () => {
  it('fails beyond its size, and names the thing', async () => {
    await pipeline(source('abc'), limit(3, 'upload'), buffer);
    await expect(pipeline(source('ab', 'cd'), limit(3, 'upload'), buffer)).rejects.toMatchObject({
      kind: 'too-large',
      message: expect.stringContaining('upload'),
    });
  });
});

describe('collect', () => {
  it('reads a stream whole, up to its limit', async () => {
    expect((await collect(source('a', 'bc'), 3, { what: 'x' })).toString()).toBe('abc');
    const long = source('a', 'bc', 'd');
    await expect(collect(long, 3, { what: 'manifest' })).rejects.toMatchObject({ kind: 'too-large' });
    expect(long.destroyed).toBe(true);
  });

  it('stops when it is cancelled', async () => {
    const silent = new Readable({ read() {} });
    const controller = new AbortController();
    const reading = collect(silent, 10, { what: 'x', signal: controller.signal });
    controller.abort();
    await expect(reading).rejects.toMatchObject({ kind: 'timeout' });
    expect(silent.destroyed).toBe(true);
  });

  it('closes what it is given when it was cancelled before', async () => {
    const unread = new Readable({ read() {} });
    await expect(collect(unread, 10, { what: 'x', signal: AbortSignal.abort() })).rejects.toThrow();
    expect(unread.destroyed).toBe(true);
  });
});
