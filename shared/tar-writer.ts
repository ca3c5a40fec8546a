/**
 * Tar entries as bytes: ustar, with PAX records only where ustar is too small. The same entry always gives the same
 * bytes; names keep theirs: a character of a string is a byte (latin1). Pure.
 */

export type TarEntryType = 'file' | 'directory' | 'symlink' | 'link' | 'character' | 'block' | 'fifo';

export interface TarEntry {
  readonly type: TarEntryType;
  readonly path: string;
  /** Target of a symlink or of a hard link, else ''. */
  readonly linkPath: string;
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly mtimeSeconds: number;
  readonly mtimeNanoseconds: number;
  /** Holes counted; 0 for all but files. */
  readonly sizeBytes: number;
  readonly major: number;
  readonly minor: number;
  readonly xattrs: ReadonlyMap<string, Buffer> | undefined;
}

/** Bytes of a file that are not a hole. */
export interface TarPart {
  readonly offset: number;
  readonly sizeBytes: number;
}

const BLOCK = 512;
const NAME_MAX_BYTES = 100;
const OCTAL_7_MAX = 0o7777777;
const OCTAL_11_MAX = 0o77777777777;

const FLAGS = {
  file: '0',
  link: '1',
  symlink: '2',
  character: '3',
  block: '4',
  directory: '5',
  fifo: '6',
} as const satisfies Record<TarEntry['type'], string>;

/** Two blocks of zeros. */
export const TAR_END: Buffer = Buffer.alloc(2 * BLOCK);

/**
 * Everything before an entry's data. A directory's path ends without a slash. With `parts`, only these parts of the file
 * follow, each of whole blocks but the last, and the rest is holes.
 * https://www.gnu.org/software/tar/manual/html_node/PAX-1.html
 */
export function tarHeader(entry: TarEntry, parts?: readonly TarPart[]): Buffer {
  const records: Buffer[] = [];
  const add = (key: string, value: Buffer | string) => records.push(paxRecord(key, value));
  const path = entry.type === 'directory' ? `${entry.path}/` : entry.path;
  if (path.length > NAME_MAX_BYTES) add('path', Buffer.from(path, 'latin1'));
  if (entry.linkPath.length > NAME_MAX_BYTES) add('linkpath', Buffer.from(entry.linkPath, 'latin1'));
  const sizeBytes = parts === undefined ? entry.sizeBytes : parts.reduce((sum, range) => sum + range.sizeBytes, 0);
  if (sizeBytes > OCTAL_11_MAX) add('size', String(sizeBytes));
  if (parts !== undefined) {
    add('GNU.sparse.size', String(entry.sizeBytes));
    // GNU tar learns from it how long the list is, so it comes first.
    add('GNU.sparse.numblocks', String(parts.length));
    add('GNU.sparse.map', parts.map((range) => `${range.offset},${range.sizeBytes}`).join(','));
  }
  if (entry.uid > OCTAL_7_MAX) add('uid', String(entry.uid));
  if (entry.gid > OCTAL_7_MAX) add('gid', String(entry.gid));
  if (entry.mtimeSeconds < 0 || entry.mtimeSeconds > OCTAL_11_MAX || entry.mtimeNanoseconds !== 0)
    add('mtime', decimalTime(entry));
  for (const name of [...(entry.xattrs?.keys() ?? [])].sort())
    add(`SCHILY.xattr.${name}`, entry.xattrs?.get(name) ?? Buffer.alloc(0));
  const header = ustar({ ...entry, path, sizeBytes }, FLAGS[entry.type]);
  if (records.length === 0) return header;
  const data = Buffer.concat(records);
  const pax = ustar(
    {
      ...entry,
      path: 'PaxHeaders.0/entry',
      linkPath: '',
      mode: 0o644,
      uid: 0,
      gid: 0,
      mtimeSeconds: 0,
      sizeBytes: data.length,
      major: 0,
      minor: 0,
    },
    'x',
  );
  return Buffer.concat([pax, data, tarPadding(data.length), header]);
}

/** Before the epoch the fraction counts back: -0.5 s is second -1 and 500,000,000 ns. */
function decimalTime({ mtimeSeconds, mtimeNanoseconds }: TarEntry): string {
  const total = BigInt(mtimeSeconds) * 1_000_000_000n + BigInt(mtimeNanoseconds);
  const digits = (total < 0n ? -total : total).toString().padStart(10, '0');
  return `${total < 0n ? '-' : ''}${digits.slice(0, -9)}.${digits.slice(-9)}`.replace(/\.?0+$/, '') || '0';
}

const ZEROS = Buffer.alloc(BLOCK);

/** What fills up the last block of data of that size. Not to be written to. */
export function tarPadding(sizeBytes: number): Buffer {
  return ZEROS.subarray(0, (BLOCK - (sizeBytes % BLOCK)) % BLOCK);
}

/** Digit by digit: there is a header for each of many small files. */
function writeOctal(block: Buffer, value: number, { offset, digits }: { offset: number; digits: number }): void {
  let left = Math.min(Math.max(value, 0), 8 ** digits - 1);
  for (let at = offset + digits - 1; at >= offset; at--) {
    block[at] = ZERO + (left % 8);
    left = Math.floor(left / 8);
  }
}

const ZERO = 48;
const FIELDS = {
  mode: { offset: 100, digits: 7 },
  uid: { offset: 108, digits: 7 },
  gid: { offset: 116, digits: 7 },
  sizeBytes: { offset: 124, digits: 11 },
  mtimeSeconds: { offset: 136, digits: 11 },
  checksum: { offset: 148, digits: 6 },
  major: { offset: 329, digits: 7 },
  minor: { offset: 337, digits: 7 },
} as const;

function ustar(entry: Omit<TarEntry, 'type' | 'xattrs'>, flag: string): Buffer {
  const block = Buffer.allocUnsafe(BLOCK).fill(0);
  block.write(entry.path.slice(0, NAME_MAX_BYTES), 0, 'latin1');
  writeOctal(block, entry.mode & 0o7777, FIELDS.mode);
  writeOctal(block, entry.uid, FIELDS.uid);
  writeOctal(block, entry.gid, FIELDS.gid);
  writeOctal(block, entry.sizeBytes, FIELDS.sizeBytes);
  writeOctal(block, entry.mtimeSeconds, FIELDS.mtimeSeconds);
  block.write('        ', FIELDS.checksum.offset, 'latin1');
  block.write(flag, 156, 'latin1');
  if (entry.linkPath !== '') block.write(entry.linkPath.slice(0, NAME_MAX_BYTES), 157, 'latin1');
  block.write('ustar\u000000', 257, 'latin1');
  writeOctal(block, entry.major, FIELDS.major);
  writeOctal(block, entry.minor, FIELDS.minor);
  let sum = 0;
  for (let at = 0; at < BLOCK; at++) sum += block[at] ?? 0;
  writeOctal(block, sum, FIELDS.checksum);
  block[FIELDS.checksum.offset + FIELDS.checksum.digits] = 0;
  return block;
}

/** `<length> <key>=<value>\n`, where the length counts itself. */
function paxRecord(key: string, value: Buffer | string): Buffer {
  const body = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), Buffer.from(value), Buffer.from('\n')]);
  let length = body.length;
  while (String(length).length + body.length !== length) length = String(length).length + body.length;
  return Buffer.concat([Buffer.from(String(length)), body]);
}
