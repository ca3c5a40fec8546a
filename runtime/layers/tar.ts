/**
 * A tar parser for layers: bytes in, entries and file data out, synchronously and without copying file data.
 * Reads v7, ustar, GNU (long names, base-256 numbers, sparse) and PAX (times, ids, xattrs, sparse 0.0, 0.1, 1.0) as Go's
 * archive/tar does, since that is what other engines read layers with: global PAX headers are ignored, data after the
 * end marker too. Names keep their exact bytes (latin1 strings).
 *
 * It bounds what it allocates (headers, sparse maps) and interprets no path: what names may mean is settle.ts's matter.
 * https://pubs.opengroup.org/onlinepubs/9799919799/utilities/pax.html#tag_20_94_13
 */
import { AppError } from '../../shared/errors.ts';
import type { TarEntry, TarEntryType } from '../../shared/tar-writer.ts';

export type { TarEntry, TarEntryType };

/** Receives the archive in order. What it throws stops the parser. */
export interface TarSink {
  entry(entry: TarEntry): void;
  /** The next bytes of the last file; together with holes exactly its size. The view is valid only during the call. */
  data(bytes: Buffer): void;
  /** The next `sizeBytes` of the last file are zero. */
  hole(sizeBytes: number): void;
}

export interface TarParser {
  write(chunk: Buffer): void;
  /** @throws AppError 'integrity' when the archive is cut off */
  end(): void;
}

/** Headers are one, data is filled up to whole ones. */
export const TAR_BLOCK_BYTES = 512;
const BLOCK = TAR_BLOCK_BYTES;
/** PAX headers and GNU long names; Go's limit, too. */
const META_MAX_BYTES = 1 << 20;
/** Fragments of one sparse file (CVE-2025-58183: an unbounded map exhausts memory). */
const SPARSE_MAX_FRAGMENTS = 100_000;
const ID_MAX = 0xffff_fffe;

interface Fragment {
  readonly offset: number;
  readonly sizeBytes: number;
}

interface Header {
  readonly flag: string;
  path: string;
  linkPath: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly sizeBytes: number;
  readonly major: number;
  readonly minor: number;
}

type State =
  | { readonly at: 'header' | 'second-zero' | 'end' }
  | { readonly at: 'skip' | 'data'; left: number }
  | { readonly at: 'collect'; readonly buffer: Buffer; filled: number; readonly done: (bytes: Buffer) => void };

/** Whether a block is the header of an entry: how an archive is told from other files. */
export function isTarHeader(block: Buffer): boolean {
  if (block.length < BLOCK) return false;
  const sums = checksums(block);
  const digits = /^[ \0]*([0-7]{1,7})(?:[ \0]|$)/.exec(block.toString('latin1', 148, 156))?.[1];
  const stored = Number.parseInt(digits ?? '', 8);
  return sums.unsigned !== 0 && (stored === sums.withSpaces || stored === sums.signed);
}

