/**
 * What conmon leaves of a run in files; supervisor-conmon.ts says which. Only these survive the engine.
 */
import { mkdirSync, rmSync, type Stats } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { hasCode } from '../../shared/errors.ts';
import type { Exit } from './supervisor.ts';

export interface RunFiles {
  readonly directory: string;
  readonly conmonPid: string;
  readonly pid: string;
  readonly exits: string;
  readonly persist: string;
  readonly cgroup: string;
}

export function filesOf(runDirectory: string, id: string): RunFiles {
  const directory = join(runDirectory, id);
  return {
    directory,
    conmonPid: join(directory, 'conmon.pid'),
    pid: join(directory, 'pid'),
    exits: join(directory, 'exits'),
    persist: join(directory, 'persist'),
    cgroup: join(directory, 'cgroup'),
  };
}

/** An exit file of the run before would end the next one at once. At once, too: conmon starts after it. */
export function makeFresh(files: RunFiles, bundle: string): void {
  for (const name of ['attach', 'ctl', 'winsz', 'oom']) rmSync(join(bundle, name), { force: true });
  rmSync(files.directory, { recursive: true, force: true });
  mkdirSync(files.directory, { recursive: true, mode: 0o700 });
  mkdirSync(files.exits);
  mkdirSync(files.persist);
}

export async function readExit(files: RunFiles, exitName: string): Promise<Exit | undefined> {
  const path = join(files.exits, exitName);
  const code = await readNumber(path);
  if (code === undefined) return undefined;
  const [info, oom] = await Promise.all([path, join(files.persist, 'oom')].map(statIfThere));
  return info === undefined ? undefined : { code, oomKilled: oom !== undefined, finishedAt: info.mtime };
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path);
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

export async function readNumber(path: string): Promise<number | undefined> {
  try {
    const text = (await readFile(path, 'utf8')).trim();
    return /^-?\d+$/.test(text) ? Number(text) : undefined;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}

/** Process ids are used again, and a zombie keeps its own: a number from a file alone proves nothing. */
export async function isConmon(pid: number): Promise<boolean> {
  try {
    return / \(conmon\) [^ZX]/.test(await readFile(`/proc/${pid}/stat`, 'utf8'));
  } catch (error) {
    // Anything else says nothing about the process.
    if (hasCode(error, 'ENOENT', 'ESRCH')) return false;
    throw error;
  }
}
