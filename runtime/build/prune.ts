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
  const counts = countParts(records);
  let kept = diskBytesOf(records);
  let free = freeBytes;
  const chosen: CacheRecord[] = [];
  for (const record of matching) {
    const isTooMuch = keepBytes !== undefined && kept > keepBytes;
    const isTooFull = minFreeBytes !== undefined && free < minFreeBytes;
    if (!isTooMuch && !isTooFull) break;
    chosen.push(record);
    const bytes = takeParts(counts, record);
    kept -= bytes;
    free += bytes;
  }
  return chosen;
}

/** On disk, for what only the build cache has; what several records hold counts once. */
export function diskBytesOf(records: readonly CacheRecord[]): number {
  const parts = new Map(records.flatMap((record) => [...record.parts]));
  return [...parts.values()].reduce((sum, bytes) => sum + bytes, 0);
}

/** What the disk gets back when these of all records go. */
export function freedBytes(gone: readonly CacheRecord[], all: readonly CacheRecord[]): number {
  const counts = countParts(all);
  return gone.reduce((sum, record) => sum + takeParts(counts, record), 0);
}

function countParts(records: readonly CacheRecord[]): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { parts } of records) for (const id of parts.keys()) counts.set(id, (counts.get(id) ?? 0) + 1);
  return counts;
}

/** Answers the bytes of what no other record has any more. */
function takeParts(counts: Map<string, number>, { parts }: CacheRecord): number {
  let freed = 0;
  for (const [id, bytes] of parts) {
    const left = (counts.get(id) ?? 1) - 1;
    counts.set(id, left);
    if (left === 0) freed += bytes;
  }
  return freed;
}
