/**
 * Builds with everything that Docker's classic API has no place for, under `/berth/v1/builds` (docs/engine-api.md):
 *
 *   POST /berth/v1/builds                 begins a build; its answer is a stream of what happens, and its lifetime
 *   POST /berth/v1/builds/ID/files        names, sizes and times of a context's files; answers which ones are missing,
 *                                         and if none is, the context is there
 *   PUT  /berth/v1/builds/ID/context      the missing files, or a whole context, as a tar
 *   GET  /berth/v1/builds/ID/files        the files of a built image as a tar
 *   GET  /berth/v1/builds/ID/layout       the built images as an OCI layout in a tar
 *   POST /berth/v1/builds/ID/push         publishes what was built
 *   GET  /berth/v1/builds/cache           what the build cache holds
 *
 * A client that hangs up the first connection has cancelled the build and given back all that belongs to it. Secrets
 * travel in that request's body and nowhere else.
 */
import { randomUUID } from 'node:crypto';
import { addAbortListener, once } from 'node:events';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { z } from 'zod';
import { AppError } from '../../shared/errors.ts';
import { unlessAborted } from '../../shared/streams.ts';
import { TAR_END } from '../../shared/tar-writer.ts';
import type { BuildContext, BuildEvent, BuildResult, ContextDelta, NamedContext } from '../engine.ts';
import { eventJson, readContextEntries, resultJson } from './berth-build-json.ts';
import {
  type BerthBuild,
  berthBuildSchema,
  type ContextSource,
  type NamedSource,
  requestOf,
} from './berth-build-request.ts';
import type { BuildPorts } from './build.ts';
import { cacheRecordJson } from './build-cache-json.ts';
import { createOutputValve } from './build-output.ts';
import {
  type ApiContext,
  type ApiRouter,
  disconnectSignal,
  pathPart,
  queryText,
  readBody,
  registryCredentials,
  requestBody,
  sendJson,
} from './context.ts';
import { answerOf } from './errors.ts';
import { startChunked } from './progress.ts';

/** A context whose files the client sends. */
interface Upload {
  readonly name: string | undefined;
  readonly received: PromiseWithResolvers<BuildContext>;
  delta: ContextDelta | undefined;
  /** The request that works on it. */
  work: Promise<void> | undefined;
  /** It is there, or will never be. */
  isOver: boolean;
}

/** What other requests of a build can reach while its first one is open. */
interface Session {
  /** By name of the context; `` is the main one. */
  readonly uploads: Map<string, Upload>;
  /** Aborts when the first request is over: the others must not go on. */
  readonly ended: AbortController;
  result: BuildResult | undefined;
}

const pushSchema = z.strictObject({ reference: z.string(), provenance: z.boolean().default(false) });

