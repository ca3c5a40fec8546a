/**
 * Steps: what a build tells of its work while it is at it, and the promise that equal work is done once: found in the
 * build cache, waited for when another build is doing it, or done and kept.
 */
import type { Digest } from '../../shared/digest.ts';
import { messageOf } from '../../shared/errors.ts';
import { type Cancelable, unlessAborted } from '../../shared/streams.ts';
import type { ImageLayer, Lease } from '../images/images.ts';
import type { BuildEvent, BuildStep } from './builds.ts';
import type { BuildCache, StepResult } from './cache.ts';

/** Work of all builds of an engine, by key. */
export type Underway = Map<Digest, Promise<unknown>>;

export interface StepsPorts {
  readonly cache: BuildCache;
  readonly underway: Underway;
  readonly lease: Lease;
  /** Until it is disposed, records that this build has found or made are in use. */
  readonly user: AsyncDisposableStack;
  readonly now: () => Date;
  readonly onEvent: (event: BuildEvent) => void;
  /** Looks for a result elsewhere, once the build cache has none. */
  readonly importResult: (key: Digest, options: ImportOptions) => Promise<StepResult | undefined>;
  /** Of this build's own results, what may be published as a cache. */
  readonly onResult: (key: Digest, description: string, result: StepResult) => void;
}

export interface ImportOptions extends Cancelable {
  /** What is below, base first. */
  readonly lower: readonly ImageLayer[];
}

/** One step at work. */
export interface RunningStep {
  readonly step: BuildStep;
  output(stream: 'stdout' | 'stderr', bytes: Buffer): void;
  progress(name: string, current: number, total: number | undefined): void;
  running(containerId: string): void;
}

export interface Work {
  readonly key: Digest;
  /** Looks nothing up. */
  readonly isFresh: boolean;
  /** Base first. */
  readonly lower: readonly ImageLayer[];
  make(): Promise<StepResult>;
}

export class Steps {
  readonly #ports: StepsPorts;
  #count = 0;

  constructor(ports: StepsPorts) {
    this.#ports = ports;
  }

  /**
   * Tells of the step from its start to its end, to the build's listener or another one. `work` says how it came out, and
   * what there is after it.
   */
  async during<T extends { readonly isCached: boolean; readonly result?: string | undefined }>(
    about: Omit<BuildStep, 'id'>,
    work: (step: RunningStep) => Promise<T>,
    { onEvent }: Pick<StepsPorts, 'onEvent'> = this.#ports,
  ): Promise<T> {
    const { now } = this.#ports;
    this.#count += 1;
    const step: BuildStep = { id: this.#count, ...about };
    const startedMs = now().getTime();
    onEvent({ kind: 'started', step });
    const ended = (outcome: 'done' | 'cached' | 'failed' | 'canceled', more: Pick<EndedEvent, 'message' | 'result'>) =>
      onEvent({ kind: 'ended', step, outcome, durationMs: now().getTime() - startedMs, ...more });
    try {
      const done = await work({
        step,
        output: (stream, bytes) => onEvent({ kind: 'output', step, stream, bytes }),
        progress: (name, current, total) => onEvent({ kind: 'progress', step, name, current, total }),
        running: (containerId) => onEvent({ kind: 'running', step, containerId }),
      });
      ended(done.isCached ? 'cached' : 'done', { message: undefined, result: done.result });
      return done;
    } catch (error) {
      const isCanceled = error instanceof Error && (error.name === 'AbortError' || isTimeout(error));
      // The lines below show the Dockerfile; whoever gets the error shows them once.
      ended(isCanceled ? 'canceled' : 'failed', { message: messageOf(error).split('\n', 1)[0] });
      throw error;
    }
  }

  /** The result of this work, from wherever it is to be had. */
  async obtain(work: Work, description: string, { signal }: Cancelable): Promise<StepResult & { isCached: boolean }> {
    const { cache, underway, user, lease, onResult } = this.#ports;
    const { key, isFresh } = work;
    for (;;) {
      signal?.throwIfAborted();
      const other = underway.get(key);
      if (other === undefined) {
        const known = isFresh ? undefined : await cache.find(key, user, lease);
        if (known !== undefined) {
          onResult(key, description, known);
          return { ...known, isCached: true };
        }
        if (!underway.has(key)) break;
        continue;
      }
      // Its failure is its own: it may have been cancelled, or lacked a secret.
      const over = other.then(
        () => {},
        () => {},
      );
      await unlessAborted(over, signal);
      if (!isFresh) continue;
      break;
    }
    const making = this.#make(work, description, { signal });
    underway.set(key, making);
    try {
      const made = await making;
      onResult(key, description, made);
      return made;
    } finally {
      if (underway.get(key) === making) underway.delete(key);
    }
  }

  async #make(work: Work, description: string, { signal }: Cancelable): Promise<StepResult & { isCached: boolean }> {
    const { cache, user, importResult } = this.#ports;
    const imported = work.isFresh ? undefined : await importResult(work.key, { lower: work.lower, signal });
    signal?.throwIfAborted();
    const result = imported ?? (await work.make());
    await cache.put(work.key, { description, result }, user);
    return { ...result, isCached: imported !== undefined };
  }
}

/** Answers whether it was asked the same before; it forgets what was asked first. */
export function createMemory(max: number): (key: string) => boolean {
  const known = new Set<string>();
  return (key) => {
    const isKnown = known.delete(key);
    known.add(key);
    const [oldest] = known;
    if (known.size > max && oldest !== undefined) known.delete(oldest);
    return isKnown;
  };
}

type EndedEvent = Extract<BuildEvent, { kind: 'ended' }>;

function isTimeout(error: Error): boolean {
  return 'kind' in error && error.kind === 'timeout';
}
