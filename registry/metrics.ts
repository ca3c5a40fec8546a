/**
 * What a registry tells Prometheus: requests by route and status, how long they take, bytes both ways, what is under
 * way, and what collection freed. Labels are kinds of routes, never names of repositories: those are unbounded, and
 * not everybody may know them.
 */
import { AggregatorRegistry, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { Route } from './routes.ts';
import type { GarbageReport } from './upkeep/gc.ts';
import type { RetentionReport } from './upkeep/retention.ts';

/** `other` is what is no path of the API. */
export type RouteLabel = Route['kind'] | 'other';

export interface Answered {
  readonly route: RouteLabel;
  readonly method: string;
  readonly status: number;
  readonly seconds: number;
  readonly receivedBytes: number;
  readonly sentBytes: number;
}

export interface Metrics {
  begin(route: RouteLabel): void;
  end(answered: Answered): void;
  collected(report: GarbageReport): void;
  scrubbed(read: { readonly blobs: number; readonly bytes: number }): void;
  quarantined(): void;
  retained(report: RetentionReport): void;
  readonly contentType: string;
  /** The text format of Prometheus. */
  text(): Promise<string>;
  /** The same as data, for sumMetrics. */
  samples(): Promise<object[]>;
}

/** The text of several processes' samples as if they were one process. */
export function sumMetrics(samples: readonly object[]): Promise<string> {
  return AggregatorRegistry.aggregate([...samples]).metrics();
}

/** From a manifest out of memory to a layer over a slow line. */
const DURATION_BUCKETS_S = [0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300];

export function createMetrics(): Metrics {
  const register = new Registry();
  const registers = [register];
  const counter = (name: string, help: string, labelNames: readonly string[] = []) =>
    new Counter({ name: `berth_registry_${name}`, help, labelNames: [...labelNames], registers });

  const requests = counter('requests_total', 'Requests answered.', ['route', 'method', 'status']);
  const received = counter('received_bytes_total', 'Bytes of request bodies.', ['route']);
  const sent = counter('sent_bytes_total', 'Bytes of answers.', ['route']);
  const collections = counter('collections_total', 'Garbage collections that ran to their end.');
  const freed = counter('collected_bytes_total', 'Bytes that garbage collection gave back to the disk.');
  const removed = counter('collected_total', 'What garbage collection removed.', ['kind']);
  const scrubbed = counter('scrubbed_total', 'Blobs that were read again and compared with their digest.');
  const scrubbedBytes = counter('scrubbed_bytes_total', 'Bytes of blobs that were read again.');
  const quarantined = counter('quarantined_total', 'Blobs whose bytes were found to be wrong or missing.');
  const retained = counter('retention_removed_total', 'What retention removed.', ['kind']);
  const duration = new Histogram({
    name: 'berth_registry_request_seconds',
    help: 'From the head of a request to the end of its answer.',
    labelNames: ['route', 'method'],
    buckets: DURATION_BUCKETS_S,
    registers,
  });
  const underWay = new Gauge({
    name: 'berth_registry_requests_under_way',
    help: 'Requests that are being answered, uploads among them.',
    labelNames: ['route'],
    registers,
  });

  return {
    begin: (route) => underWay.inc({ route }),
    end({ route, method, status, seconds, receivedBytes, sentBytes }) {
      underWay.dec({ route });
      requests.inc({ route, method, status });
      duration.observe({ route, method }, seconds);
      received.inc({ route }, receivedBytes);
      sent.inc({ route }, sentBytes);
    },
    collected({ freedBytes, ...counts }) {
      collections.inc();
      freed.inc(freedBytes);
      for (const [kind, count] of Object.entries(counts)) removed.inc({ kind }, count);
    },
    scrubbed({ blobs, bytes }) {
      scrubbed.inc(blobs);
      scrubbedBytes.inc(bytes);
    },
    quarantined: () => quarantined.inc(),
    retained(report) {
      for (const [kind, count] of Object.entries(report)) retained.inc({ kind }, count);
    },
    contentType: register.contentType,
    text: () => register.metrics(),
    samples: () => register.getMetricsAsJSON(),
  };
}
