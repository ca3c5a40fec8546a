/**
 * Engine: one state directory and everything that works on it. The composition root of the runtime: it opens and wires
 * the stores and services, adopts what runs, and is all that the Engine API sees of the floors below.
 */

import { randomBytes, randomInt } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { createFsBlobStore } from '../shared/blob-store-fs.ts';
import type { Credentials } from '../shared/credentials.ts';
import { type Database, openDatabase } from '../shared/database.ts';
import { hasCode } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import type { ProxySettings } from '../shared/proxies.ts';
import { parseReference } from '../shared/reference.ts';
import type { Cancelable } from '../shared/streams.ts';
import type { Builds } from './build/builds.ts';
import type { LocalBuilds } from './build/builds-local.ts';
import { BUILD_MIGRATIONS, type BuildTables, openBuilds } from './build/open.ts';
import type { EngineConfig } from './config.ts';
import { type ContainerArchives, createContainerArchives } from './containers/archives.ts';
import { CONTAINER_MIGRATIONS, type ContainerTables } from './containers/container-store.ts';
import type { Containers } from './containers/containers.ts';
import { createContainers, type LocalContainers } from './containers/containers-local.ts';
import { createContainerFiles } from './containers/files.ts';
import { createSharedMemory } from './containers/shared-memory.ts';
import { createSpecBuilder } from './containers/spec-builder.ts';
import { createConmonSupervisor } from './containers/supervisor-conmon.ts';
import {
  chooseRuntime,
  containerObstacle,
  describeEngine,
  type EngineDescription,
  type HostNames,
  networkObstacle,
  readOsRelease,
} from './description.ts';
import { type Distribution, describeRemote } from './distribution.ts';
import { createEventLog, type EventLog } from './events.ts';
import type { GcPolicy } from './images/gc-policy.ts';
import type { CachedContent, Images, ImageUsers, PruneResult } from './images/images.ts';
import { openImages } from './images/open.ts';
import { IMAGE_MIGRATIONS, type ImageTables } from './images/tables.ts';
import { createCgroups } from './kernel/cgroups.ts';
import { chooseLayerBackend, forwardsIpv4, type HostFacts } from './kernel/host.ts';
import { createLauncher } from './kernel/launcher.ts';
import { createLinks } from './kernel/links.ts';
import { createMounts } from './kernel/mount.ts';
import { createNft } from './kernel/nft.ts';
import { createOciRuntime } from './kernel/oci-runtime.ts';
import { sealProgram } from './kernel/sealed-program.ts';
import { changesOf } from './layers/changes.ts';
import type { LayerStore } from './layers/layer-store.ts';
import { createLayerStore, LAYER_MIGRATIONS, type LayerTables } from './layers/layer-store-erofs.ts';
import { createOverlaySnapshotter } from './layers/overlay.ts';
import type { Snapshotter } from './layers/snapshotter.ts';
import { openSubtree } from './layers/subtree.ts';
import { mergeTrees } from './layers/tree.ts';
import { poolsOf } from './networks/addresses.ts';
import { createDns } from './networks/dns.ts';
import { createNetworkStore, NETWORK_MIGRATIONS, type NetworkTables } from './networks/network-store.ts';
import type { Networks } from './networks/networks.ts';
import { openNetworks } from './networks/networks-local.ts';
import { createRegistries, type RegistrySettings } from './registries.ts';
import type { StateDirectory } from './state-directory.ts';
import { VOLUME_MIGRATIONS, type VolumeTables } from './volumes/tables.ts';
import type { Volumes } from './volumes/volumes.ts';
import { openVolumes } from './volumes/volumes-local.ts';

