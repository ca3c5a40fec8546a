/** A directory whose subdirectories have nothing to do with each other, as the filesystem is told. */
import { mkdir } from 'node:fs/promises';
import { runCommand } from '../kernel/command.ts';

/**
 * Answers a function that makes the directory; it costs nothing when it is called again. ext4 puts the subdirectories of
 * such a one far apart: chattr(1), attribute T. Side by side, files that are made soon after others were removed take
 * up to ten times as long: ext4 looks at each inode that was freed just now, for every file, because it does not want to
 * use them yet. Other filesystems do not know the attribute.
 */
export function createSpreadDirectory(path: string): () => Promise<void> {
  let made: Promise<void> | undefined;
  const make = async () => {
    await mkdir(path, { recursive: true, mode: 0o700 });
    await runCommand('chattr', ['+T', path]).catch(() => {});
  };
  return () => {
    made ??= make().catch((error: unknown) => {
      made = undefined;
      throw error;
    });
    return made;
  };
}
