import { describe, expect, it } from 'vitest';
import { sumUsage, type UsageInput } from '../../runtime/images/usage.ts';
import { type Digest, digestOf } from '../../shared/digest.ts';

const id = (name: string): Digest => digestOf(name);

interface Given {
  /** image: layers and blobs, `L…` and `B…`. */
  readonly images: Readonly<Record<string, readonly string[]>>;
  readonly bytes: Readonly<Record<string, number>>;
  readonly used?: readonly string[];
  readonly held?: readonly string[];
}

function sums({ images, bytes, used = [], held = [] }: Given) {
  const sizes = (kind: string) =>
    new Map(
      Object.entries(bytes).flatMap(([name, size]) => (name.startsWith(kind) ? [[id(name), size] as const] : [])),
    );
  const heldIds = new Set(held.map(id));
  const input: UsageInput = {
    images: new Map(
      Object.entries(images).map(([name, things]) => [
        id(name),
        {
          layers: things.filter((thing) => thing.startsWith('L')).map(id),
          blobs: things.filter((thing) => thing.startsWith('B')).map(id),
        },
      ]),
    ),
    layerBytes: sizes('L'),
    blobBytes: sizes('B'),
    usedImages: new Set(used.map(id)),
    isHeld: (digest) => heldIds.has(digest),
    isCached: () => false,
  };
  return sumUsage(input);
}

const BYTES = { L1: 1000, L2: 200, L3: 30, B1: 500, B2: 50, B3: 5 };
const SHARED = { a: ['L1', 'L2', 'B1', 'B2'], b: ['L1', 'L3', 'B1', 'B3'] };

describe('sumUsage', () => {
  it('counts every image whole, and everything once', () => {
    const result = sums({ images: SHARED, bytes: BYTES });
    expect(result.logicalBytes).toBe(1750 + 1535);
    expect(result.actualBytes).toBe(1785);
    expect(result.perImage.get(id('a'))).toEqual({ sizeBytes: 1750, sharedBytes: 1500 });
    expect(result.perImage.get(id('b'))).toEqual({ sizeBytes: 1535, sharedBytes: 1500 });
  });

  it('reclaims what is shared among unused images only (docker/cli#1751)', () => {
    expect(sums({ images: SHARED, bytes: BYTES }).reclaimableBytes).toBe(1785);
    expect(sums({ images: SHARED, bytes: BYTES, used: ['a'] }).reclaimableBytes).toBe(35);
    expect(sums({ images: SHARED, bytes: BYTES, used: ['a', 'b'] }).reclaimableBytes).toBe(0);
  });

  it('counts a layer that one image names twice once', () => {
    const result = sums({ images: { a: ['L1', 'L1', 'B1'] }, bytes: BYTES });
    expect(result.perImage.get(id('a'))).toEqual({ sizeBytes: 1500, sharedBytes: 0 });
  });

  it('shows what no image names, and reclaims it unless it is held', () => {
    const given = { images: { a: ['L1', 'B1'] }, bytes: { L1: 1000, B1: 500, L9: 7, B9: 3 } };
    expect(sums(given).orphans).toEqual({ layers: 1, blobs: 1, bytes: 10 });
    expect(sums({ ...given, used: ['a'] }).reclaimableBytes).toBe(10);
    expect(sums({ ...given, used: ['a'], held: ['L9'] }).reclaimableBytes).toBe(3);
  });

  it('keeps a layer and a blob of one digest apart', () => {
    const digest = id('same');
    const result = sumUsage({
      images: new Map([[id('a'), { layers: [digest], blobs: [digest] }]]),
      layerBytes: new Map([[digest, 10]]),
      blobBytes: new Map([[digest, 4]]),
      usedImages: new Set(),
      isHeld: () => false,
      isCached: () => false,
    });
    expect(result).toMatchObject({ logicalBytes: 14, actualBytes: 14, reclaimableBytes: 14 });
  });
});