/** @throws AppError 'invalid' (malformed), 'unsupported' (an entry type no layer holds), 'too-large' from its methods */
export function createTarParser(sink: TarSink): TarParser {
  let state: State = { at: 'header' };
  let position = 0;
  let pax = new Map<string, Buffer>();
  let sparsePairs: string[] = [];
  let longName: string | undefined;
  let longLink: string | undefined;
  // The file whose data is being read.
  let padding = 0;
  /** What is skipped is only that: docker's client ends an archive in the middle of it. */
  let isPadding = false;
  let fragments: readonly Fragment[] | undefined;
  let fragmentIndex = 0;
  let fileOffset = 0;
  let fileSize = 0;

  const fail = (why: string): never => {
    throw new AppError('invalid', `cannot read the layer's tar at byte ${position}: ${why}`);
  };

  const collect = (sizeBytes: number, done: (bytes: Buffer) => void) => {
    if (sizeBytes === 0) done(Buffer.alloc(0));
    else state = { at: 'collect', buffer: Buffer.allocUnsafe(sizeBytes), filled: 0, done };
  };
  const skip = (sizeBytes: number) => {
    isPadding = false;
    state = sizeBytes === 0 ? { at: 'header' } : { at: 'skip', left: sizeBytes };
  };

  function write(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      const available = chunk.length - at;
      switch (state.at) {
        case 'data': {
          const taken = Math.min(state.left, available);
          emit(chunk.subarray(at, at + taken));
          at += taken;
          position += taken;
          state.left -= taken;
          if (state.left === 0) finishFile();
          break;
        }
        case 'skip': {
          const taken = Math.min(state.left, available);
          at += taken;
          position += taken;
          state.left -= taken;
          if (state.left === 0) state = { at: 'header' };
          break;
        }
        case 'collect': {
          const taken = Math.min(state.buffer.length - state.filled, available);
          chunk.copy(state.buffer, state.filled, at, at + taken);
          at += taken;
          position += taken;
          state.filled += taken;
          if (state.filled === state.buffer.length) {
            const { buffer, done } = state;
            state = { at: 'header' };
            done(buffer);
          }
          break;
        }
        case 'header':
        case 'second-zero': {
          const second = state.at === 'second-zero';
          const read = (block: Buffer) => header(block, second ? 'second' : 'first');
          if (available >= BLOCK) {
            const block = chunk.subarray(at, at + BLOCK);
            at += BLOCK;
            position += BLOCK;
            state = { at: 'header' };
            read(block);
          } else collect(BLOCK, read);
          break;
        }
        case 'end':
          position += available;
          return;
        default:
          state satisfies never;
      }
    }
  }

  function header(block: Buffer, which: 'first' | 'second'): void {
    const sums = checksums(block);
    if (sums.unsigned === 0) {
      state = { at: which === 'first' ? 'second-zero' : 'end' };
      return;
    }
    if (which === 'second') fail('a single zero block is followed by more');
    const stored = octal(block, 148, 8);
    if (stored !== sums.withSpaces && stored !== sums.signed) fail('the checksum of a header is wrong');
    const parsed = parseHeader(block);
    switch (parsed.flag) {
      case 'x':
      case 'X':
        meta(parsed, readPax);
        break;
      case 'g':
        skip(padded(parsed.sizeBytes));
        break;
      case 'L':
        meta(parsed, (bytes) => {
          longName = cString(bytes, 0, bytes.length);
        });
        break;
      case 'K':
        meta(parsed, (bytes) => {
          longLink = cString(bytes, 0, bytes.length);
        });
        break;
      case 'S':
        gnuSparse(parsed, block);
        break;
      default:
        begin(parsed, undefined);
    }
  }

  function meta(parsed: Header, done: (bytes: Buffer) => void): void {
    const { sizeBytes } = parsed;
    if (sizeBytes > META_MAX_BYTES) fail(`an extended header has ${sizeBytes} bytes, more than ${META_MAX_BYTES}`);
    collect(padded(sizeBytes), (bytes) => done(bytes.subarray(0, sizeBytes)));
  }

  function readPax(bytes: Buffer): void {
    pax = new Map();
    sparsePairs = [];
    let at = 0;
    while (at < bytes.length) {
      const space = bytes.indexOf(0x20, at);
      const digits = space === -1 ? '' : bytes.toString('latin1', at, Math.min(space, at + 20));
      const length = /^\d{1,19}$/.test(digits) ? Number(digits) : 0;
      const end = at + length;
      if (end <= space + 1 || end > bytes.length || bytes[end - 1] !== 0x0a) fail('a PAX record is malformed');
      const equals = bytes.indexOf(0x3d, space);
      if (equals <= space + 1 || equals >= end) fail('a PAX record has no key');
      const key = bytes.toString('latin1', space + 1, equals);
      const value = bytes.subarray(equals + 1, end - 1);
      at = end;
      if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') {
        // Version 0.0 repeats these keys, one pair for each fragment.
        if ((sparsePairs.length % 2 === 0) !== (key === 'GNU.sparse.offset')) fail('a sparse map is out of order');
        sparsePairs.push(value.toString('latin1'));
      } else if (value.length === 0 && !key.startsWith('SCHILY.xattr.')) pax.delete(key);
      else pax.set(key, value);
    }
  }

  const text = (key: string): string | undefined => pax.get(key)?.toString('latin1');

  function decimal(key: string): number | undefined {
    const value = text(key);
    if (value === undefined) return undefined;
    if (!/^\d{1,16}$/.test(value) || !Number.isSafeInteger(Number(value))) fail(`PAX ${key} is not a number`);
    return Number(value);
  }

  /** Old GNU form: four fragments in the header, then blocks of 21. */
  function gnuSparse(parsed: Header, block: Buffer): void {
    const found: Fragment[] = [];
    const realSize = numeric(block, 483, 12);
    const take = (from: Buffer, start: number, count: number) => {
      for (let i = 0; i < count; i++) {
        const at = start + i * 24;
        if (from[at] === 0) break;
        found.push({ offset: numeric(from, at, 12), sizeBytes: numeric(from, at + 12, 12) });
      }
      if (found.length > SPARSE_MAX_FRAGMENTS) tooManyFragments();
    };
    const extension = (more: Buffer) => {
      take(more, 0, 21);
      if (more[504] === 0) begin(parsed, { realSize, fragments: found });
      else collect(BLOCK, extension);
    };
    take(block, 386, 4);
    if (block[482] === 0) begin(parsed, { realSize, fragments: found });
    else collect(BLOCK, extension);
  }

  function tooManyFragments(): never {
    throw new AppError(
      'too-large',
      `cannot read the layer's tar at byte ${position}: a sparse file has more than ${SPARSE_MAX_FRAGMENTS} fragments`,
    );
  }

  /** All that precedes the data of an entry is known, except a sparse map that lies in the data. */
  function begin(parsed: Header, sparse: { realSize: number; fragments: readonly Fragment[] } | undefined): void {
    const { flag } = parsed;
    const path = text('GNU.sparse.name') ?? text('path') ?? longName ?? parsed.path;
    const linkPath = text('linkpath') ?? longLink ?? parsed.linkPath;
    const type = typeOf(flag, path) ?? unsupportedType(flag);
    const storedBytes = type === 'file' ? (decimal('size') ?? parsed.sizeBytes) : 0;
    const finish = (dataBytes: number, map: { realSize: number; fragments: readonly Fragment[] } | undefined) => {
      const mtime = paxTime() ?? { seconds: parsed.mtimeSeconds, nanoseconds: 0 };
      if (!Number.isSafeInteger(mtime.seconds)) fail('a modification time is out of range');
      fileSize = map?.realSize ?? dataBytes;
      fragments = map === undefined ? undefined : checkedFragments(map.fragments, fileSize, dataBytes);
      const entry: TarEntry = {
        type,
        path,
        linkPath,
        mode: parsed.mode & 0o7777,
        uid: id(decimal('uid') ?? parsed.uid),
        gid: id(decimal('gid') ?? parsed.gid),
        mtimeSeconds: mtime.seconds,
        mtimeNanoseconds: mtime.nanoseconds,
        sizeBytes: fileSize,
        major: parsed.major,
        minor: parsed.minor,
        xattrs: paxXattrs(),
      };
      pax = new Map();
      sparsePairs = [];
      longName = undefined;
      longLink = undefined;
      fileOffset = 0;
      fragmentIndex = 0;
      padding = padded(dataBytes) - dataBytes;
      sink.entry(entry);
      if (type !== 'file') return;
      if (dataBytes === 0) finishFile();
      else state = { at: 'data', left: dataBytes };
    };
    if (sparse !== undefined || type !== 'file') finish(storedBytes, sparse);
    else if (text('GNU.sparse.major') === '1') sparseInData(storedBytes, finish);
    else if (sparsePairs.length > 0 || pax.has('GNU.sparse.map') || pax.has('GNU.sparse.numblocks')) {
      const numbers = (text('GNU.sparse.map')?.split(',') ?? sparsePairs).map(sparseNumber);
      finish(storedBytes, { realSize: sparseSize(), fragments: pairs(numbers) });
    } else finish(storedBytes, undefined);
  }

  function sparseSize(): number {
    return decimal('GNU.sparse.realsize') ?? decimal('GNU.sparse.size') ?? fail('a sparse file has no size');
  }

  function sparseNumber(digits: string): number {
    const value = /^\d{1,16}$/.test(digits) ? Number(digits) : Number.NaN;
    return Number.isSafeInteger(value) ? value : fail('a sparse map holds something else than numbers');
  }

  function pairs(numbers: readonly number[]): Fragment[] {
    if (numbers.length % 2 !== 0) fail('a sparse map is cut off');
    if (numbers.length / 2 > SPARSE_MAX_FRAGMENTS) tooManyFragments();
    const found: Fragment[] = [];
    for (let i = 0; i < numbers.length; i += 2) found.push({ offset: numbers[i] ?? 0, sizeBytes: numbers[i + 1] ?? 0 });
    return found;
  }

  /** PAX sparse 1.0: the map is text at the head of the data, a number a line, padded to a block. */
  function sparseInData(
    storedBytes: number,
    finish: (dataBytes: number, map: { realSize: number; fragments: readonly Fragment[] }) => void,
  ): void {
    const realSize = sparseSize();
    const numbers: number[] = [];
    let rest = '';
    let used = 0;
    const next = (block: Buffer) => {
      used += BLOCK;
      const lines = (rest + block.toString('latin1')).split('\n');
      rest = lines.pop() ?? '';
      for (const line of lines) {
        const [count] = numbers;
        if (count !== undefined && numbers.length > count * 2) break;
        numbers.push(sparseNumber(line));
        if ((numbers[0] ?? 0) > SPARSE_MAX_FRAGMENTS) tooManyFragments();
      }
      const [count] = numbers;
      if (rest.length > BLOCK) fail('a sparse map holds something else than numbers');
      if (count === undefined || numbers.length <= count * 2) more();
      else finish(storedBytes - used, { realSize, fragments: pairs(numbers.slice(1)) });
    };
    const more = () => {
      if (used + BLOCK > storedBytes) fail('a sparse map is longer than its file');
      collect(BLOCK, next);
    };
    more();
  }

  function checkedFragments(map: readonly Fragment[], realSize: number, dataBytes: number): readonly Fragment[] {
    let end = 0;
    let sum = 0;
    for (const { offset, sizeBytes } of map) {
      if (offset < end || offset + sizeBytes > realSize) fail('a sparse map overlaps or exceeds its file');
      end = offset + sizeBytes;
      sum += sizeBytes;
    }
    if (sum !== dataBytes) fail('a sparse map does not fit its data');
    return map.filter(({ sizeBytes }) => sizeBytes > 0);
  }

  function emit(bytes: Buffer): void {
    if (fragments === undefined) {
      sink.data(bytes);
      return;
    }
    let at = 0;
    while (at < bytes.length) {
      const fragment = fragments[fragmentIndex];
      // Cannot be: checkedFragments() compared the sums.
      if (fragment === undefined) throw new RangeError('sparse map and data differ');
      if (fileOffset < fragment.offset) {
        sink.hole(fragment.offset - fileOffset);
        fileOffset = fragment.offset;
      }
      const taken = Math.min(fragment.offset + fragment.sizeBytes - fileOffset, bytes.length - at);
      sink.data(bytes.subarray(at, at + taken));
      at += taken;
      fileOffset += taken;
      if (fileOffset === fragment.offset + fragment.sizeBytes) fragmentIndex += 1;
    }
  }

  function finishFile(): void {
    if (fragments !== undefined && fileSize > fileOffset) sink.hole(fileSize - fileOffset);
    fragments = undefined;
    skip(padding);
    isPadding = true;
  }

  function paxTime(): { seconds: number; nanoseconds: number } | undefined {
    const value = text('mtime');
    if (value === undefined) return undefined;
    const match = /^(-?)(\d{1,16})(?:\.(\d*))?$/.exec(value) ?? fail('PAX mtime is not a time');
    const whole = Number(match[2]);
    const nanoseconds = Number((match[3] ?? '').slice(0, 9).padEnd(9, '0'));
    if (match[1] === '') return { seconds: whole, nanoseconds };
    return nanoseconds === 0
      ? { seconds: -whole, nanoseconds }
      : { seconds: -whole - 1, nanoseconds: 1e9 - nanoseconds };
  }

  function paxXattrs(): ReadonlyMap<string, Buffer> | undefined {
    let found: Map<string, Buffer> | undefined;
    const set = (name: string, value: Buffer) => {
      found ??= new Map();
      found.set(name, value);
    };
    for (const [key, value] of pax)
      if (key.startsWith('LIBARCHIVE.xattr.'))
        set(percentDecoded(key.slice(17)), Buffer.from(value.toString('latin1'), 'base64'));
    // Last, so that the exact form wins over libarchive's encoded one; copied, since the header's buffer is large.
    for (const [key, value] of pax) if (key.startsWith('SCHILY.xattr.')) set(key.slice(13), Buffer.from(value));
    return found;
  }

  function parseHeader(block: Buffer): Header {
    const flag = String.fromCharCode(block[156] ?? 0);
    const magic = block.toString('latin1', 257, 265);
    const isUstar = magic.startsWith('ustar\0');
    const isDevice = flag === '3' || flag === '4';
    const prefix = isUstar ? cString(block, 345, block.toString('latin1', 508, 512) === 'tar\0' ? 131 : 155) : '';
    const name = cString(block, 0, 100);
    return {
      flag,
      path: prefix === '' ? name : `${prefix}/${name}`,
      linkPath: cString(block, 157, 100),
      mode: octal(block, 100, 8),
      uid: numeric(block, 108, 8),
      gid: numeric(block, 116, 8),
      sizeBytes: nonNegative(numeric(block, 124, 12)),
      mtimeSeconds: numeric(block, 136, 12),
      major: isDevice ? nonNegative(numeric(block, 329, 8)) : 0,
      minor: isDevice ? nonNegative(numeric(block, 337, 8)) : 0,
    };
  }

  function nonNegative(value: number): number {
    return value >= 0 ? value : fail('a size or a number in a header is negative');
  }

  function id(value: number): number {
    return value >= 0 && value <= ID_MAX ? value : fail(`the owner ${value} is out of range`);
  }

  function unsupportedType(flag: string): never {
    throw new AppError(
      'unsupported',
      `cannot read the layer's tar at byte ${position}: entries of type ${JSON.stringify(flag)} do not belong in a layer`,
    );
  }

  /** Octal, or base-256 (GNU) when the first bit is set. */
  function numeric(block: Buffer, start: number, length: number): number {
    const first = block[start] ?? 0;
    if ((first & 0x80) === 0) return octal(block, start, length);
    let value = BigInt.asIntN(7, BigInt(first & 0x7f));
    for (let i = start + 1; i < start + length; i++) value = (value << 8n) | BigInt(block[i] ?? 0);
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : fail('a number in a header is out of range');
  }

  function octal(block: Buffer, start: number, length: number): number {
    let at = start;
    const end = start + length;
    while (at < end && (block[at] === 0x20 || block[at] === 0)) at += 1;
    let value = 0;
    for (; at < end; at++) {
      const byte = block[at] ?? 0;
      if (byte === 0x20 || byte === 0) break;
      if (byte < 0x30 || byte > 0x37) fail('a number in a header is not octal');
      value = value * 8 + (byte - 0x30);
    }
    return value;
  }

  return {
    write,
    end() {
      const clean =
        state.at === 'header' || state.at === 'second-zero' || state.at === 'end' || (state.at === 'skip' && isPadding);
      const pending = pax.size > 0 || longName !== undefined || longLink !== undefined;
      if (!clean || pending)
        throw new AppError('integrity', `cannot read the layer's tar: it is cut off after ${position} bytes`);
    },
  };
}

