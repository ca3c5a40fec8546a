import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { createTarParser, type TarEntry } from '../../../runtime/layers/tar.ts';
import { isKind } from '../../../shared/errors.ts';
import { tarHeader, tarPadding } from '../../../shared/tar-writer.ts';
import { tarEntry, tarOf } from '../../fixtures/tar.ts';

interface Parsed extends TarEntry {
  readonly data: string;
}

/** Parses in pieces of `pieceBytes`; holes become zero bytes. */
function parse(archive: Buffer, pieceBytes = archive.length || 1): Parsed[] {
  const found: (TarEntry & { pieces: Buffer[] })[] = [];
  const parser = createTarParser({
    entry: (entry) => found.push({ ...entry, pieces: [] }),
    data: (bytes) => found.at(-1)?.pieces.push(Buffer.from(bytes)),
    hole: (sizeBytes) => found.at(-1)?.pieces.push(Buffer.alloc(sizeBytes)),
  });
  for (let at = 0; at < archive.length; at += pieceBytes) parser.write(archive.subarray(at, at + pieceBytes));
  parser.end();
  return found.map(({ pieces, ...entry }) => ({ ...entry, data: Buffer.concat(pieces).toString('latin1') }));
}

function only(archive: Buffer): Parsed {
  const [entry, ...more] = parse(archive);
  if (entry === undefined || more.length > 0) throw new Error(`want one entry, got ${more.length + (entry ? 1 : 0)}`);
  return entry;
}

/** Writes bytes into a header and corrects its checksum. */
function patched(block: Buffer, changes: readonly (readonly [offset: number, bytes: Buffer | string])[]): Buffer {
  const copy = Buffer.from(block);
  for (const [offset, bytes] of changes) Buffer.from(bytes).copy(copy, offset);
  copy.write('        ', 148, 'latin1');
  const sum = copy.subarray(0, 512).reduce((total, byte) => total + byte, 0);
  copy.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return copy;
}

const END = Buffer.alloc(1024);

