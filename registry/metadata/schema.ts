/**
 * The tables of the metadata index, their indexes, and the protocol that keeps garbage collection and pushes apart on
 * any number of processes. Times are milliseconds since 1970; digests and names are text compared by bytes.
 *
 *   repository ─┬─ manifest ─┬─ manifestReference ──▷ digest of a blob or child manifest in the same repository
 *               │            └─ tag
 *               └─ repositoryBlob ──▷ blob ──▷ bytes in the BlobStore
 *   upload (session)      blobPin (digest, until)      removal (digest: its bytes are about to go)
 *
 * Invariants, true between any two transactions and so after any crash:
 *  1. A repositoryBlob row implies a blob row; a blob row that is not quarantined implies its bytes, whole and verified.
 *  2. A manifestReference names something that its repository had when the manifest was written. Nothing removes it
 *     while the reference exists, but for a client that deletes a child of an index by its digest.
 *  3. A digest in `removal` has no blob row, or a quarantined one.
 *
 * A push: (a) pin the digest, refused while it is in `removal`; (b) the store commits the bytes; (c) one transaction
 * writes blob and repositoryBlob; (d) one transaction checks that everything a manifest refers to is linked, and writes
 * manifest, references and tags. Answers that let a client skip (a) to (c) (HEAD, mount) touch the link.
 *
 * Collection, each step a transaction, each on its own condition again inside it: untagged manifests older than the
 * grace go with their references; links older than the grace without a reference go; blob rows without a link and
 * without a live pin move to `removal`; then the bytes go; then the `removal` row. Rows first, bytes last. A crash
 * leaves `removal` rows, which the next collection ends. Only the holder of the lease `gc` removes bytes, and it looks
 * at the lease before each removal, so a collector that slept cannot remove what a later one gave free.
 *
 * Scrub: a blob whose bytes went bad is marked quarantined in a transaction that looks at the file once more; step (c)
 * of a later push takes the mark off, since its step (b) has replaced the file. The bad file is moved aside as a
 * removal is done: under the lease, without a live pin, with a `removal` row meanwhile.
 */
import type { Generated } from 'kysely';
import type { Migration } from '../../shared/database.ts';
import type { Digest, DigestAlgorithm } from '../../shared/digest.ts';

export interface MetadataTables {
  repository: {
    id: Generated<number>;
    name: string;
    createdAt: number;
    /** Bytes of linked blobs and of manifests. Triggers keep it, whoever adds or removes them. */
    usedBytes: Generated<number>;
  };
  manifest: {
    repositoryId: number;
    digest: Digest;
    mediaType: string;
    sizeBytes: number;
    bytes: Uint8Array;
    subject: Digest | null;
    artifactType: string | null;
    /** JSON object of strings. */
    annotations: string | null;
    pushedAt: number;
    /** Last push or existence check: the age that collection goes by. */
    touchedAt: number;
    pulledAt: number | null;
  };
  manifestReference: { repositoryId: number; manifest: Digest; digest: Digest };
  tag: { repositoryId: number; name: string; manifest: Digest; createdAt: number; updatedAt: number };
  blob: {
    digest: Digest;
    sizeBytes: number;
    createdAt: number;
    /** Not null = its bytes are wrong or missing, and the blob is absent for everybody. */
    quarantinedAt: Generated<number | null>;
  };
  repositoryBlob: { repositoryId: number; digest: Digest; linkedAt: number; touchedAt: number };
  blobPin: { digest: Digest; expiresAt: number };
  removal: { digest: Digest; sizeBytes: number; decidedAt: number };
  upload: { id: string; repository: string; owner: string; algorithm: DigestAlgorithm; startedAt: number };
  lease: { name: string; holder: string; expiresAt: number };
  progress: { name: string; position: string; startedAt: number; endedAt: number | null };
  refreshToken: {
    tokenHash: string;
    subject: string;
    service: string;
    fingerprint: string;
    createdAt: number;
    expiresAt: number;
  };
  delivery: {
    id: Generated<number>;
    endpoint: string;
    body: string;
    createdAt: number;
    dueAt: number;
    attempts: number;
  };
}