export type {
  BuildEvent,
  BuildFailure,
  BuildRequest,
  BuildResult,
  BuildStep,
  Builds,
  BuildWarning,
  BuiltImage,
  CachePruneFilter,
  CacheRecord,
  CacheSource,
  CacheTarget,
  CacheUsage,
  NamedContext,
  RunOptions,
} from './build/builds.ts';
export type { BuildContext, ContextDelta, ContextEntry, Contexts } from './build/context.ts';
export type { ContainerArchives } from './containers/archives.ts';
export type {
  ContainerRecord,
  ContainerState,
  MountPoint,
} from './containers/container.ts';
export { endedOf, exitCodeOf, isAlive, resting } from './containers/container.ts';
export type {
  Attachment,
  Connection,
  ContainerDetails,
  ContainerSize,
  ContainerSummary,
  Containers,
  ExecDetails,
  FileChange,
  Health,
  LogStream,
  OutputChunk,
  ProcessList,
  StatsSample,
  TerminalSize,
  WaitCondition,
} from './containers/containers.ts';
export type { PathStat } from './containers/files.ts';
export { hostLinks } from './containers/links.ts';
export type { ContainerConfig, CreateRequest, EndpointRequest, HostConfig } from './containers/request.ts';
export {
  parseCommitRequest,
  parseCreateRequest,
  parseEndpointRequest,
  parseExecRequest,
  parseUpdateRequest,
} from './containers/request.ts';
export type { EngineDescription } from './description.ts';
export type { Distribution } from './distribution.ts';
export type { EngineEvent, EventFilters, EventLog } from './events.ts';
export type {
  HistoryStep,
  ImageDetail,
  ImageFilter,
  ImageSummary,
  Images,
  ImagesUsage,
  ManifestContent,
  PruneFilter,
  Removal,
} from './images/images.ts';
export type { PullEvent, PullLayerStatus, PushEvent, PushLayerStatus } from './images/progress.ts';
export type {
  AddressRange,
  Endpoint,
  NetworkDetails,
  NetworkRecord,
  NetworkRequest,
  Networks,
  SandboxState,
} from './networks/networks.ts';

export type { Volume, Volumes, VolumeUsage } from './volumes/volumes.ts';

export interface Engine extends AsyncDisposable {
  readonly images: Images;
  readonly containers: Containers;
  readonly networks: Networks;
  /** What is in containers: copied, exported, committed. */
  readonly archives: ContainerArchives;
  readonly volumes: Volumes;
  readonly builds: Builds;
  readonly events: EventLog;
  readonly now: () => Date;
  /** What this engine and its host are. */
  readonly description: EngineDescription;
  /** Whether the host forwards packets now, without which published ports and networks reach nobody. */
  forwardsIpv4(): Promise<boolean>;
  /** By the configured policy: removes unused images, or tells which ones would go. */
  collectImages(options: { readonly dryRun: boolean }): Promise<PruneResult>;
  /** What lies beside images and writable layers, in bytes on disk. */
  otherUsage(): Promise<{
    readonly unpackedLayerBytes: number;
    readonly logBytes: number;
    readonly metadataBytes: number;
  }>;
  /**
   * Asks a registry whether it takes these credentials. Answers a token to keep instead of the password, if there is one.
   * @throws AppError 'unauthenticated', 'unavailable'
   */
  login(host: string, credentials: Credentials): Promise<string | undefined>;
  /** What a registry has under this reference; nothing of it is fetched but the descriptions. @throws as Images.pull */
  distribution(
    reference: string,
    options: Cancelable & { readonly credentials?: Credentials | undefined },
  ): Promise<Distribution>;
  /** Stops watching and closes the stores. Containers go on running; the next engine finds them. */
  close(): Promise<void>;
}

export interface EngineOptions {
  readonly config: EngineConfig;
  /** Locked; stays the caller's. */
  readonly directory: StateDirectory;
  readonly facts: HostFacts;
  readonly names: HostNames;
  readonly proxies: ProxySettings;
  readonly log: Log;
  readonly version: string;
  readonly now: () => Date;
  readonly randomId: () => string;
}

type Tables = LayerTables & ImageTables & ContainerTables & NetworkTables & VolumeTables & BuildTables;

