/**
 * The commands that look after a root. All may run beside a registry that serves it. They print what they did, one
 * finding or figure per line.
 */
import { mkdtempDisposable, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { DatabaseSync } from 'node:sqlite';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError, isKind, messageOf } from '../shared/errors.ts';
import { formatBytes } from '../shared/units.ts';
import { type Policy, parsePolicy } from './access/policy.ts';
import type { RegistryConfig } from './config.ts';
import { exportRepository, importLayout, type LayoutReport } from './layout.ts';
import { METADATA_FILE, openStorage, upkeepPorts } from './registry.ts';
import { parseName } from './routes.ts';
import type { UpkeepPorts } from './upkeep/background.ts';
import { findInconsistencies } from './upkeep/fsck.ts';
import { collectGarbage, untouchedBytesOf } from './upkeep/gc.ts';
import { LEASE_TTL_MS } from './upkeep/lease.ts';
import { removeRepository } from './upkeep/removal.ts';
import { applyRetention, assertSome, createRetention } from './upkeep/retention.ts';
import { type BadBlob, scrub } from './upkeep/scrub.ts';

const TURN_STEP_MS = 250;
const TURN_ATTEMPTS = Math.ceil((6 * LEASE_TTL_MS) / TURN_STEP_MS);

export interface MaintenanceOptions {
  readonly config: RegistryConfig;
  readonly now: () => Date;
  readonly randomId: () => string;
  readonly print: (line: string) => void;
}

interface DryRun {
  readonly dryRun: boolean;
}

/** A dry run is a real one on a copy of the metadata, with the bytes left alone: it shows exactly what would go. */
async function openForRemoval(
  { config, now, randomId }: MaintenanceOptions,
  { dryRun }: DryRun,
): Promise<UpkeepPorts & AsyncDisposable> {
  await using undo = new AsyncDisposableStack();
  let copyOfIndex: string | undefined;
  if (dryRun) {
    const directory = undo.use(await mkdtempDisposable(join(config.root, 'dry-run-')));
    copyOfIndex = join(directory.path, METADATA_FILE);
    copyMetadata(join(config.root, METADATA_FILE), copyOfIndex);
  }
  const storage = undo.use(await openStorage(config, { now, ...(copyOfIndex === undefined ? {} : { copyOfIndex }) }));
  const ports = upkeepPorts(storage, { config, now, randomId });
  const owned = undo.move();
  return {
    ...ports,
    ...(dryRun ? { bytes: untouchedBytesOf(storage.blobs) } : {}),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

export async function gc(options: MaintenanceOptions, { dryRun }: DryRun): Promise<void> {
  await using ports = await openForRemoval(options, { dryRun });
  await collect(ports, options, { dryRun });
}

async function collect(ports: UpkeepPorts, { config, print }: MaintenanceOptions, { dryRun }: DryRun): Promise<void> {
  const report = await inTurn(() => collectGarbage(ports, { ...config, untagged: config.gcUntagged }));
  const { manifests, links, blobs, uploads, freedBytes } = report;
  print(
    `${dryRun ? 'would remove' : 'removed'}: ${manifests} manifests, ${links} links, ${blobs} blobs, ${uploads} uploads`,
  );
  print(`${dryRun ? 'would free' : 'freed'}: ${formatBytes(freedBytes)} (${freedBytes} bytes)`);
}

/** Removes what the rules do not keep, and frees the disk of it in the same run. */
export async function retain(options: MaintenanceOptions, { dryRun }: DryRun): Promise<void> {
  const { config, print } = options;
  assertSome(config.retention);
  const retention = createRetention(config.retention);
  const { isImmutable } = await readPolicy(config);
  await using ports = await openForRemoval(options, { dryRun });
  const verb = dryRun ? 'would remove' : 'removed';
  const onDropped = ({ repository, tag }: { repository: string; tag: string }) =>
    print(`${verb}: ${repository}:${tag}`);
  const report = await inTurn(() => applyRetention(ports, { ...config, retention, isImmutable, onDropped }));
  print(`${verb} by retention: ${report.tags} tags, ${report.manifests} manifests`);
  await collect(ports, options, { dryRun });
}

async function readPolicy({ policyFile }: RegistryConfig): Promise<Pick<Policy, 'isImmutable'>> {
  if (policyFile === undefined) return { isImmutable: () => false };
  try {
    return parsePolicy(await readFile(policyFile, 'utf8'));
  } catch (cause) {
    throw new AppError('invalid', `cannot read ${JSON.stringify(policyFile)}: ${messageOf(cause)}`, { cause });
  }
}

/** Whoever may write to the root may remove anything in it: no rule is asked. */
export async function remove(options: MaintenanceOptions, repository: string): Promise<void> {
  await using ports = await openForRemoval(options, { dryRun: false });
  const manifests = await removeRepository(ports.index, repository, { guard: () => {} });
  if (manifests === undefined)
    throw new AppError('not-found', `cannot remove ${repository}: there is no such repository`);
  options.print(`removed: ${repository} with ${manifests} manifests`);
  await collect(ports, options, { dryRun: false });
}

/** Answers whether all blobs were good. Goes on where an interrupted pass stands. */
export async function scrubBlobs({ config, now, randomId, print }: MaintenanceOptions): Promise<boolean> {
  await using storage = await openStorage(config, { now });
  const ports = upkeepPorts(storage, { config, now, randomId });
  const onBad = ({ digest, why, manifests }: BadBlob) => {
    print(`quarantined: ${digest}: ${why}`);
    for (const manifest of manifests) print(`  push again: ${manifest.repository}@${manifest.digest}`);
  };
  const report = await inTurn(() => scrub(ports, { ...config, onBad }));
  print(`scrubbed: ${report.blobs} blobs, ${formatBytes(report.bytes)} (${report.bytes} bytes), ${report.bad} bad`);
  return report.bad === 0;
}

export async function exportTo(options: MaintenanceOptions, repository: string, directory: string): Promise<void> {
  await using storage = await openStorage(options.config, options);
  printCopied('exported', await exportRepository({ ...options, ...storage }, repository, directory), options);
}

export async function importFrom(options: MaintenanceOptions, directory: string, repository: string): Promise<void> {
  await using storage = await openStorage(options.config, options);
  printCopied('imported', await importLayout({ ...options, ...storage }, directory, parseName(repository)), options);
}

function printCopied(verb: string, report: LayoutReport, { print }: MaintenanceOptions): void {
  const { tags, manifests, blobs, bytes } = report;
  print(`${verb}: ${tags} tags, ${manifests} manifests, ${blobs} blobs, ${formatBytes(bytes)} (${bytes} bytes)`);
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
      case 'quarantined':
        print(`broken: blob ${finding.digest} is in quarantine: push it again`);
        for (const { repository, digest } of finding.manifests) print(`  needed by ${repository}@${digest}`);
        counts.broken += 1;
        break;
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
