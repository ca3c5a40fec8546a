/**
 * berth-registry: the process. Reads the configuration, starts the registry, prints one line when it can be used, and
 * drains it on SIGTERM or SIGINT. Exit status 0 after a drain, 1 on failure, 2 on a wrong command line.
 */
import cluster from 'node:cluster';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { describeOptions, loadConfig, printConfig } from '../shared/config.ts';
import { lockDirectory } from '../shared/directory-lock.ts';
import { AppError, isKind, messageOf } from '../shared/errors.ts';
import { createLog } from '../shared/log.ts';
import { hashPasswordLine, revokeTokens, rotateKeys } from './access/commands.ts';
import { PROGRAM, type RegistryConfig } from './config.ts';
import { exportTo, fsck, gc, importFrom, type MaintenanceOptions, remove, retain, scrubBlobs } from './maintenance.ts';
import { openStorage, startRegistry } from './registry.ts';
import { joinWorkers, startWorkers, UPKEEP_VARIABLE } from './workers.ts';

const USAGE = `Usage: berth-registry COMMAND [options]

A registry of container images and other OCI artifacts.

Commands:
  serve                 answer clients until SIGTERM
  gc [--dry-run]        free what no manifest needs, also beside a registry that serves; --dry-run only tells
  retention [--dry-run] remove what the retention rules do not keep, and free its bytes
  fsck                  compare metadata and bytes; status 1 when something is missing
  scrub                 read all blobs again, quarantine bad ones; status 1 when there were some
  remove NAME           remove a repository with its tags, and free its bytes
  export NAME DIR       write a repository with its tags as an OCI layout
  import DIR NAME       put an OCI layout, also one of skopeo, into a repository
  hash-password [NAME]  read a password from stdin, print its line for the password file
  keys rotate           sign tokens with a new key from now on
  tokens revoke NAME    make an account's logins void that kept a refresh token

Options:
`;

/**
 * Upload sessions take turns within a process, or among the workers of one. A stranger that wrote on into a session
 * while it is committed would change a blob under its digest, so nobody else serves this root.
 */
async function lockRoot(config: RegistryConfig): Promise<Disposable> {
  await mkdir(config.root, { recursive: true });
  return lockDirectory(config.root, {
    who: 'registry',
    mend: 'give this one a directory of its own (--root); --workers N serves one root by several processes',
  });
}

/** As serve, by several processes. */
async function serveByWorkers(config: RegistryConfig): Promise<void> {
  const log = createLog({ component: 'registry', level: config.logLevel });
  const stop = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  using _root = await lockRoot(config);
  const workers = await startWorkers({ count: config.workers, waitMs: config.uploadWaitMs, log });
  process.stdout.write(`berth-registry: ready on ${workers.url}\n`);
  await stop;
  log.info('draining');
  await workers.stop();
}

/** One of those processes. */
async function serveAsWorker(config: RegistryConfig): Promise<void> {
  const log = createLog({ component: 'registry', level: config.logLevel }).child({ worker: process.pid });
  const stop = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  const peers = joinWorkers({ upkeep: process.env[UPKEEP_VARIABLE] === '1' });
  try {
    await using registry = await startRegistry({ config, log, now: () => new Date(), randomId: randomUUID, peers });
    peers.ready(registry.url);
    await stop;
  } finally {
    peers.leave();
  }
}

async function serve(config: RegistryConfig): Promise<void> {
  const log = createLog({ component: 'registry', level: config.logLevel });
  const stop = Promise.race([once(process, 'SIGTERM'), once(process, 'SIGINT')]);
  using _root = await lockRoot(config);
  await using registry = await startRegistry({ config, log, now: () => new Date(), randomId: randomUUID });
  process.stdout.write(`berth-registry: ready on ${registry.url}\n`);
  await stop;
  log.info('draining');
}

function maintenance(config: RegistryConfig): MaintenanceOptions {
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  return { config, now: () => new Date(), randomId: randomUUID, print };
}

/** false = it is none. */
async function accessCommand(words: readonly string[], config: RegistryConfig): Promise<boolean> {
  const now = () => new Date();
  const [first, second, third] = words;
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  if (first === 'hash-password' && words.length <= 2) print(await hashPasswordLine(process.stdin, second));
  else if (words.join(' ') === 'keys rotate') print(await rotateKeys(config, now));
  else if (first === 'tokens' && second === 'revoke' && third !== undefined && words.length === 3) {
    await using storage = await openStorage(config, { now });
    print(await revokeTokens(storage.database, third, { config, now }));
  } else return false;
  return true;
}

/** false = it is none. */
async function upkeepCommand(
  words: readonly string[],
  { config, dryRun }: { readonly config: RegistryConfig; readonly dryRun: boolean },
): Promise<boolean> {
  const [command, first, second] = words;
  const options = maintenance(config);
  if (command === 'remove' && first !== undefined && words.length === 2) await remove(options, first);
  else if (command === 'export' && first !== undefined && second !== undefined && words.length === 3)
    await exportTo(options, first, second);
  else if (command === 'import' && first !== undefined && second !== undefined && words.length === 3)
    await importFrom(options, first, second);
  else if (words.length !== 1) return false;
  else if (command === 'gc') await gc(options, { dryRun });
  else if (command === 'retention') await retain(options, { dryRun });
  else if (command === 'fsck') process.exitCode = (await fsck(options)) ? 0 : 1;
  else if (command === 'scrub') process.exitCode = (await scrubBlobs(options)) ? 0 : 1;
  else return false;
  return true;
}

const DRY_RUN = '--dry-run';
const DRY_COMMANDS: readonly (string | undefined)[] = ['gc', 'retention'];

async function main(given: readonly string[]): Promise<void> {
  // Belongs to some commands only, so it is no option of the program.
  const dryRun = DRY_COMMANDS.includes(given[0]) && given.includes(DRY_RUN);
  const argv = dryRun ? given.filter((argument) => argument !== DRY_RUN) : given;
  const loaded = loadConfig(PROGRAM, { argv, env: process.env, defaultFile: '/etc/berth/registry.yaml' });
  const { positionals: words, config } = loaded;
  if (loaded.request === 'help') process.stdout.write(USAGE + describeOptions(PROGRAM));
  else if (loaded.request === 'print-config') process.stdout.write(printConfig(PROGRAM, loaded));
  else if (words[0] === 'serve' && words.length === 1) {
    if (cluster.isWorker) await serveAsWorker(config);
    else if (config.workers > 1) await serveByWorkers(config);
    else await serve(config);
  } else if (await upkeepCommand(words, { config, dryRun })) return;
  else if (await accessCommand(words, config)) return;
  else throw new AppError('invalid', `cannot run ${JSON.stringify(words.join(' '))}: see --help`);
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`berth-registry: ${messageOf(error)}\n`);
  process.exitCode = isKind(error, 'invalid') ? 2 : 1;
}
