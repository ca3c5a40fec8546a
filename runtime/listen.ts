/**
 * The Engine API's socket: who speaks on it is root on this host, so it is for root and the group `berth` only, or for
 * the user whose engine it is. A socket that a dead engine left is replaced, one that answers is not.
 */
import { once } from 'node:events';
import { chown, lstat, mkdir, readFile, unlink } from 'node:fs/promises';
import type { Server } from 'node:http';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { AppError, hasCode, messageOf } from '../shared/errors.ts';

/** sockaddr_un: 108 bytes with the final zero. */
const PATH_MAX_BYTES = 107;
const GROUP = 'berth';

/** `unix:///path` or a plain absolute path. @throws AppError 'invalid' */
export function parseListen(text: string): string {
  const path = text.startsWith('unix://') ? text.slice('unix://'.length) : text;
  if (!path.startsWith('/'))
    throw new AppError('invalid', `cannot listen on ${JSON.stringify(text)}: want unix:///absolute/path`);
  if (Buffer.byteLength(path) > PATH_MAX_BYTES)
    throw new AppError(
      'invalid',
      `cannot listen on ${JSON.stringify(path)}: it is longer than ${PATH_MAX_BYTES} bytes`,
    );
  return path;
}

export interface ListenOptions {
  /** For the engine's own user alone, without the group. */
  readonly isPrivate?: boolean;
}

/** Disposing stops listening, cuts what is connected, and removes the socket. */
export async function listen(
  server: Server,
  path: string,
  { isPrivate = false }: ListenOptions = {},
): Promise<AsyncDisposable> {
  await mkdir(dirname(path), { recursive: true, mode: isPrivate ? 0o700 : 0o711 });
  await removeStale(path);
  // The mode must be right before the first client can connect. Node binds within this call.
  const before = process.umask(isPrivate ? 0o177 : 0o117);
  try {
    server.listen(path);
  } finally {
    process.umask(before);
  }
  try {
    await once(server, 'listening');
  } catch (cause) {
    throw new AppError('unavailable', `cannot listen on ${JSON.stringify(path)}: ${messageOf(cause)}`, { cause });
  }
  const group = isPrivate ? undefined : await groupId(GROUP);
  if (group !== undefined) await chown(path, process.getuid?.() ?? 0, group);
  const { ino } = await lstat(path);
  return {
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
      // Node removes the socket; should another have taken the name meanwhile, it is not ours to remove.
      await unlinkIf(path, ino);
    },
  };
}

async function unlinkIf(path: string, ino: number): Promise<void> {
  try {
    if ((await lstat(path)).ino === ino) await unlink(path);
  } catch (error) {
    if (!hasCode(error, 'ENOENT')) throw error;
  }
}

/** @throws AppError 'conflict' when somebody answers there, or something else has the name */
async function removeStale(path: string): Promise<void> {
  try {
    const found = await lstat(path);
    if (!found.isSocket())
      throw new AppError('conflict', `cannot listen on ${JSON.stringify(path)}: there is something else than a socket`);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return;
    throw error;
  }
  const probe = connect(path);
  try {
    await once(probe, 'connect');
  } catch (error) {
    if (!hasCode(error, 'ECONNREFUSED')) throw error;
    await unlink(path);
    return;
  } finally {
    probe.destroy();
  }
  throw new AppError('conflict', `cannot listen on ${JSON.stringify(path)}: another engine answers there`);
}

async function groupId(name: string): Promise<number | undefined> {
  let groups: string;
  try {
    groups = await readFile('/etc/group', 'utf8');
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
  for (const line of groups.split('\n')) {
    const [group, , id] = line.split(':');
    if (group === name && id !== undefined) return Number(id);
  }
  return undefined;
}
