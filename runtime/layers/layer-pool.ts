/**
 * Worker threads that unpack layers, a few at a time, first come first served: give the jobs base first. A thread is
 * started when it is needed and ends when it has been idle for a while; a thread that dies (memory, a bug) takes only
 * its own jobs with it.
 */
import { Worker } from 'node:worker_threads';
import { AppError, hasCode } from '../../shared/errors.ts';
import type { FromWorker, ToWorker, TransferredError, UnpackedLayer, UnpackRequest } from './layer-worker.ts';

export interface LayerPool extends AsyncDisposable {
  unpack(request: UnpackRequest, onProgress?: (consumedBytes: number) => void): Unpacking;
}

export interface Unpacking {
  /** Settles only once the thread has let go of the staging file. */
  readonly layer: Promise<UnpackedLayer>;
  /** The image files below, base first. */
  lower(paths: readonly string[]): void;
  /** Makes `layer` reject with 'timeout'. Idempotent. */
  cancel(): void;
}

export interface LayerPoolOptions {
  /** Layers that stream at the same time. */
  readonly size: number;
  readonly idleMs?: number;
}

/** Beyond this a thread dies, instead of the whole engine: the last line against hostile metadata. */
const HEAP_MAX_MIB = 768;
/** Small, so that spent chunks are collected soon: 50 MiB less at the peak, and no slower. */
const YOUNG_HEAP_MIB = 4;
const IDLE_MS = 5_000;

interface Job {
  readonly id: number;
  readonly request: UnpackRequest;
  readonly outcome: PromiseWithResolvers<UnpackedLayer>;
  readonly onProgress: ((consumedBytes: number) => void) | undefined;
  thread: Thread | undefined;
  lowerPaths: readonly string[] | undefined;
}

interface Thread {
  readonly worker: Worker;
  readonly jobs: Set<Job>;
  streaming: Job | undefined;
  idleTimer: NodeJS.Timeout | undefined;
}

export function createLayerPool(options: LayerPoolOptions): LayerPool {
  const threads = new Set<Thread>();
  const queue: Job[] = [];
  const jobs = new Map<number, Job>();
  let lastJob = 0;

  function dispatch(): void {
    while (queue.length > 0) {
      const thread = [...threads].find(({ streaming }) => streaming === undefined) ?? startThread();
      const job = thread && queue.shift();
      if (thread === undefined || job === undefined) return;
      clearTimeout(thread.idleTimer);
      thread.worker.ref();
      thread.streaming = job;
      thread.jobs.add(job);
      job.thread = thread;
      send(thread, { type: 'unpack', job: job.id, request: job.request });
      if (job.lowerPaths !== undefined) send(thread, { type: 'lower', job: job.id, paths: job.lowerPaths });
    }
  }

  function send(thread: Thread, message: ToWorker): void {
    thread.worker.postMessage(message);
  }

  function startThread(): Thread | undefined {
    if (threads.size >= options.size) return undefined;
    const worker = new Worker(new URL('./layer-worker.ts', import.meta.url), {
      resourceLimits: { maxOldGenerationSizeMb: HEAP_MAX_MIB, maxYoungGenerationSizeMb: YOUNG_HEAP_MIB },
    });
    const thread: Thread = { worker, jobs: new Set(), streaming: undefined, idleTimer: undefined };
    threads.add(thread);
    worker.on('message', (message: FromWorker) => receive(thread, message));
    worker.on('error', (error) => {
      const outOfMemory = hasCode(error, 'ERR_WORKER_OUT_OF_MEMORY');
      lose(
        thread,
        outOfMemory
          ? new AppError('too-large', 'cannot unpack the layer: its metadata needs too much memory', { cause: error })
          : new AppError('unavailable', 'cannot unpack the layer: its worker failed', { cause: error }),
      );
    });
    worker.on('exit', () => lose(thread, new AppError('unavailable', 'cannot unpack the layer: its worker ended')));
    return thread;
  }

  function lose(thread: Thread, error: AppError): void {
    threads.delete(thread);
    clearTimeout(thread.idleTimer);
    for (const job of thread.jobs) {
      jobs.delete(job.id);
      job.outcome.reject(error);
    }
    thread.jobs.clear();
    dispatch();
  }

  function receive(thread: Thread, message: FromWorker): void {
    const job = jobs.get(message.job);
    if (job === undefined) return;
    switch (message.type) {
      case 'progress':
        job.onProgress?.(message.consumedBytes);
        break;
      case 'streamed':
        release(thread, job);
        break;
      case 'done':
        end(thread, job);
        job.outcome.resolve(message.layer);
        break;
      case 'failed':
        end(thread, job);
        job.outcome.reject(received(message.error));
        break;
      default:
        message satisfies never;
    }
  }

  function end(thread: Thread, job: Job): void {
    jobs.delete(job.id);
    thread.jobs.delete(job);
    release(thread, job);
    if (thread.jobs.size > 0) return;
    // An idle pool must not keep the process alive.
    thread.worker.unref();
    thread.idleTimer = setTimeout(() => {
      threads.delete(thread);
      void thread.worker.terminate();
    }, options.idleMs ?? IDLE_MS).unref();
  }

  function release(thread: Thread, job: Job): void {
    if (thread.streaming === job) thread.streaming = undefined;
    dispatch();
  }

  return {
    unpack(request, onProgress) {
      lastJob += 1;
      const job: Job = {
        id: lastJob,
        request,
        outcome: Promise.withResolvers(),
        onProgress,
        thread: undefined,
        lowerPaths: undefined,
      };
      jobs.set(job.id, job);
      queue.push(job);
      dispatch();
      return {
        layer: job.outcome.promise,
        lower(paths) {
          job.lowerPaths = paths;
          if (job.thread !== undefined) send(job.thread, { type: 'lower', job: job.id, paths });
        },
        cancel() {
          if (job.thread !== undefined) {
            send(job.thread, { type: 'cancel', job: job.id });
            return;
          }
          const waiting = queue.indexOf(job);
          if (waiting === -1) return;
          queue.splice(waiting, 1);
          jobs.delete(job.id);
          job.outcome.reject(new AppError('timeout', 'cannot unpack the layer: it was cancelled'));
        },
      };
    },
    async [Symbol.asyncDispose]() {
      for (const job of queue.splice(0))
        job.outcome.reject(new AppError('timeout', 'cannot unpack the layer: the engine stops'));
      await Promise.all([...threads].map(({ worker }) => worker.terminate()));
    },
  };
}

function received({ kind, message, stack }: TransferredError): Error {
  if (kind !== undefined) return new AppError(kind, message);
  const error = new Error(message);
  if (stack !== undefined) error.stack = stack;
  return error;
}
