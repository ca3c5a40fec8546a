/** A registry in this process that keeps nothing, with the given rights. */
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import type { Access } from '../../registry/access/access.ts';
import { createApp, createHttpServer } from '../../registry/app.ts';
import { defaultLimits, type Limits } from '../../registry/limits.ts';
import { METADATA_MIGRATIONS, type MetadataTables } from '../../registry/metadata/schema.ts';
import { createSqlIndex } from '../../registry/metadata/sql.ts';
import { createMetrics } from '../../registry/metrics.ts';
import { createPullTimes } from '../../registry/upkeep/pull-times.ts';
import { createMemoryBlobStore } from '../../shared/blob-store-memory.ts';
import { openDatabase } from '../../shared/database.ts';
import { createSilentLog } from '../../shared/log.ts';
import type { RunningRegistry } from './registry-http.ts';

export async function startMemoryRegistry(access: Access, more: Partial<Limits> = {}): Promise<RunningRegistry> {
  const now = () => new Date();
  const limits = { ...defaultLimits(), ...more };
  const database = openDatabase<MetadataTables>({ path: ':memory:', migrations: METADATA_MIGRATIONS });
  const index = createSqlIndex(database, { now, gcGraceMs: limits.gcGraceMs });
  const app = createApp(
    {
      index,
      blobs: createMemoryBlobStore(),
      access,
      limits,
      pullTimes: createPullTimes(index, { now, resolutionMs: limits.pullTimeResolutionMs }),
      now,
      randomId: randomUUID,
    },
    { log: createSilentLog(), metrics: createMetrics(), isServing: () => true },
  );
  const server = createHttpServer(app, limits).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
      await database.close();
    },
  };
}