export function addBerthBuildRoutes(router: ApiRouter, engine: BuildPorts): void {
  const sessions = new Map<string, Session>();
  const sessionOf = (ctx: ApiContext): Session => {
    const session = sessions.get(pathPart(ctx, 'id'));
    if (session === undefined) throw new AppError('not-found', `no such build: ${pathPart(ctx, 'id').slice(0, 100)}`);
    return session;
  };

  router.post('/berth/v1/builds', async (ctx) => {
    const body = await readBody(ctx, berthBuildSchema);
    const id = randomUUID();
    const session: Session = { uploads: uploadsOf(body), ended: new AbortController(), result: undefined };
    const signal = disconnectSignal(ctx);
    const out = createJsonLines(startChunked(ctx, 'application/jsonl'));
    sessions.set(id, session);
    try {
      out.send({ id });
      await serveBuild({ engine, body, session, out, signal });
      out.end();
    } catch (error) {
      out.send({ error: answerOf(error).body });
      out.end();
      throw error;
    } finally {
      sessions.delete(id);
    }
  });

  router.post('/berth/v1/builds/:id/files', async (ctx) => {
    const session = sessionOf(ctx);
    const signal = AbortSignal.any([disconnectSignal(ctx), session.ended.signal]);
    await working(session, queryText(ctx, 'context') ?? '', async (upload) => {
      if (upload.name === undefined)
        throw new AppError('invalid', 'cannot compare files: the context of this build was begun without a name');
      if (upload.delta !== undefined) throw new AppError('conflict', 'cannot compare files: they have been compared');
      const paths: string[] = [];
      const body = requestBody(ctx);
      using _ = addAbortListener(session.ended.signal, () => void body.destroy());
      const delta = await engine.builds.contexts.compare(upload.name, noting(readContextEntries(body), paths));
      upload.delta = delta;
      // Nothing to wait for: a client that has changed nothing is spared a request.
      if (delta.missing.length === 0) receive(upload, await delta.complete(Readable.from([TAR_END]), { signal }));
      sendJson(ctx, { missing: indexesOf(delta.missing, paths) });
    });
  });

  router.put('/berth/v1/builds/:id/context', async (ctx) => {
    const session = sessionOf(ctx);
    const signal = AbortSignal.any([disconnectSignal(ctx), session.ended.signal]);
    await working(session, queryText(ctx, 'context') ?? '', async (upload) => {
      const context = await (upload.delta === undefined
        ? engine.builds.contexts.receive(requestBody(ctx), { signal })
        : upload.delta.complete(requestBody(ctx), { signal }));
      receive(upload, context);
    });
    ctx.status = 204;
  });

  router.get('/berth/v1/builds/:id/files', async (ctx) => {
    const result = resultOf(sessionOf(ctx));
    const wanted = queryText(ctx, 'image');
    const image = wanted === undefined ? result.images[0] : result.images.find(({ id }) => id === wanted);
    if (image === undefined) throw new AppError('not-found', `this build has no image ${wanted ?? ''}`);
    await sendTar(ctx, await result.files(image));
  });

  router.get('/berth/v1/builds/:id/layout', async (ctx) => {
    await sendTar(ctx, await resultOf(sessionOf(ctx)).layout());
  });

  router.post('/berth/v1/builds/:id/push', async (ctx) => {
    const { reference, provenance } = await readBody(ctx, pushSchema);
    const result = resultOf(sessionOf(ctx));
    const signal = disconnectSignal(ctx);
    const credentials = registryCredentials(ctx);
    const out = createJsonLines(startChunked(ctx, 'application/jsonl'));
    try {
      out.send({ descriptor: await result.push(reference, { credentials, provenance, signal, onEvent: out.event }) });
      out.end();
    } catch (error) {
      out.send({ error: answerOf(error).body });
      out.end();
      throw error;
    }
  });

  router.get('/berth/v1/builds/cache', async (ctx) => {
    const [{ records }, contextBytes] = await Promise.all([engine.builds.usage(), engine.builds.contexts.diskBytes()]);
    sendJson(ctx, { records: records.map(cacheRecordJson), contextBytes });
  });
}

interface ServedBuild {
  readonly engine: BuildPorts;
  readonly body: BerthBuild;
  readonly session: Session;
  readonly out: JsonLines;
  readonly signal: AbortSignal;
}

async function serveBuild({ engine, body, session, out, signal }: ServedBuild): Promise<void> {
  const { builds } = engine;
  await using undo = new AsyncDisposableStack();
  undo.defer(() => giveBack(session));
  const open = async (source: ContextSource, name: string) => {
    const upload = session.uploads.get(name);
    if (upload !== undefined) return await receivedOf(upload, signal);
    const { contexts } = builds;
    const { buildArgs } = body;
    return undo.use(
      await (source.kind === 'remote' ? contexts.fetch(source.url, { buildArgs, signal }) : contexts.empty()),
    );
  };
  const context = await open(body.context, '');
  const namedContexts: Record<string, NamedContext> = {};
  for (const [name, source] of Object.entries(body.contexts))
    namedContexts[name] = source.kind === 'image' ? source : { kind: 'context', context: await open(source, name) };
  const request = { ...requestOf(body), context, namedContexts };
  if (body.call === 'check') return out.send({ result: { images: [], warnings: await builds.check(request) } });
  const result = undo.use(await builds.build(request, { signal, onEvent: out.event }));
  session.result = result;
  out.send({ result: resultJson(result) });
  if (body.keep) await aborted(signal);
}

