/**
 * Wires builds together: contexts, build cache, cache mounts, fetchers and the solver behind the one interface `Builds`.
 *
 *   build/digests   digests of files that steps have seen     build/mounts     `RUN --mount=type=cache`
 *   build/fetch     repositories and downloads on their way   RUN/build        secrets and sockets while a command runs
 */
import { join } from 'node:path';
import type { Credentials } from '../../shared/credentials.ts';
import type { Database } from '../../shared/database.ts';
import { createHttpTransport } from '../../shared/http-transport.ts';
import type { Log } from '../../shared/log.ts';
import type { Platform } from '../../shared/oci.ts';
import type { ProxySettings } from '../../shared/proxies.ts';
import type { RegistryClient } from '../../shared/registry-client.ts';
import { createSlots } from '../../shared/slots.ts';
import type { Containers } from '../containers/containers.ts';
import type { Images } from '../images/images.ts';
import { hostPlatform } from '../images/platform.ts';
import { diskUsage } from '../kernel/disk-usage.ts';
import { hasEmulator } from '../kernel/emulators.ts';
import type { LayerId, LayerStore } from '../layers/layer-store.ts';
import type { Snapshotter } from '../layers/snapshotter.ts';
import { type CachePolicy, createBuilds, type LocalBuilds } from './builds-local.ts';
import { BUILD_CACHE_MIGRATIONS, type CacheTables, openBuildCache } from './cache.ts';
import { CACHE_MOUNT_MIGRATIONS, type CacheMountTables, openCacheMounts } from './cache-mounts.ts';
import { BUILD_CONTEXT_MIGRATIONS, type ContextTables } from './context-tables.ts';
import { createContexts } from './contexts-local.ts';
import { FETCHED_SOURCE_MIGRATIONS, type FetchedSourceTables, openFetchedSources } from './fetched-sources.ts';
import { createFileDigests } from './file-digests.ts';
import { createGitTrees } from './git.ts';
import { createRemoteFiles, sweepDownloads } from './remote-files.ts';
import { BUILD_RUN_MIGRATIONS, type RunTables } from './run.ts';
import { createMemory } from './steps.ts';

export type BuildTables = CacheTables & CacheMountTables & ContextTables & FetchedSourceTables & RunTables;
export const BUILD_MIGRATIONS = [
  ...BUILD_CACHE_MIGRATIONS,
  ...CACHE_MOUNT_MIGRATIONS,
  ...BUILD_CONTEXT_MIGRATIONS,
  ...BUILD_RUN_MIGRATIONS,
  ...FETCHED_SOURCE_MIGRATIONS,
];

export interface BuildsOptions {
  readonly database: Database<BuildTables>;
  /** The state directory. */
  readonly root: string;
  /** The directory of what does not outlive a boot. */
  readonly runDir: string;
  readonly images: Images;
  readonly layers: LayerStore;
  readonly snapshots: Snapshotter;
  readonly containers: Containers;
  connect(host: string, credentials: Credentials | undefined): RegistryClient;
  readonly proxies: ProxySettings;
  readonly version: string;
  /** As node:os.arch() spells it. */
  readonly architecture: string;
  readonly cpuCount: number;
  /** Why no container can run here; undefined when they can. */
  readonly obstacle: string | undefined;
  readonly policy: CachePolicy;
  readonly log: Log;
  readonly now: () => Date;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
}

/** Commands wait for disks and networks as well as for processors. */
const STEPS_MIN = 4;
/** Instructions that change no file: some hundred bytes each. */
const DESCRIBED_MAX = 10_000;
/** A server that sends nothing for so long will send nothing any more. */
const IDLE_TIMEOUT_MS = 60_000;

export async function openBuilds(options: BuildsOptions): Promise<LocalBuilds> {
  const { database, root, images, layers, now, randomId, proxies, containers, snapshots, connect } = options;
  const log = options.log.child({ component: 'build' });
  const directory = join(root, 'build');
  const fetching = join(directory, 'fetch');
  await sweepDownloads(fetching);
  const userAgent = `berthd/${options.version}`;
  const host = hostPlatform(options.architecture);
  const discard = (gone: ReadonlySet<LayerId>) => images.discard({ layers: gone, blobs: new Set() });
  const sources = await openFetchedSources({ database, layers, discard, log, now });
  const remote = createRemoteFiles({
    transport: createHttpTransport({ proxies, userAgent, idleTimeoutMs: IDLE_TIMEOUT_MS }),
    ...{ layers, sources, directory: fetching, randomId },
  });
  const git = createGitTrees({ layers, sources, directory: fetching, randomId, proxies });
  const contexts = await createContexts({
    ...{ database, layers, git, remote, log, now, discard },
    lease: () => images.lease(),
  });
  const caches = await openCacheMounts({
    ...{ database, now, directory: join(directory, 'mounts') },
    measure: async (path) => (await diskUsage([path])).get(path) ?? 0,
  });
  const runObstacle = async ({ os, architecture }: Platform): Promise<string | undefined> => {
    if (options.obstacle !== undefined) return options.obstacle;
    const isOwn = os === host.os && (architecture === host.architecture || isOlder(architecture, host.architecture));
    if (isOwn || (await hasEmulator(architecture))) return undefined;
    return `this host has no emulator for ${os}/${architecture}: install qemu-user-static and binfmt-support`;
  };
  return createBuilds({
    ...{
      images,
      layers,
      snapshots,
      containers,
      database,
      connect,
      contexts,
      caches,
      sources,
      remote,
      git,
      host,
      log,
      now,
      randomId,
    },
    cache: await openBuildCache({ database, layers, images, now }),
    digests: createFileDigests({ root, pathOf: (layer) => layers.pathOf(layer) }),
    slots: createSlots(Math.max(STEPS_MIN, options.cpuCount)),
    runDirectory: join(options.runDir, 'build'),
    runObstacle,
    wasDescribed: createMemory(DESCRIBED_MAX),
    policy: options.policy,
    version: options.version,
    directory: root,
  });
}

/** Programs that the processor itself still runs. */
function isOlder(architecture: string, host: string): boolean {
  return host === 'amd64' && architecture === '386';
}
