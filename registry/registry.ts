/**
 * A registry from its parts: opens what is on disk, wires it together and serves it until it is disposed. The only
 * place that knows which backends are in use.
 *
 *   <root>/registry.db      metadata (metadata/schema.ts)
 *   <root>/blobs, ingest    bytes (shared/blob-store-fs.ts)
 *   <root>/quarantine       bytes that went bad (upkeep/quarantine.ts)
 */
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import { createFsBlobStore, type FsBlobStore } from '../shared/blob-store-fs.ts';
import { type Database, openDatabase } from '../shared/database.ts';
import { AppError, hasCode, messageOf } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { openAccessControl } from './access/assemble.ts';
import { openTls, type Tls } from './access/tls.ts';
import { createApp, createHttpServer, type HttpServer } from './app.ts';
import { type ListenAddress, parseListenAddress, type RegistryConfig } from './config.ts';
import { METADATA_MIGRATIONS, type MetadataTables } from './metadata/schema.ts';
import { createSqlIndex, type SqlIndex } from './metadata/sql.ts';
import { createMetrics, type Metrics } from './metrics.ts';
import type { Turns } from './turns.ts';
import { startUpkeep, type UpkeepPorts } from './upkeep/background.ts';
import { bytesOf } from './upkeep/gc.ts';
import { createPullTimes } from './upkeep/pull-times.ts';
import { createQuarantine } from './upkeep/quarantine.ts';
import { openWebhooks } from './webhooks/webhooks.ts';

export interface Registry extends AsyncDisposable {
  /** Where it listens, with the port that was taken: `http://127.0.0.1:5000`. */
  readonly url: string;
}

export interface RegistryOptions {
  readonly config: RegistryConfig;
  readonly log: Log;
  readonly now: () => Date;
  readonly randomId: () => string;
  /** Other processes that serve the same port; absent = this one is alone. */
  readonly peers?: Peers | undefined;
}

/** What processes on one port do together (workers.ts). */
export interface Peers {
  /** At upload sessions, across the processes. */
  readonly turns: Turns;
  /** Whether upkeep is this one's part. */
  readonly upkeep: boolean;
  /** Takes the numbers of this process; the text of what it answers is that of all. */
  shareMetrics(own: Metrics): Metrics;
}

export const METADATA_FILE = 'registry.db';
const PULL_TIMES_FLUSH_MS = 60_000;

