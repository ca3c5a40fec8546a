/** Bytes that still go after their removal has been answered. A crash leaves them to the next sweep. */
export interface Erasures {
  add(work: Promise<unknown>): void;
  /** Nothing is left to go. */
  settled(): Promise<void>;
}

export function createErasures(): Erasures {
  const running = new Set<Promise<unknown>>();
  return {
    add(work) {
      running.add(work);
      void work.finally(() => running.delete(work));
    },
    async settled() {
      await Promise.all(running);
    },
  };
}
