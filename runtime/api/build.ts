/**
 * Building over Docker's API, the classic way: `POST /build` takes a context as a tar and tells in Docker's words what it
 * does. BuildKit's way, `/session` and `/grpc`, is not here; what the classic builder lacks is in berth-builds.ts.
 */
import {
  createIgnore,
  DOCKERIGNORE_MAX_BYTES,
  dockerignoreNames,
  parseDockerignore,
} from '../../shared/dockerignore.ts';
import { AppError } from '../../shared/errors.ts';
import { parseBytes } from '../../shared/units.ts';
import type { BuildContext, BuildEvent, BuildRequest, BuildResult, Builds, Contexts, EventLog } from '../engine.ts';
import { createOutputValve } from './build-output.ts';
import { type ClassicBuild, parseClassicBuild } from './build-request.ts';
import { createClassicWords, failureDetail, successMessages } from './build-words.ts';
import {
  type ApiContext,
  type ApiRouter,
  filterText,
  parseMoment,
  queryFilters,
  queryFlag,
  queryText,
  requestBody,
  sendJson,
} from './context.ts';
import { type ProgressMessage, type Report, streamProgress } from './progress.ts';

const PRUNE_FILTERS = ['id', 'type', 'until'];
/** Characters of a quiet build that are told if it fails. */
const QUIET_KEPT = 1 << 20;

/** What of an engine these routes need. */
export interface BuildPorts {
  readonly builds: Builds;
  readonly events: EventLog;
  readonly now: () => Date;
}

export function addBuildRoutes(router: ApiRouter, engine: BuildPorts): void {
  /** Builds that a client has given an id, so that another request can cancel them. */
  const cancels = new Map<string, AbortController>();

  router.post('/build', async (ctx) => {
    const build = parseClassicBuild(ctx);
    const cancel = new AbortController();
    if (build.buildId !== undefined) cancels.set(build.buildId, cancel);
    try {
      await streamProgress(
        ctx,
        (report, gone) => runBuild(ctx, { engine, build, report, signal: AbortSignal.any([gone, cancel.signal]) }),
        { failure: failureDetail },
      );
    } finally {
      if (build.buildId !== undefined && cancels.get(build.buildId) === cancel) cancels.delete(build.buildId);
    }
  });

  router.post('/build/cancel', (ctx) => {
    const id = queryText(ctx, 'id') ?? '';
    if (id === '') throw new AppError('invalid', 'build ID not provided');
    cancels.get(id)?.abort(new AppError('conflict', 'cannot finish the build: it was cancelled'));
    ctx.status = 204;
  });

  router.post('/build/prune', async (ctx) => {
    const filters = queryFilters(ctx, PRUNE_FILTERS);
    const until = filterText(filters, 'until');
    const limits = ['keep-storage', 'reserved-space', 'max-used-space'].flatMap((key) => bytesOf(ctx, key) ?? []);
    const { deleted, reclaimedBytes } = await engine.builds.prune({
      all: queryFlag(ctx, 'all'),
      unusedSince: until === undefined ? undefined : parseMoment(until, engine.now()),
      // What is reserved is kept however little may be used.
      keepBytes: limits.length === 0 ? undefined : Math.max(...limits),
      minFreeBytes: bytesOf(ctx, 'min-free-space'),
      kinds: filters.type,
      ids: filters.id,
    });
    const attributes = { reclaimed: String(reclaimedBytes) };
    engine.events.publish({ type: 'builder', action: 'prune', id: '', attributes });
    sendJson(ctx, { CachesDeleted: deleted.length === 0 ? null : deleted, SpaceReclaimed: reclaimedBytes });
  });
}

/** undefined when absent or 0, which is no limit. @throws AppError 'invalid' */
function bytesOf(ctx: ApiContext, key: string): number | undefined {
  const text = queryText(ctx, key) ?? '';
  return text === '' ? undefined : parseBytes(text) || undefined;
}

interface ClassicRun {
  readonly engine: BuildPorts;
  readonly build: ClassicBuild;
  readonly report: Report;
  readonly signal: AbortSignal;
}

async function runBuild(ctx: ApiContext, { engine, build, report, signal }: ClassicRun): Promise<void> {
  await using sent = await openContext(ctx, { engine, build, signal });
  await using reduced = await withoutBuildFiles(sent, build.request.dockerfile.name, engine.builds.contexts);
  const words = createClassicWords();
  const valve = createOutputValve(ctx.res);
  const quiet = build.isQuiet ? createTail() : undefined;
  const tell = (messages: readonly ProgressMessage[]) => messages.forEach(quiet?.keep ?? report);
  const onEvent = (event: BuildEvent) =>
    tell(words.take(event.kind === 'output' ? { ...event, bytes: valve(event.bytes) } : event));
  try {
    await using result = await engine.builds.build({ ...build.request, ...reduced.request }, { signal, onEvent });
    tell(words.rest());
    const id = idOf(result);
    if (build.isQuiet) report({ stream: `${id}\n` });
    else successMessages(id, { tags: build.request.tags ?? [], warnings: result.warnings }).forEach(report);
  } catch (error) {
    tell(words.rest());
    quiet?.kept().forEach(report);
    throw error;
  }
}

function idOf({ images }: BuildResult): string {
  const [image] = images;
  if (image === undefined) throw new Error('a build without a platform has no image');
  return image.id;
}

async function openContext(
  ctx: ApiContext,
  { engine, build, signal }: Omit<ClassicRun, 'report'>,
): Promise<BuildContext> {
  const { contexts } = engine.builds;
  if (build.remote !== undefined) {
    const { buildArgs } = build.request;
    return await contexts.fetch(build.remote, { buildArgs, signal });
  }
  return await contexts.receive(requestBody(ctx), { signal });
}

const DOCKERFILE_MAX_BYTES = 1 << 20;

interface Reduced extends AsyncDisposable {
  readonly request: Pick<BuildRequest, 'context'> & Partial<Pick<BuildRequest, 'dockerfile'>>;
}

/**
 * Clients send the Dockerfile and `.dockerignore` even where the latter leaves them out, because the builder needs them.
 * COPY must not see them then.
 */
async function withoutBuildFiles(sent: BuildContext, name: string, contexts: Contexts): Promise<Reduced> {
  const whole = { request: { context: sent }, async [Symbol.asyncDispose]() {} };
  for (const file of dockerignoreNames(name)) {
    const patterns = await sent.text(file, DOCKERIGNORE_MAX_BYTES);
    if (patterns === undefined) continue;
    const ignore = createIgnore(parseDockerignore(patterns));
    const paths = [name, file].filter((path) => ignore.ignores(path));
    if (paths.length === 0) return whole;
    // Both are gone then for who looks into the context.
    const text = await sent.text(name, DOCKERFILE_MAX_BYTES);
    const context = await contexts.without(sent, paths);
    return {
      request: { context, dockerfile: { name, text, ignore: patterns } },
      [Symbol.asyncDispose]: () => context[Symbol.asyncDispose](),
    };
  }
  return whole;
}

/** The end of what a quiet build would have said. */
function createTail(): { keep: Report; kept(): readonly ProgressMessage[] } {
  const messages: ProgressMessage[] = [];
  let characters = 0;
  return {
    keep(message) {
      if (message.stream === undefined) return;
      messages.push(message);
      characters += message.stream.length;
      while (characters > QUIET_KEPT) characters -= messages.shift()?.stream?.length ?? characters;
    },
    kept: () => messages,
  };
}
