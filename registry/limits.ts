/**
 * Every limit of the registry, in one table, each with its unit in its name and its reason beside it. main.ts may
 * override them from its configuration; nothing below main.ts has a number of its own.
 */
import { MANIFEST_MAX_BYTES } from '../shared/oci.ts';

export const DEFAULT_LIMITS = {
  /** The specification asks for at least 4 MiB; a manifest is held in memory and in the database. Above: 413. */
  manifestMaxBytes: MANIFEST_MAX_BYTES,
  /** One blob. Larger than any real layer; stops an endless body before it fills the disk. */
  blobMaxBytes: 1024 ** 4,
  /** What OCI-Chunk-Min-Length asks of clients that push in chunks; 0 sends no such header. */
  chunkMinBytes: 0,
  /** tags/list and _catalog: asked for more, we answer this many and a Link (CVE-2023-2253 asked for 10^9). */
  pageMaxEntries: 1000,
  /** Page size of _catalog and referrers when the client names none, as in Distribution. */
  pageDefaultEntries: 100,
  /** A referrers answer is itself an index, so it obeys the limit that clients put on manifests. */
  referrersMaxBytes: MANIFEST_MAX_BYTES - 64 * 1024,
  /** `last` is a name or a digest; anything longer is noise. */
  lastMaxLength: 512,
  /** Tags in one `?tag=` push. The specification asks for ten. */
  tagsPerPush: 50,
  /** Parts of one multi-range answer, after joining neighbours. zstd:chunked clients send a handful. */
  rangeMaxParts: 16,
  /** Whole request head. Tokens and long `?tag=` lists fit. */
  headerMaxBytes: 32 * 1024,
  /** A connection on which no byte moves for this long is closed. Uploads have no other time limit. */
  idleTimeoutMs: 120_000,
  /** Above the 60 s that load balancers keep idle connections, so that they and not we close first. */
  keepAliveTimeoutMs: 75_000,
  headersTimeoutMs: 60_000,
  /** After this long in shutdown, open requests are cut. */
  drainTimeoutMs: 30_000,
  /** Open upload sessions of one user: each may hold a file of blobMaxBytes. */
  uploadsPerUser: 1000,
  /** An upload session that nobody touched for this long is garbage. */
  uploadTtlMs: 24 * 3_600_000,
  /** How long a request waits for an earlier request of the same session, which may be a connection that died. */
  uploadWaitMs: 5_000,
  /** Longer than the longest push from its first blob to its manifest: what is younger is never collected. */
  gcGraceMs: 24 * 3_600_000,
  /** Bytes of manifests kept in memory in front of the database. */
  manifestCacheBytes: 32 * 1024 * 1024,
} as const;

export type Limits = { readonly [K in keyof typeof DEFAULT_LIMITS]: number };
