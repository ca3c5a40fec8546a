/**
 * UpkeepIndex: what scrub, retention and the removal of a whole repository ask of the metadata. As in garbage.ts, each
 * method is one transaction that checks its own condition and works on at most one batch.
 */
import type { Digest } from '../../shared/digest.ts';
import type { Batch, CollectedManifest, Cursor } from './garbage.ts';
import type { LinkedBlob, TagGuard } from './index.ts';

/** How far a long walk has come, for whoever goes on with it. */
export interface Progress {
  /** What the walk last dealt with; empty = nothing yet. */
  readonly position: string;
  readonly startedAt: Date;
  /** undefined = it goes on. */
  readonly endedAt: Date | undefined;
}

export interface StoredBlob extends LinkedBlob {
  /** Its bytes were found to be wrong: it is answered as absent until it is pushed again. */
  readonly quarantinedAt: Date | undefined;
}

export interface TagRecord {
  readonly name: string;
  readonly manifest: Digest;
  /** When the tag was set or its manifest pushed again. */
  readonly pushedAt: Date;
  readonly pulledAt: Date | undefined;
  /** Last time that a client was told that the manifest exists. */
  readonly touchedAt: Date;
}

export interface UntaggedRecord {
  readonly digest: Digest;
  /** Last push, pull or existence check. */
  readonly usedAt: Date;
}

export interface UpkeepIndex {
  progress(name: string): Promise<Progress | undefined>;
  setProgress(name: string, progress: Progress): Promise<void>;

  /** Every blob row, by digest, after this one. */
  storedBlobs(after: string): Promise<readonly StoredBlob[]>;
  /**
   * Makes a blob absent for everybody until it is pushed again. `isStill` is asked inside the transaction whether the
   * bytes are yet those that were found bad: a push commits its bytes before its transaction, so it is seen either
   * here or it undoes this. false = it is good again, or gone.
   */
  quarantine(digest: Digest, isStill: () => boolean): Promise<boolean>;
  /** Reserves the path of quarantined bytes, as for a removal; false = somebody may be pushing the blob. */
  condemnQuarantined(digest: Digest): Promise<boolean>;
  /** Manifests that refer to this digest, the first of them. */
  manifestsWith(digest: Digest): Promise<readonly CollectedManifest[]>;

  /** Tags by name. */
  tagRecords(repository: string, cursor: Cursor | undefined): Promise<Batch<TagRecord>>;
  /** Manifests without a tag, by digest; indexes may hold them. */
  untaggedRecords(repository: string, cursor: Cursor | undefined): Promise<Batch<UntaggedRecord>>;
  /** Removes tags that are still as recorded; answers those that went. */
  dropTags(repository: string, tags: readonly TagRecord[]): Promise<readonly TagRecord[]>;
  /**
   * Removes those of the manifests that nothing needs and nobody has pushed or asked for since `before`: no tag, no
   * index that holds it, no subject that is there, no tagged manifest whose subject it is. `freed` is what they held or described, which may now be unneeded.
   */
  dropManifests(
    repository: string,
    manifests: readonly Digest[],
    before: Date,
  ): Promise<{ readonly dropped: readonly Digest[]; readonly freed: readonly Digest[] }>;

  /**
   * Takes a batch of tags, manifests or links from the repository, and the repository itself when it is empty. Bytes are left
   * to collection. undefined = no such repository.
   */
  removeRepositoryPart(
    repository: string,
    options: { readonly guard: TagGuard },
  ): Promise<{ readonly manifests: number; readonly done: boolean } | undefined>;
}
