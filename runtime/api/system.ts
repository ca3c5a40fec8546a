/** The engine itself over the Engine API: `/_ping`, `/version`, `/info`, `/system/df`. */
import { AppError } from '../../shared/errors.ts';
import type { CacheUsage, ContainerSummary, Engine, EngineDescription, ImagesUsage, VolumeUsage } from '../engine.ts';
import { isAlive } from '../engine.ts';
import { cacheRecordJson } from './build-cache-json.ts';
import { containerSummaryJson } from './container-json.ts';
import { type ApiRouter, queryFlag, queryTexts, sendJson } from './context.ts';
import { imageSummaryJson } from './image-json.ts';
import { API_VERSION_MAX, API_VERSION_MIN } from './version.ts';
import { volumeUsageJson } from './volumes.ts';

/** API version whose clients show the engine's sums instead of their own. */
const SUMS_SINCE = 52;
/** What the classic builder is called; clients must not look for BuildKit here. */
const BUILDER_VERSION = '1';

/** API version that dropped fields which say nothing any more; older clients warn where they are missing. */
const NO_BRIDGE_NF_SINCE = 50;
const BRIDGE_NF = { BridgeNfIptables: false, BridgeNfIp6tables: false };

export function addSystemRoutes(router: ApiRouter, engine: Engine): void {
  router.get('/_ping', (ctx) => {
    ctx.set({
      'Builder-Version': BUILDER_VERSION,
      'Cache-Control': 'no-cache, no-store, must-revalidate',
      Pragma: 'no-cache',
      Swarm: 'inactive',
    });
    ctx.type = 'text/plain; charset=utf-8';
    ctx.body = 'OK';
  });

  router.get('/version', (ctx) => sendJson(ctx, versionJson(engine.description)));

  router.get('/info', async (ctx) => {
    const [containers, images, forwardsIpv4] = await Promise.all([
      engine.containers.list({ all: true }),
      engine.images.list(),
      engine.forwardsIpv4(),
    ]);
    const { listeners } = engine.events;
    const counts = { containers, images: images.length, listeners, forwardsIpv4, now: engine.now() };
    const info = infoJson(engine.description, counts);
    sendJson(ctx, ctx.state.apiMinor < NO_BRIDGE_NF_SINCE ? { ...info, ...BRIDGE_NF } : info);
  });

  router.get('/system/df', async (ctx) => {
    const types = new Set(queryTexts(ctx, 'type'));
    for (const type of types)
      if (!DF_TYPES.includes(type)) throw new AppError('invalid', `unknown object type: ${type.slice(0, 100)}`);
    const wanted = (type: string) => types.size === 0 || types.has(type);
    const [images, containers, volumes, buildCache] = await Promise.all([
      wanted('image') ? engine.images.usage() : undefined,
      wanted('container') ? engine.containers.list({ all: true, size: true }) : undefined,
      wanted('volume') ? engine.volumes.usage() : undefined,
      wanted('build-cache') ? engine.builds.usage() : undefined,
    ]);
    const parts = { images, containers, volumes, buildCache };
    const { apiMinor } = ctx.state;
    const verbose = queryFlag(ctx, 'verbose');
    sendJson(ctx, {
      // Clients since 1.52 ask for the items they want; until then both forms are sent.
      ...(!(apiMinor >= SUMS_SINCE && verbose) && itemsJson(parts, apiMinor)),
      ...(apiMinor >= SUMS_SINCE && sumsJson(parts, { apiMinor, verbose })),
    });
  });
}

const DF_TYPES: readonly string[] = ['container', 'image', 'volume', 'build-cache'];

interface DiskUsage {
  readonly images: ImagesUsage | undefined;
  readonly containers: readonly ContainerSummary[] | undefined;
  readonly volumes: readonly VolumeUsage[] | undefined;
  readonly buildCache: CacheUsage | undefined;
}

function imageItems(usage: ImagesUsage, apiMinor: number): unknown[] {
  return usage.images.map(({ summary }) => imageSummaryJson(summary, { apiMinor, sharedSize: true }));
}

