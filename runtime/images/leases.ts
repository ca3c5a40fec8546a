/**
 * Leases: what must not be collected although no row names it yet, or no longer.
 *
 * The engine is the only owner of its state directory, so leases live in memory. protect() and condemn() exclude each
 * other per digest: who protects a digest that is being deleted waits until it is gone, and then looks for it again.
 */
import type { Digest } from '../../shared/digest.ts';

export interface Protection extends AsyncDisposable {
  protect(...digests: readonly Digest[]): Promise<void>;
}

export interface Leases {
  acquire(): Protection;
  isProtected(digest: Digest): boolean;
  /**
   * Takes those digests that nobody protects, and holds them until disposed: between, delete their rows, then their
   * bytes. The choice is made at the call, without a wait.
   */
  condemn(digests: Iterable<Digest>): Condemned;
}

export interface Condemned extends Disposable {
  readonly digests: readonly Digest[];
}

export function createLeases(): Leases {
  const holders = new Map<Digest, number>();
  const dying = new Map<Digest, Promise<void>>();

  const release = (digest: Digest) => {
    const left = (holders.get(digest) ?? 1) - 1;
    if (left === 0) holders.delete(digest);
    else holders.set(digest, left);
  };

  return {
    acquire() {
      const held = new Set<Digest>();
      return {
        async protect(...digests) {
          const fresh = digests.filter((digest) => !held.has(digest));
          for (const digest of fresh) {
            if (held.has(digest)) continue;
            held.add(digest);
            holders.set(digest, (holders.get(digest) ?? 0) + 1);
          }
          await Promise.all(digests.map((digest) => dying.get(digest)));
        },
        async [Symbol.asyncDispose]() {
          for (const digest of held) release(digest);
          held.clear();
        },
      };
    },
    isProtected: (digest) => holders.has(digest),
    condemn(digests) {
      const gone = Promise.withResolvers<void>();
      const taken = [...new Set(digests)].filter((digest) => !holders.has(digest) && !dying.has(digest));
      for (const digest of taken) dying.set(digest, gone.promise);
      return {
        digests: taken,
        [Symbol.dispose]() {
          for (const digest of taken) if (dying.get(digest) === gone.promise) dying.delete(digest);
          gone.resolve();
        },
      };
    },
  };
}