/**
 * Opens everything in its order: database, stores, what a crash left, what still runs. When it resolves, every container
 * that an earlier engine started is watched again.
 */
export async function createEngine(options: EngineOptions): Promise<Engine> {
  const { config, directory, facts, log, now, randomId, version } = options;
  const { root, runDir, tag } = directory;
  const layerBackend = chooseLayerBackend(config.layerBackend, facts);
  const obstacle = containerObstacle(facts);
  await using undo = new AsyncDisposableStack();

  const database = undo.use(
    openDatabase<Tables>({
      path: join(root, 'berth.db'),
      migrations: [
        ...LAYER_MIGRATIONS,
        ...IMAGE_MIGRATIONS,
        ...CONTAINER_MIGRATIONS,
        ...NETWORK_MIGRATIONS,
        ...VOLUME_MIGRATIONS,
        ...BUILD_MIGRATIONS,
      ],
    }),
  );
  const events = createEventLog({ now });
  undo.defer(() => events.close());

  const launcher = undo.use(createLauncher());
  const { run } = launcher;
  const mounts = createMounts({ architecture: facts.architecture, run });
  // Copies are of use only where something can run.
  const unpack = layerBackend === 'directory' && obstacle === undefined;
  const layers = undo.use(
    createLayerStore({ root, database, log, now, randomId, workers: facts.cpuCount, keepsCached: unpack }),
  );
  const snapshotter = undo.use(createOverlaySnapshotter({ root, layers, mounts, unpack }));

  const registries: RegistrySettings = {
    mirrors: config.registryMirrors,
    insecure: config.insecureRegistries,
    proxies: options.proxies,
  };
  const connect = createRegistries({ ...registries, userAgent: `berthd/${version}` });
  const images = openImages({
    database,
    directory: root,
    blobs: createFsBlobStore({ root: join(root, 'content'), now }),
    layers: mountableLayers(layers, snapshotter),
    users: lateUsers(
      () => containers.users,
      () => builds.cached(),
    ),
    events,
    log: log.child({ component: 'images' }),
    architecture: facts.architecture,
    connect,
    now,
    randomId,
  });

  undo.defer(() => images.settled());
  const volumes = await openVolumes({
    database,
    directory: join(root, 'volumes'),
    runDirectory: join(runDir, 'volumes'),
    obstacle,
    mounts,
    events,
    log: log.child({ component: 'volumes' }),
    now,
    randomId: () => randomBytes(32).toString('hex'),
  });

  const runtimeName = chooseRuntime(config, facts);
  const runtimePath = facts.programs[runtimeName]?.path;
  // Where nothing can be mounted, nothing runs either.
  const sealed =
    runtimePath === undefined || obstacle !== undefined
      ? undefined
      : await sealProgram(mounts, { program: runtimePath, directory: runDir });
  undo.use(sealed);
  const runtime = createOciRuntime({
    name: runtimeName,
    program: sealed?.path ?? runtimeName,
    env: sealed?.env ?? {},
    root: join(runDir, 'runtime'),
    run,
  });
  const cgroups = createCgroups(facts.cgroups);
  const cgroupParent = `/berth_${tag}`;
  const supervisor = createConmonSupervisor({
    runtime,
    cgroups,
    cgroupParent,
    runDirectory: join(runDir, 'containers'),
    now,
    log: log.child({ component: 'supervisor' }),
    conmon: facts.programs.conmon?.path ?? 'conmon',
    socat: facts.programs.socat?.path ?? 'socat',
  });
  const noNetworks = networkObstacle(facts);
  const aardvark = facts.programs['aardvark-dns']?.path;
  const networks = await openNetworks({
    tag,
    store: createNetworkStore(database),
    links: createLinks({ program: facts.programs.ip?.path, run }),
    nft: createNft({ program: facts.programs.nft?.path, run }),
    dns: aardvark === undefined ? undefined : createDns({ program: aardvark, directory: join(runDir, 'dns') }),
    pools: poolsOf(config.addressPools, tag),
    obstacle: noNetworks,
    publish: (action, { id, name, driver }, attributes) =>
      events.publish({ type: 'network', action, id, attributes: { ...attributes, name, type: driver } }),
    log: log.child({ component: 'networks' }),
    now,
    randomId: () => randomBytes(32).toString('hex'),
  });
  undo.defer(() => networks.dispose());
  const containers: LocalContainers = createContainers({
    obstacle,
    networks,
    images,
    snapshots: snapshotter,
    volumes,
    sharedMemory: createSharedMemory({ mounts, directory: join(runDir, 'shm') }),
    imageContent: (chain, path) => openSubtree(layers, chain, path),
    supervisor,
    runtime,
    cgroups,
    spec: createSpecBuilder({
      host: {
        kernel: facts.kernel,
        architecture: facts.architecture,
        cgroupMode: facts.cgroups.mode,
        capabilityMask: facts.capabilityMask,
        hasSeccomp: facts.hasSeccomp,
        thermalThrottlePaths: facts.thermalThrottlePaths,
        runtimeNamespaces: obstacle === undefined ? [...(await runtime.namespaces())] : [],
      },
      init: (facts.programs.catatonit ?? facts.programs['tini-static'] ?? facts.programs['docker-init'])?.path,
      cgroupParent,
      cdiDirectories: config.cdiSpecDirs,
      compiledSeccomp: (id) => runtime.seccompFilter(id),
    }),
    layerBytes: async (chain) => {
      const found = await Promise.all(chain.map((id) => layers.get(id)));
      return found.reduce((sum, layer) => sum + (layer?.diskBytes ?? 0), 0);
    },
    changes: async (id) => {
      const { record } = await containers.inspect(id);
      const trees = await Promise.all(record.chain.map((layer) => layers.tree(layer)));
      return await changesOf(snapshotter.upperOf(id), mergeTrees(trees));
    },
    database,
    events,
    log: log.child({ component: 'containers' }),
    now,
    randomId: () => randomBytes(32).toString('hex'),
    random: randomInt,
    host: {
      cpus: facts.cpuCount,
      cgroupVersion: facts.cgroups.mode === 'v2' ? 2 : 1,
      runtimeName,
      hostname: options.names.hostname,
      thermalThrottlePaths: facts.thermalThrottlePaths,
      defaultNetwork: networks.defaultNetwork,
      memoryBytes: facts.memoryBytes,
    },
    directory: join(root, 'containers'),
    runDirectory: runDir,
    cgroupParent,
  });
  const archives = createContainerArchives({
    containers,
    files: createContainerFiles({
      runtime,
      mounts,
      directory: join(runDir, 'files'),
      cgroupParent,
      randomId: () => randomBytes(32).toString('hex'),
    }),
    images,
    snapshots: snapshotter,
    events,
  });
  undo.defer(async () => {
    // What no container uses is given back to the host. Whatever cannot be now, the next start sweeps.
    try {
      await snapshotter.releaseUnused();
      if ((await cgroups.processes(cgroupParent)).length === 0) await cgroups.remove(cgroupParent);
    } catch (error) {
      log.warn('something stays on the host', { error });
    }
  });
  undo.defer(() => containers.close());

  const builds: LocalBuilds = await openBuilds({
    ...{ database, root, runDir, images, layers, snapshots: snapshotter, containers, connect, version, log, now },
    obstacle,
    proxies: options.proxies,
    architecture: facts.architecture,
    cpuCount: facts.cpuCount,
    policy: {
      maxBytes: config.buildCacheMaxBytes,
      maxAgeMs: config.buildCacheMaxAgeMs,
      minFreeBytes: config.buildCacheMinFreeBytes,
    },
    randomId: () => randomBytes(32).toString('hex'),
  });

  undo.defer(() => builds.settled());

  // First what runs, so that nothing that it uses looks like garbage.
  await containers.adoptAll();
  await layers.sweep();
  await builds.sweep();
  await images.sweep();

  undo.use(startImageGc({ images, log }, { policy: gcPolicyOf(config), everyMs: config.imageGcEveryMs }));

  const description = describeEngine({
    tag,
    version,
    config,
    facts,
    names: options.names,
    layerBackend,
    runtime: runtimeName,
    registries,
    osRelease: await readOsRelease(),
    containerObstacle: obstacle,
    networkObstacle: noNetworks,
  });
  const owned = undo.move();
  const close = () => owned.disposeAsync();
  return {
    images,
    containers,
    networks,
    archives,
    volumes,
    builds,
    events,
    now,
    description,
    collectImages: (collecting) => images.collectByPolicy(gcPolicyOf(config), collecting),
    forwardsIpv4,
    async otherUsage() {
      const [unpackedLayerBytes, logBytes, metadataBytes] = await Promise.all([
        snapshotter.unpackedBytes(),
        containers.logBytes(),
        databaseBytes(database),
      ]);
      return { unpackedLayerBytes, logBytes, metadataBytes };
    },
    async login(host, credentials) {
      using client = connect(host, credentials);
      return (await client.login()).identityToken;
    },
    async distribution(reference, { credentials, signal }) {
      using client = connect(parseReference(reference).host, credentials);
      return await describeRemote(client, parseReference(reference), { signal });
    },
    close,
    [Symbol.asyncDispose]: close,
  };
}

