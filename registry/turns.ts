/** Turns: work on one key runs one after the other, in this process; workers.ts has turns across several. */
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError } from '../shared/errors.ts';

export interface Turns {
  /** Waits for the holder of this key; disposing gives the turn on. @throws AppError 'unavailable' behind one holder for waitMs */
  take(key: string): Promise<Disposable>;
}

export function createTurns({ waitMs }: { readonly waitMs: number }): Turns {
  const held = new Map<string, Promise<void>>();

  return {
    async take(key) {
      for (let holder = held.get(key); holder !== undefined; holder = held.get(key)) {
        if (!(await settlesWithin(holder, waitMs)))
          throw new AppError('unavailable', `cannot use ${JSON.stringify(key)}: another request is using it`);
      }
      const { promise, resolve } = Promise.withResolvers<void>();
      held.set(key, promise);
      return {
        [Symbol.dispose]() {
          if (held.get(key) === promise) held.delete(key);
          resolve();
        },
      };
    },
  };
}

async function settlesWithin(holder: Promise<void>, waitMs: number): Promise<boolean> {
  const timer = new AbortController();
  try {
    return await Promise.race([holder.then(() => true), sleep(waitMs, false, { signal: timer.signal })]);
  } finally {
    timer.abort();
  }
}
