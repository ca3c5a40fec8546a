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
  return compressionOf(await readHead(stream));
}

/** The plain tar, which fails when the archive is not what it seems. @throws AppError 'invalid' for nothing at all */
export async function decompress(stream: Readable): Promise<Readable> {
  const form = compressionOf(await readHead(stream));
  if (form === 'none') return stream;
  if (form === 'bzip2' || form === 'xz') return Readable.from(byProgram(form, stream));
  const plain = form === 'gzip' ? createGunzip() : createZstdDecompress();
  // pipeline destroys `plain` with the failure, so whoever reads it learns of it.
  pipeline(stream, plain).catch(() => {});
  return plain;
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

/** Looks at the first bytes and gives them back to the stream. */
async function readHead(stream: Readable): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let seen = 0;
  while (seen < HEAD_BYTES) {
    const chunk: Buffer | null = stream.read();
    if (chunk === null) {
      await readable(stream);
      continue;
    }
    chunks.push(chunk);
    seen += chunk.length;
  }
  const head = Buffer.concat(chunks, seen);
  stream.unshift(head);
  return head;
}

/** @throws what the stream failed with; AppError 'invalid' at its end */
async function readable(stream: Readable): Promise<void> {
  const over = () => stream.errored ?? new AppError('invalid', 'cannot read archive: it is empty');
  if (stream.readableEnded || stream.destroyed) throw over();
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const fail = () => reject(over());
  stream.once('readable', resolve);
  for (const event of ['end', 'close', 'error']) stream.once(event, fail);
  try {
    await promise;
  } finally {
    stream.off('readable', resolve);
    for (const event of ['end', 'close', 'error']) stream.off(event, fail);
  }
}
