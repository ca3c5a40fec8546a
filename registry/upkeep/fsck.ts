/**
 * Compares metadata and bytes, both ways, and changes nothing. May run beside a registry that serves: what pushes or
 * collection move at this moment is looked at a second time before it is called wrong.
 */
import type { BlobStore } from '../../shared/blob-store.ts';
import { type CollectedManifest, type GarbageIndex, walk } from '../metadata/garbage.ts';
import type { StoredBlob, UpkeepIndex } from '../metadata/upkeep.ts';

export type Finding =
  /** A blob that the index promises and the store lacks, or has with another size. Pulls of it fail. */
  | { readonly kind: 'missing-blob'; readonly digest: string; readonly wantBytes: number; readonly gotBytes?: number }
  /** A blob that a scrub found bad. Pulls of it fail until it is pushed again. */
  | { readonly kind: 'quarantined'; readonly digest: string; readonly manifests: readonly CollectedManifest[] }
  /** A manifest whose repository lacks something that it refers to. Pulls of it fail. */
  | {
      readonly kind: 'dangling-reference';
      readonly repository: string;
      readonly manifest: string;
      readonly digest: string;
    }
  /** Bytes that no row names: harmless, the next collection removes them when they are old enough. */
  | { readonly kind: 'orphan'; readonly digest: string; readonly bytes: number };

export interface FsckPorts {
  readonly index: GarbageIndex & UpkeepIndex;
  readonly blobs: BlobStore;
}

export async function* findInconsistencies({ index, blobs }: FsckPorts): AsyncGenerator<Finding> {
  const known = new Set<string>();
  for await (const { digest, sizeBytes, quarantinedAt } of storedBlobs(index)) {
    known.add(digest);
    if (quarantinedAt !== undefined) {
      yield { kind: 'quarantined', digest, manifests: await index.manifestsWith(digest) };
      continue;
    }
    const gotBytes = (await blobs.stat(digest))?.sizeBytes;
    if (gotBytes === sizeBytes) continue;
    if (!(await index.isBlobKnown(digest))) continue;
    yield { kind: 'missing-blob', digest, wantBytes: sizeBytes, ...(gotBytes === undefined ? {} : { gotBytes }) };
  }
  for await (const { repository, digest, missing } of walk((cursor) => index.danglingReferences(cursor)))
    yield { kind: 'dangling-reference', repository, manifest: digest, digest: missing };
  for await (const { digest, sizeBytes } of blobs.list()) {
    if (known.has(digest) || (await index.isBlobKnown(digest))) continue;
    yield { kind: 'orphan', digest, bytes: sizeBytes };
  }
}

async function* storedBlobs(index: UpkeepIndex): AsyncGenerator<StoredBlob> {
  for (let after = ''; ; ) {
    const batch = await index.storedBlobs(after);
    yield* batch;
    const last = batch.at(-1);
    if (last === undefined) return;
    after = last.digest;
  }
}
