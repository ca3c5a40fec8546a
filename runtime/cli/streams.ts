/** Moves bytes between a hijacked connection (or a log, or a file) and this process's own stdio. */
import { once } from 'node:events';
import { open } from 'node:fs/promises';
import type { Readable, Writable } from 'node:stream';
import { AppError } from '../../shared/errors.ts';
import type { Hijacked } from './client.ts';

const HEADER_BYTES = 8;
/** Far beyond what an engine sends at once; a larger one means that we lost the frames. */
const FRAME_MAX_BYTES = 64 * 1024 * 1024;

export interface Sinks {
  readonly stdout: Writable;
  readonly stderr: Writable;
}

/**
 * A file of the user's; `-` is stdin. Fails here when it cannot be read, and not while it is sent.
 * @throws AppError 'not-found', 'invalid' (a directory)
 */
export async function openInput(path: string): Promise<Readable> {
  if (path === '-') return process.stdin;
  const what = `cannot read ${JSON.stringify(path)}`;
  const file = await open(path).catch((cause) => {
    throw cause.code === 'ENOENT' ? new AppError('not-found', `${what}: there is no such file`, { cause }) : cause;
  });
  if (!(await file.stat()).isDirectory()) return file.createReadStream();
  await file.close();
  throw new AppError('invalid', `${what}: it is a directory`);
}

async function write(sink: Writable, bytes: Buffer): Promise<void> {
  if (!sink.write(bytes)) await once(sink, 'drain');
}

/** Copies the container's output until the connection ends. Frames are split onto stdout and stderr. */
export async function copyOutput(
  source: Readable,
  sinks: Sinks,
  { multiplexed }: { readonly multiplexed: boolean },
): Promise<void> {
  if (!multiplexed) {
    for await (const chunk of source) await write(sinks.stdout, chunk);
    return;
  }
  let rest: Buffer = Buffer.alloc(0);
  let sink: Writable | undefined;
  let missing = 0;
  for await (const chunk of source) {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk]);
    for (;;) {
      if (missing === 0) {
        if (rest.length < HEADER_BYTES) break;
        sink = rest[0] === 2 ? sinks.stderr : sinks.stdout;
        missing = rest.readUInt32BE(4);
        if (missing > FRAME_MAX_BYTES)
          throw new AppError('integrity', `cannot read the container's output: a frame of ${missing} bytes`);
        if (rest[0] === 3)
          throw new AppError(
            'conflict',
            rest
              .subarray(HEADER_BYTES, HEADER_BYTES + missing)
              .toString('utf8')
              .trim(),
          );
        rest = rest.subarray(HEADER_BYTES);
        continue;
      }
      if (rest.length === 0 || sink === undefined) break;
      const part = rest.subarray(0, missing);
      missing -= part.length;
      rest = rest.subarray(part.length);
      await write(sink, part);
    }
  }
}

/**
 * Sends this process's stdin until it ends; then the container sees EOF. Never rejects: the container may end first.
 * `seen` is shown what was typed.
 */
export function copyInput(connection: Hijacked, input: NodeJS.ReadStream, seen?: (typed: Buffer) => void): Disposable {
  const { socket } = connection;
  const forward = (chunk: Buffer) => {
    seen?.(chunk);
    if (!socket.write(chunk)) {
      input.pause();
      socket.once('drain', () => input.resume());
    }
  };
  const end = () => socket.end();
  input.on('data', forward);
  input.once('end', end);
  socket.on('error', () => input.pause());
  return {
    [Symbol.dispose]() {
      input.off('data', forward);
      input.off('end', end);
      input.pause();
      input.unref?.();
    },
  };
}
