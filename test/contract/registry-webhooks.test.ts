/** Webhooks over a real receiver and a real database. */
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempDisposable, writeFile } from 'node:fs/promises';
import { createServer, type IncomingHttpHeaders } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { buffer } from 'node:stream/consumers';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { METADATA_MIGRATIONS, type MetadataTables } from '../../registry/metadata/schema.ts';
import type { ManifestEvent } from '../../registry/webhooks/events.ts';
import { createDeliveryQueue } from '../../registry/webhooks/queue.ts';
import { backoffMs, openWebhooks } from '../../registry/webhooks/webhooks.ts';
import { openDatabase } from '../../shared/database.ts';
import { digestOf } from '../../shared/digest.ts';
import { createSilentLog } from '../../shared/log.ts';

interface Received {
  readonly headers: IncomingHttpHeaders;
  readonly body: string;
}

async function startReceiver() {
  const received: Received[] = [];
  let arrival = Promise.withResolvers<void>();
  let answer: (path: string) => number = () => 200;
  const server = createServer(async (request, response) => {
    received.push({ headers: request.headers, body: String(await buffer(request)) });
    arrival.resolve();
    arrival = Promise.withResolvers();
    const status = answer(request.url ?? '');
    response.writeHead(status, status === 302 ? { location: '/elsewhere' } : {}).end();
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  const port = typeof address === 'object' && address !== null ? address.port : 0;
  return {
    received,
    url: `http://127.0.0.1:${port}/hook`,
    set: (next: (path: string) => number) => {
      answer = next;
    },
    /** Resolves when there are this many. */
    async count(wanted: number) {
      const late = AbortSignal.timeout(10_000);
      const tooLate = once(late, 'abort').then(() => Promise.reject(new Error(`only ${received.length} arrived`)));
      tooLate.catch(() => {});
      while (received.length < wanted) await Promise.race([arrival.promise, tooLate]);
    },
    async [Symbol.asyncDispose]() {
      server.closeAllConnections();
      server.close();
    },
  };
}

const SECRET = 'a secret of some length';
const EVENT: ManifestEvent = {
  action: 'push',
  repository: 'team/app',
  digest: digestOf('manifest'),
  tags: ['v1', 'latest'],
  mediaType: 'application/vnd.oci.image.manifest.v1+json',
  sizeBytes: 8,
  actor: 'ann',
  request: { method: 'PUT', address: '127.0.0.1', userAgent: 'test' },
};

/** Each look at it is that much later: pauses pass at once. */
function fastClock(stepMs: number): () => Date {
  let time = Date.now();
  return () => {
    time += stepMs;
    return new Date(time);
  };
}

describe('webhooks', () => {
  let stack: AsyncDisposableStack;
  let receiver: Awaited<ReturnType<typeof startReceiver>>;
  let root: string;
  beforeEach(async () => {
    stack = new AsyncDisposableStack();
    receiver = stack.use(await startReceiver());
    const directory = await mkdtempDisposable(join(tmpdir(), 'berth-webhooks-'));
    stack.defer(() => directory.remove());
    root = directory.path;
    await writeFile(join(root, 'secret'), `${SECRET}\n`);
  });
  afterEach(() => stack.disposeAsync());

  const open = (more: { now?: () => Date; queueMax?: number; url?: string } = {}) => {
    const database = openDatabase<MetadataTables>({ path: join(root, 'registry.db'), migrations: METADATA_MIGRATIONS });
    stack.use(database);
    const endpoint = {
      name: 'ci',
      url: more.url ?? receiver.url,
      secretFile: join(root, 'secret'),
      actions: ['push' as const, 'pull' as const],
      repositories: ['team/**'],
    };
    return openWebhooks({
      endpoints: [endpoint],
      database,
      queueMax: more.queueMax ?? 100,
      log: createSilentLog(),
      now: more.now ?? (() => new Date()),
      randomId: () => 'id',
    });
  };

  it('deliver a signed envelope with an event for each tag', async () => {
    await using webhooks = await open();
    await webhooks.emit(EVENT);
    await receiver.count(1);
    const { headers, body } = receiver.received[0] ?? { headers: {}, body: '' };
    const { 'webhook-id': id, 'webhook-timestamp': time, 'webhook-signature': signature } = headers;
    expect(signature).toBe(`v1,${createHmac('sha256', SECRET).update(`${id}.${time}.${body}`).digest('base64')}`);
    const { events } = JSON.parse(body);
    expect(events.map(({ target }: { target: { tag: string } }) => target.tag)).toEqual(['v1', 'latest']);
    expect(events[0]).toMatchObject({
      action: 'push',
      target: { repository: 'team/app', digest: EVENT.digest, size: 8 },
      actor: { name: 'ann' },
      request: { method: 'PUT', addr: '127.0.0.1' },
    });
  });

  it('tell of what was asked for only', async () => {
    await using webhooks = await open();
    await webhooks.emit({ ...EVENT, action: 'delete' });
    await webhooks.emit({ ...EVENT, repository: 'elsewhere/app' });
    await webhooks.emit({ ...EVENT, action: 'pull', tags: [] });
    await receiver.count(1);
    expect(receiver.received.map(({ body }) => JSON.parse(body).events[0].action)).toEqual(['pull']);
  });

  it('try again in order until the receiver takes it, and follow no redirect', async () => {
    let failures = 0;
    receiver.set(() => [500, 302][failures++] ?? 200);
    await using webhooks = await open({ now: fastClock(500) });
    await webhooks.emit({ ...EVENT, tags: ['first'] });
    await webhooks.emit({ ...EVENT, tags: ['second'] });
    await receiver.count(4);
    const tags = receiver.received.map(({ body }) => JSON.parse(body).events[0].target.tag);
    expect(tags).toEqual(['first', 'first', 'first', 'second']);
    const ids = receiver.received.map(({ headers }) => headers['webhook-id']);
    expect(new Set(ids.slice(0, 3)).size).toBe(1);
    expect(ids[3]).not.toBe(ids[0]);
  });

  it('survive a restart', async () => {
    const dead = await open({ url: 'http://127.0.0.1:1/' });
    await dead.emit(EVENT);
    await dead[Symbol.asyncDispose]();
    expect(receiver.received).toHaveLength(0);
    await using _webhooks = await open({ now: fastClock(60_000) });
    await receiver.count(1);
  });

  it('keep no more than the limit', async () => {
    await using database = openDatabase<MetadataTables>({ path: ':memory:', migrations: METADATA_MIGRATIONS });
    let time = 0;
    const queue = createDeliveryQueue(database, { now: () => new Date(time), maxEntries: 2 });
    const one = { endpoint: 'a', body: '{}' };
    expect(await queue.add([one, one, one, { endpoint: 'b', body: '{}' }])).toBe(1);
    const first = await queue.claim('a', new Date(100));
    if (first.kind !== 'delivery') throw new Error('nothing to claim');
    // Nobody else gets it meanwhile, and it holds back the second.
    expect(await queue.claim('a', new Date(100))).toEqual({ kind: 'later', at: new Date(100) });
    time = 100;
    expect(await queue.claim('a', new Date(200))).toMatchObject({ delivery: { id: first.delivery.id, attempts: 2 } });
    await queue.remove(first.delivery.id);
    expect(await queue.claim('a', new Date(200))).toMatchObject({ kind: 'delivery' });
    expect(await queue.claim('none', new Date(200))).toEqual({ kind: 'empty' });
  });

  it('need a key that cannot be guessed', async () => {
    await writeFile(join(root, 'secret'), 'short');
    await expect(open()).rejects.toThrow('want 16 bytes or more');
  });

  it('wait longer each time, up to ten minutes', () => {
    expect([1, 2, 3, 11, 1000].map(backoffMs)).toEqual([1_000, 2_000, 4_000, 600_000, 600_000]);
  });
});
