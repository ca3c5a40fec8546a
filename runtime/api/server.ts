/**
 * The Engine API over HTTP: version prefix, headers, the error edge, and the routes of every resource.
 *
 * Speaks Docker's Engine API 1.22 to 1.52 (https://docs.docker.com/reference/api/engine/). Every route exists with and
 * without a version; without one it is the newest. Streams have no time limits: what waits here waits for a container.
 */
import { createServer, type Server } from 'node:http';
import Koa from 'koa';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Engine } from '../engine.ts';
import { addAuthRoutes } from './auth.ts';
import { addBerthRoutes } from './berth.ts';
import { addBerthBuildRoutes } from './berth-builds.ts';
import { addBuildRoutes } from './build.ts';
import { addContainerFileRoutes } from './container-files.ts';
import { addContainerRoutes } from './containers.ts';
import { type ApiContext, type ApiState, createRouter } from './context.ts';
import { answerOf, encodeJson } from './errors.ts';
import { addEventRoutes } from './events.ts';
import { addExecRoutes } from './exec.ts';
import { addImageRoutes } from './images.ts';
import { addNetworkRoutes } from './networks.ts';
import { addSystemRoutes } from './system.ts';
import { addUnbuiltRoutes } from './unbuilt.ts';
import { API_MINOR_MAX, API_MINOR_MIN, API_VERSION_MAX, API_VERSION_MIN } from './version.ts';
import { addVolumeRoutes } from './volumes.ts';

export interface ApiOptions {
  readonly log: Log;
  /** Ours, for the Server header. */
  readonly version: string;
}

export interface ApiServer {
  /** Not listening yet. The caller owns it. */
  readonly server: Server;
  /** Resolves when no request is being handled any more: a handler outlives its connection by what it gives back. */
  settled(): Promise<void>;
}

export function createApiServer(engine: Engine, options: ApiOptions): ApiServer {
  const router = createRouter();
  addSystemRoutes(router, engine);
  addEventRoutes(router, engine);
  addAuthRoutes(router, engine);
  addImageRoutes(router, engine);
  addContainerFileRoutes(router, engine);
  addContainerRoutes(router, engine);
  addExecRoutes(router, engine);
  addNetworkRoutes(router, engine);
  addVolumeRoutes(router, engine);
  addBuildRoutes(router, engine);
  addBerthBuildRoutes(router, engine);
  addBerthRoutes(router, engine);
  addUnbuiltRoutes(router);

  const handling = new Set<Promise<unknown>>();
  const app = new Koa<ApiState>();
  app.use(async (_ctx, next) => {
    const handled = next();
    handling.add(handled);
    await handled.finally(() => handling.delete(handled));
  });
  app.use((ctx: ApiContext, next) => answerErrors(ctx, next, options));
  app.use(takeVersion);
  app.use(router.routes());
  app.use(() => {
    throw new AppError('not-found', 'page not found');
  });
  // What fails after the headers: broken connections of clients that left.
  app.on('error', (error) => options.log.debug('response ended early', { error }));

  const server = createServer(
    {
      keepAliveTimeout: 0,
      requestTimeout: 0,
      // Filters and build arguments travel in the query, registry credentials in a header.
      maxHeaderSize: 1 << 20,
      // Upgrades go the way of every request, so that their bodies are parsed; see hijack.ts.
      shouldUpgradeCallback: () => false,
    },
    app.callback(),
  );
  server.timeout = 0;
  return { server, settled: async () => void (await Promise.allSettled(handling)) };
}

/** First in line: whatever is thrown below becomes Docker's error body, once, and faults are logged. */
async function answerErrors(ctx: ApiContext, next: () => Promise<unknown>, options: ApiOptions): Promise<void> {
  ctx.set({
    'Api-Version': API_VERSION_MAX,
    'Docker-Experimental': 'false',
    Ostype: 'linux',
    Server: `Berth/${options.version} (linux)`,
  });
  try {
    await next();
  } catch (error) {
    const { status, body, isFault } = answerOf(error);
    const fields = { method: ctx.method, path: ctx.path, status, error };
    // Work that was cancelled because the client hung up fails in many ways, and nobody has to look at them.
    if (isFault && !ctx.req.socket.destroyed) options.log.error('request failed', fields);
    else options.log.debug('request refused', fields);
    if (ctx.res.headersSent || ctx.respond === false) {
      // Too late for an answer: whoever began the stream has told the client in it, or cuts it off. Hijacked
      // connections have no headers from here and belong to their handler.
      if (ctx.res.headersSent && !ctx.res.writableEnded) ctx.res.destroy();
      return;
    }
    ctx.status = status;
    ctx.set('Content-Type', 'application/json');
    ctx.body = encodeJson(body);
  }
}

const PREFIX = /^\/v([0-9.]+)(\/.*)$/;

/** Takes the version off the path. @throws AppError 'invalid' with the words that clients know for versions we do not speak */
async function takeVersion(ctx: ApiContext, next: () => Promise<unknown>): Promise<void> {
  ctx.state.apiMinor = API_MINOR_MAX;
  const match = PREFIX.exec(ctx.path);
  if (match !== null) {
    const [, version = '', path = ''] = match;
    ctx.state.apiMinor = minorOf(version);
    ctx.path = path;
  }
  await next();
}

function minorOf(version: string): number {
  const match = /^(\d{1,4})\.(\d{1,4})$/.exec(version);
  if (match === null) throw new AppError('invalid', `invalid API version ${JSON.stringify(version.slice(0, 50))}`);
  const [major, minor] = [Number(match[1]), Number(match[2])];
  if (major < 1 || (major === 1 && minor < API_MINOR_MIN))
    throw new AppError(
      'invalid',
      `client version ${version} is too old. Minimum supported API version is ${API_VERSION_MIN}, please upgrade your client to a newer version`,
    );
  if (major > 1 || minor > API_MINOR_MAX)
    throw new AppError(
      'invalid',
      `client version ${version} is too new. Maximum supported API version is ${API_VERSION_MAX}`,
    );
  return minor;
}
