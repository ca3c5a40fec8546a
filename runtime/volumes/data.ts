/** What is in volumes, as the host's tools read and write it: tars of it, and what a volume begins with. */
import { chmod, mkdir, rm } from 'node:fs/promises';
import { renameDurably } from '../../shared/atomic-file.ts';
import { hasCode } from '../../shared/errors.ts';
import { feedCommand, runCommand, streamCommand } from '../kernel/command.ts';

/** Not for the host's users: files of containers may be setuid (CVE-2021-41091). */
export const DIRECTORY_MODE = 0o700;
export const DATA_MODE = 0o755;
const ARCHIVE = [
  '--create',
  '--format=posix',
  '--numeric-owner',
  '--xattrs',
  '--xattrs-include=*',
  '--one-file-system',
  '--warning=no-file-ignored',
  '--file=-',
];
/** tar(1): some file changed while it was read. */
const ARCHIVE_ACCEPTED = [0, 1];
const EXTRACT = [
  '--extract',
  '--file=-',
  '--numeric-owner',
  '--same-owner',
  '--same-permissions',
  '--xattrs',
  '--xattrs-include=*',
];

/** A tar of everything below a directory. */
export function archiveOf(directory: string): AsyncIterable<Buffer> {
  return streamCommand('tar', [...ARCHIVE, `--directory=${directory}`, '.'], { accepted: ARCHIVE_ACCEPTED });
}

/** Replaces an empty directory by what the tar holds, whole and durable; `staging` is beside it. false = it is not empty. */
export async function fillDirectory(
  directory: string,
  { staging, archive }: { readonly staging: string; readonly archive: AsyncIterable<Buffer> },
): Promise<boolean> {
  await mkdir(staging, { mode: DIRECTORY_MODE });
  try {
    await chmod(staging, DATA_MODE);
    await feedCommand('tar', [...EXTRACT, `--directory=${staging}`], archive);
    await runCommand('sync', ['--file-system', staging]);
    await renameDurably(staging, directory);
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOTEMPTY', 'EEXIST')) return false;
    throw error;
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}
