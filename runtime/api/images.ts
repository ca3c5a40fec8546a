/** Images over the Engine API: `/images/…`. Words and bars of Docker's progress streams are made here from events. */
import { once } from 'node:events';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import type { Engine, ImageDetail, Images, PullEvent, PullLayerStatus, PushEvent, PushLayerStatus } from '../engine.ts';
import {
  type ApiContext,
  type ApiRouter,
  disconnectSignal,
  filterFlag,
  filterText,
  parseMoment,
  pathPart,
  queryFilters,
  queryFlag,
  queryText,
  queryTexts,
  registryCredentials,
  sendJson,
  sendNothing,
} from './context.ts';
import { historyJson, imageDetailJson, imageSummaryJson, removalJson } from './image-json.ts';
import { type ProgressMessage, type Report, startChunked, streamProgress } from './progress.ts';

const LIST_FILTERS = ['before', 'dangling', 'label', 'reference', 'since', 'until'];
/** API version from which a list may show manifests. */
const MANIFESTS_SINCE = 47;
const PRUNE_FILTERS = ['dangling', 'label', 'label!', 'until'];

export function addImageRoutes(router: ApiRouter, engine: Engine): void {
  const { images } = engine;

  router.get('/images/json', async (ctx) => {
    const filters = queryFilters(ctx, LIST_FILTERS);
    const moments = (filters.until ?? []).map((text) => parseMoment(text, engine.now()).getTime());
    const list = await images.list({
      all: queryFlag(ctx, 'all'),
      dangling: filterFlag(filters, 'dangling'),
      labels: filters.label,
      references: filters.reference,
      before: filterText(filters, 'before'),
      since: filterText(filters, 'since'),
      until: moments.length === 0 ? undefined : new Date(Math.min(...moments)),
      withContent: ctx.state.apiMinor >= MANIFESTS_SINCE && queryFlag(ctx, 'manifests'),
    });
    const form = { apiMinor: ctx.state.apiMinor, sharedSize: queryFlag(ctx, 'shared-size') };
    sendJson(
      ctx,
      list.map((image) => imageSummaryJson(image, form)),
    );
  });

  router.post('/images/create', async (ctx) => {
    const source = queryText(ctx, 'fromSrc') ?? '';
    await (source === '' ? pull(ctx, engine) : importImage(ctx, engine, source));
  });

  router.post('/images/load', async (ctx) => {
    const platform = platformText(queryText(ctx, 'platform'));
    const work = async (report: Report, signal: AbortSignal) => {
      const loaded = await images.load(ctx.req, { platform, signal });
      for (const { id, reference } of loaded)
        report({ stream: reference === undefined ? `Loaded image ID: ${id}\n` : `Loaded image: ${reference}\n` });
    };
    // Clients look for what is wrong with an archive in the stream alone.
    await streamProgress(ctx, work, { alwaysInStream: true });
  });

  router.get('/images/get', (ctx) => save(ctx, engine, queryTexts(ctx, 'names')));
  router.get('/images/*name/get', (ctx) => save(ctx, engine, [pathPart(ctx, 'name')]));

  router.post('/images/prune', async (ctx) => {
    const filters = queryFilters(ctx, PRUNE_FILTERS);
    const until = filterText(filters, 'until');
    const { removals, reclaimedBytes } = await images.prune({
      dangling: filterFlag(filters, 'dangling'),
      labels: filters.label,
      labelsNot: filters['label!'],
      until: until === undefined ? undefined : parseMoment(until, engine.now()),
    });
    sendJson(ctx, {
      ImagesDeleted: removals.length === 0 ? null : removals.map(removalJson),
      SpaceReclaimed: reclaimedBytes,
    });
  });

  router.get('/images/*name/json', async (ctx) => {
    const name = pathPart(ctx, 'name');
    const image = await images.inspect(name);
    requirePlatform(image, name, queryText(ctx, 'platform'));
    sendJson(ctx, imageDetailJson(image, ctx.state.apiMinor));
  });

  router.get('/images/*name/history', async (ctx) => {
    sendJson(ctx, (await images.history(pathPart(ctx, 'name'))).map(historyJson));
  });

  router.post('/images/*name/tag', async (ctx) => {
    const repository = queryText(ctx, 'repo') ?? '';
    const tag = queryText(ctx, 'tag') ?? '';
    await images.tag(pathPart(ctx, 'name'), tag === '' ? repository : `${repository}:${tag}`);
    sendNothing(ctx, 201);
  });

  router.post('/images/*name/push', (ctx) => push(ctx, engine));

  router.get('/distribution/*name/json', async (ctx) => {
    const { descriptor, platforms } = await engine.distribution(pathPart(ctx, 'name'), {
      credentials: registryCredentials(ctx),
      signal: disconnectSignal(ctx),
    });
    sendJson(ctx, { Descriptor: descriptor, Platforms: platforms });
  });

  router.delete('/images/*name', async (ctx) => {
    const name = pathPart(ctx, 'name');
    // An image here has one platform; without it nothing of the image is left.
    await requirePlatforms(images, [name], queryTexts(ctx, 'platforms'));
    const removals = await images.remove(name, {
      force: queryFlag(ctx, 'force'),
      noPrune: queryFlag(ctx, 'noprune'),
    });
    sendJson(ctx, removals.map(removalJson));
  });
}