function typeOf(flag: string, path: string): TarEntryType | undefined {
  switch (flag) {
    case '\0': // v7 writes directories as files whose name ends with a slash
      return path.endsWith('/') ? 'directory' : 'file';
    case '0':
    case '7':
    case 'S':
      return 'file';
    case '1':
      return 'link';
    case '2':
      return 'symlink';
    case '3':
      return 'character';
    case '4':
      return 'block';
    case '5':
      return 'directory';
    case '6':
      return 'fifo';
    default:
      return undefined;
  }
}

function checksums(block: Buffer): { unsigned: number; withSpaces: number; signed: number } {
  let unsigned = 0;
  let high = 0;
  let field = 0;
  let fieldHigh = 0;
  for (let i = 0; i < BLOCK; i++) {
    const byte = block[i] ?? 0;
    unsigned += byte;
    if (byte > 127) high += 1;
    if (i >= 148 && i < 156) {
      field += byte;
      if (byte > 127) fieldHigh += 1;
    }
  }
  // The sum takes the checksum field itself as eight spaces; old writers summed signed bytes.
  const withSpaces = unsigned - field + 8 * 0x20;
  return { unsigned, withSpaces, signed: withSpaces - 256 * (high - fieldHigh) };
}

function cString(bytes: Buffer, start: number, length: number): string {
  const end = bytes.indexOf(0, start);
  return bytes.toString('latin1', start, end === -1 || end > start + length ? start + length : end);
}

function padded(sizeBytes: number): number {
  return Math.ceil(sizeBytes / BLOCK) * BLOCK;
}

function percentDecoded(text: string): string {
  return text.replace(/%([0-9A-Fa-f]{2})/g, (_, hex: string) => String.fromCharCode(Number.parseInt(hex, 16)));
}
