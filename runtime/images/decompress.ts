/**
 * Archives from users, whatever they are compressed with. The form is told by the first bytes, never by a name. gzip and
 * zstd are read in the process, bzip2 and xz by the host's own programs, at fixed paths and without anything of an image
 * in sight.
 */
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { AppError, isKind } from '../../shared/errors.ts';
import { streamCommand } from '../kernel/command.ts';

const FORMS = [
  ['gzip', [0x1f, 0x8b]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd]],
  ['bzip2', [0x42, 0x5a, 0x68]],
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
] as const;
export type ArchiveForm = (typeof FORMS)[number][0] | 'none';
/** Bytes that compressionOf needs to see. */
export const HEAD_BYTES = 5;

export function compressionOf(head: Uint8Array): ArchiveForm {
  return FORMS.find(([, magic]) => magic.every((byte, index) => head[index] === byte))?.[0] ?? 'none';
}

/** Never looked up in a search path; xz may not take more memory than its largest preset needs. */
const PROGRAMS = {
  bzip2: ['/usr/bin/bzip2', '-dc'],
  xz: ['/usr/bin/xz', '-dc', '--memlimit-decompress=128MiB'],
} as const;

/** How a stream is compressed; its bytes stay in it. @throws AppError 'invalid' for nothing at all */
export async function peekForm(stream: Readable): Promise<ArchiveForm> {
  return compressionOf(someOf(await readHead(stream)));
}

export interface DecompressOptions {
  /** Nothing at all is an archive of nothing. */
  readonly mayBeEmpty?: boolean;
}

/**
 * The plain tar, which fails when the archive is not what it seems.
 * @throws AppError 'invalid' for nothing at all, unless it may be empty
 */
export async function decompress(stream: Readable, { mayBeEmpty = false }: DecompressOptions = {}): Promise<Readable> {
  const head = await readHead(stream);
  if (head === undefined && mayBeEmpty) return Readable.from([]);
  const form = compressionOf(someOf(head));
  if (form === 'none') return stream;
  if (form === 'bzip2' || form === 'xz') return Readable.from(byProgram(form, stream));
  const plain = form === 'gzip' ? createGunzip() : createZstdDecompress();
  // pipeline destroys `plain` with the failure, so whoever reads it learns of it.
  pipeline(stream, plain).catch(() => {});
  return plain;
}

function someOf(head: Buffer | undefined): Buffer {
  if (head === undefined) throw new AppError('invalid', 'cannot read archive: it is empty');
  return head;
}

async function* byProgram(form: 'bzip2' | 'xz', stdin: Readable): AsyncGenerator<Buffer> {
  const [program, ...args] = PROGRAMS[form];
  try {
    yield* streamCommand(program, args, { stdin });
  } catch (error) {
    if (isKind(error, 'unsupported'))
      throw new AppError(
        'unsupported',
        `cannot read archive: it is compressed with ${form}, and ${program} is not installed`,
        {
          cause: error,
        },
      );
    if (!isKind(error, 'unavailable')) throw error;
    throw new AppError('invalid', `cannot read archive: ${form} says: ${error.message}`, { cause: error });
  }
}

/** Looks at the first bytes and gives them back to the stream; undefined = there are none. */
async function readHead(stream: Readable): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  let seen = 0;
  while (seen < HEAD_BYTES) {
    const chunk: Buffer | null = stream.read();
    if (chunk !== null) {
      chunks.push(chunk);
      seen += chunk.length;
      continue;
    }
    if (await isReadable(stream)) continue;
    if (seen === 0) return undefined;
    throw new AppError('invalid', `cannot read archive: it ends after ${seen} bytes`);
  }
  const head = Buffer.concat(chunks, seen);
  stream.unshift(head);
  return head;
}

/** Waits for more; false = this is the end. @throws what the stream failed with */
async function isReadable(stream: Readable): Promise<boolean> {
  if (stream.errored !== null) throw stream.errored;
  if (stream.readableEnded || stream.destroyed) return false;
  const { promise, resolve, reject } = Promise.withResolvers<boolean>();
  const more = () => resolve(true);
  const end = () => (stream.errored === null ? resolve(false) : reject(stream.errored));
  stream.once('readable', more);
  for (const event of ['end', 'close', 'error']) stream.once(event, end);
  try {
    return await promise;
  } finally {
    stream.off('readable', more);
    for (const event of ['end', 'close', 'error']) stream.off(event, end);
  }
}
