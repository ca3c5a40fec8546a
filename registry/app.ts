/**
 * The registry as an HTTP server: error edge, then one route for all of /v2, dispatched by the pure grammar of
 * routes.ts. Every request passes authenticate() here and decide() in its handler.
 */
import { createServer, type Server, type ServerOptions } from 'node:http';
import { createServer as createTlsServer, type Server as TlsServer } from 'node:https';
import Router from '@koa/router';
import Koa, { type Context } from 'koa';
import { digestOf } from '../shared/digest.ts';
import { AppError } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import type { Identity } from './access/access.ts';
import { type Audit, createAudit } from './access/audit.ts';
import type { Tls } from './access/tls.ts';
import { TOKEN_PATH, type TokenEndpoint } from './access/token-endpoint.ts';
import { authorize, type Exchange, type Handlers, METHODS, type RegistryPorts } from './exchange.ts';
import { createBlobHandlers } from './handlers/blobs.ts';
import { createCatalogHandlers } from './handlers/catalog.ts';
import { createManifestHandlers } from './handlers/manifests.ts';
import { createReferrerHandlers } from './handlers/referrers.ts';
import { createRepositoryHandlers } from './handlers/repositories.ts';
import { createTagHandlers } from './handlers/tags.ts';
import { createUploadHandlers } from './handlers/uploads.ts';
import type { Limits } from './limits.ts';
import type { Metrics, RouteLabel } from './metrics.ts';
import { errorBody, OciError, toOciError } from './oci-errors.ts';
import { parseRoute, type Route } from './routes.ts';
import { discard } from './transfer.ts';

export interface AppOptions {
  readonly log: Log;
  readonly metrics: Metrics;
  /** False while draining: load balancers then look elsewhere. */
  readonly isServing: () => boolean;
  /** Takes nothing from clients: for the time of a move or a backup. */
  readonly readOnly?: boolean | undefined;
  /** Where tokens are given, if they are given here. */
  readonly tokenEndpoint?: TokenEndpoint | undefined;
}

export function createApp(ports: RegistryPorts, options: AppOptions): Koa {
  const { log, metrics, tokenEndpoint } = options;
  const app = new Koa();
  // Only what escapes the error edge comes here: failures of a socket that is gone.
  app.on('error', (error) => log.debug('connection failed', { error }));
  app.use(createMeter(metrics));
  app.use(createErrorEdge(ports, log));

  const audit = createAudit(log.child({ component: 'audit' }));
  const router = new Router();
  router.all(/^\/v2(?:\/|$)/, createDispatch(ports, audit, options));
  if (tokenEndpoint !== undefined) router.all(TOKEN_PATH, (ctx) => audit.refusals(ctx, {}, () => tokenEndpoint(ctx)));
  addOperations(router, ports, options);
  app.use(router.routes());
  app.use(async ({ path }) => {
    throw notServed(path);
  });
  return app;
}

/** For load balancers and Prometheus. Alive = the process answers; ready = it can also read what it serves. */
function addOperations(router: Router, { index, blobs, access }: RegistryPorts, options: AppOptions): void {
  const { metrics, isServing } = options;
  router.get('/healthz', (ctx) => {
    ctx.body = { status: 'alive' };
  });
  router.get('/readyz', async (ctx) => {
    if (!isServing()) throw new AppError('unavailable', 'cannot serve: the registry is draining');
    await Promise.all([index.repositories({ limit: 1 }), blobs.stat(digestOf(''))]);
    ctx.body = { status: 'ready' };
  });
  router.get('/metrics', async (ctx) => {
    const identity = await access.authenticate({ headers: ctx.headers, remoteAddress: ctx.req.socket.remoteAddress });
    authorize(access, identity, { kind: 'metrics' });
    ctx.set('Content-Type', metrics.contentType);
    ctx.body = await metrics.text();
  });
}

function createMeter(metrics: Metrics): Koa.Middleware {
  return async (ctx, next) => {
    const route = routeLabel(ctx.path);
    const { socket } = ctx.req;
    const [startedAt, read, written] = [performance.now(), socket.bytesRead, socket.bytesWritten];
    metrics.begin(route);
    try {
      await next();
    } finally {
      metrics.end({
        route,
        method: ctx.method,
        status: ctx.status,
        seconds: (performance.now() - startedAt) / 1000,
        receivedBytes: socket.bytesRead - read,
        sentBytes: socket.bytesWritten - written,
      });
    }
  };
}

function routeLabel(path: string): RouteLabel {
  try {
    return parseRoute(path)?.kind ?? 'other';
  } catch {
    return 'other';
  }
}

function notServed(path: string): OciError {
  return new OciError('UNSUPPORTED', `cannot serve ${JSON.stringify(path.slice(0, 300))}: there is nothing here`, {
    status: 404,
  });
}

