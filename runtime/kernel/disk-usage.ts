/** What directories occupy on disk, counted by du(1): one process walks them all, beside the engine. */
import { runCommand } from './command.ts';

const TIMEOUT_MS = 10 * 60_000;

/**
 * Bytes on disk below each path, hard links of one call once. What goes away meanwhile is not counted, and a path that is
 * not there is not in the answer.
 */
export async function diskUsage(paths: readonly string[]): Promise<ReadonlyMap<string, number>> {
  const sizes = new Map<string, number>();
  if (paths.length === 0) return sizes;
  const { stdout } = await runCommand(
    'du',
    ['--summarize', '--one-file-system', '--block-size=1', '--null', '--files0-from=-'],
    { stdin: paths.map((path) => `${path}\0`).join(''), timeoutMs: TIMEOUT_MS },
  );
  for (const line of stdout.split('\0')) {
    const tab = line.indexOf('\t');
    if (tab !== -1) sizes.set(line.slice(tab + 1), Number(line.slice(0, tab)));
  }
  return sizes;
}
