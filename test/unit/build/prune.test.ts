import { describe, expect, it } from 'vitest';
import type { CachePruneFilter, CacheRecord } from '../../../runtime/build/builds.ts';
import { chooseRecords, diskBytesOf, freedBytes } from '../../../runtime/build/prune.ts';

const record = (id: string, day: number, more: Partial<CacheRecord> = {}): CacheRecord => ({
  parts: new Map(more.isShared === true ? [] : [[id, more.sizeBytes ?? 10]]),
  ...{ id, kind: 'regular', description: id, sizeBytes: 10, isShared: false, isInUse: false, usedCount: 0 },
  createdAt: new Date(0),
  usedAt: new Date(Date.UTC(2024, 0, day)),
  ...more,
});

const RECORDS = [
  record('new', 9),
  record('old', 1),
  record('mid', 5, { sizeBytes: 30 }),
  record('shared', 2, { isShared: true, sizeBytes: 100 }),
  record('busy', 3, { isInUse: true, sizeBytes: 50 }),
  record('cachemount', 4, { kind: 'exec.cachemount' }),
  record('context', 6, { kind: 'source.local' }),
];
const chosen = (filter: CachePruneFilter, freeBytes = 1000) =>
  chooseRecords(RECORDS, filter, { freeBytes }).map(({ id }) => id);

describe('what a prune takes', () => {
  // In use: 50. Not shared: 10 + 10 + 30 + 50 + 10 + 10 = 120.
  it.each<[title: string, filter: CachePruneFilter, ids: readonly string[]]>([
    ['what only the cache has, least recently used first', {}, ['old', 'mid', 'context', 'new']],
    [
      'all: also what images share, and cache mounts',
      { all: true },
      ['old', 'shared', 'cachemount', 'mid', 'context', 'new'],
    ],
    ['what was not used since', { unusedSince: new Date(Date.UTC(2024, 0, 5)) }, ['old']],
    ['a kind', { all: true, kinds: ['exec.cachemount', 'source.local'] }, ['cachemount', 'context']],
    ['an id, whatever it is', { ids: ['cachem', 'shared'] }, ['shared', 'cachemount']],
    ['nothing that a build uses', { ids: ['busy'] }, []],
    ['nothing by an empty id', { ids: [''] }, []],
    ['until no more than so much is kept', { all: true, keepBytes: 105 }, ['old', 'shared', 'cachemount']],
    ['nothing, when that is so already', { all: true, keepBytes: 120 }, []],
    [
      'everything that may go, when that is not enough',
      { all: true, keepBytes: 1 },
      ['old', 'shared', 'cachemount', 'mid', 'context', 'new'],
    ],
    ['nothing, while the disk has room', { minFreeBytes: 1000 }, []],
    ['until the disk has room', { minFreeBytes: 1020 }, ['old', 'mid']],
    ['until both are so', { keepBytes: 115, minFreeBytes: 1020 }, ['old', 'mid']],
  ])('%s', (_, filter, ids) => {
    expect(chosen(filter)).toEqual(ids);
  });
});

describe('bytes of records', () => {
  it('count once what several of them hold, and go with the last of these', () => {
    const layer = (id: string, parts: Record<string, number>) =>
      record(id, 1, { parts: new Map(Object.entries(parts)), sizeBytes: 100 });
    const [a, b, c] = [layer('a', { x: 10, y: 1 }), layer('b', { x: 10 }), layer('c', { z: 5 })];
    const all = [a, b, c];
    expect(diskBytesOf(all)).toBe(16);
    expect([[a], [b], [a, b], [c], all].map((gone) => freedBytes(gone, all))).toEqual([1, 0, 11, 5, 16]);
    const kept = (keepBytes: number) => chooseRecords(all, { keepBytes }, { freeBytes: 0 }).map(({ id }) => id);
    expect([kept(16), kept(15), kept(14), kept(5)]).toEqual([[], ['a'], ['a', 'b'], ['a', 'b']]);
  });
});
