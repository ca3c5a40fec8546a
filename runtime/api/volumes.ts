/** Volumes over the Engine API: `/volumes/…`; their content as a tar under `/berth/v1/volumes/…`, see berth.ts. */
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import type { Engine, Volume, VolumeUsage } from '../engine.ts';
import {
  type ApiRouter,
  filterFlag,
  goSeconds,
  pathPart,
  queryFilters,
  queryFlag,
  readBody,
  sendJson,
} from './context.ts';

const LIST_FILTERS = ['dangling', 'driver', 'label', 'name'];
const PRUNE_FILTERS = ['all', 'label', 'label!'];
/** API version from which prune takes anonymous volumes only, unless told otherwise. */
const PRUNE_ANONYMOUS_SINCE = 42;

const words = z
  .record(z.string(), z.string())
  .nullish()
  .transform((value) => value ?? {});
const createSchema = z.object({
  Name: z.string().nullish(),
  Driver: z.string().nullish(),
  DriverOpts: words,
  Labels: words,
  ClusterVolumeSpec: z.unknown().optional(),
});

export function addVolumeRoutes(router: ApiRouter, engine: Engine): void {
  const { volumes } = engine;

  router.get('/volumes', async (ctx) => {
    const filters = queryFilters(ctx, LIST_FILTERS);
    const list = await volumes.list({
      names: filters.name,
      labels: filters.label,
      drivers: filters.driver,
      dangling: filterFlag(filters, 'dangling'),
    });
    sendJson(ctx, { Volumes: list.map(volumeJson), Warnings: null });
  });

  router.post('/volumes/create', async (ctx) => {
    const body = await readBody(ctx, createSchema);
    if (body.ClusterVolumeSpec != null)
      throw new AppError('unsupported', 'cannot create volume: cluster volumes are not supported');
    const volume = await volumes.create({
      name: body.Name || undefined,
      driver: body.Driver ?? '',
      options: body.DriverOpts,
      labels: body.Labels,
    });
    sendJson(ctx, volumeJson(volume), 201);
  });

  router.post('/volumes/prune', async (ctx) => {
    const filters = queryFilters(ctx, PRUNE_FILTERS);
    const { deleted, reclaimedBytes } = await volumes.prune({
      labels: filters.label,
      labelsNot: filters['label!'],
      all: ctx.state.apiMinor < PRUNE_ANONYMOUS_SINCE || filterFlag(filters, 'all') === true,
    });
    sendJson(ctx, { VolumesDeleted: deleted, SpaceReclaimed: reclaimedBytes });
  });

  router.get('/volumes/:name', async (ctx) => sendJson(ctx, volumeJson(await volumes.inspect(pathPart(ctx, 'name')))));

  router.delete('/volumes/:name', async (ctx) => {
    await volumes.remove(pathPart(ctx, 'name'), { force: queryFlag(ctx, 'force') });
    ctx.status = 204;
  });
}

function volumeJson({ name, createdAt, labels, options, mountpoint }: Volume): Record<string, unknown> {
  return {
    CreatedAt: goSeconds(createdAt),
    Driver: 'local',
    Labels: emptyIsNull(labels),
    Mountpoint: mountpoint,
    Name: name,
    Options: emptyIsNull(options),
    Scope: 'local',
  };
}

/** With sizes, as `system df` tells it; -1 = not known. */
export function volumeUsageJson({ volume, diskBytes, references }: VolumeUsage): Record<string, unknown> {
  return { ...volumeJson(volume), UsageData: { RefCount: references, Size: diskBytes ?? -1 } };
}

function emptyIsNull(map: Readonly<Record<string, string>>): Readonly<Record<string, string>> | null {
  return Object.keys(map).length === 0 ? null : map;
}
