/**
 * EventLog: what happened in the engine, in order, for `/events` and for whoever waits on a state change.
 *
 * Times are strictly increasing nanoseconds, so that a client may resume after the last event it saw. The log is a
 * ring in memory: events tell a watcher what to look at again, the database is the truth, so nothing that must survive
 * a restart is kept here. Types, actions and attributes are Docker's (`docker events --help`).
 */
import { AppError } from '../shared/errors.ts';
import type { Cancelable } from '../shared/streams.ts';

export const EVENT_TYPES = ['builder', 'container', 'daemon', 'image', 'network', 'volume'] as const;
export type EventType = (typeof EVENT_TYPES)[number];

export interface EventBody {
  readonly type: EventType;
  /** For example `start`, `die`, `exec_create: true`. */
  readonly action: string;
  /** Id of what it happened to; an image's name for `pull`. */
  readonly id: string;
  readonly attributes: Readonly<Record<string, string>>;
}

export interface EngineEvent extends EventBody {
  readonly timeNano: bigint;
}

/** Keys of `docker events --filter`; within a key any value may match, all keys must. */
export type EventFilters = Readonly<Record<string, readonly string[]>>;

export interface EventQuery extends Cancelable {
  /** Inclusive; without it nothing from the past. */
  readonly sinceNano?: bigint | undefined;
  /** Inclusive; in the past = the replay alone. */
  readonly untilNano?: bigint | undefined;
  readonly filters?: EventFilters | undefined;
}

export interface EventLog {
  publish(event: EventBody): void;
  /**
   * What the query asks of the past, then what happens, until `untilNano`, an abort (both end it) or close. It takes
   * effect at the call: an event published after it is never missed.
   * @throws AppError 'unavailable' from the iterator when the reader has fallen too far behind
   */
  follow(query?: EventQuery): AsyncIterableIterator<EngineEvent> & AsyncDisposable;
  /** How many follow now. */
  readonly listeners: number;
  /** Ends every follower. */
  close(): void;
}

export interface EventLogOptions {
  readonly now: () => Date;
  /** Events kept for replay; dockerd keeps 256. */
  readonly keep?: number;
}

const KEEP = 1024;
/** Events that one reader may be behind before it is cut off, so that a client that never reads costs bounded memory. */
const BACKLOG_MAX = 8192;
const NANOS_PER_MS = 1_000_000n;

export function createEventLog(options: EventLogOptions): EventLog {
  const keep = options.keep ?? KEEP;
  const ring: EngineEvent[] = [];
  const followers = new Set<Follower>();
  let lastNano = 0n;

  return {
    publish(body) {
      const clock = BigInt(options.now().getTime()) * NANOS_PER_MS;
      lastNano = clock > lastNano ? clock : lastNano + 1n;
      const event: EngineEvent = { ...body, timeNano: lastNano };
      ring.push(event);
      if (ring.length > keep) ring.shift();
      for (const follower of followers) follower.offer(event);
    },
    follow(query = {}) {
      const { sinceNano } = query;
      const past = sinceNano === undefined ? [] : ring.filter((event) => event.timeNano >= sinceNano);
      const follower: Follower = new Follower(query, { now: options.now, onEnd: () => followers.delete(follower) });
      followers.add(follower);
      for (const event of past) follower.offer(event);
      // An aborted signal never fires again.
      if (query.signal?.aborted === true) follower.end();
      return follower;
    },
    get listeners() {
      return followers.size;
    },
    close() {
      for (const follower of followers) follower.end();
    },
  };
}

/** One reader's queue between `publish`, which never waits, and an iterator, which does. */
class Follower implements AsyncIterableIterator<EngineEvent>, AsyncDisposable {
  readonly #query: EventQuery;
  readonly #onEnd: () => void;
  readonly #stop = () => this.end();
  readonly #timer: NodeJS.Timeout | undefined;
  #queue: EngineEvent[] = [];
  #ended = false;
  #failure: AppError | undefined;
  #waiting: PromiseWithResolvers<void> | undefined;

  constructor(query: EventQuery, hooks: { readonly now: () => Date; readonly onEnd: () => void }) {
    this.#query = query;
    this.#onEnd = hooks.onEnd;
    query.signal?.addEventListener('abort', this.#stop, { once: true });
    if (query.untilNano !== undefined) {
      const leftMs = Number(query.untilNano / NANOS_PER_MS) - hooks.now().getTime();
      // Node fires timers beyond 2^31-1 ms at once.
      this.#timer = setTimeout(this.#stop, Math.min(Math.max(leftMs, 0), 2 ** 31 - 1));
    }
  }

  offer(event: EngineEvent): void {
    const { untilNano, filters } = this.#query;
    if (this.#ended || (untilNano !== undefined && event.timeNano > untilNano)) return;
    if (filters !== undefined && !matchesFilters(event, filters)) return;
    this.#queue.push(event);
    if (this.#queue.length > BACKLOG_MAX) {
      this.#queue = [];
      this.#failure = new AppError('unavailable', `cannot follow events: the reader is ${BACKLOG_MAX} events behind`);
      this.end();
    }
    this.#waiting?.resolve();
  }

  /** What is queued is still delivered. */
  end(): void {
    this.#ended = true;
    clearTimeout(this.#timer);
    this.#query.signal?.removeEventListener('abort', this.#stop);
    this.#onEnd();
    this.#waiting?.resolve();
  }

  async next(): Promise<IteratorResult<EngineEvent>> {
    for (;;) {
      const event = this.#queue.shift();
      if (event !== undefined) return { value: event, done: false };
      if (this.#failure !== undefined) throw this.#failure;
      if (this.#ended) return { value: undefined, done: true };
      this.#waiting = Promise.withResolvers();
      await this.#waiting.promise;
    }
  }

  async return(): Promise<IteratorResult<EngineEvent>> {
    this.#queue = [];
    this.end();
    return { value: undefined, done: true };
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }
}

/** Pure. Keys that are no filter match nothing: the API refuses them before. */
export function matchesFilters(event: EngineEvent, filters: EventFilters): boolean {
  return Object.entries(filters).every(([key, values]) => values.some((value) => matchesOne(event, key, value)));
}

function matchesOne(event: EngineEvent, key: string, value: string): boolean {
  switch (key) {
    case 'type':
      return event.type === value;
    case 'event':
      // `exec_create` matches `exec_create: true`, `health_status` matches `health_status: healthy`.
      return event.action === value || event.action.startsWith(`${value}:`);
    case 'scope':
      return value === 'local';
    case 'label':
      return matchesLabel(event.attributes, value);
    case 'image':
      return matchesImage(event, value);
    case 'container':
    case 'network':
    case 'volume':
    case 'daemon':
      return event.type === key && (event.id.startsWith(value) || event.attributes.name?.startsWith(value) === true);
    default:
      return false;
  }
}

function matchesLabel(attributes: Readonly<Record<string, string>>, wanted: string): boolean {
  const equals = wanted.indexOf('=');
  if (equals === -1) return Object.hasOwn(attributes, wanted);
  const key = wanted.slice(0, equals);
  return Object.hasOwn(attributes, key) && attributes[key] === wanted.slice(equals + 1);
}

/** An image's own events and those of containers made from it; with or without the tag. */
function matchesImage(event: EngineEvent, wanted: string): boolean {
  const names = event.type === 'image' ? [event.id, event.attributes.name] : [event.attributes.image];
  return names.some((name) => name !== undefined && (name === wanted || withoutTag(name) === wanted));
}

function withoutTag(name: string): string {
  const colon = name.lastIndexOf(':');
  return colon > name.lastIndexOf('/') ? name.slice(0, colon) : name;
}