/** `without rowid` where the key is the row: one tree instead of two. Lists are range scans of these keys. */
export const METADATA_MIGRATIONS: readonly Migration[] = [
  {
    name: 'registry-1-metadata',
    statements: [
      `create table repository (
        id integer primary key,
        name text not null unique,
        createdAt integer not null
      ) strict`,
      `create table manifest (
        repositoryId integer not null references repository(id),
        digest text not null,
        mediaType text not null,
        sizeBytes integer not null,
        subject text,
        artifactType text,
        annotations text,
        pushedAt integer not null,
        touchedAt integer not null,
        pulledAt integer,
        bytes blob not null,
        primary key (repositoryId, digest)
      ) strict`,
      'create index manifestBySubject on manifest (repositoryId, subject, digest) where subject is not null',
      `create table manifestReference (
        repositoryId integer not null,
        manifest text not null,
        digest text not null,
        primary key (repositoryId, manifest, digest),
        foreign key (repositoryId, manifest) references manifest(repositoryId, digest)
      ) strict, without rowid`,
      'create index manifestReferenceByDigest on manifestReference (repositoryId, digest)',
      `create table tag (
        repositoryId integer not null,
        name text not null,
        manifest text not null,
        createdAt integer not null,
        updatedAt integer not null,
        primary key (repositoryId, name),
        foreign key (repositoryId, manifest) references manifest(repositoryId, digest)
      ) strict, without rowid`,
      'create index tagByManifest on tag (repositoryId, manifest)',
      `create table blob (
        digest text primary key,
        sizeBytes integer not null,
        createdAt integer not null
      ) strict, without rowid`,
      `create table repositoryBlob (
        repositoryId integer not null references repository(id),
        digest text not null references blob(digest),
        linkedAt integer not null,
        touchedAt integer not null,
        primary key (repositoryId, digest)
      ) strict, without rowid`,
      'create index repositoryBlobByDigest on repositoryBlob (digest, repositoryId)',
      `create table blobPin (
        digest text primary key,
        expiresAt integer not null
      ) strict, without rowid`,
      `create table removal (
        digest text primary key,
        sizeBytes integer not null,
        decidedAt integer not null
      ) strict, without rowid`,
      `create table upload (
        id text primary key,
        repository text not null,
        owner text not null,
        algorithm text not null,
        startedAt integer not null
      ) strict, without rowid`,
      'create index uploadByOwner on upload (owner)',
      `create table lease (
        name text primary key,
        holder text not null,
        expiresAt integer not null
      ) strict, without rowid`,
    ],
  },
  {
    name: 'registry-access-1-usage',
    statements: [
      'alter table repository add column usedBytes integer not null default 0',
      `update repository set usedBytes =
        (select coalesce(sum(blob.sizeBytes), 0) from repositoryBlob join blob on blob.digest = repositoryBlob.digest
          where repositoryBlob.repositoryId = repository.id)
        + (select coalesce(sum(manifest.sizeBytes), 0) from manifest where manifest.repositoryId = repository.id)`,
      `create trigger usageOfLinkedBlob after insert on repositoryBlob begin
        update repository set usedBytes = usedBytes + (select sizeBytes from blob where digest = new.digest)
          where id = new.repositoryId;
      end`,
      `create trigger usageOfUnlinkedBlob after delete on repositoryBlob begin
        update repository set usedBytes = usedBytes - (select sizeBytes from blob where digest = old.digest)
          where id = old.repositoryId;
      end`,
      `create trigger usageOfNewManifest after insert on manifest begin
        update repository set usedBytes = usedBytes + new.sizeBytes where id = new.repositoryId;
      end`,
      `create trigger usageOfRemovedManifest after delete on manifest begin
        update repository set usedBytes = usedBytes - old.sizeBytes where id = old.repositoryId;
      end`,
    ],
  },
  {
    name: 'registry-access-2-refresh-tokens',
    statements: [
      `create table refreshToken (
        tokenHash text primary key,
        subject text not null,
        service text not null,
        fingerprint text not null,
        createdAt integer not null,
        expiresAt integer not null
      ) strict, without rowid`,
      'create index refreshTokenBySubject on refreshToken (subject, createdAt)',
    ],
  },
  {
    name: 'registry-webhooks-1-deliveries',
    statements: [
      // Numbers are never used again: receivers tell deliveries apart by them.
      `create table delivery (
        id integer primary key autoincrement,
        endpoint text not null,
        body text not null,
        createdAt integer not null,
        dueAt integer not null,
        attempts integer not null
      ) strict`,
      'create index deliveryByEndpoint on delivery (endpoint, id)',
    ],
  },
  {
    name: 'registry-2-upkeep',
    statements: [
      'alter table blob add column quarantinedAt integer',
      'create index blobQuarantined on blob (digest) where quarantinedAt is not null',
      `create table progress (
        name text primary key,
        position text not null,
        startedAt integer not null,
        endedAt integer
      ) strict, without rowid`,
    ],
  },
];
