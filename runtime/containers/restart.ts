/**
 * When a container that has ended is started again, and how long after. Pure.
 * https://docs.docker.com/engine/containers/start-containers-automatically/
 */
import type { RestartPolicy } from './request.ts';

const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 60_000;
/** A run of this length counts as a success: the next delay is the first one again. */
const STABLE_MS = 10_000;

export interface EndedRun {
  readonly exitCode: number;
  /** Restarts by policy since somebody last started it. */
  readonly restartCount: number;
  readonly stoppedByUser: boolean;
}

export function wantsRestart(policy: RestartPolicy, run: EndedRun): boolean {
  if (run.stoppedByUser) return false;
  switch (policy.Name) {
    case 'no':
      return false;
    case 'always':
    case 'unless-stopped':
      return true;
    case 'on-failure':
      return run.exitCode !== 0 && (policy.MaximumRetryCount === 0 || run.restartCount < policy.MaximumRetryCount);
    default:
      throw policy.Name satisfies never;
  }
}

/** Whether it is started when the engine starts, having been stopped or not. */
export function wantsStartAtBoot(policy: RestartPolicy, stoppedByUser: boolean): boolean {
  return policy.Name === 'always' || (policy.Name === 'unless-stopped' && !stoppedByUser);
}

/** Doubles from 100 ms to a minute. `previousMs` 0 = there was no restart before. */
export function restartDelayMs(previousMs: number, ranMs: number): number {
  if (previousMs === 0 || ranMs >= STABLE_MS) return FIRST_DELAY_MS;
  return Math.min(previousMs * 2, MAX_DELAY_MS);
}
