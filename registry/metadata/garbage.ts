/**
 * GarbageIndex: what garbage collection and fsck ask of the metadata. The protocol is written down in schema.ts; each
 * method here is one of its steps and one transaction, checks its own condition inside it, and works on at most one
 * batch, so that pushes get their turn in between.
 */
import type { Digest } from '../../shared/digest.ts';
import type { LinkedBlob, UploadSession } from './index.ts';

/** Where a walk over a whole table stands; undefined = at the start. Opaque. */
export type Cursor = readonly (string | number)[];

export interface Batch<T> {
  readonly found: readonly T[];
  /** undefined = the walk is at its end. */
  readonly next: Cursor | undefined;
}

/** All that `read` has, batch by batch; it is asked for no batch before somebody wants it. */
export async function* walk<T>(read: (cursor: Cursor | undefined) => Promise<Batch<T>>): AsyncGenerator<T> {
  let cursor: Cursor | undefined;
  do {
    const { found, next } = await read(cursor);
    yield* found;
    cursor = next;
  } while (cursor !== undefined);
}

export interface CollectedManifest {
  readonly repository: string;
  readonly digest: Digest;
}

export interface GarbageIndex {
  /**
   * Takes the lease for ttlMs, or renews it when this holder has it. false = somebody else has it. Leases are compared
   * by `now`, so clocks of processes that share an index must agree within a small part of ttlMs.
   */
  takeLease(name: string, lease: { readonly holder: string; readonly ttlMs: number }): Promise<boolean>;
  /** Idempotent; does nothing when somebody else holds it. */
  releaseLease(name: string, holder: string): Promise<void>;

  /** Manifests untouched since `before` without a tag, that no index holds and whose subject, if any, is gone: removed. */
  collectManifests(before: Date, cursor: Cursor | undefined): Promise<Batch<CollectedManifest>>;
  /** Links of blobs untouched since `before` that no manifest of their repository refers to: removed. */
  collectLinks(before: Date, cursor: Cursor | undefined): Promise<Batch<CollectedManifest>>;
  /** Blobs without link and pin: their rows become removals, and their bytes may go. */
  condemnBlobs(cursor: Cursor | undefined): Promise<Batch<LinkedBlob>>;
  /** Of bytes that the store holds, those that no row knows and no pin protects become removals. */
  condemnUnknown(stored: readonly LinkedBlob[]): Promise<readonly LinkedBlob[]>;
  /** Condemned and not yet ended. */
  removals(): Promise<readonly LinkedBlob[]>;
  /** The bytes are gone. Idempotent. */
  endRemoval(digest: Digest): Promise<void>;

  /** Upload sessions begun before, in any order. */
  uploadsBefore(before: Date): Promise<readonly UploadSession[]>;
  /** Pins that have run out, and repositories that hold nothing since `before`: removed. */
  collectLeftovers(before: Date): Promise<void>;

  isBlobKnown(digest: Digest): Promise<boolean>;
  /** References that name nothing in their repository: there must be none. Children of indexes are left out. */
  danglingReferences(cursor: Cursor | undefined): Promise<Batch<CollectedManifest & { readonly missing: Digest }>>;
}
