/** Containers over the Engine API: `/containers/…`; their streams are in container-streams.ts. */
import type { Digest } from '../../shared/digest.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import type { Descriptor } from '../../shared/oci.ts';
import {
  type ContainerSummary,
  type CreateRequest,
  type Engine,
  type FileChange,
  parseCreateRequest,
  parseUpdateRequest,
} from '../engine.ts';
import { containerDetailsJson, containerSummaryJson } from './container-json.ts';
import { addContainerStreamRoutes } from './container-streams.ts';
import {
  type ApiContext,
  type ApiRouter,
  pathPart,
  queryFilters,
  queryFlag,
  queryInteger,
  queryText,
  readJson,
  sendJson,
  sendNothing,
} from './context.ts';

/** API version from which stop and restart take a signal. */
const STOP_SIGNAL_SINCE = 42;
/** Docker let old clients send `{}` or `null` here, and refuses more: it was once a host configuration. */
const START_BODY_MAX_BYTES = 7;

/** API version from which others cannot join a container's IPC namespace unless it says so. */
const PRIVATE_IPC_SINCE = 40;
/** API version from which a container can be made in several networks. */
const ENDPOINTS_SINCE = 44;
/** API version from which a container tells its image's manifest. */
const MANIFEST_SINCE = 48;

export function addContainerRoutes(router: ApiRouter, engine: Engine): void {
  const { containers } = engine;

  router.get('/containers/json', async (ctx) => {
    const limit = queryInteger(ctx, 'limit');
    const list = await containers.list({
      all: queryFlag(ctx, 'all'),
      limit: limit === undefined || limit <= 0 ? undefined : limit,
      size: queryFlag(ctx, 'size'),
      filters: queryFilters(ctx),
    });
    const { apiMinor } = ctx.state;
    const manifests = apiMinor >= MANIFEST_SINCE ? await manifestsOf(engine, list) : undefined;
    sendJson(
      ctx,
      list.map((summary) =>
        containerSummaryJson(summary, { apiMinor, manifest: manifests?.get(summary.record.imageId) }),
      ),
    );
  });

  router.post('/containers/create', async (ctx) => {
    const request = asMeant(parseCreateRequest(await readJson(ctx)), ctx.state.apiMinor);
    const created = await containers.create(request, {
      name: queryText(ctx, 'name') || undefined,
      platform: queryText(ctx, 'platform') || undefined,
    });
    sendJson(ctx, { Id: created.id, Warnings: created.warnings }, 201);
  });

  router.post('/containers/prune', async (ctx) => {
    const { deleted, reclaimedBytes } = await containers.prune(queryFilters(ctx, ['label', 'label!', 'until']));
    sendJson(ctx, { ContainersDeleted: deleted.length === 0 ? null : deleted, SpaceReclaimed: reclaimedBytes });
  });

  router.get('/containers/*name/json', async (ctx) => {
    const details = await containers.inspect(pathPart(ctx, 'name'), { size: queryFlag(ctx, 'size') });
    const { apiMinor } = ctx.state;
    const manifest = apiMinor >= MANIFEST_SINCE ? await manifestOf(engine, details.record.imageId) : undefined;
    sendJson(ctx, containerDetailsJson(details, { apiMinor, manifest }));
  });

  router.get('/containers/*name/top', async (ctx) => {
    const list = await containers.top(pathPart(ctx, 'name'), queryText(ctx, 'ps_args') || undefined);
    sendJson(ctx, { Processes: list.processes, Titles: list.titles });
  });

  router.get('/containers/*name/changes', async (ctx) => {
    const changes = await containers.changes(pathPart(ctx, 'name'));
    sendJson(ctx, changes.length === 0 ? null : changes.map(changeJson));
  });

  router.post('/containers/*name/start', async (ctx) => {
    if (Number(ctx.get('content-length') || 0) > START_BODY_MAX_BYTES)
      throw new AppError(
        'invalid',
        'starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24',
      );
    if ((queryText(ctx, 'checkpoint') ?? '') !== '')
      throw new AppError('unsupported', 'cannot start from a checkpoint: checkpoints are not supported');
    ctx.status = (await containers.start(pathPart(ctx, 'name'))) ? 204 : 304;
  });

  router.post('/containers/*name/stop', async (ctx) => {
    ctx.status = (await containers.stop(pathPart(ctx, 'name'), stopOptions(ctx))) ? 204 : 304;
  });

  router.post('/containers/*name/restart', async (ctx) => {
    await containers.restart(pathPart(ctx, 'name'), stopOptions(ctx));
    ctx.status = 204;
  });

  router.post('/containers/*name/kill', async (ctx) => {
    await containers.kill(pathPart(ctx, 'name'), queryText(ctx, 'signal') || undefined);
    ctx.status = 204;
  });

  router.post('/containers/*name/pause', async (ctx) => {
    await containers.pause(pathPart(ctx, 'name'));
    ctx.status = 204;
  });

  router.post('/containers/*name/unpause', async (ctx) => {
    await containers.unpause(pathPart(ctx, 'name'));
    ctx.status = 204;
  });

  router.post('/containers/*name/rename', async (ctx) => {
    await containers.rename(pathPart(ctx, 'name'), queryText(ctx, 'name') ?? '');
    ctx.status = 204;
  });

  router.post('/containers/*name/update', async (ctx) => {
    const { warnings } = await containers.update(pathPart(ctx, 'name'), parseUpdateRequest(await readJson(ctx)));
    sendJson(ctx, { Warnings: warnings.length === 0 ? null : warnings });
  });

  router.post('/containers/*name/resize', async (ctx) => {
    await containers.resize(pathPart(ctx, 'name'), terminalSize(ctx));
    sendNothing(ctx, 200);
  });

  addContainerStreamRoutes(router, engine);

  router.delete('/containers/*name', async (ctx) => {
    const name = pathPart(ctx, 'name');
    if (queryFlag(ctx, 'link')) await containers.removeLink(name);
    else await containers.remove(name, { force: queryFlag(ctx, 'force'), volumes: queryFlag(ctx, 'v') });
    ctx.status = 204;
  });
}

