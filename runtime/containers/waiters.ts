/** Those who wait for something to happen to one container: it stops running, its next end, its removal. */
import { AppError } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { WaitCondition, WaitResult } from './containers.ts';

/** What our own parts wait for: that it runs no more, and is not restarted either. */
type Condition = WaitCondition | 'at-rest';

interface Waiter {
  readonly condition: Condition;
  readonly resolve: (result: WaitResult) => void;
}

export class Waiters {
  readonly #waiters = new Set<Waiter>();
  readonly #result: () => WaitResult;

  /** `result` is what is told to those who have waited long enough. */
  constructor(result: () => WaitResult) {
    this.#result = result;
  }

  /** Resolves the next time that one of its condition is resolved. @throws AppError 'timeout' when it is cancelled */
  wait(condition: Condition, options: Cancelable): Promise<WaitResult> {
    const { promise, resolve, reject } = Promise.withResolvers<WaitResult>();
    const waiter: Waiter = { condition, resolve };
    this.#waiters.add(waiter);
    const stop = () => {
      this.#waiters.delete(waiter);
      reject(new AppError('timeout', `cannot wait until a container is ${condition}: nobody waits any more`));
    };
    options.signal?.addEventListener('abort', stop, { once: true });
    return promise.finally(() => options.signal?.removeEventListener('abort', stop));
  }

  /** These have come true. */
  resolve(...conditions: readonly Condition[]): void {
    for (const waiter of this.#waiters) {
      if (!conditions.includes(waiter.condition)) continue;
      this.#waiters.delete(waiter);
      waiter.resolve(this.#result());
    }
  }
}