describe('tar: entries', () => {
  it('reads types, owners, modes, times and devices', () => {
    const entries = parse(
      tarOf([
        { name: 'd/', type: 'directory', mode: 0o1777 },
        { name: 'd/f', content: 'hello', mode: 0o4755, uid: 1000, gid: 70_000, mtime: 12 },
        { name: 'd/l', type: 'symlink', linkname: '/x/../y' },
        { name: 'd/h', type: 'link', linkname: 'd/f' },
        { name: 'd/c', type: 'character-device', major: 10, minor: 300 },
        { name: 'd/b', type: 'block-device', major: 8, minor: 1 },
        { name: 'd/p', type: 'fifo' },
      ]),
    );
    expect(entries.map(({ type, path }) => `${type} ${path}`)).toEqual([
      'directory d/',
      'file d/f',
      'symlink d/l',
      'link d/h',
      'character d/c',
      'block d/b',
      'fifo d/p',
    ]);
    expect(entries[0]?.mode).toBe(0o1777);
    expect(entries[1]).toMatchObject({ mode: 0o4755, uid: 1000, gid: 70_000, mtimeSeconds: 12, data: 'hello' });
    expect(entries[2]?.linkPath).toBe('/x/../y');
    expect(entries[4]).toMatchObject({ major: 10, minor: 300 });
  });

  it('gives the same for every cut into pieces', () => {
    const archive = tarOf([
      { name: 'a', content: 'x'.repeat(1500) },
      { name: 'n'.repeat(300), content: 'long', pax: { 'SCHILY.xattr.user.x': 'y' } },
      { name: 'empty' },
    ]);
    const whole = parse(archive);
    fc.assert(
      fc.property(fc.integer({ min: 1, max: archive.length }), (pieceBytes) => {
        expect(parse(archive, pieceBytes)).toEqual(whole);
      }),
      { numRuns: 40 },
    );
  });

  it('reads v7 directories, contiguous files and the ustar prefix', () => {
    expect(only(Buffer.concat([patched(tarEntry({ name: 'old/' }), [[156, '\0']]), END])).type).toBe('directory');
    expect(only(Buffer.concat([patched(tarEntry({ name: 'c' }), [[156, '7']]), END])).type).toBe('file');
    expect(only(Buffer.concat([patched(tarEntry({ name: 'leaf' }), [[345, 'some/prefix']]), END])).path).toBe(
      'some/prefix/leaf',
    );
    // In GNU headers the same bytes hold something else.
    expect(
      only(
        Buffer.concat([
          patched(tarEntry({ name: 'leaf' }), [
            [257, 'ustar  \0'],
            [345, '12345'],
          ]),
          END,
        ]),
      ).path,
    ).toBe('leaf');
  });

  it('reads GNU long names and link targets', () => {
    const name = 'n'.repeat(200);
    const target = 't'.repeat(300);
    const entry = only(
      Buffer.concat([
        tarEntry({ name: '././@LongLink', type: 'gnu-long-name', content: `${name}\0` }),
        tarEntry({ name: '././@LongLink', type: 'gnu-long-link', content: `${target}\0` }),
        tarEntry({ name: 'short', type: 'symlink', linkname: 'short' }),
        END,
      ]),
    );
    expect(entry).toMatchObject({ path: name, linkPath: target });
  });

  it('applies PAX records to the next entry only', () => {
    const [first, second] = parse(
      tarOf([
        {
          name: 'a',
          content: '12345',
          pax: { path: 'ä/ö', uid: '4000000', gid: '5', mtime: '-1.25', 'SCHILY.xattr.user.empty': '', comment: 'no' },
        },
        { name: 'b' },
      ]),
    );
    expect(first).toMatchObject({ uid: 4_000_000, gid: 5, mtimeSeconds: -2, mtimeNanoseconds: 750_000_000 });
    expect(Buffer.from(first?.path ?? '', 'latin1').toString('utf8')).toBe('ä/ö');
    expect(first?.xattrs?.get('user.empty')).toEqual(Buffer.alloc(0));
    expect(second).toMatchObject({ path: 'b', uid: 0, xattrs: undefined });
  });

  it('keeps bytes that are not UTF-8', () => {
    const name = Buffer.from([0x66, 0xff, 0xfe]);
    const archive = Buffer.concat([patched(tarEntry({ name: 'abc' }), [[0, name]]), END]);
    expect(Buffer.from(only(archive).path, 'latin1')).toEqual(name);
    expect(only(tarOf([{ name: 'a', pax: { 'SCHILY.xattr.user.b': Buffer.from([0, 10, 255]) } }])).xattrs).toEqual(
      new Map([['user.b', Buffer.from([0, 10, 255])]]),
    );
  });

  it("reads libarchive's xattrs, and prefers the exact form", () => {
    const { xattrs } = only(
      tarOf([
        {
          name: 'a',
          pax: {
            'LIBARCHIVE.xattr.user.a%20b': Buffer.from('value').toString('base64'),
            'SCHILY.xattr.user.both': 'exact',
            'LIBARCHIVE.xattr.user.both': 'AAAA',
          },
        },
      ]),
    );
    expect(xattrs?.get('user.a b')?.toString()).toBe('value');
    expect(xattrs?.get('user.both')?.toString()).toBe('exact');
  });

  it('ignores global headers and what follows the end', () => {
    const archive = Buffer.concat([
      tarEntry({ name: 'pax_global_header', type: 'pax-global-header', content: '19 path=everywhere\n' }),
      tarOf([{ name: 'a' }]),
      Buffer.from('anything'),
    ]);
    expect(only(archive).path).toBe('a');
  });

  it('ends without zero blocks and within padding, as Go does, but not within an entry', () => {
    const entry = tarEntry({ name: 'a', content: 'xy' });
    for (const cut of [514, 1023, 1024]) expect(parse(entry.subarray(0, cut))).toHaveLength(1);
    for (const cut of [1, 511, 513]) expect(() => parse(entry.subarray(0, cut))).toThrow(/cut off/);
    expect(() => parse(tarEntry({ name: 'x', type: 'pax-header', content: '12 path=abc\n' }))).toThrow(/cut off/);
  });
});