async function pull(ctx: ApiContext, engine: Engine): Promise<void> {
  const target = pullTarget(queryText(ctx, 'fromImage') ?? '', queryText(ctx, 'tag') ?? '');
  const platform = queryText(ctx, 'platform') || undefined;
  const credentials = registryCredentials(ctx);
  await streamProgress(ctx, async (report, signal) => {
    const onProgress = (event: PullEvent) => pullMessages(event).forEach(report);
    const options = { platform, credentials, signal, onProgress };
    await (target.everyTag
      ? engine.images.pullAllTags(target.reference, options)
      : engine.images.pull(target.reference, options));
  });
}

interface PullTarget {
  readonly reference: string;
  /** Docker's meaning of a name with nothing behind it. */
  readonly everyTag: boolean;
}

/** Tags and digests both come as `tag`. @throws AppError 'invalid' without a name */
export function pullTarget(image: string, tag: string): PullTarget {
  if (image === '') throw new AppError('invalid', 'cannot pull: the request has neither fromImage nor fromSrc');
  if (tag.includes(':')) return { reference: `${image}@${tag}`, everyTag: false };
  if (tag !== '') return { reference: `${image}:${tag}`, everyTag: false };
  const isWhole = image.includes('@') || image.lastIndexOf(':') > image.lastIndexOf('/');
  return { reference: image, everyTag: !isWhole };
}

const PULL_WORDS: Readonly<Record<PullLayerStatus, string>> = {
  'pulling-fs-layer': 'Pulling fs layer',
  waiting: 'Waiting',
  downloading: 'Downloading',
  'verifying-checksum': 'Verifying Checksum',
  'download-complete': 'Download complete',
  extracting: 'Extracting',
  'pull-complete': 'Pull complete',
  'already-exists': 'Already exists',
};

/** Docker's lines for an event. Pure. */
export function pullMessages(event: PullEvent): readonly ProgressMessage[] {
  switch (event.kind) {
    case 'resolving':
      // Not a line yet: a failure until the manifest is known is an HTTP error.
      return [];
    case 'pulling':
      return [{ status: `Pulling from ${event.repository}`, id: event.tag }];
    case 'layer':
      return [layerMessage(PULL_WORDS[event.status], event)];
    case 'digest':
      return [{ status: `Digest: ${event.digest}` }];
    case 'done':
      return [
        {
          status: event.isNew
            ? `Status: Downloaded newer image for ${event.reference}`
            : `Status: Image is up to date for ${event.reference}`,
        },
      ];
    default:
      throw event satisfies never;
  }
}

interface Counted {
  readonly id: string;
  readonly current?: number | undefined;
  readonly total?: number | undefined;
}

function layerMessage(status: string, { id, current, total }: Counted): ProgressMessage {
  const progressDetail = { ...(current !== undefined && { current }), ...(total !== undefined && { total }) };
  return { status, progressDetail, id };
}

async function push(ctx: ApiContext, engine: Engine): Promise<void> {
  const repository = pathPart(ctx, 'name');
  const tag = queryText(ctx, 'tag') ?? '';
  const tagged = `${repository}:${tag}`;
  const platforms = queryTexts(ctx, 'platform').filter((platform) => platform !== '');
  if (tag === '' && platforms.length > 0)
    throw new AppError('unsupported', 'cannot push all tags for one platform: name the tag');
  await requirePlatforms(engine.images, [tagged], platforms);
  await streamProgress(ctx, async (report, signal) => {
    await engine.images.push(tag === '' ? repository : tagged, {
      allTags: tag === '',
      credentials: registryCredentials(ctx),
      signal,
      onProgress: (event) => pushMessages(event).forEach(report),
    });
  });
}

