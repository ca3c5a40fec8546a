/**
 * Webhooks: tells configured endpoints of pushes, pulls and deletes. Events are stored before the client has its answer
 * and delivered afterwards, at least once, in order, with growing pauses; a dead endpoint delays nobody else, and what
 * it does not take in a day is given up.
 */
import { readFile } from 'node:fs/promises';
import type { Database } from '../../shared/database.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { compileGlobs, type Matcher } from '../access/globs.ts';
import { openLiveFile } from '../access/live-file.ts';
import type { MetadataTables } from '../metadata/schema.ts';
import { type EventSink, type ManifestEvent, toEnvelope } from './events.ts';
import type { WebhookEndpoint } from './options.ts';
import { createDeliveryQueue, type Delivery, type DeliveryQueue } from './queue.ts';
import { parseWebhookSecret, post } from './sender.ts';

export interface WebhookOptions {
  readonly endpoints: readonly WebhookEndpoint[];
  readonly database: Database<MetadataTables>;
  readonly queueMax: number;
  readonly log: Log;
  readonly now: () => Date;
  readonly randomId: () => string;
}

export interface Webhooks extends EventSink, AsyncDisposable {}

const POST_TIMEOUT_MS = 10_000;
/** After this another process may try: the one that claimed it is gone. */
const CLAIM_MS = 30_000;
const BACKOFF_MIN_MS = 1_000;
const BACKOFF_MAX_MS = 10 * 60_000;
const GIVE_UP_MS = 24 * 3_600_000;
/** How often to look for what other processes have queued. */
const POLL_MS = 5_000;
/** How long pulls gather before they are written together. */
const GATHER_MS = 500;
const GATHER_MAX = 1_000;

interface Endpoint extends WebhookEndpoint {
  readonly wants: (event: ManifestEvent) => boolean;
  readonly key: () => Uint8Array;
}

/** @throws AppError 'invalid' for names that are there twice, patterns and files that cannot be used */
export async function openWebhooks(options: WebhookOptions): Promise<Webhooks> {
  const { database, queueMax, log, now, randomId } = options;
  await using undo = new AsyncDisposableStack();
  const endpoints: Endpoint[] = [];
  for (const endpoint of options.endpoints) {
    const { name, actions, repositories, secretFile } = endpoint;
    if (endpoints.some((other) => other.name === name))
      throw new AppError('invalid', `cannot use webhooks: two have the name ${JSON.stringify(name)}`);
    const matches: Matcher = compileGlobs(repositories);
    const secret = undo.use(await openLiveFile({ paths: [secretFile], load: () => readSecret(secretFile), log }));
    const wants = ({ action, repository }: ManifestEvent) => actions.includes(action) && matches(repository);
    endpoints.push({ ...endpoint, wants, key: secret.current });
  }

  const queue = createDeliveryQueue(database, { now, maxEntries: queueMax });
  const couriers = new Map(
    endpoints.map((endpoint) => [endpoint.name, undo.use(startCourier(endpoint, { queue, log, now }))]),
  );

  const store = async (events: readonly { readonly event: ManifestEvent; readonly at: Date }[]) => {
    const deliveries = events.flatMap(({ event, at }) => {
      const body = toEnvelope(event, { at, randomId });
      return endpoints.filter(({ wants }) => wants(event)).map(({ name }) => ({ endpoint: name, body }));
    });
    if (deliveries.length === 0) return;
    const refused = await queue.add(deliveries);
    if (refused > 0) log.warn('webhook events dropped, too many wait', { count: refused });
    for (const endpoint of new Set(deliveries.map(({ endpoint }) => endpoint))) couriers.get(endpoint)?.wake();
  };

  let gathered: { event: ManifestEvent; at: Date }[] = [];
  const flush = async () => {
    const events = gathered;
    gathered = [];
    try {
      await store(events);
    } catch (error) {
      log.warn('webhook events of pulls lost', { count: events.length, error });
    }
  };
  const timer = setInterval(flush, GATHER_MS).unref();
  undo.defer(async () => {
    clearInterval(timer);
    await flush();
  });

  const owned = undo.move();
  return {
    async emit(event) {
      if (!endpoints.some(({ wants }) => wants(event))) return;
      const noted = { event, at: now() };
      if (event.action !== 'pull') await store([noted]);
      else if (gathered.length < GATHER_MAX) gathered.push(noted);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function readSecret(path: string): Promise<Uint8Array> {
  const secret = parseWebhookSecret(await readFile(path, 'utf8'));
  if (secret.length < 16)
    throw new AppError('invalid', `cannot use webhook secret ${JSON.stringify(path)}: want 16 bytes or more`);
  return secret;
}

interface CourierPorts {
  readonly queue: DeliveryQueue;
  readonly log: Log;
  readonly now: () => Date;
}

interface Courier extends AsyncDisposable {
  /** There is something to deliver, or may be. */
  wake(): void;
}

/** Delivers to one endpoint, one at a time, until it is disposed. */
function startCourier(endpoint: Endpoint, { queue, log, now }: CourierPorts): Courier {
  const stop = new AbortController();
  let rings = 0;
  let ring = () => {};
  const wake = () => {
    rings += 1;
    ring();
  };

  async function deliver({ id, body, createdAt, attempts }: Delivery): Promise<void> {
    const failure = await post({
      url: endpoint.url,
      key: endpoint.key(),
      id: `${endpoint.name}-${id}`,
      body,
      at: now(),
      signal: AbortSignal.any([stop.signal, AbortSignal.timeout(POST_TIMEOUT_MS)]),
    });
    if (failure === undefined) return queue.remove(id);
    // Cut by our own shutdown: the next process tries again at once.
    if (stop.signal.aborted) return queue.postpone(id, now());
    const fields = { endpoint: endpoint.name, attempts, reason: failure };
    if (now().getTime() - createdAt.getTime() > GIVE_UP_MS) {
      log.error('webhook delivery given up', fields);
      return queue.remove(id);
    }
    log.warn('webhook delivery failed', fields);
    return queue.postpone(id, new Date(now().getTime() + backoffMs(attempts)));
  }

  /** How long to wait before looking again. */
  async function step(): Promise<number> {
    const claim = await queue.claim(endpoint.name, new Date(now().getTime() + CLAIM_MS));
    switch (claim.kind) {
      case 'empty':
        return POLL_MS;
      case 'later':
        return Math.min(POLL_MS, Math.max(BACKOFF_MIN_MS / 10, claim.at.getTime() - now().getTime()));
      case 'delivery':
        await deliver(claim.delivery);
        return 0;
      default:
        return claim satisfies never;
    }
  }

  async function run(): Promise<void> {
    while (!stop.signal.aborted) {
      const heard = rings;
      let pauseMs = POLL_MS;
      try {
        pauseMs = await step();
      } catch (error) {
        log.error('webhook queue failed', { endpoint: endpoint.name, error });
      }
      if (pauseMs === 0 || rings !== heard) continue;
      await pause(pauseMs);
    }
  }

  async function pause(ms: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(resolve, ms).unref();
    ring = resolve;
    await promise;
    clearTimeout(timer);
  }

  const running = run();
  return {
    wake,
    async [Symbol.asyncDispose]() {
      stop.abort();
      wake();
      await running;
    },
  };
}

/** Doubles with each attempt. */
export function backoffMs(attempts: number): number {
  return Math.min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** Math.min(30, attempts - 1));
}
