/** Requests about a container that last: attach, logs, wait, stats. Headers always go out before the first event. */
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, isKind } from '../../shared/errors.ts';
import type { Engine, StatsSample, WaitCondition } from '../engine.ts';
import { statsJson } from './container-json.ts';
import {
  type ApiContext,
  type ApiRouter,
  disconnectSignal,
  pathPart,
  queryFlag,
  queryNanos,
  queryText,
  sendJson,
} from './context.ts';
import { encodeJson } from './errors.ts';
import { copyOutput, hijack, serveAttachment, serveWebSocket, streamType } from './hijack.ts';
import { startChunked } from './progress.ts';

const STATS_INTERVAL_MS = 1000;
/** Between the two samples of one answer, which somebody waits for: 50 ticks of the counters on each processor. */
const STATS_PAIR_MS = 500;
/** API version from which `wait` has conditions. */
const CONDITIONS_SINCE = 30;

export function addContainerStreamRoutes(router: ApiRouter, engine: Engine): void {
  const { containers } = engine;

  const attach = (ctx: ApiContext) =>
    containers.attach(pathPart(ctx, 'name'), {
      stdin: queryFlag(ctx, 'stdin'),
      stdout: queryFlag(ctx, 'stdout'),
      stderr: queryFlag(ctx, 'stderr'),
      logs: queryFlag(ctx, 'logs'),
      stream: queryFlag(ctx, 'stream'),
      detachKeys: queryText(ctx, 'detachKeys') || undefined,
      signal: disconnectSignal(ctx),
    });

  router.post('/containers/*name/attach', async (ctx) => {
    const attachment = await attach(ctx);
    await serveAttachment(hijack(ctx, { terminal: attachment.terminal }), attachment);
  });

  router.get('/containers/*name/attach/ws', async (ctx) => {
    if (ctx.get('upgrade').toLowerCase() !== 'websocket')
      throw new AppError('invalid', 'cannot attach: the request is not a websocket handshake');
    await serveWebSocket(ctx, await attach(ctx));
  });

  router.get('/containers/*name/logs', async (ctx) => {
    const { terminal, chunks } = await containers.logs(pathPart(ctx, 'name'), {
      stdout: queryFlag(ctx, 'stdout'),
      stderr: queryFlag(ctx, 'stderr'),
      follow: queryFlag(ctx, 'follow'),
      since: queryDate(ctx, 'since'),
      until: queryDate(ctx, 'until'),
      tail: queryTail(ctx),
      timestamps: queryFlag(ctx, 'timestamps'),
      details: queryFlag(ctx, 'details'),
      signal: disconnectSignal(ctx),
    });
    const out = startChunked(ctx, streamType(ctx, terminal));
    // One frame a line, as clients that show frames expect.
    await copyOutput(chunks, out, { framed: terminal ? false : 'lines' });
    out.end();
  });

  router.post('/containers/*name/wait', async (ctx) => {
    const condition = waitCondition(ctx);
    const { result } = await containers.wait(pathPart(ctx, 'name'), { condition, signal: disconnectSignal(ctx) });
    // Clients start the container once they have the headers.
    const out = startChunked(ctx, 'application/json');
    const { exitCode, error } = await result;
    out.end(encodeJson({ StatusCode: exitCode, ...(error !== undefined && { Error: { Message: error } }) }));
  });

  router.get('/containers/*name/stats', async (ctx) => {
    const name = pathPart(ctx, 'name');
    if (queryFlag(ctx, 'stream', true)) await streamStats(ctx, engine, name);
    else await oneStats(ctx, engine, { name, compared: !queryFlag(ctx, 'one-shot') });
  });
}

function queryDate(ctx: ApiContext, key: string): Date | undefined {
  const nanos = queryNanos(ctx, key);
  return nanos === undefined ? undefined : new Date(Number(nanos / 1_000_000n));
}

/** Anything that is not a number means all, as in Docker. */
function queryTail(ctx: ApiContext): number | undefined {
  const text = queryText(ctx, 'tail') ?? '';
  return /^\d{1,15}$/.test(text) ? Number(text) : undefined;
}

const CONDITIONS: readonly WaitCondition[] = ['not-running', 'next-exit', 'removed'];

function waitCondition(ctx: ApiContext): WaitCondition {
  const text = queryText(ctx, 'condition') ?? '';
  if (text === '' || ctx.state.apiMinor < CONDITIONS_SINCE) return 'not-running';
  const condition = CONDITIONS.find((known) => known === text);
  if (condition === undefined) throw new AppError('invalid', `invalid condition: ${JSON.stringify(text)}`);
  return condition;
}

/** One answer; `compared` takes a second sample, so that a client can compute rates. */
async function oneStats(ctx: ApiContext, engine: Engine, options: { name: string; compared: boolean }): Promise<void> {
  const { record } = await engine.containers.inspect(options.name);
  let before: StatsSample | undefined;
  if (options.compared) {
    before = await engine.containers.stats(record.id);
    if (before !== undefined) await delay(STATS_PAIR_MS, undefined, { signal: disconnectSignal(ctx) });
  }
  const sample = await engine.containers.stats(record.id);
  sendJson(ctx, sample === undefined ? restingStats(record) : statsJson(record, sample, before));
}

function restingStats({ id, name }: { readonly id: string; readonly name: string }): Record<string, unknown> {
  return { id, name: `/${name}`, os_type: 'linux' };
}

/** One line a second, for as long as the container exists. */
async function streamStats(ctx: ApiContext, engine: Engine, name: string): Promise<void> {
  const { record } = await engine.containers.inspect(name);
  const signal = disconnectSignal(ctx);
  const out = startChunked(ctx, 'application/json');
  let before: StatsSample | undefined;
  try {
    while (!signal.aborted) {
      const sample = await engine.containers.stats(record.id);
      // A client that does not read misses samples; it does not pile them up.
      if (!out.writableNeedDrain)
        out.write(encodeJson(sample === undefined ? restingStats(record) : statsJson(record, sample, before)));
      before = sample;
      await delay(STATS_INTERVAL_MS, undefined, { signal });
    }
  } catch (error) {
    if (!signal.aborted && !isKind(error, 'not-found')) throw error;
  }
  out.end();
}
