/**
 * Upkeep while the registry serves: collection, scrub and retention, each at its own interval, each by one process of
 * the registry at a time. A run that fails is logged and tried again at the next interval.
 */
import { isKind } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { RegistryConfig } from '../config.ts';
import type { ManifestIndex } from '../metadata/index.ts';
import type { Metrics } from '../metrics.ts';
import { collectGarbage, type GarbagePorts } from './gc.ts';
import { applyRetention, createRetention, type RetentionPorts } from './retention.ts';
import { isScrubDue, type ScrubPorts, scrub } from './scrub.ts';

export interface UpkeepPorts extends GarbagePorts, ScrubPorts, RetentionPorts {
  readonly index: GarbagePorts['index'] & ScrubPorts['index'] & RetentionPorts['index'] & Pick<ManifestIndex, 'tags'>;
}

export interface UpkeepOptions {
  readonly config: RegistryConfig;
  readonly isImmutable: (repository: string, tag: string) => boolean;
  readonly metrics: Metrics;
  readonly log: Log;
}

/** How often to look whether a scrub is due: another process may have begun or left one. */
const SCRUB_LOOK_MS = 60_000;

/** Disposing ends running work after its current step. @throws AppError 'invalid' for retention rules that are none */
export function startUpkeep(ports: UpkeepPorts, { config, isImmutable, metrics, log }: UpkeepOptions): AsyncDisposable {
  const retention = createRetention(config.retention);
  const collect = async (signal: AbortSignal) => {
    const report = await collectGarbage(ports, { ...config, untagged: config.gcUntagged, signal });
    metrics.collected(report);
    log.info('garbage collected', { ...report });
  };

  const jobs = [
    { name: 'garbage collection', everyMs: config.gcIntervalMs, run: collect },
    {
      name: 'scrub',
      everyMs: Math.min(config.scrubIntervalMs, SCRUB_LOOK_MS),
      async run(signal: AbortSignal) {
        if (!(await isScrubDue(ports.index, ports.now(), config.scrubIntervalMs))) return;
        const report = await scrub(ports, {
          ...config,
          signal,
          onRead: (read) => metrics.scrubbed(read),
          onBad(bad) {
            metrics.quarantined();
            log.error('blob quarantined: push it again', { ...bad });
          },
        });
        log.info('blobs scrubbed', { ...report });
      },
    },
    {
      name: 'retention',
      everyMs: config.retention.length === 0 ? 0 : config.retentionIntervalMs,
      async run(signal: AbortSignal) {
        const onDropped = (dropped: object) => log.info('tag removed by retention', { ...dropped });
        const report = await applyRetention(ports, { ...config, retention, isImmutable, signal, onDropped });
        metrics.retained(report);
        log.info('retention applied', { ...report });
        // What was decided just now is freed now.
        if (report.manifests > 0) await collect(signal);
      },
    },
  ];
  const stop = new AbortController();
  const started = jobs.filter(({ everyMs }) => everyMs > 0).map((job) => startJob(job, stop.signal, log));
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await Promise.all(started.map((job) => job[Symbol.asyncDispose]()));
    },
  };
}

interface Job {
  readonly name: string;
  readonly everyMs: number;
  readonly run: (signal: AbortSignal) => Promise<void>;
}

/** A run that takes longer than the interval is not overtaken by the next. */
function startJob({ name, everyMs, run }: Job, signal: AbortSignal, log: Log): AsyncDisposable {
  let running: Promise<void> | undefined;
  const once = async () => {
    try {
      await run(signal);
    } catch (error) {
      // Another process of this registry may be at it, and shutting down is no failure.
      if (!isKind(error, 'conflict') && !signal.aborted) log.error(`${name} failed`, { error });
    }
  };
  const timer = setInterval(() => {
    running ??= once().finally(() => {
      running = undefined;
    });
  }, everyMs);
  return {
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await running;
    },
  };
}
