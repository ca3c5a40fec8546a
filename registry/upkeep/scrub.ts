/**
 * Scrub: reads blobs again, at a bounded rate, and compares them with their digests. What is bad or missing becomes
 * absent for clients, so that the next push brings it again, and its file is put aside. A pass goes by digest and
 * remembers where it stands; whoever runs next goes on from there. How this meets pushes is in metadata/schema.ts.
 */
import { createHash } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import type { BlobStore } from '../../shared/blob-store.ts';
import { algorithmOf, type Digest, digestFromHex } from '../../shared/digest.ts';
import { hasCode, isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { CollectedManifest, GarbageIndex } from '../metadata/garbage.ts';
import type { StoredBlob, UpkeepIndex } from '../metadata/upkeep.ts';
import { REMOVAL_LEASE } from './gc.ts';
import { type Hold, withLease } from './lease.ts';
import type { Quarantine } from './quarantine.ts';

export interface ScrubPorts {
  readonly index: UpkeepIndex & Pick<GarbageIndex, 'takeLease' | 'releaseLease' | 'endRemoval'>;
  readonly blobs: Pick<BlobStore, 'open'>;
  readonly quarantine: Quarantine;
  readonly now: () => Date;
  readonly randomId: () => string;
}

/** A blob that clients do not get any more. */
export interface BadBlob {
  readonly digest: Digest;
  readonly why: string;
  /** Manifests that need it, the first of them: push them again. */
  readonly manifests: readonly CollectedManifest[];
}

export interface ScrubOptions extends Cancelable {
  /** 0 = as fast as the disk. */
  readonly scrubBytesPerSecond: number;
  readonly onBad: (bad: BadBlob) => void;
  /** Told now and then, and at the end, what was read since the last time. */
  readonly onRead?: (read: { readonly blobs: number; readonly bytes: number }) => void;
}

export interface ScrubReport {
  readonly blobs: number;
  readonly bytes: number;
  readonly bad: number;
}

const PROGRESS = 'scrub';
/** A pass that dies reads this much again. */
const SAVE_EVERY_MS = 2_000;

/** Whether a pass is under way, or the last one began longer ago than intervalMs. */
export async function isScrubDue(index: UpkeepIndex, at: Date, intervalMs: number): Promise<boolean> {
  const last = await index.progress(PROGRESS);
  return last?.endedAt === undefined || last.startedAt.getTime() + intervalMs <= at.getTime();
}

/**
 * Ends the pass that is under way, or makes a new one.
 * @throws AppError 'conflict' while another process is at it; whatever signal.reason says, and then the position is kept
 */
export async function scrub(ports: ScrubPorts, options: ScrubOptions): Promise<ScrubReport> {
  const { index, now } = ports;
  const { signal, onBad, onRead } = options;
  const report = { blobs: 0, bytes: 0, bad: 0 };
  const pace = createPace(ports, options);

  return withLease(index, { ...ports, name: PROGRESS, action: 'scrub', signal }, async (hold) => {
    const last = await index.progress(PROGRESS);
    const isResumed = last !== undefined && last.endedAt === undefined;
    const startedAt = isResumed ? last.startedAt : now();
    let position = isResumed ? last.position : '';
    let told = { ...report };
    let savedAt = now().getTime();
    const save = async (endedAt?: Date) => {
      savedAt = now().getTime();
      await index.setProgress(PROGRESS, { position, startedAt, endedAt });
      onRead?.({ blobs: report.blobs - told.blobs, bytes: report.bytes - told.bytes });
      told = { ...report };
    };
    try {
      for (let batch = await index.storedBlobs(position); batch.length > 0; batch = await index.storedBlobs(position))
        for (const blob of batch) {
          const why = await check(ports, blob, { hold, pace });
          report.blobs += 1;
          report.bytes += blob.sizeBytes;
          if (why !== undefined && blob.quarantinedAt === undefined) {
            report.bad += 1;
            onBad({ digest: blob.digest, why, manifests: await index.manifestsWith(blob.digest) });
          }
          position = blob.digest;
          if (now().getTime() - savedAt > SAVE_EVERY_MS) await save();
        }
    } catch (error) {
      await save();
      throw error;
    }
    await save(now());
    return report;
  });
}

interface Reading {
  readonly hold: Hold;
  readonly pace: (bytes: number) => Promise<void>;
}

/** undefined = the blob is good, or has been replaced meanwhile. */
async function check(ports: ScrubPorts, blob: StoredBlob, reading: Reading): Promise<string | undefined> {
  const { index, quarantine } = ports;
  const { digest } = blob;
  await reading.hold();
  const version = quarantine.versionOf(digest);
  const why = blob.quarantinedAt === undefined ? await findFault(ports, blob, reading) : 'it is in quarantine';
  if (why === undefined) return undefined;
  const isStill = () => quarantine.versionOf(digest) === version;
  if (blob.quarantinedAt === undefined && !(await index.quarantine(digest, isStill))) return undefined;
  await putAside(ports, digest);
  return why;
}

async function findFault(
  { blobs }: ScrubPorts,
  { digest, sizeBytes }: StoredBlob,
  { hold, pace }: Reading,
): Promise<string | undefined> {
  const algorithm = algorithmOf(digest);
  const hash = createHash(algorithm);
  let seen = 0;
  try {
    for await (const chunk of await blobs.open(digest)) {
      hash.update(chunk);
      seen += chunk.length;
      await hold();
      await pace(chunk.length);
    }
  } catch (error) {
    if (isKind(error, 'not-found')) return 'its bytes are missing';
    if (isUnreadable(error)) return 'the disk cannot read it';
    throw error;
  }
  if (seen !== sizeBytes) return `it has ${seen} bytes instead of ${sizeBytes}`;
  const got = digestFromHex(algorithm, hash.digest('hex'));
  return got === digest ? undefined : `its bytes are those of ${got}`;
}

function isUnreadable(error: unknown): boolean {
  return hasCode(error, 'EIO') || (error instanceof Error && hasCode(error.cause, 'EIO'));
}

/** Later if somebody pushes the blob, or collection is at work, at this moment: it is not served in any case. */
async function putAside(ports: ScrubPorts, digest: Digest): Promise<void> {
  const { index, quarantine } = ports;
  try {
    await withLease(index, { ...ports, name: REMOVAL_LEASE, action: 'put bytes aside' }, async () => {
      if (!(await index.condemnQuarantined(digest))) return;
      await quarantine.moveAside(digest);
      await index.endRemoval(digest);
    });
  } catch (error) {
    if (!isKind(error, 'conflict')) throw error;
  }
}

/** Waits as long as the bytes of this run should have taken, beyond what they did take. */
function createPace({ now }: ScrubPorts, { scrubBytesPerSecond, signal }: ScrubOptions) {
  const startedAt = now().getTime();
  let bytes = 0;
  return async (more: number): Promise<void> => {
    bytes += more;
    if (scrubBytesPerSecond === 0) return;
    const aheadMs = startedAt + (bytes / scrubBytesPerSecond) * 1000 - now().getTime();
    if (aheadMs > 1) await sleep(aheadMs, undefined, signal === undefined ? {} : { signal });
  };
}
