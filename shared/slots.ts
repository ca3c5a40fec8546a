/** Work that only so many may do at a time, or that is done once for many. */

/** For each name so many holders at a time, first come, first served. */
export interface Slots {
  /** Waits for a free slot. Disposing gives it back. */
  acquire(name: string, signal?: AbortSignal): Promise<Disposable>;
}

/** A name without holders costs nothing. */
export function createSlots(count: number): Slots {
  const named = new Map<string, { readonly slots: Queue; users: number }>();
  return {
    async acquire(name, signal) {
      const entry = named.get(name) ?? { slots: createQueue(count), users: 0 };
      named.set(name, entry);
      entry.users++;
      const leave = () => {
        if (--entry.users === 0) named.delete(name);
      };
      const slot = await entry.slots.acquire(signal).catch((error) => {
        leave();
        throw error;
      });
      return {
        [Symbol.dispose]() {
          slot[Symbol.dispose]();
          leave();
        },
      };
    },
  };
}

export interface Queue {
  /** Waits for a free slot. Disposing gives it back. @throws the signal's reason */
  acquire(signal?: AbortSignal): Promise<Disposable>;
}

/** So many holders at a time, first come, first served. */
export function createQueue(count: number): Queue {
  let free = count;
  const waiting: (() => void)[] = [];
  return {
    acquire(signal) {
      return new Promise((resolve, reject) => {
        if (signal?.aborted === true) return reject(signal.reason);
        const take = () => {
          signal?.removeEventListener('abort', give);
          let held = true;
          resolve({
            [Symbol.dispose]() {
              if (!held) return;
              held = false;
              const next = waiting.shift();
              if (next === undefined) free++;
              else next();
            },
          });
        };
        const give = () => {
          waiting.splice(waiting.indexOf(take), 1);
          reject(signal?.reason);
        };
        if (free > 0) {
          free--;
          take();
        } else {
          waiting.push(take);
          signal?.addEventListener('abort', give, { once: true });
        }
      });
    },
  };
}

/** Runs work once for all who asked before it began: one that has begun may have missed what they want done. */
export function coalesced(work: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> = Promise.resolve();
  let next: Promise<void> | undefined;
  return () => {
    next ??= running
      .catch(() => {})
      .then(() => {
        next = undefined;
        running = work();
        return running;
      });
    return next;
  };
}
