/** Builds on this engine: wires contexts, cache, steps and outputs together, one build after the other or at once. */
import { mkdir, rm, statfs } from 'node:fs/promises';
import type { Digest } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Platform } from '../../shared/oci.ts';
import { checkError } from '../dockerfile/checks.ts';
import { isSwitchedOn, unusedBuildArgs } from '../dockerfile/predefined.ts';
import type { CachedContent, Images, Lease } from '../images/images.ts';
import { parsePlatform, platformText, type WantedPlatform } from '../images/platform.ts';
import {
  assembleStage,
  type BuiltStage,
  buildPlatform,
  type PlatformBuild,
  platformOf,
  readDockerfile,
} from './build.ts';
import type {
  BuildEvent,
  BuildRequest,
  BuildResult,
  Builds,
  BuildWarning,
  BuiltImage,
  CachePruneFilter,
  CachePruneResult,
  CacheRecord,
} from './builds.ts';
import type { BuildCache } from './cache.ts';
import type { LocalContexts } from './contexts-local.ts';
import type { FetchedSources } from './fetched-sources.ts';
import { ignoreOf, lint } from './lint.ts';
import { filesOf, pushImages, topOf } from './outputs.ts';
import type { Provenance } from './provenance.ts';
import { chooseRecords, diskBytesOf, freedBytes } from './prune.ts';
import {
  cacheListOf,
  exportCache,
  type ImportedCache,
  type KeyedResult,
  openImportedCache,
  type RemoteCachePorts,
} from './remote-cache.ts';
import { sweepRuns } from './run.ts';
import { withSourceDate } from './source-date.ts';
import type { StagePorts, StageState } from './stage-work.ts';
import { type RunningStep, Steps, type Underway } from './steps.ts';

export interface BuildsPorts extends StagePorts, RemoteCachePorts {
  readonly contexts: LocalContexts;
  readonly cache: BuildCache;
  readonly sources: FetchedSources;
  readonly host: WantedPlatform;
  readonly log: Log;
  /** Any on the disk that the cache is on. */
  readonly directory: string;
  /** What is kept without being asked for. */
  readonly policy: CachePolicy;
  /** Of this engine, for provenance. */
  readonly version: string;
}

export interface CachePolicy {
  /** 0 = no limit. */
  readonly maxBytes: number;
  readonly maxAgeMs: number;
  readonly minFreeBytes: number;
}

export interface LocalBuilds extends Builds {
  /** Layers and blobs that are the build cache's. */
  cached(): CachedContent;
  /** At the start of an engine: removes what builds of an earlier one left. */
  sweep(): Promise<void>;
  /** Ends what is being built, and waits for what goes on after a build's answer: before the stores are closed. */
  close(): Promise<void>;
}

export function createBuilds(ports: BuildsPorts): LocalBuilds {
  const underway: Underway = new Map();
  const { cache, caches, contexts, sources } = ports;
  const parts = [cache, caches, contexts, sources] as const;

  const readRecords = async (): Promise<readonly CacheRecord[]> => {
    const records = [...(await cache.records()), ...[caches, contexts, sources].flatMap((part) => part.records())];
    return records.toSorted((a, b) => b.usedAt.getTime() - a.usedAt.getTime());
  };

  const prune = async (filter: CachePruneFilter = {}): Promise<CachePruneResult> => {
    const { bavail, bsize } = await statfs(ports.directory);
    const records = await readRecords();
    const chosen = chooseRecords(records, filter, { freeBytes: bavail * bsize });
    const ids = new Set(chosen.map(({ id }) => id));
    if (filter.dryRun === true) return { deleted: [...ids], reclaimedBytes: freedBytes(chosen, records) };
    const removed = await Promise.all(parts.map((part) => part.remove(ids)));
    await ports.digests.keepOnly(new Set((await ports.layers.list()).map(({ id }) => id)));
    return {
      deleted: removed.flatMap((one) => one.removed),
      reclaimedBytes: removed.reduce((sum, { bytes }) => sum + bytes, 0),
    };
  };

  /** Forgets what has not been used for long, then what is too much. */
  const applyPolicy = async (): Promise<void> => {
    const { maxAgeMs, maxBytes, minFreeBytes } = ports.policy;
    const isSet = (limit: number) => limit > 0;
    try {
      await Promise.all([cache, contexts, sources].map((part) => part.flush()));
      if (isSet(maxAgeMs)) await prune({ all: true, unusedSince: new Date(ports.now().getTime() - maxAgeMs) });
      const limits = {
        ...(isSet(maxBytes) && { keepBytes: maxBytes }),
        ...(isSet(minFreeBytes) && { minFreeBytes }),
      };
      if (Object.keys(limits).length > 0) await prune({ all: true, ...limits });
    } catch (error) {
      ports.log.error('cannot tidy the build cache', { error });
    }
  };

  const ending = new AbortController();
  const running = new Set<Promise<BuildResult>>();
  let tidying: Promise<void> = Promise.resolve();
  return {
    contexts,
    async close() {
      ending.abort(new AppError('unavailable', 'cannot finish the build: the engine is ending'));
      await Promise.allSettled(running);
      await tidying;
      await ports.digests.settled();
    },
    async build(request, { signal: cancelled, onEvent = () => {} } = {}) {
      const signal = AbortSignal.any([ending.signal, ...(cancelled === undefined ? [] : [cancelled])]);
      const result = new Building(ports, underway, withSourceDate(request), { signal, onEvent }).run();
      running.add(result);
      try {
        return await result;
      } finally {
        running.delete(result);
        // Not before the answer: it looks through everything.
        tidying = tidying.then(applyPolicy);
      }
    },
    async check(request) {
      return await lint(ports, await readDockerfile(request), { request, ignore: await ignoreOf(request) });
    },
    async usage() {
      const records = await readRecords();
      const unused = records.filter(({ isInUse }) => !isInUse);
      return { records, diskBytes: diskBytesOf(records), reclaimableBytes: freedBytes(unused, records) };
    },
    prune,
    cached() {
      const { layers, blobs } = cache.content();
      return { layers: new Set([...layers, ...contexts.layersInUse(), ...sources.layersInUse()]), blobs };
    },
    async sweep() {
      await rm(ports.runDirectory, { recursive: true, force: true });
      await mkdir(ports.runDirectory, { recursive: true, mode: 0o700 });
      await ports.caches.sweep();
      await sweepRuns(ports);
    },
  };
}

