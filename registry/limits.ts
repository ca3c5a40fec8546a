/**
 * Every limit of the registry, in one table, each with its unit in its name and its reason in its description. All can
 * be configured; nothing outside this table has a number of its own that a client could run into.
 */
import { bytesOption, type Config, durationOption, integerOption, loadConfig } from '../shared/config.ts';
import { MANIFEST_MAX_BYTES } from '../shared/oci.ts';

const HOUR_MS = 3_600_000;

export const LIMIT_OPTIONS = {
  manifestMaxBytes: bytesOption({
    description: 'largest manifest or index; the specification asks for at least 4 MiB',
    default: MANIFEST_MAX_BYTES,
  }),
  blobMaxBytes: bytesOption({
    description: 'largest blob: stops an endless body before it fills the disk',
    default: 1024 ** 4,
  }),
  chunkMinBytes: bytesOption({
    description: 'what OCI-Chunk-Min-Length asks of clients that push in chunks; 0 asks nothing',
    default: 0,
  }),
  pageMaxEntries: integerOption({
    description: 'most tags, repositories or referrers in one answer; who asks for more gets a Link',
    default: 1000,
    min: 1,
    max: 10_000,
  }),
  pageDefaultEntries: integerOption({
    description: 'entries of a page of the catalog or of referrers when the client names no number',
    default: 100,
    min: 1,
    max: 10_000,
  }),
  referrersMaxBytes: bytesOption({
    description: 'one referrers answer; it is an index, and clients limit those',
    default: MANIFEST_MAX_BYTES - 64 * 1024,
  }),
  lastMaxLength: integerOption({
    description: 'characters of the last parameter of a listing; a name or a digest fits',
    default: 512,
    min: 255,
    max: 8192,
  }),
  tagsPerPush: integerOption({
    description: 'tags set by one push by digest; the specification asks for ten',
    default: 50,
    min: 10,
    max: 1000,
  }),
  rangeMaxParts: integerOption({
    description: 'parts of one multi-range answer after neighbours are joined; beyond, the whole blob is sent',
    default: 16,
    min: 1,
    max: 256,
  }),
  headerMaxBytes: bytesOption({
    description: 'head of a request; tokens and long lists of tags fit',
    default: 32 * 1024,
  }),
  idleTimeoutMs: durationOption({
    description: 'a connection on which no byte moves for this long is closed; uploads have no other time limit',
    default: 120_000,
  }),
  keepAliveTimeoutMs: durationOption({
    description: 'how long an idle connection is kept; above the 60 s of usual load balancers',
    default: 75_000,
  }),
  headersTimeoutMs: durationOption({
    description: 'how long the head of a request may take to arrive',
    default: 60_000,
  }),
  drainTimeoutMs: durationOption({
    description: 'how long requests may go on after SIGTERM before they are cut',
    default: 30_000,
  }),
  uploadsPerUser: integerOption({
    description: 'open upload sessions of one user; each may hold a file as large as a blob',
    default: 1000,
    min: 1,
    max: 1_000_000,
  }),
  uploadTtlMs: durationOption({
    description: 'an upload session that received nothing for this long is given up',
    default: 24 * HOUR_MS,
  }),
  uploadWaitMs: durationOption({
    description: 'how long a request waits for an earlier one of the same upload, which may be a dead connection',
    default: 5_000,
  }),
  gcGraceMs: durationOption({
    description: 'nothing younger is collected; longer than the longest push from its first blob to its manifest',
    default: 24 * HOUR_MS,
  }),
  failedLoginsPerMinute: integerOption({
    description: 'wrong passwords from one address (IPv6: one /64 network) before it has to wait; 0 = no limit',
    default: 20,
    min: 0,
    max: 1_000_000,
  }),
  loginQueueMax: integerOption({
    description: 'password checks that may wait for their turn, a quarter of them from one address',
    default: 128,
    min: 4,
    max: 10_000,
  }),
  requestsPerMinute: integerOption({
    description: 'requests of one user, with bursts of as many; 0 = no limit',
    default: 0,
    min: 0,
    max: 10_000_000,
  }),
  anonymousRequestsPerMinute: integerOption({
    description: 'requests without a name from one address (IPv6: one /64 network); 0 = no limit',
    default: 0,
    min: 0,
    max: 10_000_000,
  }),
  webhookQueueMax: integerOption({
    description: 'deliveries that wait for one webhook endpoint; what happens beyond is not told',
    default: 10_000,
    min: 1,
    max: 10_000_000,
  }),
  pullTimeResolutionMs: durationOption({
    description: 'a manifest that is pulled again within this time is not noted again',
    default: HOUR_MS,
  }),
} as const;

export type Limits = Config<typeof LIMIT_OPTIONS>;

export function defaultLimits(): Limits {
  return loadConfig({ name: 'limits', envPrefix: 'LIMITS_', options: LIMIT_OPTIONS }, { argv: [], env: {} }).config;
}
