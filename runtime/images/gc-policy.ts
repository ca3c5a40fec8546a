/**
 * The policy of image garbage collection: how many of the unused images go, oldest first, by age, by what all images
 * occupy, and by what is free on the disk. Images that are used or leased are never asked about. Pure: no I/O.
 */

/** 0 = no limit. */
export interface GcPolicy {
  /** Unused images that were last named longer ago go. */
  readonly maxAgeMs: number;
  /** What images may occupy: layers and blobs, each once. */
  readonly maxBytes: number;
  /** What shall be free on the disk. */
  readonly minFreeBytes: number;
}

export interface GcState {
  /** Of the images that may go, oldest first. */
  readonly agesMs: readonly number[];
  readonly actualBytes: number;
  readonly freeBytes: number;
  /** Bytes that go with the oldest `count` images; never less for a larger count. */
  readonly freedBy: (count: number) => number;
}

export function countToRemove(policy: GcPolicy, state: GcState): number {
  const { agesMs, actualBytes, freeBytes, freedBy } = state;
  const tooOld = policy.maxAgeMs === 0 ? 0 : agesMs.filter((age) => age > policy.maxAgeMs).length;
  const tooMuch = policy.maxBytes === 0 ? 0 : actualBytes - policy.maxBytes;
  const tooLittle = policy.minFreeBytes === 0 ? 0 : policy.minFreeBytes - freeBytes;
  const missing = Math.max(tooMuch, tooLittle);
  return missing <= 0
    ? tooOld
    : Math.max(
        tooOld,
        fewest(agesMs.length, (count) => freedBy(count) >= missing),
      );
}

/** The smallest count that is enough; all of them when none is. */
function fewest(max: number, isEnough: (count: number) => boolean): number {
  let [low, high] = [0, max];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (isEnough(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}
