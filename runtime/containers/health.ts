/**
 * Health checks: a command that is run in the container again and again, and what its exit codes say together.
 *
 * Health is told from memory: it is about what runs now, and after a restart of the engine the next probe tells it anew.
 * https://docs.docker.com/reference/dockerfile/#healthcheck
 */
import type { Log } from '../../shared/log.ts';
import { formatDuration } from '../../shared/units.ts';
import type { Health } from './containers.ts';
import type { Execs } from './exec.ts';
import type { LiveContainer } from './live-container.ts';
import { type Healthcheck, parseExecRequest } from './request.ts';

const NS_PER_MS = 1e6;
const INTERVAL_MS = 30_000;
const TIMEOUT_MS = 30_000;
const START_INTERVAL_MS = 5_000;
const RETRIES = 3;
const KEPT = 5;
const OUTPUT_MAX_BYTES = 4096;
/** docker's code for a probe that took too long. */
const TIMED_OUT = -1;

export interface HealthPlan {
  readonly command: readonly string[];
  readonly intervalMs: number;
  readonly timeoutMs: number;
  readonly startPeriodMs: number;
  readonly startIntervalMs: number;
  readonly retries: number;
}

export type Probe = Health['log'][number];

/** undefined = nothing to check. `shell` runs CMD-SHELL. Pure. */
export function planHealth(check: Healthcheck | undefined, shell: readonly string[]): HealthPlan | undefined {
  const [kind, ...words] = check?.Test ?? [];
  if (check === undefined || kind === undefined || kind === 'NONE' || words.length === 0) return undefined;
  return {
    command: kind === 'CMD-SHELL' ? [...(shell.length > 0 ? shell : ['/bin/sh', '-c']), ...words] : words,
    intervalMs: check.Interval / NS_PER_MS || INTERVAL_MS,
    timeoutMs: check.Timeout / NS_PER_MS || TIMEOUT_MS,
    startPeriodMs: check.StartPeriod / NS_PER_MS,
    startIntervalMs: check.StartInterval / NS_PER_MS || START_INTERVAL_MS,
    retries: check.Retries || RETRIES,
  };
}

/** Failures in the start period are forgiven until the first success. Pure. */
export function afterProbe(
  health: Health,
  probe: Probe,
  options: { readonly retries: number; readonly isStarting: boolean },
): Health {
  const log = [...health.log, probe].slice(-KEPT);
  if (probe.exitCode === 0) return { status: 'healthy', failingStreak: 0, log };
  if (options.isStarting && health.status === 'starting') return { ...health, log };
  const failingStreak = health.failingStreak + 1;
  return { status: failingStreak >= options.retries ? 'unhealthy' : health.status, failingStreak, log };
}

export interface HealthPorts {
  readonly execs: Execs;
  readonly now: () => Date;
  readonly log: Log;
}

export class HealthMonitor {
  readonly #ports: HealthPorts;
  readonly #watched = new Map<string, { health: Health; timer: NodeJS.Timeout | undefined }>();
  /** Execs that run now. */
  readonly #probes = new Set<string>();
  #isClosed = false;

  constructor(ports: HealthPorts) {
    this.#ports = ports;
  }

  of(container: LiveContainer): Health | undefined {
    return this.#watched.get(container.id)?.health;
  }

  /** A run has begun. */
  start(container: LiveContainer): void {
    this.stop(container);
    const { config } = container.record;
    const plan = planHealth(config.Healthcheck, config.Shell);
    if (plan === undefined) return void this.#watched.delete(container.id);
    const watched = { health: { status: 'starting', failingStreak: 0, log: [] } as Health, timer: undefined };
    this.#watched.set(container.id, watched);
    this.#schedule(container, { plan, startedAt: this.#ports.now(), watched });
  }

  /** The run is over; what was known of it is told until the next. */
  stop(container: LiveContainer): void {
    clearTimeout(this.#watched.get(container.id)?.timer);
  }

  forget(container: LiveContainer): void {
    this.stop(container);
    this.#watched.delete(container.id);
  }

  /** Nobody will hear what checks that still run find. */
  async close(): Promise<void> {
    this.#isClosed = true;
    for (const { timer } of this.#watched.values()) clearTimeout(timer);
    await Promise.allSettled([...this.#probes].map((execId) => this.#ports.execs.kill(execId)));
  }

  #schedule(container: LiveContainer, check: Check): void {
    const { plan, watched } = check;
    const isStarting = this.#isStarting(check) && watched.health.status === 'starting';
    watched.timer = setTimeout(
      () => {
        this.#check(container, check)
          .catch((error) => {
            this.#ports.log.warn('a health check could not be run', { containerId: container.id, error });
          })
          .finally(() => {
            const isCurrent = this.#watched.get(container.id) === watched;
            if (!this.#isClosed && isCurrent && container.supervised !== undefined) this.#schedule(container, check);
          });
      },
      isStarting ? plan.startIntervalMs : plan.intervalMs,
    );
  }

  #isStarting({ plan, startedAt }: Check): boolean {
    return this.#ports.now().getTime() - startedAt.getTime() < plan.startPeriodMs;
  }

  async #check(container: LiveContainer, check: Check): Promise<void> {
    // A frozen process answers nothing, and that says nothing.
    if (container.record.state.status !== 'running') return;
    const { plan, watched } = check;
    const isStarting = this.#isStarting(check);
    const probe = await this.#probe(container, plan);
    const before = watched.health.status;
    watched.health = afterProbe(watched.health, probe, { retries: plan.retries, isStarting });
    if (watched.health.status !== before) container.publish(`health_status: ${watched.health.status}`);
  }

  async #probe(container: LiveContainer, plan: HealthPlan): Promise<Probe> {
    const { execs } = this.#ports;
    const request = parseExecRequest({ Cmd: plan.command, AttachStdout: true, AttachStderr: true });
    const execId = await execs.create(container, request);
    this.#probes.add(execId);
    try {
      return await this.#run(execId, { container, timeoutMs: plan.timeoutMs });
    } finally {
      this.#probes.delete(execId);
      execs.drop(execId);
    }
  }

  async #run(
    execId: string,
    { container, timeoutMs }: { readonly container: LiveContainer; readonly timeoutMs: number },
  ): Promise<Probe> {
    const { execs, now, log } = this.#ports;
    const start = now();
    const attachment = await execs.start(execId, {});
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      execs.kill(execId).catch((error) => {
        log.warn('a health check could not be ended', { containerId: container.id, error });
      });
    }, timeoutMs);
    let output = '';
    try {
      for await (const { bytes } of attachment?.output ?? [])
        if (output.length < OUTPUT_MAX_BYTES) output = `${output}${bytes}`.slice(0, OUTPUT_MAX_BYTES);
    } catch (error) {
      // Being killed ends its output, too.
      if (!isLate) throw error;
    } finally {
      clearTimeout(timer);
      await attachment?.[Symbol.asyncDispose]();
    }
    if (isLate) {
      output = `Health check exceeded timeout (${formatDuration(timeoutMs)})${output === '' ? '' : `: ${output}`}`;
      return { start, end: now(), exitCode: TIMED_OUT, output };
    }
    const { exitCode = TIMED_OUT } = await execs.inspect(execId);
    return { start, end: now(), exitCode, output };
  }
}

interface Check {
  readonly plan: HealthPlan;
  readonly startedAt: Date;
  readonly watched: { health: Health; timer: NodeJS.Timeout | undefined };
}
