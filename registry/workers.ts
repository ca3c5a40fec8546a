/**
 * Workers: one registry served by several processes on one port (node:cluster). The primary answers no
 * client. It starts the workers, replaces those that die, gives turns at upload sessions across them and sums their
 * metrics; a turn of a worker that died is given on only after its process has ended, when it can write no more.
 * All else that they share is in the root: transactions, leases and keys of tokens, as between independent processes.
 */
import cluster, { type Worker } from 'node:cluster';
import { setTimeout as sleep } from 'node:timers/promises';
import { z } from 'zod';
import { AppError } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import { sumMetrics } from './metrics.ts';
import type { Peers } from './registry.ts';
import { createTurns } from './turns.ts';

const samplesSchema = z.array(z.looseObject({}));
type Samples = z.infer<typeof samplesSchema>;

const fromWorkerSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('ready'), url: z.string() }),
  z.object({ kind: z.literal('take'), id: z.number(), key: z.string() }),
  z.object({ kind: z.literal('give'), id: z.number() }),
  z.object({ kind: z.literal('gather'), id: z.number() }),
  z.object({ kind: z.literal('samples'), id: z.number(), samples: samplesSchema }),
]);
type FromWorker = z.infer<typeof fromWorkerSchema>;

const fromPrimarySchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('taken'), id: z.number() }),
  z.object({ kind: z.literal('refused'), id: z.number(), message: z.string() }),
  z.object({ kind: z.literal('sample'), id: z.number() }),
  z.object({ kind: z.literal('gathered'), id: z.number(), text: z.string() }),
]);
type FromPrimary = z.infer<typeof fromPrimarySchema>;

/** Tells a worker that upkeep is its part. */
export const UPKEEP_VARIABLE = 'BERTH_WORKER_UPKEEP';
/** A worker that cannot start is tried again after this. */
const RESTART_MS = 1_000;
/** A worker that does not tell its numbers within this is left out. */
const SAMPLE_MS = 1_000;

export interface WorkersOptions {
  readonly count: number;
  /** How long a request waits for its turn at an upload session. */
  readonly waitMs: number;
  readonly log: Log;
}

export interface Workers {
  readonly url: string;
  /** Drains all and waits for their end. */
  stop(): Promise<void>;
}