/** In Docker's words. */
function argumentsWarning(names: readonly string[]): BuildWarning {
  const message = `One or more build-args [${names.join(' ')}] were not consumed`;
  return { rule: 'UnusedBuildArgs', message, url: undefined, line: undefined, source: undefined };
}

function cacheWarning(source: string, why: string): BuildWarning {
  const message = `cannot read the build cache ${JSON.stringify(source)}: ${why}`;
  return { rule: 'UnreadableCache', message, url: undefined, line: undefined, source: undefined };
}

interface Built {
  readonly state: StageState;
  readonly platform: Platform;
  readonly bases: BuiltStage['bases'];
}

/** One build from its request to its result. */
class Building {
  readonly #ports: BuildsPorts;
  readonly #underway: Underway;
  readonly #request: BuildRequest;
  readonly #options: { readonly signal: AbortSignal; readonly onEvent: (event: BuildEvent) => void };
  readonly #results = new Map<string, KeyedResult>();
  #imported: ImportedCache | undefined;
  readonly #warnings: BuildWarning[] = [];
  /** Indexes, statements and lists of caches: no image names them. */
  readonly #documents = new Set<Digest>();

  constructor(
    ports: BuildsPorts,
    underway: Underway,
    request: BuildRequest,
    options: { readonly signal: AbortSignal; readonly onEvent: (event: BuildEvent) => void },
  ) {
    this.#ports = { ...ports, images: this.#noting(ports.images) };
    this.#underway = underway;
    this.#request = request;
    this.#options = options;
  }

  async run(): Promise<BuildResult> {
    const request = this.#request;
    const ports = this.#ports;
    const startedAt = ports.now();
    await using undo = new AsyncDisposableStack();
    // After the lease: what only this build needed goes with it.
    undo.defer(() => this.#discardDocuments());
    const lease = undo.use(ports.images.lease());
    const dockerfile = await readDockerfile(request);
    const ignore = await ignoreOf(request);
    const findings = await lint(ports, dockerfile, { request, ignore });
    findings.forEach(this.#warn);
    const violation = checkError(dockerfile, findings);
    if (violation !== undefined) throw violation;
    const unused = unusedBuildArgs(dockerfile, request.buildArgs ?? {});
    if (unused.length > 0) this.#warn(argumentsWarning(unused));

    const steps = this.#steps(lease, undo);
    const built = await this.#buildAll({ dockerfile, ignore, lease, steps });
    const images = await this.#assemble(built, lease);
    await this.#name(images);
    await this.#exportCaches(built, lease);

    const provenance: Provenance = {
      builder: `berth/${ports.version}`,
      dockerfile: { name: dockerfile.name, text: dockerfile.source.lines.join('\n') },
      target: request.target,
      buildArgNames: Object.keys(request.buildArgs ?? {}),
      bases: [...new Map(built.flatMap(({ bases }) => [...bases])).values()],
      startedAt,
      finishedAt: ports.now(),
    };
    const owned = undo.move();
    return {
      images,
      warnings: this.#warnings,
      files: (image) => filesOf(ports, image),
      layout: async () => {
        const top = await topOf(ports.images, images, lease);
        return await ports.images.layout([{ descriptor: top, names: request.tags ?? [] }]);
      },
      async push(reference, { credentials, signal, onEvent: onPush = () => {}, ...options } = {}) {
        const about = { stage: undefined, position: undefined, platform: undefined, line: undefined };
        const pushing = async (step: RunningStep) => {
          const descriptor = await pushImages(ports, images, reference, {
            ...{ credentials, signal, lease, provenance: options.provenance === true ? provenance : undefined },
            onProgress(event) {
              if (event.kind === 'layer' && event.current !== undefined)
                step.progress(`${event.id} ${event.status}`, event.current, event.total);
            },
          });
          return { descriptor, isCached: false };
        };
        const text = `[internal] push ${reference}`;
        return (await steps.during({ text, ...about }, pushing, { onEvent: onPush })).descriptor;
      },
      [Symbol.asyncDispose]: () => owned.disposeAsync(),
    };
  }

  readonly #warn = (warning: BuildWarning): void => {
    this.#warnings.push(warning);
    this.#options.onEvent({ kind: 'warning', warning });
  };

  #noting(images: Images): Images {
    return {
      ...images,
      putDocument: async (bytes, options) => {
        const document = await images.putDocument(bytes, options);
        this.#documents.add(document.digest);
        return document;
      },
    };
  }

