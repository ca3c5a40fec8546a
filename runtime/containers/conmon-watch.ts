/** The end of a run, as conmon tells it. */
import { type FSWatcher, watch } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { hasCode } from '../../shared/errors.ts';
import { isConmon, type RunFiles, readExit, readNumber } from './conmon-files.ts';
import type { Exit } from './supervisor.ts';

/** Between conmon's death and its exit file there is nothing; between the process's and the file only a moment. */
const EXIT_FILE_GRACE_MS = 2_000;
/** Killed, by whom nobody knows. */
const LOST_EXIT_CODE = 137;

/** Turns the exit file, or conmon's death without one, into a promise. */
export class ConmonWatch {
  readonly exited: Promise<Exit>;
  readonly #options: { readonly exitName: string; readonly files: RunFiles; readonly now: () => Date };
  readonly #watcher: FSWatcher | undefined;
  readonly #resolve: (exit: Exit) => void;

  constructor(options: { readonly exitName: string; readonly files: RunFiles; readonly now: () => Date }) {
    this.#options = options;
    const { promise, resolve } = Promise.withResolvers<Exit>();
    this.exited = promise;
    this.#resolve = resolve;
    this.#watcher = watchIfThere(options.files.exits, (name) => {
      if (name === options.exitName) this.#look();
    });
    // It may have ended before we watched.
    this.#look();
  }

  /** A conmon that was killed writes no exit file, and nobody watches its container any more. */
  async checkLiveness(): Promise<void> {
    const { files, now } = this.#options;
    if (await this.#check()) return;
    const pid = await readNumber(files.conmonPid);
    if (pid !== undefined && (await isConmon(pid))) return;
    await delay(EXIT_FILE_GRACE_MS, undefined, { ref: false });
    if (await this.#check()) return;
    this.#end({ code: LOST_EXIT_CODE, oomKilled: false, finishedAt: now() });
  }

  stop(): void {
    this.#watcher?.close();
  }

  /** What cannot be read just now, for want of descriptors or memory, is found by checkLiveness. */
  #look(): void {
    this.#check().catch(() => {});
  }

  async #check(): Promise<boolean> {
    const exit = await readExit(this.#options.files, this.#options.exitName);
    if (exit === undefined) return false;
    this.#end(exit);
    return true;
  }

  #end(exit: Exit): void {
    this.stop();
    this.#resolve(exit);
  }
}

function watchIfThere(path: string, onName: (name: string | null) => void): FSWatcher | undefined {
  try {
    return watch(path, (_event, name) => onName(name)).on('error', () => {});
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return undefined;
    throw error;
  }
}
