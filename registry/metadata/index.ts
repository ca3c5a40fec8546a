/**
 * MetadataIndex: everything that the registry knows beside bytes: repositories, manifests (with their bytes, which are
 * small), tags, which repository may read which blob, upload sessions, and what garbage collection needs.
 *
 * Each method is one transaction: what it answered is durable and seen by every process at once. A digest is not a
 * capability: a blob is readable through a repository only while that repository has a link to it (CVE-2024-39897).
 * The index knows no HTTP and no rights; what a caller may do is asked before, or by a guard inside the transaction.
 */
import type { BlobStore } from '../../shared/blob-store.ts';
import type { Digest, DigestAlgorithm } from '../../shared/digest.ts';
import type { ManifestReference } from '../routes.ts';

export interface Page {
  /** Most entries to answer; 0 answers none. */
  readonly limit: number;
  /** Exclusive; need not exist. undefined = from the start. */
  readonly after?: string | undefined;
}

export interface Paged<T> {
  /** Ascending by bytes, as Docker and the conformance suite sort. */
  readonly entries: readonly T[];
  readonly more: boolean;
}

export interface StoredManifest {
  readonly digest: Digest;
  /** Exactly what it was pushed as. */
  readonly mediaType: string;
  /** Exactly what was pushed. */
  readonly bytes: Uint8Array;
}

export interface NewManifest extends StoredManifest {
  /** Blobs and child manifests that must be in the repository. */
  readonly references: readonly Digest[];
  /** Foreign layers: kept while the manifest exists if the repository has them, and not missed if it has not. */
  readonly foreign?: readonly Digest[];
  readonly subject?: Digest | undefined;
  /** What a referrers answer says: the manifest's own, else its config's media type. */
  readonly artifactType?: string | undefined;
  readonly annotations?: Readonly<Record<string, string>> | undefined;
}

/** A tag that is about to move. `from` undefined = it is new; `to` undefined = it goes away. */
export interface TagChange {
  readonly tag: string;
  readonly from?: Digest | undefined;
  readonly to?: Digest | undefined;
}

/**
 * Called inside the transaction for each tag that would change, with what is true at that moment; a throw undoes all.
 * May be called again when the transaction is retried: must be pure.
 */
export type TagGuard = (change: TagChange) => void;

