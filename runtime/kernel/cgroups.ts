/**
 * Control groups by name, whatever the host has: one v2 tree, or v1 with a tree per controller ('hybrid' when a v2 tree
 * without controllers hangs beside it). A cgroup's name is an absolute path such as `/berth_ab12cd/<container>`; it is
 * the same in every tree.
 *
 * The runtime makes and limits the containers' own cgroups. Here are made those of our own helpers, and here whatever
 * is left of a container is found, killed and removed. https://docs.kernel.org/admin-guide/cgroup-v2.html
 */
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { MountEntry } from './mount.ts';

export type CgroupMode = 'v1' | 'hybrid' | 'v2' | 'none';

/** One mounted tree. */
export interface CgroupTree {
  readonly path: string;
  readonly version: 1 | 2;
  /** v1: what is attached here, `name=systemd` among them. v2: empty, see cgroup.controllers. */
  readonly controllers: readonly string[];
}

export interface CgroupLayout {
  readonly mode: CgroupMode;
  readonly trees: readonly CgroupTree[];
}

export interface Cgroups {
  readonly mode: CgroupMode;
  /** Where this cgroup is in each tree, whether it exists or not. @throws AppError 'invalid' for a name with `..` */
  pathsOf(cgroup: string): readonly string[];
  /** Makes it and its parents. Idempotent. */
  create(cgroup: string): Promise<void>;
  /** Moves a process. @throws AppError 'not-found' when the process is gone */
  add(cgroup: string, pid: number): Promise<void>;
  /** Ids of the processes in it and below; empty when it does not exist. */
  processes(cgroup: string): Promise<readonly number[]>;
  /** Names of the cgroups directly below, in any tree. */
  children(cgroup: string): Promise<readonly string[]>;
  /** A file of one controller, for example `memory`, `memory.stat`; undefined = no such cgroup, controller or file. */
  read(cgroup: string, controller: string, file: string): Promise<string | undefined>;
  /** SIGKILL to everything in it and below, frozen or not, until nothing is left. @throws AppError 'timeout' */
  kill(cgroup: string): Promise<void>;
  /** Removes it and everything below. Idempotent. @throws AppError 'conflict' while processes live in it */
  remove(cgroup: string): Promise<void>;
}

/** A process in uninterruptible sleep may take long to die; nobody should wait for it for ever. */
const KILL_MS = 10_000;
/** A cgroup stays busy for a moment after its last process has ended. */
const REMOVE_MS = 2_000;
const POLL_MS = 5;

/** Pure. A bind mount of a tree shows part of it and is passed over, as are second mounts of the same tree. */
export function cgroupLayout(mounts: readonly MountEntry[]): CgroupLayout {
  const trees = new Map<string, CgroupTree>();
  for (const { type, target, superOptions } of mounts) {
    if (type !== 'cgroup' && type !== 'cgroup2') continue;
    if (!target.startsWith('/sys/fs/cgroup')) continue;
    const controllers = type === 'cgroup2' ? [] : superOptions.filter((option) => !CGROUP_FLAGS.has(option));
    const key = type === 'cgroup2' ? 'v2' : controllers.join(',');
    if (!trees.has(key)) trees.set(key, { path: target, version: type === 'cgroup2' ? 2 : 1, controllers });
  }
  const list = [...trees.values()];
  const hasV1 = list.some(({ version }) => version === 1);
  const hasV2 = list.some(isV2);
  const mode = hasV1 ? (hasV2 ? 'hybrid' : 'v1') : hasV2 ? 'v2' : 'none';
  return { mode, trees: list };
}

const CGROUP_FLAGS = new Set(['rw', 'ro', 'xattr', 'noprefix', 'clone_children', 'cpuset_v2_mode', 'favordynmods']);