function createErrorEdge({ randomId, now }: RegistryPorts, log: Log): Koa.Middleware {
  return async (ctx, next) => {
    ctx.set({ 'Docker-Distribution-API-Version': 'registry/2.0', 'X-Content-Type-Options': 'nosniff' });
    try {
      await next();
    } catch (thrown) {
      const error = toOciError(thrown);
      const { method, path } = ctx;
      const hungUp = ctx.res.closed || (ctx.req.destroyed && !ctx.req.complete);
      if (hungUp || ctx.headerSent) {
        // The client went away, or has half of an answer: a cut connection is the only thing left to say.
        log.debug('request cut', { method, path, error: thrown });
        ctx.respond = false;
        ctx.res.destroy();
        return;
      }
      const requestId = randomId();
      if (error.status >= 500) log.error('request failed', { requestId, method, path, at: now(), error: thrown });
      else log.debug('request refused', { requestId, method, path, code: error.code });
      // What a client still sends after that is not read: the connection ends with the answer.
      if (!(await discard(ctx.req))) ctx.set('Connection', 'close');
      answer(ctx, error, requestId);
    }
  };
}

/** What a handler may have set before it failed, and what would be a lie about an error. */
const HEADERS_OF_BLOBS = [
  'Accept-Ranges',
  'Cache-Control',
  'Content-Disposition',
  'Content-Length',
  'Content-Range',
  'Docker-Content-Digest',
  'ETag',
];

function answer(ctx: Context, error: OciError, requestId: string): void {
  for (const name of HEADERS_OF_BLOBS) ctx.remove(name);
  // A handler that was about to send a blob by itself has taken the answer from Koa.
  ctx.respond = true;
  ctx.set({ ...error.headers, 'X-Request-Id': requestId, 'Content-Type': 'application/json' });
  ctx.status = error.status;
  ctx.body = errorBody(error);
}

type HandlerTable = { readonly [K in Route['kind']]: Handlers<K> };

function createDispatch(
  ports: RegistryPorts,
  audit: Audit,
  { readOnly = false }: Pick<AppOptions, 'readOnly'>,
): (ctx: Context) => Promise<void> {
  const { access } = ports;
  const table: HandlerTable = {
    base: {
      async GET({ ctx, identity }) {
        authorize(access, identity, { kind: 'probe' });
        ctx.body = {};
      },
      async HEAD({ ctx, identity }) {
        authorize(access, identity, { kind: 'probe' });
        ctx.status = 200;
      },
    },
    extensions: {
      async GET({ ctx, identity }) {
        authorize(access, identity, { kind: 'probe' });
        ctx.body = { extensions: [] };
      },
    },
    catalog: createCatalogHandlers(ports),
    tags: createTagHandlers(ports),
    blob: createBlobHandlers(ports),
    manifest: createManifestHandlers(ports),
    referrers: createReferrerHandlers(ports),
    repository: createRepositoryHandlers(ports),
    ...createUploadHandlers(ports),
  };

  return async (ctx) => {
    const route = parseRoute(ctx.path);
    if (route === undefined) throw notServed(ctx.path);
    const who: { identity?: Identity } = {};
    await audit.record(ctx, who, async () => {
      const identity = await access.authenticate({ headers: ctx.headers, remoteAddress: ctx.req.socket.remoteAddress });
      who.identity = identity;
      if (readOnly) assertRead(ctx.method);
      await handle(table, route, { ctx, identity, query: new URLSearchParams(ctx.querystring) });
    });
  };
}

/** @throws OciError UNSUPPORTED, as Distribution answers it */
function assertRead(method: string): void {
  if (method === 'GET' || method === 'HEAD') return;
  throw new OciError('UNSUPPORTED', `cannot ${method}: this registry is in read-only mode, try again later`, {
    headers: { allow: 'GET, HEAD' },
  });
}

async function handle<K extends Route['kind']>(
  table: { readonly [P in K]: Handlers<P> },
  route: Extract<Route, { readonly kind: K }>,
  exchange: Exchange,
): Promise<void> {
  const handlers: Handlers<K> = table[route.kind];
  const method = METHODS.find((name) => name === exchange.ctx.method);
  const handler = method === undefined ? undefined : handlers[method];
  if (handler === undefined) {
    const allow = Object.keys(handlers).join(', ');
    throw new OciError('UNSUPPORTED', `cannot ${exchange.ctx.method} here: want ${allow}`, { headers: { allow } });
  }
  await handler(exchange, route);
}

export type HttpServer = Server | TlsServer;

/** Node's server with the timeouts that uploads need: no limit on how long a request takes, one on how long it idles. */
export function createHttpServer(
  app: Koa,
  limits: Limits,
  { tls }: { readonly tls?: Tls | undefined } = {},
): HttpServer {
  const options: ServerOptions = {
    // Node's default of five minutes would cut every upload that takes longer.
    requestTimeout: 0,
    headersTimeout: limits.headersTimeoutMs,
    keepAliveTimeout: limits.keepAliveTimeoutMs,
    maxHeaderSize: limits.headerMaxBytes,
  };
  const server = tls === undefined ? createServer(options, app.callback()) : createTls(app, options, tls);
  server.timeout = limits.idleTimeoutMs;
  return server;
}

function createTls(app: Koa, options: ServerOptions, tls: Tls): TlsServer {
  const requestCert = tls.wantsClientCertificate;
  const server = createTlsServer({ ...options, ...tls.context, requestCert, rejectUnauthorized: true }, app.callback());
  tls.follow(server);
  return server;
}
