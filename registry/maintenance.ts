/**
 * The commands that look after a root: gc and fsck. Both may run beside a registry that serves it. They print what they
 * did, one finding or figure per line.
 */
import { mkdtempDisposable } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, isKind, messageOf } from '../shared/errors.ts';
import { formatBytes } from '../shared/units.ts';
import type { RegistryConfig } from './config.ts';
import { METADATA_FILE, openStorage } from './registry.ts';
import { findInconsistencies } from './upkeep/fsck.ts';
import { bytesOf, collectGarbage, LEASE_TTL_MS, untouchedBytesOf } from './upkeep/gc.ts';

const TURN_STEP_MS = 250;
const TURN_ATTEMPTS = Math.ceil((6 * LEASE_TTL_MS) / TURN_STEP_MS);

export interface MaintenanceOptions {
  readonly config: RegistryConfig;
  readonly now: () => Date;
  readonly randomId: () => string;
  readonly print: (line: string) => void;
}

/** A dry run is a real one on a copy of the metadata, with the bytes left alone: it shows exactly what would go. */
export async function gc(
  { config, now, randomId, print }: MaintenanceOptions,
  { dryRun }: { readonly dryRun: boolean },
): Promise<void> {
  await using undo = new AsyncDisposableStack();
  let copyOfIndex: string | undefined;
  if (dryRun) {
    const directory = undo.use(await mkdtempDisposable(join(config.root, 'dry-run-')));
    copyOfIndex = join(directory.path, METADATA_FILE);
    copyMetadata(join(config.root, METADATA_FILE), copyOfIndex);
  }
  const storage = undo.use(await openStorage(config, { now, ...(copyOfIndex === undefined ? {} : { copyOfIndex }) }));
  const bytes = dryRun ? untouchedBytesOf(storage.blobs) : bytesOf(storage.blobs);
  const ports = { index: storage.index, bytes, now, randomId };
  const report = await inTurn(() => collectGarbage(ports, { ...config, untagged: config.gcUntagged }));
  const { manifests, links, blobs, uploads, freedBytes } = report;
  print(
    `${dryRun ? 'would remove' : 'removed'}: ${manifests} manifests, ${links} links, ${blobs} blobs, ${uploads} uploads`,
  );
  print(`${dryRun ? 'would free' : 'freed'}: ${formatBytes(freedBytes)} (${freedBytes} bytes)`);
}

/** A registry that serves collects now and then, and one that was killed may have left its lease. */
async function inTurn<T>(work: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt += 1)
    try {
      return await work();
    } catch (error) {
      if (!isKind(error, 'conflict') || attempt >= TURN_ATTEMPTS) throw error;
      await sleep(TURN_STEP_MS);
    }
}

function copyMetadata(from: string, to: string): void {
  try {
    using database = new DatabaseSync(from, { readOnly: true });
    database.prepare('vacuum into ?').run(to);
    using copy = new DatabaseSync(to);
    // Whoever collects in the original does not collect in the copy.
    copy.exec('delete from lease');
  } catch (cause) {
    throw new AppError('unavailable', `cannot read ${JSON.stringify(from)}: ${messageOf(cause)}`, { cause });
  }
}

/** Answers whether everything that the metadata promises is there; orphans are shown and harmless. */
export async function fsck({ config, now, print }: MaintenanceOptions): Promise<boolean> {
  await using storage = await openStorage(config, { now });
  const counts = { broken: 0, orphans: 0 };
  for await (const finding of findInconsistencies(storage)) {
    switch (finding.kind) {
      case 'missing-blob': {
        const { digest, wantBytes, gotBytes } = finding;
        const got = gotBytes === undefined ? 'it is not in the store' : `it has ${gotBytes} bytes`;
        print(`broken: blob ${digest} should have ${wantBytes} bytes: ${got}`);
        counts.broken += 1;
        break;
      }
      case 'dangling-reference':
        print(
          `broken: manifest ${finding.manifest} in ${finding.repository} refers to ${finding.digest}: it is missing`,
        );
        counts.broken += 1;
        break;
      case 'orphan':
        print(`orphan: ${finding.digest} (${finding.bytes} bytes)`);
        counts.orphans += 1;
        break;
      default:
        finding satisfies never;
    }
  }
  print(`${counts.broken} broken, ${counts.orphans} orphans`);
  return counts.broken === 0;
}
