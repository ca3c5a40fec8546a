/** Builds over `/berth/v1/builds`, event by event, for tests that look at them from outside. */
import { once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { type TarEntry, tarOf } from '../fixtures/tar.ts';
import { ask } from './http.ts';

// biome-ignore lint/suspicious/noExplicitAny: the shape is what is tested
export type Json = any;

/** Disposing hangs up. */
export interface Build extends Disposable {
  readonly id: string;
  /** What was told so far. */
  readonly events: readonly Json[];
  /** `result` or `error` at the end; undefined when the connection broke. */
  readonly ended: Promise<{ readonly result?: Json; readonly error?: Json } | undefined>;
  /** The first event that passes; undefined when the build ends without one. */
  until(passes: (event: Json) => boolean): Promise<Json>;
  /** Hangs up. */
  cancel(): void;
}

export interface BuildOrder {
  readonly dockerfile: string;
  /** Files of the context; none = an empty one. */
  readonly files?: readonly TarEntry[];
  /** Everything else of the request's body. */
  readonly body?: Record<string, unknown>;
}

export async function startBuild(socketPath: string, { dockerfile, files, body }: BuildOrder): Promise<Build> {
  const asked = request({ socketPath, method: 'POST', path: '/berth/v1/builds' });
  asked.setHeader('content-type', 'application/json');
  asked.on('error', () => {});
  asked.end(
    JSON.stringify({
      context: { kind: files === undefined ? 'empty' : 'files' },
      dockerfile: { name: 'Dockerfile', text: dockerfile },
      ...body,
    }),
  );
  const [response] = (await once(asked, 'response')) as [IncomingMessage];
  const events: Json[] = [];
  let told = Promise.withResolvers<void>();
  let isOver = false;
  const id = Promise.withResolvers<string>();
  const ended = Promise.withResolvers<Awaited<Build['ended']>>();
  const read = async () => {
    let end: { result?: Json; error?: Json } | undefined;
    try {
      for await (const line of lines(response)) {
        const value = JSON.parse(line);
        if (value.id !== undefined) id.resolve(value.id);
        else if (value.event !== undefined) events.push(value.event);
        else end = value;
        told.resolve();
        told = Promise.withResolvers();
        // With `keep` the connection stays: hanging up would give the result back.
        if (end !== undefined) ended.resolve(end);
      }
    } catch {
      // Hung up.
    }
    id.reject(new Error(`the build did not begin: ${response.statusCode} ${JSON.stringify(end)}`));
    return end;
  };
  void read()
    .then(ended.resolve, ended.reject)
    .finally(() => {
      isOver = true;
      told.resolve();
    });
  const build: Build = {
    id: await id.promise,
    events,
    ended: ended.promise,
    async until(passes) {
      for (;;) {
        const found = events.find(passes);
        if (found !== undefined || isOver) return found;
        await told.promise;
      }
    },
    cancel: () => void response.destroy(),
    [Symbol.dispose]: () => void response.destroy(),
  };
  if (files !== undefined) {
    const path = `/berth/v1/builds/${build.id}/context`;
    const { status, json } = await ask(socketPath, { method: 'PUT', path, body: tarOf(files) });
    if (status !== 204) throw new Error(`the context was refused: ${status} ${JSON.stringify(json)}`);
  }
  return build;
}

async function* lines(response: IncomingMessage): AsyncGenerator<string> {
  let rest = '';
  for await (const chunk of response.setEncoding('utf8')) {
    const parts = (rest + chunk).split('\n');
    rest = parts.pop() ?? '';
    yield* parts;
  }
}

export interface Built {
  readonly events: readonly Json[];
  readonly images: readonly Json[];
  readonly error: Json;
}

/** A build to its end. */
export async function buildAll(socketPath: string, order: BuildOrder): Promise<Built> {
  const build = await startBuild(socketPath, order);
  const end = await build.ended;
  return { events: build.events, images: end?.result?.images ?? [], error: end?.error };
}

/** How each line came out: `RUN x: cached`. */
export function outcomes(events: readonly Json[]): readonly string[] {
  const texts = new Map(events.filter(({ kind }) => kind === 'started').map(({ step }) => [step.id, step.text]));
  return events
    .filter(({ kind }) => kind === 'ended')
    .map(({ step, outcome }) => `${texts.get(step)}: ${outcome}`)
    .sort();
}

/** What commands printed. */
export function printed(events: readonly Json[]): string {
  return events
    .filter(({ kind }) => kind === 'output')
    .map(({ text }) => text)
    .join('');
}
