/**
 * Which records of the build cache go. Pure. Never what a build uses; the least recently used first, until what was asked
 * for is reached.
 */
import type { CachePruneFilter, CacheRecord } from './builds.ts';

export interface DiskSpace {
  readonly freeBytes: number;
}

/** In the order in which they go. Limits that are given are each a reason to go on; without one, all that match go. */
export function chooseRecords(
  records: readonly CacheRecord[],
  filter: CachePruneFilter,
  { freeBytes }: DiskSpace,
): readonly CacheRecord[] {
  const { all = false, unusedSince, keepBytes, minFreeBytes, kinds, ids } = filter;
  const matching = records
    .filter((record) => !record.isInUse)
    .filter((record) => all || (!record.isShared && record.kind !== 'exec.cachemount') || ids !== undefined)
    .filter((record) => unusedSince === undefined || record.usedAt < unusedSince)
    .filter((record) => kinds === undefined || kinds.includes(record.kind))
    .filter((record) => ids === undefined || ids.some((id) => id !== '' && record.id.startsWith(id)))
    .toSorted((a, b) => a.usedAt.getTime() - b.usedAt.getTime());
  if (keepBytes === undefined && minFreeBytes === undefined) return matching;
  let kept = records.reduce((sum, record) => sum + ownBytes(record), 0);
  let free = freeBytes;
  const chosen: CacheRecord[] = [];
  for (const record of matching) {
    const isTooMuch = keepBytes !== undefined && kept > keepBytes;
    const isTooFull = minFreeBytes !== undefined && free < minFreeBytes;
    if (!isTooMuch && !isTooFull) break;
    chosen.push(record);
    kept -= ownBytes(record);
    free += ownBytes(record);
  }
  return chosen;
}

/** What goes with the record: bytes that images name stay. */
function ownBytes({ isShared, sizeBytes }: CacheRecord): number {
  return isShared ? 0 : sizeBytes;
}