/** Disposing drains: it answers what is being asked, cuts what takes longer than drainTimeoutMs, and closes the files. */
export async function startRegistry({ config, log, now, randomId, peers }: RegistryOptions): Promise<Registry> {
  await using undo = new AsyncDisposableStack();
  const address = parseListenAddress(config.listen);
  const { database, index, blobs } = undo.use(await openStorage(config, { now }));
  const own = createMetrics();
  const metrics = peers?.shareMetrics(own) ?? own;
  let serving = true;
  const pullTimes = createPullTimes(index, { now, resolutionMs: config.pullTimeResolutionMs });
  undo.defer(() => pullTimes.flush());

  const flushing = setInterval(() => {
    pullTimes.flush().catch((error) => log.warn('pull times lost', { error }));
  }, PULL_TIMES_FLUSH_MS);
  undo.defer(() => clearInterval(flushing));

  const anonymousWrites =
    config.anonymousWrites === 'always' || (config.anonymousWrites === 'loopback' && address.isLoopback);
  const control = undo.use(await openAccessControl({ config, database, anonymousWrites, log, now, randomId }));
  const { isImmutable } = control;
  if (!config.readOnly && peers?.upkeep !== false)
    undo.use(
      startUpkeep(upkeepPorts({ index, blobs }, { config, now, randomId }), { config, isImmutable, metrics, log }),
    );
  const webhooks = undo.use(
    await openWebhooks({
      endpoints: config.webhooks,
      database,
      queueMax: config.webhookQueueMax,
      log: log.child({ component: 'webhooks' }),
      now,
      randomId,
    }),
  );
  const app = createApp(
    {
      index,
      blobs,
      blobPathOf: blobs.pathOf,
      access: control.access,
      quotaBytes: control.quotaBytes,
      events: webhooks,
      limits: config,
      turns: peers?.turns,
      pullTimes,
      now,
      randomId,
    },
    { log, metrics, isServing: () => serving, readOnly: config.readOnly, tokenEndpoint: control.tokenEndpoint },
  );
  const tls = await openConfiguredTls(config, log);
  if (tls !== undefined) undo.use(tls);
  const server = createHttpServer(app, config, { tls });
  const url = await listen(server, { ...address, scheme: tls === undefined ? 'http' : 'https' });
  undo.defer(() => {
    serving = false;
    return drain(server, config.drainTimeoutMs);
  });
  if (!address.isLoopback) log.info('listening beyond this machine', { url, anonymousWrites });

  const owned = undo.move();
  return { url, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

export interface OpenStorage extends AsyncDisposable {
  readonly database: Database<MetadataTables>;
  readonly index: SqlIndex;
  readonly blobs: FsBlobStore;
}

/** What is on disk; several processes may have it open. `copyOfIndex` works on metadata at another path instead. */
export async function openStorage(
  config: RegistryConfig,
  options: { readonly now: () => Date; readonly copyOfIndex?: string },
): Promise<OpenStorage> {
  const { now, copyOfIndex } = options;
  await makeRoot(config.root);
  const path = copyOfIndex ?? join(config.root, METADATA_FILE);
  const database = openDatabase<MetadataTables>({ path, migrations: METADATA_MIGRATIONS });
  return {
    database,
    index: createSqlIndex(database, { now, gcGraceMs: config.gcGraceMs }),
    blobs: createFsBlobStore({ root: config.root, now }),
    [Symbol.asyncDispose]: () => database.close(),
  };
}

/** What upkeep works on, for the process that serves and for commands alike. */
export function upkeepPorts(
  { index, blobs }: Pick<OpenStorage, 'index' | 'blobs'>,
  { config, now, randomId }: Omit<RegistryOptions, 'log' | 'peers'>,
): UpkeepPorts {
  const quarantine = createQuarantine({ root: config.root, pathOf: blobs.pathOf });
  return { index, blobs, bytes: bytesOf(blobs), quarantine, now, randomId };
}

async function makeRoot(root: string): Promise<void> {
  try {
    await mkdir(root, { recursive: true });
  } catch (cause) {
    throw new AppError('unavailable', `cannot use root ${JSON.stringify(root)}: ${messageOf(cause)}`, { cause });
  }
}

async function openConfiguredTls(config: RegistryConfig, log: Log): Promise<Tls | undefined> {
  const { tlsCertificateFile: certificateFile, tlsKeyFile: keyFile, tlsClientCaFile: clientCaFile } = config;
  if (certificateFile !== undefined && keyFile !== undefined)
    return openTls({ certificateFile, keyFile, clientCaFile }, { log });
  if (certificateFile !== undefined || keyFile !== undefined || clientCaFile !== undefined)
    throw new AppError('invalid', 'cannot use TLS: want tlsCertificateFile and tlsKeyFile together');
  return undefined;
}

async function listen(
  server: HttpServer,
  { host, port, scheme }: ListenAddress & { readonly scheme: 'http' | 'https' },
): Promise<string> {
  try {
    server.listen({ host, port });
    await once(server, 'listening');
  } catch (cause) {
    const why = hasCode(cause, 'EADDRINUSE')
      ? `something listens there already (ss -ltnp sport = :${port} tells what)`
      : messageOf(cause);
    throw new AppError('unavailable', `cannot listen on ${host}:${port}: ${why}`, { cause });
  }
  const bound = server.address();
  const boundPort = typeof bound === 'object' && bound !== null ? bound.port : port;
  return `${scheme}://${host.includes(':') ? `[${host}]` : host}:${boundPort}`;
}

/** close() already ends idle connections; busy ones are told to go by `Connection: close` on their last answer. */
async function drain(server: HttpServer, timeoutMs: number): Promise<void> {
  const closed = once(server, 'close');
  server.close();
  const cut = setTimeout(() => server.closeAllConnections(), timeoutMs);
  try {
    await closed;
  } finally {
    clearTimeout(cut);
  }
}
