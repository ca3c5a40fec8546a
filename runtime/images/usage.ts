/**
 * Usage: who occupies how much, by exact reference count over recorded sizes.
 *
 * Everything is counted in bytes on disk. Logical counts every image whole; actual counts every layer and blob once.
 * Reclaimable is what nobody would need if all unused images went: so a prune frees exactly what was shown, also what
 * is shared among unused images only. Pure: no I/O.
 */
import type { Digest } from '../../shared/digest.ts';
import type { LayerId } from '../layers/layer-store.ts';

/** One image as the sums see it; each thing counts once, however often it is named. */
export interface ImageContent {
  readonly layers: Iterable<LayerId>;
  readonly blobs: Iterable<Digest>;
}

export interface UsageInput {
  readonly images: ReadonlyMap<Digest, ImageContent>;
  /** Every layer and every blob that there is, with its bytes on disk. */
  readonly layerBytes: ReadonlyMap<LayerId, number>;
  readonly blobBytes: ReadonlyMap<Digest, number>;
  /** Images that a container was made from, and those that are leased. */
  readonly usedImages: ReadonlySet<Digest>;
  /** Layers and blobs that are in use or leased whatever becomes of the images. */
  readonly isHeld: (digest: Digest) => boolean;
  /** Layers and blobs that the build cache has, and counts where no image names them. */
  readonly isCached: (digest: Digest) => boolean;
}

export interface UsageSums {
  readonly perImage: ReadonlyMap<Digest, { readonly sizeBytes: number; readonly sharedBytes: number }>;
  readonly logicalBytes: number;
  readonly actualBytes: number;
  readonly reclaimableBytes: number;
  /** Named by no image, and not by the build cache. */
  readonly orphans: { readonly layers: number; readonly blobs: number; readonly bytes: number };
}

interface Tally {
  readonly bytes: number;
  readonly isLayer: boolean;
  images: number;
  used: number;
  /** Number of the image that named it last: an image may name a thing twice. */
  namedBy: number;
}

export function sumUsage(input: UsageInput): UsageSums {
  // A layer that is not settled has the digest of its tar, and an uncompressed blob has it too: two things, two tallies.
  const layers = tallies(input.layerBytes, true);
  const blobs = tallies(input.blobBytes, false);
  const contents: { readonly id: Digest; readonly named: readonly Tally[] }[] = [];
  for (const [id, content] of input.images) {
    const named: Tally[] = [];
    const used = input.usedImages.has(id) ? 1 : 0;
    const name = (tally: Tally | undefined) => {
      if (tally === undefined || tally.namedBy === contents.length) return;
      tally.namedBy = contents.length;
      tally.images++;
      tally.used += used;
      named.push(tally);
    };
    for (const layer of content.layers) name(layers.get(layer));
    for (const blob of content.blobs) name(blobs.get(blob));
    contents.push({ id, named });
  }

  const perImage = new Map<Digest, { sizeBytes: number; sharedBytes: number }>();
  let logicalBytes = 0;
  for (const { id, named } of contents) {
    let sizeBytes = 0;
    let sharedBytes = 0;
    for (const tally of named) {
      sizeBytes += tally.bytes;
      if (tally.images > 1) sharedBytes += tally.bytes;
    }
    perImage.set(id, { sizeBytes, sharedBytes });
    logicalBytes += sizeBytes;
  }

  let actualBytes = 0;
  let reclaimableBytes = 0;
  const orphans = { layers: 0, blobs: 0, bytes: 0 };
  const count = (tally: Tally, digest: Digest) => {
    if (tally.images === 0 && input.isCached(digest)) return;
    actualBytes += tally.bytes;
    if (tally.used === 0 && !input.isHeld(digest)) reclaimableBytes += tally.bytes;
    if (tally.images > 0) return;
    orphans.bytes += tally.bytes;
    if (tally.isLayer) orphans.layers++;
    else orphans.blobs++;
  };
  layers.forEach(count);
  blobs.forEach(count);
  return { perImage, logicalBytes, actualBytes, reclaimableBytes, orphans };
}

function tallies(sizes: ReadonlyMap<Digest, number>, isLayer: boolean): Map<Digest, Tally> {
  const found = new Map<Digest, Tally>();
  for (const [digest, bytes] of sizes) found.set(digest, { bytes, isLayer, images: 0, used: 0, namedBy: -1 });
  return found;
}