/** Lists of everything; the client does the sums. */
function itemsJson(usage: DiskUsage, apiMinor: number): Record<string, unknown> {
  return {
    ...(usage.images && { LayersSize: usage.images.actualBytes, Images: imageItems(usage.images, apiMinor) }),
    ...(usage.containers && {
      Containers: usage.containers.map((summary) => containerSummaryJson(summary, { apiMinor })),
    }),
    ...(usage.volumes && { Volumes: usage.volumes.map(volumeUsageJson) }),
    ...(usage.buildCache && {
      BuildCache: usage.buildCache.records.map(cacheRecordJson),
      BuilderSize: usage.buildCache.diskBytes,
    }),
  };
}

/** The engine's own sums, exact: what is called reclaimable is what prune frees. Zero is left out, as Go does. */
function sumsJson(usage: DiskUsage, form: { apiMinor: number; verbose: boolean }): Record<string, unknown> {
  const { images, containers } = usage;
  const sums: Record<string, unknown> = {};
  if (images !== undefined)
    sums.ImageUsage = withoutZeros({
      ActiveCount: images.activeCount,
      Items: form.verbose ? imageItems(images, form.apiMinor) : undefined,
      Reclaimable: images.reclaimableBytes,
      TotalCount: images.images.length,
      TotalSize: images.actualBytes,
    });
  if (containers !== undefined) {
    const bytes = (some: readonly ContainerSummary[]) =>
      some.reduce((sum, { size }) => sum + (size?.writableBytes ?? 0), 0);
    const isActive = ({ record: { state } }: ContainerSummary) => isAlive(state) || state.status === 'restarting';
    sums.ContainerUsage = withoutZeros({
      ActiveCount: containers.filter(isActive).length,
      Items: form.verbose ? containers.map((summary) => containerSummaryJson(summary, form)) : undefined,
      Reclaimable: bytes(containers.filter((container) => !isActive(container))),
      TotalCount: containers.length,
      TotalSize: bytes(containers),
    });
  }
  if (usage.volumes !== undefined) {
    const { volumes } = usage;
    const bytes = (some: readonly VolumeUsage[]) => some.reduce((sum, { diskBytes = 0 }) => sum + diskBytes, 0);
    sums.VolumeUsage = withoutZeros({
      ActiveCount: volumes.filter(({ references }) => references > 0).length,
      Items: form.verbose && volumes.length > 0 ? volumes.map(volumeUsageJson) : undefined,
      Reclaimable: bytes(volumes.filter(({ references }) => references === 0)),
      TotalCount: volumes.length,
      TotalSize: bytes(volumes),
    });
  }
  if (usage.buildCache !== undefined) {
    const { records, diskBytes, reclaimableBytes } = usage.buildCache;
    sums.BuildCacheUsage = withoutZeros({
      ActiveCount: records.filter(({ isInUse }) => isInUse).length,
      Items: form.verbose && records.length > 0 ? records.map(cacheRecordJson) : undefined,
      Reclaimable: reclaimableBytes,
      TotalCount: records.length,
      TotalSize: diskBytes,
    });
  }
  return sums;
}

function withoutZeros(sums: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(sums).filter(([, value]) => value !== 0 && value !== undefined));
}

function versionJson({ version, host, runtime, monitor }: EngineDescription): Record<string, unknown> {
  const shared = { MinAPIVersion: API_VERSION_MIN, Os: 'linux', Arch: host.architecture, GitCommit: '' };
  return {
    Platform: { Name: 'Berth' },
    Version: version,
    ApiVersion: API_VERSION_MAX,
    ...shared,
    Components: [
      {
        Name: 'Engine',
        Version: version,
        Details: {
          ...shared,
          ApiVersion: API_VERSION_MAX,
          BuildTime: '',
          Experimental: 'false',
          GoVersion: `none (Node ${process.versions.node})`,
          KernelVersion: host.kernelVersion,
        },
      },
      { Name: runtime.name, Version: runtime.version, Details: { GitCommit: '' } },
      { Name: monitor.name, Version: monitor.version, Details: { GitCommit: '' } },
    ],
    GoVersion: '',
    KernelVersion: host.kernelVersion,
    BuildTime: '',
  };
}

