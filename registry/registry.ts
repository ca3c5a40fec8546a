/**
 * A registry from its parts: opens what is on disk, wires it together and serves it until it is disposed. The only
 * place that knows which backends are in use.
 *
 *   <root>/registry.db      metadata (metadata/schema.ts)
 *   <root>/blobs, ingest    bytes (shared/blob-store-fs.ts)
 */
import { once } from 'node:events';
import { mkdir } from 'node:fs/promises';
import type { Server } from 'node:http';
import { join } from 'node:path';
import { createFsBlobStore } from '../shared/blob-store-fs.ts';
import { openDatabase } from '../shared/database.ts';
import { AppError, hasCode, messageOf } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { createOpenAccess } from './access/policy.ts';
import { createApp, createHttpServer } from './app.ts';
import { type ListenAddress, parseListenAddress, type RegistryConfig } from './config.ts';
import { METADATA_MIGRATIONS, type MetadataTables } from './metadata/schema.ts';
import { createSqlIndex } from './metadata/sql.ts';
import { createPullTimes } from './upkeep/pull-times.ts';

export interface Registry extends AsyncDisposable {
  /** Where it listens, with the port that was taken: `http://127.0.0.1:5000`. */
  readonly url: string;
}

export interface RegistryOptions {
  readonly config: RegistryConfig;
  readonly log: Log;
  readonly now: () => Date;
  readonly randomId: () => string;
}

const PULL_TIMES_FLUSH_MS = 60_000;

/** Disposing drains: it answers what is being asked, cuts what takes longer than drainTimeoutMs, and closes the files. */
export async function startRegistry({ config, log, now, randomId }: RegistryOptions): Promise<Registry> {
  await using undo = new AsyncDisposableStack();
  const address = parseListenAddress(config.listen);
  await makeRoot(config.root);
  const database = openDatabase<MetadataTables>({
    path: join(config.root, 'registry.db'),
    migrations: METADATA_MIGRATIONS,
  });
  undo.use(database);
  const index = createSqlIndex(database, { now, gcGraceMs: config.gcGraceMs });
  const pullTimes = createPullTimes(index, { now, resolutionMs: config.pullTimeResolutionMs });
  undo.defer(() => pullTimes.flush());

  const flushing = setInterval(() => {
    pullTimes.flush().catch((error) => log.warn('pull times lost', { error }));
  }, PULL_TIMES_FLUSH_MS);
  undo.defer(() => clearInterval(flushing));

  const anonymousWrites =
    config.anonymousWrites === 'always' || (config.anonymousWrites === 'loopback' && address.isLoopback);
  const blobs = createFsBlobStore({ root: config.root, now });
  const app = createApp(
    {
      index,
      blobs,
      blobPathOf: blobs.pathOf,
      access: createOpenAccess({ anonymousWrites }),
      limits: config,
      pullTimes,
      now,
      randomId,
    },
    { log },
  );
  const server = createHttpServer(app, config);
  const url = await listen(server, address);
  undo.defer(() => drain(server, config.drainTimeoutMs));
  if (!address.isLoopback) log.info('listening beyond this machine', { url, anonymousWrites });

  const owned = undo.move();
  return { url, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

async function makeRoot(root: string): Promise<void> {
  try {
    await mkdir(root, { recursive: true });
  } catch (cause) {
    throw new AppError('unavailable', `cannot use root ${JSON.stringify(root)}: ${messageOf(cause)}`, { cause });
  }
}

async function listen(server: Server, { host, port }: ListenAddress): Promise<string> {
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
  return `http://${host.includes(':') ? `[${host}]` : host}:${boundPort}`;
}

/** close() already ends idle connections; busy ones are told to go by `Connection: close` on their last answer. */
async function drain(server: Server, timeoutMs: number): Promise<void> {
  const closed = once(server, 'close');
  server.close();
  const cut = setTimeout(() => server.closeAllConnections(), timeoutMs);
  try {
    await closed;
  } finally {
    clearTimeout(cut);
  }
}
