/** `GET /events`: what happened since, and what happens, in Docker's shapes, one JSON object a line. */
import { once } from 'node:events';
import type { Engine, EngineEvent } from '../engine.ts';
import { type ApiContext, type ApiRouter, disconnectSignal, queryFilters, queryNanos } from './context.ts';
import { startChunked } from './progress.ts';

const FILTERS = [
  'config',
  'container',
  'daemon',
  'event',
  'image',
  'label',
  'network',
  'node',
  'plugin',
  'scope',
  'secret',
  'service',
  'type',
  'volume',
];
/** API version that calls the stream what it is. */
const JSON_LINES_SINCE = 52;
const RECORD_SEPARATOR = '\x1e';

export function addEventRoutes(router: ApiRouter, engine: Engine): void {
  router.get('/events', async (ctx) => {
    const filters = queryFilters(ctx, FILTERS);
    const sinceNano = queryNanos(ctx, 'since');
    const untilNano = queryNanos(ctx, 'until');
    const contentType = streamTypeOf(ctx);
    const signal = disconnectSignal(ctx);
    // Following begins before the headers go out: a client that has them has missed nothing.
    await using events = engine.events.follow({ sinceNano, untilNano, filters, signal });
    const out = startChunked(ctx, contentType);
    // An error of the connection is an end like any other; nobody may be waiting when it comes.
    const gone = once(out, 'close').catch(() => undefined);
    const lead = contentType === 'application/json-seq' ? RECORD_SEPARATOR : '';
    for await (const event of events) {
      if (out.destroyed) return;
      if (!out.write(`${lead}${encodeEvent(event)}\n`)) await Promise.race([once(out, 'drain'), gone]);
    }
    out.end();
  });
}

function streamTypeOf(ctx: ApiContext): string {
  const accepted = ctx.get('accept');
  for (const type of ['application/json-seq', 'application/x-ndjson', 'application/jsonl'])
    if (accepted.includes(type)) return type;
  return ctx.state.apiMinor >= JSON_LINES_SINCE ? 'application/jsonl' : 'application/json';
}

/** With the fields `status`, `id` and `from` of old API versions: some clients still end with an error without them. Pure. */
export function encodeEvent(event: EngineEvent): string {
  const { type, action, id, attributes, timeNano } = event;
  const from = type === 'container' ? attributes.image : undefined;
  const legacy = type === 'container' || type === 'image' ? { status: action, id, ...(from && { from }) } : {};
  const text = JSON.stringify({
    ...legacy,
    Type: type,
    Action: action,
    Actor: { ID: id, Attributes: attributes },
    scope: 'local',
    time: Number(timeNano / 1_000_000_000n),
  });
  // Nanoseconds since 1970 do not fit into a JavaScript number; JSON has no such limit.
  return `${text.slice(0, -1)},"timeNano":${timeNano}}`;
}