function uploadsOf(body: BerthBuild): Map<string, Upload> {
  const uploads = new Map<string, Upload>();
  const sources: readonly (readonly [string, NamedSource])[] = [['', body.context], ...Object.entries(body.contexts)];
  for (const [name, source] of sources) {
    if (source.kind !== 'files') continue;
    const received = Promise.withResolvers<BuildContext>();
    // Nobody may be waiting yet when sending fails.
    received.promise.catch(() => {});
    uploads.set(name, { name: source.name, received, delta: undefined, work: undefined, isOver: false });
  }
  return uploads;
}

function receive(upload: Upload, context: BuildContext): void {
  upload.isOver = true;
  upload.received.resolve(context);
}

/** Works on a context of a build, alone. A failure ends the build, too. @throws AppError 'not-found', 'conflict' */
async function working(session: Session, name: string, work: (upload: Upload) => Promise<void>): Promise<void> {
  const upload = session.uploads.get(name);
  if (upload === undefined)
    throw new AppError('not-found', `this build has no context ${JSON.stringify(name.slice(0, 100))} to be sent`);
  if (upload.work !== undefined)
    throw new AppError('conflict', 'cannot take files: another request is sending this context');
  if (upload.isOver) throw new AppError('conflict', 'cannot take files: this context has been sent');
  upload.work = work(upload);
  try {
    await upload.work;
  } catch (error) {
    upload.isOver = true;
    upload.received.reject(error);
    throw error;
  } finally {
    upload.work = undefined;
  }
}

/** Where in a list these are; both have the same order. */
function indexesOf(some: readonly string[], all: readonly string[]): readonly number[] {
  let at = 0;
  return some.map((path) => {
    while (at < all.length && all[at] !== path) at += 1;
    return at++;
  });
}

async function* noting<T extends { readonly path: string }>(entries: AsyncIterable<T>, paths: string[]) {
  for await (const entry of entries) {
    paths.push(entry.path);
    yield entry;
  }
}

/** What the client sends. It stays the session's. */
async function receivedOf({ received }: Upload, signal: AbortSignal): Promise<BuildContext> {
  return await unlessAborted(received.promise, signal);
}

/** Ends what other requests still do, and gives back what they have brought. */
async function giveBack({ uploads, ended }: Session): Promise<void> {
  const over = new AppError('conflict', 'cannot take files: the build has ended');
  ended.abort(over);
  for (const { received, delta, work } of uploads.values()) {
    await work?.catch(() => undefined);
    received.reject(over);
    await delta?.[Symbol.asyncDispose]();
    await received.promise.then(
      (context) => context[Symbol.asyncDispose](),
      () => undefined,
    );
  }
}

function resultOf({ result }: Session): BuildResult {
  if (result === undefined) throw new AppError('conflict', 'cannot give what was built: the build has not ended');
  return result;
}

async function sendTar(ctx: ApiContext, tar: Readable): Promise<void> {
  // A failure before the first byte is still an HTTP error.
  await Promise.race([once(tar, 'readable'), once(tar, 'end')]);
  await pipeline(tar, startChunked(ctx, 'application/x-tar'));
}

async function aborted(signal: AbortSignal): Promise<void> {
  if (!signal.aborted) await once(signal, 'abort');
}

interface JsonLines {
  send(value: unknown): void;
  event(event: BuildEvent): void;
  end(): void;
}

function createJsonLines(out: Writable): JsonLines {
  const valve = createOutputValve(out);
  const send = (value: unknown) => {
    if (!out.destroyed) out.write(`${JSON.stringify(value)}\n`);
  };
  return {
    send,
    event(event) {
      const shown = event.kind === 'output' ? { ...event, bytes: valve(event.bytes) } : event;
      if (shown.kind !== 'output' || shown.bytes.length > 0) send({ event: eventJson(shown) });
    },
    end: () => void out.end(),
  };
}