interface Counts {
  readonly forwardsIpv4: boolean;
  readonly containers: readonly ContainerSummary[];
  readonly images: number;
  readonly listeners: number;
  readonly now: Date;
}

function registryConfigJson({ insecure, mirrors }: EngineDescription['registries']): Record<string, unknown> {
  const docker = 'docker.io';
  const hosts = [...new Set([docker, ...insecure, ...Object.keys(mirrors)])];
  const index = (host: string) => ({
    Name: host,
    Mirrors: mirrors[host] ?? [],
    Secure: !insecure.includes(host),
    Official: host === docker,
  });
  return {
    InsecureRegistryCIDRs: ['127.0.0.0/8', '::1/128'],
    IndexConfigs: Object.fromEntries(hosts.map((host) => [host, index(host)])),
    Mirrors: mirrors[docker] ?? [],
  };
}

function infoJson(description: EngineDescription, counts: Counts): Record<string, unknown> {
  const { host, runtime, monitor, registries } = description;
  const inState = (...states: readonly string[]) =>
    counts.containers.filter(({ record }) => states.includes(record.state.status)).length;
  const [running, paused] = [inState('running', 'restarting'), inState('paused')];
  const has = (controller: string) => host.controllers.includes(controller);
  return {
    ID: description.tag,
    Containers: counts.containers.length,
    ContainersRunning: running,
    ContainersPaused: paused,
    ContainersStopped: counts.containers.length - running - paused,
    Images: counts.images,
    Driver: 'overlayfs',
    DriverStatus: [
      ['Layers', description.layerBackend],
      ['Monitor', `${monitor.name} ${monitor.version}`],
      ['Instance', description.tag],
    ],
    Plugins: {
      Volume: ['local'],
      Network: ['bridge', 'host', 'ipvlan', 'macvlan', 'null'],
      Authorization: null,
      Log: ['journald', 'json-file', 'local', 'syslog'],
    },
    MemoryLimit: has('memory'),
    SwapLimit: host.limitsSwap,
    CpuCfsPeriod: has('cpu'),
    CpuCfsQuota: has('cpu'),
    CPUShares: has('cpu'),
    CPUSet: has('cpuset'),
    PidsLimit: has('pids'),
    IPv4Forwarding: counts.forwardsIpv4,
    Debug: description.isDebugging,
    NFd: -1,
    OomKillDisable: has('memory') && host.cgroupVersion === 1,
    NGoroutines: 0,
    SystemTime: counts.now.toISOString(),
    LoggingDriver: 'json-file',
    CgroupDriver: 'cgroupfs',
    CgroupVersion: String(host.cgroupVersion),
    NEventsListener: counts.listeners,
    KernelVersion: host.kernelVersion,
    OperatingSystem: host.operatingSystem,
    OSVersion: host.osVersion,
    OSType: 'linux',
    Architecture: host.machine,
    IndexServerAddress: 'https://index.docker.io/v1/',
    RegistryConfig: registryConfigJson(registries),
    NCPU: host.cpus,
    MemTotal: host.memoryBytes,
    GenericResources: null,
    DockerRootDir: description.rootDirectory,
    HttpProxy: registries.proxies.http,
    HttpsProxy: registries.proxies.https,
    NoProxy: registries.proxies.no,
    Name: host.name,
    Labels: [],
    ExperimentalBuild: false,
    ServerVersion: description.version,
    Runtimes: { [runtime.name]: { path: runtime.path } },
    DefaultRuntime: runtime.name,
    Swarm: {
      NodeID: '',
      NodeAddr: '',
      LocalNodeState: 'inactive',
      ControlAvailable: false,
      Error: '',
      RemoteManagers: null,
    },
    // Containers live on when the engine ends: always, it is not a setting.
    LiveRestoreEnabled: true,
    Isolation: '',
    InitBinary: '',
    ContainerdCommit: { ID: '' },
    RuncCommit: { ID: '' },
    InitCommit: { ID: '' },
    SecurityOptions: host.hasSeccomp ? ['name=seccomp,profile=builtin'] : [],
    CDISpecDirs: description.cdiSpecDirs,
    Warnings: description.warnings,
  };
}