function gcPolicyOf({ imageGcAgeMs, imageGcSizeBytes, imageGcFreeBytes }: EngineConfig): GcPolicy {
  return { maxAgeMs: imageGcAgeMs, maxBytes: imageGcSizeBytes, minFreeBytes: imageGcFreeBytes };
}

/** Collects images again and again; disposing ends that, and waits for a collection that runs. */
function startImageGc(
  { images, log }: { readonly images: Images; readonly log: Log },
  { policy, everyMs }: { readonly policy: GcPolicy; readonly everyMs: number },
): AsyncDisposable {
  let running: Promise<void> = Promise.resolve();
  const collect = async () => {
    try {
      const { removals, reclaimedBytes } = await images.collectByPolicy(policy);
      if (removals.length > 0) log.info('collected unused images', { removals: removals.length, reclaimedBytes });
    } catch (error) {
      log.error('cannot collect unused images', { error });
    }
  };
  const isAsked = Object.values(policy).some((limit) => limit > 0);
  const timer = isAsked
    ? setInterval(() => {
        running = running.then(collect);
      }, everyMs).unref()
    : undefined;
  return {
    async [Symbol.asyncDispose]() {
      clearInterval(timer);
      await running;
    },
  };
}

/**
 * Layers that are pulled are made ready for their first container while others still arrive. They stay mounted after the
 * last one; whoever removes one wants it unmounted first.
 */
function mountableLayers(layers: LayerStore, snapshotter: Snapshotter): LayerStore {
  return {
    ...layers,
    async ingest(request, ingesting) {
      const layer = await layers.ingest(request, ingesting);
      snapshotter.anticipate(layer);
      return layer;
    },
    async remove(id) {
      await snapshotter.release([id]);
      return await layers.remove(id);
    },
  };
}

/** Containers are opened after the images that they are made of, and asked only when somebody calls. */
function lateUsers(users: () => Omit<ImageUsers, 'cached'>, cached: () => CachedContent): ImageUsers {
  return {
    usedBy: (image) => users().usedBy(image),
    imagesInUse: () => users().imagesInUse(),
    layersInUse: () => users().layersInUse(),
    cached: async () => cached(),
  };
}

const BLOCK_BYTES = 512;

async function databaseBytes({ path }: Database<Tables>): Promise<number> {
  let bytes = 0;
  for (const suffix of ['', '-wal', '-shm']) {
    try {
      bytes += (await stat(`${path}${suffix}`)).blocks * BLOCK_BYTES;
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error;
    }
  }
  return bytes;
}