export function createCgroups({ mode, trees }: CgroupLayout): Cgroups {
  const pathIn = (tree: CgroupTree, cgroup: string): string => {
    if (!cgroup.startsWith('/') || cgroup === '/' || cgroup.split('/').includes('..'))
      throw new AppError(
        'invalid',
        `cannot use cgroup ${JSON.stringify(cgroup)}: want an absolute path below the root`,
      );
    return join(tree.path, cgroup);
  };
  const pathsOf = (cgroup: string) => trees.map((tree) => pathIn(tree, cgroup));
  const processes = async (cgroup: string): Promise<readonly number[]> => {
    const found = await Promise.all(pathsOf(cgroup).map(processesBelow));
    return [...new Set(found.flat())];
  };

  return {
    mode,
    pathsOf,
    processes,

    async create(cgroup) {
      for (const tree of trees) {
        const path = pathIn(tree, cgroup);
        await mkdir(path, { recursive: true });
        if (tree.controllers.includes('cpuset')) await inheritCpuset(tree.path, path);
      }
    },

    async add(cgroup, pid) {
      for (const path of pathsOf(cgroup)) {
        try {
          await writeFile(join(path, 'cgroup.procs'), String(pid));
        } catch (cause) {
          if (hasCode(cause, 'ESRCH'))
            throw new AppError('not-found', `cannot move process ${pid}: it has ended`, { cause });
          throw new AppError('unavailable', `cannot move process ${pid} to cgroup ${JSON.stringify(path)}`, { cause });
        }
      }
    },

    async children(cgroup) {
      const names = await Promise.all(pathsOf(cgroup).map(directoriesIn));
      return [...new Set(names.flat())];
    },

    async read(cgroup, controller, file) {
      const tree = trees.find(({ controllers }) => controllers.includes(controller)) ?? trees.find(isV2);
      return tree === undefined ? undefined : readIfThere(join(pathIn(tree, cgroup), file));
    },

    async kill(cgroup) {
      const deadline = performance.now() + KILL_MS;
      for (;;) {
        for (const path of pathsOf(cgroup)) await killBelow(path);
        const left = await processes(cgroup);
        if (left.length === 0) return;
        if (performance.now() > deadline)
          throw new AppError('timeout', `cannot kill cgroup ${JSON.stringify(cgroup)}: processes do not end`, {
            detail: { processes: left },
          });
        await delay(POLL_MS);
      }
    },

    async remove(cgroup) {
      const deadline = performance.now() + REMOVE_MS;
      for (const path of pathsOf(cgroup)) {
        while (!(await removeTree(path))) {
          const left = await processesBelow(path);
          if (left.length > 0 || performance.now() > deadline)
            throw new AppError('conflict', `cannot remove cgroup ${JSON.stringify(path)}: it is in use`, {
              detail: { processes: left },
            });
          await delay(POLL_MS);
        }
      }
    },
  };
}

function isV2({ version }: CgroupTree): boolean {
  return version === 2;
}

/** A new v1 cpuset has neither processors nor memory, and takes no process before it has both. */
async function inheritCpuset(root: string, path: string): Promise<void> {
  if (path === root) return;
  const parent = dirname(path);
  await inheritCpuset(root, parent);
  for (const file of ['cpuset.cpus', 'cpuset.mems']) {
    const own = await readFile(join(path, file), 'utf8');
    if (own.trim() === '') await writeFile(join(path, file), await readFile(join(parent, file)));
  }
}

async function directoriesIn(path: string): Promise<readonly string[]> {
  try {
    const entries = await readdir(path, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENODEV')) return [];
    throw error;
  }
}

async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENODEV', 'EOPNOTSUPP')) return undefined;
    throw error;
  }
}

async function processesBelow(path: string): Promise<readonly number[]> {
  const own = ((await readIfThere(join(path, 'cgroup.procs'))) ?? '').split('\n').filter(Boolean).map(Number);
  const below = await Promise.all((await directoriesIn(path)).map((name) => processesBelow(join(path, name))));
  return [...own, ...below.flat()];
}

async function killBelow(path: string): Promise<void> {
  // v2 since 5.14 kills all at once, frozen ones too, and misses no fork. It is refused by threaded cgroups.
  if (await writeIfThere(join(path, 'cgroup.kill'), '1')) return;
  for (const pid of await processesBelow(path)) {
    // 0 is a process of another pid namespace, 1 is init: neither is ours.
    if (pid <= 1) continue;
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      if (!hasCode(error, 'ESRCH')) throw error;
    }
  }
  await thawBelow(path);
}

/** A frozen process does not see its SIGKILL on v1. */
async function thawBelow(path: string): Promise<void> {
  await writeIfThere(join(path, 'freezer.state'), 'THAWED');
  for (const name of await directoriesIn(path)) await thawBelow(join(path, name));
}

async function writeIfThere(path: string, text: string): Promise<boolean> {
  try {
    await writeFile(path, text, { flag: 'r+' });
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOENT', 'ENODEV', 'EOPNOTSUPP', 'EACCES')) return false;
    throw error;
  }
}

/** false = something in it is still busy. */
async function removeTree(path: string): Promise<boolean> {
  for (const name of await directoriesIn(path)) if (!(await removeTree(join(path, name)))) return false;
  try {
    await rmdir(path);
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return true;
    if (hasCode(error, 'EBUSY')) return false;
    throw error;
  }
}