  async #discardDocuments(): Promise<void> {
    try {
      await this.#ports.images.discard({ layers: new Set(), blobs: this.#documents });
    } catch (error) {
      this.#ports.log.warn('documents of a build stay for the next collection', { error });
    }
  }

  #steps(lease: Lease, user: AsyncDisposableStack): Steps {
    const { cache, now } = this.#ports;
    return new Steps({
      ...{ cache, underway: this.#underway, lease, user, now, onEvent: this.#options.onEvent },
      importResult: async (key, options) => await this.#imported?.find(key, { ...options, lease }),
      onResult: (key, description, result) => this.#results.set(key, { key, description, result }),
    });
  }

  async #buildAll(shared: Pick<PlatformBuild, 'dockerfile' | 'ignore' | 'lease' | 'steps'>): Promise<readonly Built[]> {
    const ports = this.#ports;
    const request = this.#request;
    const { signal, onEvent } = this.#options;
    const { credentials, cacheFrom = [] } = request;
    using imported = await openImportedCache(ports, {
      sources: cacheFrom,
      credentials,
      signal,
      onUnreadable: (source, why) => this.#warn(cacheWarning(source, why)),
    });
    this.#imported = imported;
    const wanted = (request.platforms ?? []).map((text) => platformOf(parsePlatform(text, ports.host)));
    const platforms = wanted.length === 0 ? [platformOf(ports.host)] : wanted;
    const stop = new AbortController();
    const either = AbortSignal.any([signal, stop.signal]);
    const building = platforms.map(async (platform): Promise<Built> => {
      const platformName =
        platforms.length === 1 ? undefined : platformText({ ...platform, variant: platform.variant });
      try {
        const { state, bases } = await buildPlatform({
          ...{ ...shared, ports, host: ports.host, request, platform, platformName, onEvent },
          signal: either,
        });
        return { state, platform, bases };
      } catch (error) {
        stop.abort(error);
        throw error;
      }
    });
    await Promise.allSettled(building);
    if (stop.signal.aborted) throw stop.signal.reason;
    return await Promise.all(building);
  }

  async #assemble(built: readonly Built[], lease: Lease): Promise<readonly BuiltImage[]> {
    const { cacheTo = [], buildArgs } = this.#request;
    const isInline = cacheTo.some(({ kind }) => kind === 'inline') || isSwitchedOn(buildArgs, 'BUILDKIT_INLINE_CACHE');
    const images: BuiltImage[] = [];
    for (const { state } of built) {
      const layers = new Set(state.layers.map((layer) => layer.layerId));
      const inline = isInline ? cacheListOf(this.#results.values(), layers) : undefined;
      images.push(await assembleStage({ ports: this.#ports, request: this.#request, lease }, state, inline));
    }
    return images;
  }

  /** Tags name the image for this host, or the only one. */
  async #name(images: readonly BuiltImage[]): Promise<void> {
    const { host } = this.#ports;
    const [first] = images;
    const own = images.find(({ platform }) => platform.os === host.os && platform.architecture === host.architecture);
    const named = own ?? first;
    if (named === undefined) return;
    for (const tag of this.#request.tags ?? []) await this.#ports.images.tag(named.id, tag);
  }

  async #exportCaches(built: readonly Built[], lease: Lease): Promise<void> {
    const { cacheTo = [], credentials } = this.#request;
    const imageLayers = new Set(built.flatMap(({ state }) => state.layers.map((layer) => layer.layerId)));
    for (const target of cacheTo) {
      if (target.kind === 'inline') continue;
      await exportCache(this.#ports, target, {
        ...{ results: [...this.#results.values()], imageLayers, lease, credentials },
        signal: this.#options.signal,
      });
    }
  }
}