const PUSH_WORDS: Readonly<Record<PushLayerStatus, string>> = {
  preparing: 'Preparing',
  waiting: 'Waiting',
  pushing: 'Pushing',
  pushed: 'Pushed',
  'already-exists': 'Layer already exists',
  mounted: 'Mounted from',
  skipped: 'Skipped foreign layer',
};

/** Docker's lines for an event. Pure. */
export function pushMessages(event: PushEvent): readonly ProgressMessage[] {
  switch (event.kind) {
    case 'pushing':
      return [{ status: `The push refers to repository [${event.repository}]` }];
    case 'layer': {
      const words = PUSH_WORDS[event.status];
      return [layerMessage(event.status === 'mounted' ? `${words} ${event.from ?? ''}` : words, event)];
    }
    case 'done': {
      const { tag, digest, sizeBytes } = event;
      return [
        { status: `${tag}: digest: ${digest} size: ${sizeBytes}` },
        { progressDetail: {}, aux: { Tag: tag, Digest: digest, Size: sizeBytes } },
      ];
    }
    default:
      throw event satisfies never;
  }
}

async function importImage(ctx: ApiContext, engine: Engine, source: string): Promise<void> {
  if (source !== '-')
    throw new AppError('unsupported', 'cannot import from a URL: download the file and send it instead');
  const repository = queryText(ctx, 'repo') ?? '';
  const tag = queryText(ctx, 'tag') ?? '';
  await streamProgress(ctx, async (report, signal) => {
    const id = await engine.images.import(ctx.req, {
      name: repository === '' ? undefined : tag === '' ? repository : `${repository}:${tag}`,
      message: queryText(ctx, 'message'),
      changes: queryTexts(ctx, 'changes'),
      platform: queryText(ctx, 'platform') || undefined,
      signal,
    });
    report({ status: id });
  });
}

async function save(ctx: ApiContext, engine: Engine, names: readonly string[]): Promise<void> {
  if (names.length === 0) throw new AppError('invalid', 'cannot save images: none is named');
  await requirePlatforms(engine.images, names, queryTexts(ctx, 'platform'));
  const tar = await engine.images.save(names, { signal: disconnectSignal(ctx) });
  // A failure before the first byte is still an HTTP error.
  await Promise.race([once(tar, 'readable'), once(tar, 'end')]);
  await pipeline(tar, startChunked(ctx, 'application/x-tar'));
}

const platformSchema = z.object({
  os: z.string(),
  architecture: z.string(),
  variant: z.string().optional(),
});

function parsePlatform(text: string): z.infer<typeof platformSchema> {
  try {
    return platformSchema.parse(JSON.parse(text));
  } catch {
    throw new AppError('invalid', 'invalid platform: want JSON such as {"os":"linux","architecture":"amd64"}');
  }
}

/** The JSON form that the API uses here, as the `os/architecture/variant` that the engine knows. */
function platformText(json: string | undefined): string | undefined {
  if (json === undefined || json === '') return undefined;
  const { os, architecture, variant } = parsePlatform(json);
  return variant === undefined ? `${os}/${architecture}` : `${os}/${architecture}/${variant}`;
}

/** @throws AppError 'not-found' for an image that is not for every one of the platforms */
async function requirePlatforms(images: Images, names: readonly string[], platforms: readonly string[]): Promise<void> {
  if (platforms.every((platform) => platform === '')) return;
  for (const name of names) {
    const image = await images.inspect(name);
    for (const platform of platforms) requirePlatform(image, name, platform);
  }
}

function requirePlatform({ config }: ImageDetail, name: string, json: string | undefined): void {
  if (json === undefined || json === '') return;
  const wanted = parsePlatform(json);
  const same =
    wanted.os === config.os &&
    wanted.architecture === config.architecture &&
    (wanted.variant === undefined || config.variant === undefined || wanted.variant === config.variant);
  if (!same)
    throw new AppError(
      'not-found',
      `image with reference ${name} was found but does not provide the specified platform (${platformText(json)})`,
    );
}
