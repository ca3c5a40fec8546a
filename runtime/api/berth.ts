/**
 * What Docker's API has no place for, under `/berth/v1/`:
 *
 *   GET /berth/v1/usage   { LogicalBytes, ActualBytes, ReclaimableBytes, Parts: [{ Name, Bytes }] }
 *   POST /berth/v1/images/gc?dryRun=1   { Removals: [{ Untagged | Deleted }], ReclaimedBytes }, by berthd's policy
 *
 * Logical counts every image whole; actual counts each layer and blob once and is the sum of the parts: what the state
 * directory occupies. Orphans are bytes that no image names any more; the next start or removal collects them.
 *
 *   GET  /berth/v1/volumes/NAME/export   what is in a volume, as a tar
 *   POST /berth/v1/volumes/NAME/import   fills an empty volume from an uncompressed tar: all of it, or nothing
 */
import { once } from 'node:events';
import { pipeline } from 'node:stream/promises';
import type { Engine } from '../engine.ts';
import { type ApiRouter, disconnectSignal, pathPart, queryFlag, sendJson } from './context.ts';
import { removalJson } from './image-json.ts';
import { startChunked } from './progress.ts';

export function addBerthRoutes(router: ApiRouter, engine: Engine): void {
  router.post('/berth/v1/images/gc', async (ctx) => {
    const { removals, reclaimedBytes } = await engine.collectImages({ dryRun: queryFlag(ctx, 'dryRun') });
    sendJson(ctx, { Removals: removals.map(removalJson), ReclaimedBytes: reclaimedBytes });
  });

  router.get('/berth/v1/usage', async (ctx) => {
    const [images, containers, volumes, buildCache, other] = await Promise.all([
      engine.images.usage(),
      engine.containers.list({ all: true, size: true }),
      engine.volumes.usage(),
      engine.builds.usage(),
      engine.otherUsage(),
    ]);
    const parts = [
      { Name: 'images', Bytes: images.actualBytes - images.orphans.bytes },
      { Name: 'orphans', Bytes: images.orphans.bytes },
      { Name: 'unpacked layers', Bytes: other.unpackedLayerBytes },
      { Name: 'containers', Bytes: containers.reduce((sum, { size }) => sum + (size?.writableBytes ?? 0), 0) },
      { Name: 'volumes', Bytes: volumes.reduce((sum, { diskBytes = 0 }) => sum + diskBytes, 0) },
      { Name: 'build cache', Bytes: buildCache.diskBytes },
      { Name: 'logs', Bytes: other.logBytes },
      { Name: 'metadata', Bytes: other.metadataBytes },
    ];
    sendJson(ctx, {
      LogicalBytes: images.logicalBytes,
      ActualBytes: parts.reduce((sum, { Bytes }) => sum + Bytes, 0),
      ReclaimableBytes: images.reclaimableBytes,
      Parts: parts,
    });
  });

  router.get('/berth/v1/volumes/:name/export', async (ctx) => {
    const tar = await engine.volumes.export(pathPart(ctx, 'name'));
    // A failure before the first byte is still an HTTP error.
    await Promise.race([once(tar, 'readable'), once(tar, 'end')]);
    await pipeline(tar, startChunked(ctx, 'application/x-tar'));
  });

  router.post('/berth/v1/volumes/:name/import', async (ctx) => {
    await engine.volumes.import(pathPart(ctx, 'name'), ctx.req, { signal: disconnectSignal(ctx) });
    ctx.status = 204;
  });
}