/** What older clients mean by what they do not say, and may not say yet. @throws AppError 'invalid' */
function asMeant(request: CreateRequest, apiMinor: number): CreateRequest {
  const { hostConfig, endpoints } = request;
  const networks = Object.keys(endpoints);
  if (apiMinor < ENDPOINTS_SINCE && networks.length > 1)
    throw new AppError(
      'invalid',
      `Container cannot be created with multiple network endpoints: ${networks.join(', ')}`,
    );
  const isShareable = apiMinor < PRIVATE_IPC_SINCE && hostConfig.IpcMode === '';
  return isShareable ? { ...request, hostConfig: { ...hostConfig, IpcMode: 'shareable' } } : request;
}

/** undefined = the image was removed by force. */
async function manifestOf(engine: Engine, image: Digest): Promise<Descriptor | undefined> {
  try {
    return (await engine.images.inspect(image)).manifest;
  } catch (error) {
    if (isKind(error, 'not-found')) return undefined;
    throw error;
  }
}

/** By image: many containers are of few. */
async function manifestsOf(
  engine: Engine,
  list: readonly ContainerSummary[],
): Promise<ReadonlyMap<Digest, Descriptor | undefined>> {
  const images = [...new Set(list.map(({ record }) => record.imageId))];
  return new Map(await Promise.all(images.map(async (image) => [image, await manifestOf(engine, image)] as const)));
}

function stopOptions(ctx: ApiContext) {
  const signal = ctx.state.apiMinor >= STOP_SIGNAL_SINCE ? queryText(ctx, 'signal') : undefined;
  return { timeoutSeconds: queryInteger(ctx, 't'), signal: signal || undefined };
}

/** Rows and columns of the query. @throws AppError 'invalid' */
export function terminalSize(ctx: ApiContext): { rows: number; columns: number } {
  return { rows: cells(ctx, 'h', 'height'), columns: cells(ctx, 'w', 'width') };
}

const UINT32_MAX = 2 ** 32 - 1;
/** Of a terminal: the kernel keeps 16 bits. */
const CELLS_MAX = 65535;

function cells(ctx: ApiContext, key: string, what: string): number {
  const text = queryText(ctx, key) ?? '';
  const value = /^[+-]?\d{1,20}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= 0 && value <= UINT32_MAX) return Math.min(value, CELLS_MAX);
  const why = Number.isNaN(value) ? 'invalid syntax' : 'value out of range';
  throw new AppError('invalid', `invalid resize ${what} ${JSON.stringify(text.slice(0, 100))}: ${why}`);
}

const CHANGE_KINDS = { modified: 0, added: 1, deleted: 2 } as const;

function changeJson({ path, kind }: FileChange): Record<string, unknown> {
  return { Path: path, Kind: CHANGE_KINDS[kind] };
}