/** Resolves when all workers serve. @throws AppError 'unavailable' when one cannot start; the others are ended then */
export async function startWorkers({ count, waitMs, log }: WorkersOptions): Promise<Workers> {
  // With SCHED_RR a connection that is on its way to a worker that dies stays open for ever, answered by nobody.
  cluster.schedulingPolicy = cluster.SCHED_NONE;
  const turns = createTurns({ waitMs });
  const exits = new Set<Promise<void>>();
  const asked = new Map<number, (samples: Samples) => void>();
  let lastId = 0;
  let state: 'starting' | 'serving' | 'stopping' = 'starting';

  async function sample(worker: Worker): Promise<Samples> {
    const id = ++lastId;
    const { promise, resolve } = Promise.withResolvers<Samples>();
    asked.set(id, resolve);
    const late = setTimeout(() => resolve([]), SAMPLE_MS);
    const gone = () => resolve([]);
    worker.once('exit', gone);
    tell(worker, { kind: 'sample', id });
    try {
      return await promise;
    } finally {
      clearTimeout(late);
      worker.off('exit', gone);
      asked.delete(id);
    }
  }

  /** Answers when it serves. */
  function start(slot: number): Promise<string> {
    const worker = cluster.fork({ [UPKEEP_VARIABLE]: slot === 0 ? '1' : '0' });
    const ready = Promise.withResolvers<string>();
    const exited = Promise.withResolvers<void>();
    const held = new Map<number, Disposable>();
    let alive = true;
    let served = false;
    exits.add(exited.promise);

    const answer = async (message: FromWorker): Promise<void> => {
      switch (message.kind) {
        case 'ready':
          served = true;
          return ready.resolve(message.url);
        case 'take':
          try {
            const turn = await turns.take(message.key);
            if (!alive) return turn[Symbol.dispose]();
            held.set(message.id, turn);
            return tell(worker, { kind: 'taken', id: message.id });
          } catch (error) {
            if (!(error instanceof AppError)) throw error;
            return tell(worker, { kind: 'refused', id: message.id, message: error.message });
          }
        case 'give':
          held.get(message.id)?.[Symbol.dispose]();
          held.delete(message.id);
          return;
        case 'gather': {
          const samples = await Promise.all(
            Object.values(cluster.workers ?? {}).map((peer) => (peer ? sample(peer) : [])),
          );
          return tell(worker, { kind: 'gathered', id: message.id, text: await sumMetrics(samples) });
        }
        case 'samples':
          return asked.get(message.id)?.(message.samples);
        default:
          return message satisfies never;
      }
    };
    worker.on('message', (message: unknown) => {
      answer(fromWorkerSchema.parse(message)).catch((error) => log.error('message of a worker failed', { error }));
    });
    worker.on('error', (error) => log.warn('worker cannot be reached', { pid: worker.process.pid, error }));
    worker.once('exit', (code: number | null, signal: string | null) => {
      alive = false;
      for (const turn of held.values()) turn[Symbol.dispose]();
      exits.delete(exited.promise);
      exited.resolve();
      ready.reject(new AppError('unavailable', 'cannot start the workers: one ended before it served'));
      if (state !== 'serving') return;
      log.error('worker ended, starting another', { pid: worker.process.pid, code, signal });
      void replace(slot, served ? 0 : RESTART_MS);
    });
    return ready.promise;
  }

  async function replace(slot: number, pauseMs: number): Promise<void> {
    await sleep(pauseMs);
    if (state !== 'serving') return;
    // Its end is seen, said and answered where it exits.
    await start(slot).catch(() => {});
  }

  async function stop(): Promise<void> {
    state = 'stopping';
    for (const worker of Object.values(cluster.workers ?? {})) worker?.process.kill('SIGTERM');
    await Promise.all(exits);
  }

  try {
    // The first makes what is not there yet: metadata, the first key.
    let url = await start(0);
    for (let slot = 1; slot < count; slot += 1) url = await start(slot);
    state = 'serving';
    return { url, stop };
  } catch (error) {
    await stop();
    throw error;
  }
}

export interface WorkerSide extends Peers {
  ready(url: string): void;
  /** Lets the process end. */
  leave(): void;
}

/** For a process that startWorkers started. */
export function joinWorkers({ upkeep }: { readonly upkeep: boolean }): WorkerSide {
  const waiting = new Map<number, (answer: FromPrimary) => void>();
  let lastId = 0;
  let sampleOwn = async (): Promise<object[]> => [];
  const say = (message: FromWorker) => void process.send?.(message);
  const request = (kind: { kind: 'take'; key: string } | { kind: 'gather' }) => {
    const id = ++lastId;
    const { promise, resolve } = Promise.withResolvers<FromPrimary>();
    waiting.set(id, resolve);
    say({ ...kind, id });
    return promise;
  };
  process.on('message', async (given: unknown) => {
    const message = fromPrimarySchema.parse(given);
    if (message.kind === 'sample')
      return say({ kind: 'samples', id: message.id, samples: samplesSchema.parse(await sampleOwn()) });
    waiting.get(message.id)?.(message);
    waiting.delete(message.id);
  });

  return {
    upkeep,
    turns: {
      async take(key) {
        const answer = await request({ kind: 'take', key });
        if (answer.kind !== 'taken')
          throw new AppError('unavailable', answer.kind === 'refused' ? answer.message : `cannot use ${key}`);
        return { [Symbol.dispose]: () => say({ kind: 'give', id: answer.id }) };
      },
    },
    shareMetrics(own) {
      sampleOwn = own.samples;
      return {
        ...own,
        async text() {
          const answer = await request({ kind: 'gather' });
          return answer.kind === 'gathered' ? answer.text : '';
        },
      };
    },
    ready: (url) => say({ kind: 'ready', url }),
    leave: () => void cluster.worker?.disconnect(),
  };
}

/** A worker that is about to end hears nothing, and that is seen when it exits. */
function tell(worker: Worker, message: FromPrimary): void {
  if (worker.isConnected()) worker.send(message, () => {});
}