describe('tar: sparse files', () => {
  it('reads what the writer writes: parts of a file, and a hole at its end', () => {
    const rest = {
      linkPath: '',
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtimeSeconds: 1,
      mtimeNanoseconds: 0,
      major: 0,
      minor: 0,
    };
    const parts = [
      { offset: 1024, sizeBytes: 512 },
      { offset: 4096, sizeBytes: 5 },
      { offset: 9000, sizeBytes: 0 },
    ];
    const header = tarHeader({ ...rest, type: 'file', path: 'f', sizeBytes: 9000, xattrs: undefined }, parts);
    const archive = Buffer.concat([header, Buffer.alloc(512, 'a'), Buffer.from('later'), tarPadding(5), END]);
    const { data, path, sizeBytes } = only(archive);
    expect({ path, sizeBytes }).toEqual({ path: 'f', sizeBytes: 9000 });
    expect(data).toBe(`${'\0'.repeat(1024)}${'a'.repeat(512)}${'\0'.repeat(2560)}later${'\0'.repeat(4899)}`);
  });

  const real = `${'\0'.repeat(1024)}data${'\0'.repeat(1000)}more`;

  it('reads the old GNU form with extension blocks', () => {
    const number = (value: number) => `${value.toString(8).padStart(11, '0')}\0`;
    const pair = (offset: number, size: number) => number(offset) + number(size);
    const fragments = Array.from({ length: 30 }, (_, i) => pair(i * 100, 1));
    const header = patched(tarEntry({ name: 's', type: 'sparse', content: 'x'.repeat(30) }), [
      [257, 'ustar  \0'],
      [345, '\0'.repeat(40)],
      [386, fragments.slice(0, 4).join('')],
      [482, '\x01'],
      [483, number(3000)],
    ]);
    const extension = (from: number, more: boolean) => {
      const block = Buffer.alloc(512);
      block.write(fragments.slice(from, from + 21).join(''), 0, 'latin1');
      block.writeUInt8(more ? 1 : 0, 504);
      return block;
    };
    const archive = Buffer.concat([
      header.subarray(0, 512),
      extension(4, true),
      extension(25, false),
      header.subarray(512),
      END,
    ]);
    const entry = only(archive);
    expect(entry).toMatchObject({ path: 's', sizeBytes: 3000 });
    expect(entry.data).toBe(`x${'\0'.repeat(99)}`.repeat(30));
  });

  it('reads PAX 0.0', () => {
    const records = [
      ['GNU.sparse.size', '2032'],
      ['GNU.sparse.numblocks', '2'],
      ['GNU.sparse.offset', '1024'],
      ['GNU.sparse.numbytes', '4'],
      ['GNU.sparse.offset', '2028'],
      ['GNU.sparse.numbytes', '4'],
    ] as const;
    const content = records.map(([key, value]) => record(key, value)).join('');
    const archive = Buffer.concat([
      tarEntry({ name: 'x', type: 'pax-header', content }),
      tarOf([{ name: 's', content: 'datamore' }]),
    ]);
    expect(only(archive)).toMatchObject({ sizeBytes: 2032, data: real });
  });

  it('reads PAX 0.1', () => {
    const pax = { 'GNU.sparse.size': '2032', 'GNU.sparse.map': '1024,4,2028,4', 'GNU.sparse.name': 'real' };
    expect(only(tarOf([{ name: 'GNUSparseFile.1/s', content: 'datamore', pax }]))).toMatchObject({
      path: 'real',
      data: real,
    });
  });

  it('reads PAX 1.0, whose map lies in the data', () => {
    const pax = {
      'GNU.sparse.major': '1',
      'GNU.sparse.minor': '0',
      'GNU.sparse.realsize': '2032',
      'GNU.sparse.name': 's',
    };
    const map = Buffer.alloc(512);
    map.write('2\n1024\n4\n2028\n4\n');
    const archive = tarOf([{ name: 'GNUSparseFile.1/s', content: Buffer.concat([map, Buffer.from('datamore')]), pax }]);
    expect(only(archive)).toMatchObject({ path: 's', sizeBytes: 2032, data: real });
    expect(parse(archive, 7)).toEqual(parse(archive));
  });

  it('reads a map longer than a block, and a file that is all hole', () => {
    const pax = { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.realsize': '200000' };
    const numbers = Array.from({ length: 200 }, (_, i) => `${i * 1000}\n1\n`).join('');
    const text = `200\n${numbers}`;
    const map = Buffer.alloc(Math.ceil(text.length / 512) * 512);
    map.write(text);
    const entry = only(tarOf([{ name: 's', content: Buffer.concat([map, Buffer.alloc(200, 'x')]), pax }]));
    expect(entry.data).toBe(`x${'\0'.repeat(999)}`.repeat(200));
    const empty = { 'GNU.sparse.size': '5000', 'GNU.sparse.map': '5000,0' };
    expect(only(tarOf([{ name: 'hole', pax: empty }]))).toMatchObject({ sizeBytes: 5000, data: '\0'.repeat(5000) });
  });

  const hostile = [
    ['overlapping fragments', { 'GNU.sparse.size': '100', 'GNU.sparse.map': '0,4,2,4' }],
    ['fragments out of order', { 'GNU.sparse.size': '100', 'GNU.sparse.map': '50,4,2,4' }],
    ['a fragment behind the end', { 'GNU.sparse.size': '10', 'GNU.sparse.map': '8,8' }],
    ['more data than the map says', { 'GNU.sparse.size': '100', 'GNU.sparse.map': '0,4' }],
    ['half a pair', { 'GNU.sparse.size': '100', 'GNU.sparse.map': '0,4,8' }],
    ['negative numbers', { 'GNU.sparse.size': '100', 'GNU.sparse.map': '-8,8' }],
    ['no size', { 'GNU.sparse.map': '0,8' }],
    ['a map without numbers', { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.realsize': '8' }],
  ] as const;
  it.each(hostile)('refuses %s', (_, pax) => {
    expect(kindOf(tarOf([{ name: 's', content: 'x'.repeat(8), pax }]))).toBe('invalid');
  });

  it('CVE-2025-58183: stops at too many fragments before it holds them', () => {
    const pax = { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.realsize': '9000000000' };
    const map = Buffer.alloc(512);
    map.write('4000000000\n0\n1\n');
    expect(kindOf(tarOf([{ name: 's', content: map, pax }]))).toBe('too-large');
    const long = { 'GNU.sparse.size': '900000', 'GNU.sparse.map': Array(200_002).fill('1').join() };
    expect(kindOf(tarOf([{ name: 's', pax: long }]))).toBe('too-large');
  });
});

describe('tar: hostile headers', () => {
  const cases: readonly (readonly [string, string, Buffer])[] = [
    ['a wrong checksum', 'invalid', Buffer.concat([corrupted(tarEntry({ name: 'a' })), END])],
    ['letters in a number', 'invalid', Buffer.concat([patched(tarEntry({ name: 'a' }), [[124, 'zzzzzz']]), END])],
    [
      'a negative size',
      'invalid',
      Buffer.concat([patched(tarEntry({ name: 'a' }), [[124, Buffer.alloc(12, 0xff)]]), END]),
    ],
    [
      'a size beyond 2^53',
      'invalid',
      Buffer.concat([patched(tarEntry({ name: 'a' }), [[124, Buffer.from('80000000ffffffffffffffff', 'hex')]]), END]),
    ],
    ['an owner beyond 32 bits', 'invalid', tarOf([{ name: 'a', pax: { uid: '4294967295' } }])],
    ['an owner that is no number', 'invalid', tarOf([{ name: 'a', pax: { uid: 'root' } }])],
    ['a time that is no time', 'invalid', tarOf([{ name: 'a', pax: { mtime: 'now' } }])],
    ['a PAX record without a length', 'invalid', withPax('path=x\n')],
    ['a PAX record that exceeds its header', 'invalid', withPax('99 path=x\n')],
    ['a PAX record without a key', 'invalid', withPax('7 =abc\n')],
    [
      'CVE-2023-25153: a PAX header without bounds',
      'invalid',
      tarEntry({ name: 'x', type: 'pax-header', claimedSize: 2 ** 31 }),
    ],
    ['a GNU long name without bounds', 'invalid', tarEntry({ name: 'x', type: 'gnu-long-name', claimedSize: 2 ** 31 })],
    ['an unknown type', 'unsupported', Buffer.concat([patched(tarEntry({ name: 'a' }), [[156, 'M']]), END])],
    [
      'a single zero block',
      'invalid',
      Buffer.concat([tarEntry({ name: 'a' }), Buffer.alloc(512), tarEntry({ name: 'b' })]),
    ],
  ];
  it.each(cases)('refuses %s', (_, kind, archive) => {
    expect(kindOf(archive)).toBe(kind);
  });

  it('answers any bytes with entries or an error of a kind', () => {
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 0, maxLength: 2000 }), fc.integer({ min: 0, max: 700 }), (noise, at) => {
        const archive = tarOf([{ name: 'a', content: 'x'.repeat(600), pax: { uid: '1' } }]);
        archive.set(noise.subarray(0, archive.length - at), at);
        expect(['none', 'invalid', 'integrity', 'unsupported', 'too-large']).toContain(kindOf(archive));
      }),
      { numRuns: 200 },
    );
  });
});

function withPax(content: string): Buffer {
  return Buffer.concat([tarEntry({ name: 'x', type: 'pax-header', content }), tarOf([{ name: 'a' }])]);
}

function corrupted(block: Buffer): Buffer {
  const copy = Buffer.from(block);
  copy.writeUInt8(0x41, 50);
  return copy;
}

function kindOf(archive: Buffer): string {
  try {
    parse(archive);
    return 'none';
  } catch (error) {
    if (isKind(error, 'invalid', 'integrity', 'unsupported', 'too-large')) return error.kind;
    throw error;
  }
}

function record(key: string, value: string): string {
  const body = ` ${key}=${value}\n`;
  let length = body.length + 1;
  while (length !== body.length + String(length).length) length = body.length + String(length).length;
  return `${length}${body}`;
}