export interface ReferrerDescriptor {
  readonly mediaType: string;
  readonly digest: Digest;
  readonly size: number;
  readonly artifactType?: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

export interface Pull {
  readonly repository: string;
  readonly digest: Digest;
  readonly at: Date;
}

export interface ManifestIndex {
  resolve(repository: string, reference: ManifestReference): Promise<StoredManifest | undefined>;
  /**
   * Stores a manifest and points tags at it, or neither. Whether its references exist is checked in the same
   * transaction that records them, so garbage collection cannot come between. Idempotent.
   * @throws AppError 'not-found' with detail.missing (digests), 'conflict' if it is stored with another media type,
   * 'denied' when the repository would hold more than quotaBytes
   */
  putManifest(
    repository: string,
    manifest: NewManifest,
    options: { readonly tags: readonly string[]; readonly guard: TagGuard; readonly quotaBytes?: number | undefined },
  ): Promise<void>;
  /** Removes the tag only; false = was absent. */
  removeTag(repository: string, tag: string, options: { readonly guard: TagGuard }): Promise<boolean>;
  /**
   * Removes the manifest and every tag that points at it; false = was absent. The guard is also asked about tags of
   * indexes that hold it: they stay, and lose a part.
   */
  removeManifest(repository: string, digest: Digest, options: { readonly guard: TagGuard }): Promise<boolean>;
  /** Keeps an untagged manifest from being collected for another grace period; false = absent. */
  touchManifest(repository: string, digest: Digest): Promise<boolean>;
  /** undefined = no such repository. */
  tags(repository: string, page: Page): Promise<Paged<string> | undefined>;
  /** Manifests whose subject is this digest, by digest. An unknown repository or subject has none. */
  referrers(
    repository: string,
    subject: Digest,
    filter: Page & { readonly artifactType?: string | undefined },
  ): Promise<Paged<ReferrerDescriptor>>;
  /** Repositories that hold at least one manifest. */
  repositories(page: Page): Promise<Paged<string>>;
  /** Remembers when manifests were pulled, for retention. Absent ones are skipped. */
  recordPulls(pulls: readonly Pull[]): Promise<void>;
}

export interface LinkedBlob {
  readonly digest: Digest;
  readonly sizeBytes: number;
}

/** The order of a push: pinBlob, then the store's commit, then linkBlob (see schema.ts for what GC does meanwhile). */
export interface BlobIndex {
  /** What the repository may read; undefined = not through this repository, whatever the store holds. */
  blob(repository: string, digest: Digest): Promise<LinkedBlob | undefined>;
  /**
   * The same, for answers that let a client skip an upload: the link is safe from collection for a grace period
   * afterwards. Writes only when the last touch is a quarter of the grace old.
   */
  touchBlob(repository: string, digest: Digest): Promise<LinkedBlob | undefined>;
  /**
   * Keeps the bytes of this digest from being collected until the grace period ends, whether or not they exist yet.
   * @throws AppError 'unavailable' while they are being removed at this moment: try again
   */
  pinBlob(digest: Digest): Promise<void>;
  /**
   * Makes a stored blob readable through the repository, which begins to exist with it, and ends the upload session
   * that brought it. Idempotent.
   * @throws AppError 'denied' when the repository would hold more than quotaBytes; the bytes are then left to collection
   */
  linkBlob(
    repository: string,
    blob: LinkedBlob,
    options?: { readonly upload?: string | undefined; readonly quotaBytes?: number | undefined },
  ): Promise<void>;
  /**
   * Whether the blob would still fit, before its bytes are kept for nothing; linkBlob decides.
   * @throws AppError 'denied'
   */
  assertFits(repository: string, blob: LinkedBlob, quotaBytes: number): Promise<void>;
  /**
   * Links what `from` has into `to`; undefined = `from` does not have it.
   * @throws AppError 'denied' when `to` would hold more than quotaBytes
   */
  mountBlob(
    to: string,
    from: string,
    options: { readonly digest: Digest; readonly quotaBytes?: number | undefined },
  ): Promise<LinkedBlob | undefined>;
  /** Repositories that hold this blob, a few of them, for a mount without `from`. */
  repositoriesWithBlob(digest: Digest, page: Page): Promise<Paged<string>>;
  /**
   * Takes the blob from this repository only; false = was absent.
   * @throws AppError 'conflict' while a manifest of the repository refers to it
   */
  unlinkBlob(repository: string, digest: Digest): Promise<boolean>;
}

export interface UploadSession {
  readonly id: string;
  readonly repository: string;
  /** Who began it: nobody else may see, continue or cancel it (CVE-2026-32589). */
  readonly owner: string;
  readonly algorithm: DigestAlgorithm;
  readonly startedAt: Date;
}

/** Which uploads exist and whose they are; how far they are is the store's to say (`BlobStore.ingestInfo`). */
export interface UploadIndex {
  /** @throws AppError 'conflict' when the owner has maxOpen sessions already */
  createUpload(upload: UploadSession, options: { readonly maxOpen: number }): Promise<void>;
  /** undefined = unknown, or begun in another repository or by somebody else. */
  upload(
    id: string,
    owned: { readonly repository: string; readonly owner: string },
  ): Promise<UploadSession | undefined>;
  /** Idempotent; false = was absent. */
  removeUpload(id: string): Promise<boolean>;
}

export interface MetadataIndex extends ManifestIndex, BlobIndex, UploadIndex {}

/** What handlers work on. */
export interface Storage {
  readonly index: MetadataIndex;
  readonly blobs: BlobStore;
}
