/**
 * Garbage collection while the registry serves: uploads that were given up, manifests that nothing names (only if
 * asked), blobs that no manifest refers to, and bytes that no row knows. What is younger than the grace stays.
 *
 * The protocol that keeps it apart from pushes is in metadata/schema.ts. Each step is a small transaction that checks
 * its own condition; rows go first, bytes last; a run that died is finished by the next one. One run at a time, by
 * lease; the holder looks at its lease before it removes bytes. Any error ends the run: what cannot be read is not
 * garbage.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { BlobStore } from '../../shared/blob-store.ts';
import type { Digest } from '../../shared/digest.ts';
import { isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Batch, Cursor, GarbageIndex } from '../metadata/garbage.ts';
import type { LinkedBlob, UploadIndex } from '../metadata/index.ts';
import { type Hold, withLease } from './lease.ts';

/** What collection does to bytes. */
export interface GarbageBytes extends Pick<BlobStore, 'list' | 'ingests' | 'ingestInfo'> {
  /** false = was absent. */
  remove(digest: Digest): Promise<boolean>;
  /** Discards an unfinished write; false = somebody is writing it at this moment. */
  abandon(id: string): Promise<boolean>;
}

export function bytesOf(blobs: BlobStore): GarbageBytes {
  return {
    ...readsOf(blobs),
    remove: (digest) => blobs.remove(digest),
    async abandon(id) {
      try {
        await using ingest = await blobs.ingest(id);
        await ingest.abort();
        return true;
      } catch (error) {
        if (isKind(error, 'conflict')) return false;
        throw error;
      }
    },
  };
}

/** For a dry run, which then works on a copy of the index: remembers what would be gone. */
export function untouchedBytesOf(blobs: BlobStore): GarbageBytes {
  const gone = new Set<string>();
  const reads = readsOf(blobs);
  return {
    ...reads,
    async *list() {
      for await (const info of reads.list()) if (!gone.has(info.digest)) yield info;
    },
    ingestInfo: async (id) => (gone.has(id) ? undefined : reads.ingestInfo(id)),
    async remove(digest) {
      if (gone.has(digest) || (await blobs.stat(digest)) === undefined) return false;
      gone.add(digest);
      return true;
    },
    async abandon(id) {
      gone.add(id);
      return true;
    },
  };
}

function readsOf(blobs: BlobStore): Pick<BlobStore, 'list' | 'ingests' | 'ingestInfo'> {
  return {
    list: () => blobs.list(),
    ingests: () => blobs.ingests(),
    ingestInfo: (id) => blobs.ingestInfo(id),
  };
}

export interface GarbagePorts {
  readonly index: GarbageIndex & Pick<UploadIndex, 'removeUpload'>;
  readonly bytes: GarbageBytes;
  readonly now: () => Date;
  readonly randomId: () => string;
}

export interface GarbageOptions extends Cancelable {
  /** Age below which nothing is collected. */
  readonly gcGraceMs: number;
  /** Uploads that received nothing for this long are given up. */
  readonly uploadTtlMs: number;
  /** Whether manifests without a tag are garbage: whoever pulls by digest would miss them. */
  readonly untagged: boolean;
}

export interface GarbageReport {
  readonly manifests: number;
  /** Links of blobs to repositories. */
  readonly links: number;
  readonly blobs: number;
  readonly uploads: number;
  /** Given back to the disk by this run, of blobs and uploads. */
  readonly freedBytes: number;
}

/** Whoever holds it may remove bytes. */
export const REMOVAL_LEASE = 'gc';
const STORED_BATCH = 500;

/** @throws AppError 'conflict' while another collection runs */
export async function collectGarbage(ports: GarbagePorts, options: GarbageOptions): Promise<GarbageReport> {
  const { index, now } = ports;
  const report = { manifests: 0, links: 0, blobs: 0, uploads: 0, freedBytes: 0 };
  const before = new Date(now().getTime() - options.gcGraceMs);
  const lease = { ...ports, name: REMOVAL_LEASE, action: 'collect garbage', signal: options.signal };

  await withLease(index, lease, async (hold) => {
    await giveUpUploads(ports, { before: new Date(now().getTime() - options.uploadTtlMs), report, hold });
    // What a run that died had condemned.
    for (let rest = await index.removals(); rest.length > 0; rest = await index.removals())
      await removeBytes(ports, rest, { report, hold });

    if (options.untagged)
      // A manifest that goes may have been the last to hold another one: until a walk finds none.
      for (let found = -1; found !== 0; report.manifests += found)
        found = await walk((cursor) => index.collectManifests(before, cursor), hold);
    report.links += await walk((cursor) => index.collectLinks(before, cursor), hold);
    await walk(async (cursor) => {
      const batch = await index.condemnBlobs(cursor);
      await removeBytes(ports, batch.found, { report, hold });
      return batch;
    }, hold);
    await removeUnknown(ports, { before, report, hold });
    await index.collectLeftovers(before);
  });
  return report;
}

/** Answers how many were found in all. */
async function walk<T>(step: (cursor: Cursor | undefined) => Promise<Batch<T>>, hold: Hold) {
  let count = 0;
  let cursor: Cursor | undefined;
  do {
    await hold();
    const { found, next } = await step(cursor);
    count += found.length;
    cursor = next;
    await turn();
  } while (cursor !== undefined);
  return count;
}

type Report = { -readonly [K in keyof GarbageReport]: GarbageReport[K] };

interface Run {
  readonly report: Report;
  /** Renews the lease, or ends the run. */
  readonly hold: Hold;
}

async function removeBytes({ index, bytes }: GarbagePorts, condemned: readonly LinkedBlob[], { report, hold }: Run) {
  for (const { digest, sizeBytes } of condemned) {
    await hold();
    if (await bytes.remove(digest)) {
      report.blobs += 1;
      report.freedBytes += sizeBytes;
    }
    await index.endRemoval(digest);
  }
}

/** Bytes whose push died between its commit and its row. */
async function removeUnknown(ports: GarbagePorts, { before, ...run }: Run & { readonly before: Date }): Promise<void> {
  const { index, bytes } = ports;
  let batch: LinkedBlob[] = [];
  const flush = async () => {
    await run.hold();
    await removeBytes(ports, await index.condemnUnknown(batch), run);
    batch = [];
  };
  for await (const { digest, sizeBytes, modifiedAt } of bytes.list()) {
    if (modifiedAt >= before) continue;
    batch.push({ digest, sizeBytes });
    if (batch.length >= STORED_BATCH) await flush();
  }
  await flush();
}

async function giveUpUploads(
  { index, bytes }: GarbagePorts,
  { before, report, hold }: Run & { readonly before: Date },
): Promise<void> {
  for await (const { id, offset, modifiedAt } of bytes.ingests()) {
    if (modifiedAt >= before) continue;
    await hold();
    if (!(await bytes.abandon(id))) continue;
    await index.removeUpload(id);
    report.uploads += 1;
    report.freedBytes += offset;
  }
  // Sessions that never received a byte have nothing in the store.
  for (const { id } of await index.uploadsBefore(before)) {
    if ((await bytes.ingestInfo(id)) !== undefined) continue;
    if (await index.removeUpload(id)) report.uploads += 1;
  }
}
