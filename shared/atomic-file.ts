/** Durable names: a file is either the old one or the whole new one, also after power loss. */
import { randomUUID } from 'node:crypto';
import { open, rename, rm, writeFile } from 'node:fs/promises';
import { dirname } from 'node:path';

/** Makes the names inside a directory durable. fsync(2): the file's own fsync does not cover its directory entry. */
export async function syncDirectory(path: string): Promise<void> {
  await using handle = await open(path, 'r');
  await handle.sync();
}

export async function syncFile(path: string): Promise<void> {
  await using handle = await open(path, 'r');
  await handle.sync();
}

/** Renames and makes the new name durable. The bytes must have been synced before. */
export async function renameDurably(from: string, to: string): Promise<void> {
  await rename(from, to);
  await syncDirectory(dirname(to));
}

export interface WriteOptions {
  readonly mode?: number;
}

/** Replaces `path` with `bytes`: staging beside it, fsync, rename, fsync of the directory. */
export async function writeDurably(
  path: string,
  bytes: Uint8Array | string,
  options: WriteOptions = {},
): Promise<void> {
  const staging = `${path}.${randomUUID()}.part`;
  try {
    await writeFile(staging, bytes, { mode: options.mode ?? 0o644, flag: 'wx', flush: true });
    await renameDurably(staging, path);
  } catch (error) {
    await rm(staging, { force: true });
    throw error;
  }
}
