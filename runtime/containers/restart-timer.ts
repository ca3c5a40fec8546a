/** The restart of one container that may be due. Each delay is longer than the one before, until somebody starts it. */
import { restartDelayMs } from './restart.ts';

export class RestartTimer {
  #timer: NodeJS.Timeout | undefined;
  #delayMs = 0;

  /** @param ranMs how long the run lasted that has ended */
  schedule(ranMs: number, restart: () => void): void {
    this.#delayMs = restartDelayMs(this.#delayMs, ranMs);
    this.#timer = setTimeout(restart, this.#delayMs);
  }

  /** None is due; the next delay is as if this one had come. */
  cancel(): void {
    clearTimeout(this.#timer);
  }

  /** The next delay is the first one again. */
  reset(): void {
    this.#delayMs = 0;
  }
}
