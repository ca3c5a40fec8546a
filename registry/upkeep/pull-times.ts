/**
 * When manifests were pulled, gathered in memory and written in batches: a write per pull would make the database the
 * limit of how fast one can pull. A crash loses at most what was not flushed, which retention can bear.
 */
import type { Digest } from '../../shared/digest.ts';
import type { ManifestIndex, Pull } from '../metadata/index.ts';

export interface PullTimes {
  note(repository: string, digest: Digest): void;
  /** Writes what was noted. On failure the notes are lost. */
  flush(): Promise<void>;
}

export interface PullTimesOptions {
  readonly now: () => Date;
  /** A manifest pulled again within this time is not written again. */
  readonly resolutionMs: number;
}

/** Manifests remembered as recently written; a forgotten one only costs another write. */
const REMEMBERED_MAX = 20_000;
/** One transaction stays below 20 ms. */
const BATCH = 200;

export function createPullTimes(index: Pick<ManifestIndex, 'recordPulls'>, options: PullTimesOptions): PullTimes {
  const { now, resolutionMs } = options;
  const written = new Map<string, number>();
  const pending = new Map<string, Pull>();

  return {
    note(repository, digest) {
      const key = `${repository}@${digest}`;
      const at = now();
      if ((written.get(key) ?? 0) > at.getTime() - resolutionMs) return;
      if (pending.size < REMEMBERED_MAX) pending.set(key, { repository, digest, at });
    },

    async flush() {
      const pulls = [...pending];
      pending.clear();
      if (written.size > REMEMBERED_MAX) written.clear();
      for (const [key, { at }] of pulls) written.set(key, at.getTime());
      for (let start = 0; start < pulls.length; start += BATCH)
        await index.recordPulls(pulls.slice(start, start + BATCH).map(([, pull]) => pull));
    },
  };
}
