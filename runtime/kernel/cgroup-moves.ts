/**
 * Moves of processes between cgroups, made quick. The kernel lets nothing fork or end while it moves something, and to get
 * there it waits for all processors, 10 to 20 ms, unless that was so a moment ago (cgroup_threadgroup_rwsem, a
 * percpu_rw_semaphore: Documentation/locking/percpu-rw-semaphore.rst). A runtime moves what it creates, so each start and
 * each exec would wait. Who knows that one is coming has this wait passed beforehand, by moves that change nothing.
 */
import { type FileHandle, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { CgroupLayout } from './cgroups.ts';

export interface CgroupMoves {
  /** Something is about to be moved, within some hundredths of a second. Costs nothing but a thread's wait. */
  expect(): void;
}

/** From the start of what moves something to the move itself. */
const EXPECTED_MS = 50;
/** The kernel forgets in about ten. */
const EVERY_MS = 7;

/** Where nothing can be moved, nothing is: the moves themselves then take their time. */
export function createCgroupMoves(layout: CgroupLayout): CgroupMoves {
  let until = 0;
  let isMoving = false;

  /** This process to where it is, for a while: somebody else may move it elsewhere, where it must stay. */
  const move = async (): Promise<void> => {
    const path = ownCgroup(layout, await readFile('/proc/self/cgroup', 'utf8'));
    if (path === undefined) throw new Error('this process is in no cgroup that is mounted');
    await using processes: FileHandle = await open(join(path, 'cgroup.procs'), 'r+');
    const end = performance.now() + EXPECTED_MS;
    while (performance.now() < Math.min(until, end)) {
      await processes.write('0');
      await sleep(EVERY_MS, undefined, { ref: false });
    }
  };

  const moveWhileExpected = async (): Promise<void> => {
    isMoving = true;
    try {
      while (performance.now() < until) await move();
    } catch {
      // The runtime's own moves tell what is wrong.
    } finally {
      isMoving = false;
    }
  };

  return {
    expect() {
      until = performance.now() + EXPECTED_MS;
      if (!isMoving) void moveWhileExpected();
    },
  };
}

/** Its directory in one of the trees, by the text of /proc/self/cgroup, cgroups(7). Pure. */
export function ownCgroup({ trees }: CgroupLayout, text: string): string | undefined {
  for (const line of text.split('\n')) {
    const [, controllers, cgroup] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (cgroup === undefined) continue;
    const tree = trees.find((each) => (each.version === 2 ? '' : each.controllers.join(',')) === controllers);
    // What lies outside of the namespace of this process is shown as `/..`.
    if (tree !== undefined && !cgroup.split('/').includes('..')) return join(tree.path, cgroup);
  }
  return undefined;
}
