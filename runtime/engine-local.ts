/**
 * The composition root of the runtime: opens and wires the stores and services of one engine, and adopts what runs.
 */

import { randomBytes, randomInt } from 'node:crypto';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { createFsBlobStore } from '../shared/blob-store-fs.ts';
import { type Database, openDatabase } from '../shared/database.ts';
import { diskBytesOf } from '../shared/disk-bytes.ts';
import { hasCode } from '../shared/errors.ts';
import type { Log } from '../shared/log.ts';
import type { ProxySettings } from '../shared/proxies.ts';
import { parseReference } from '../shared/reference.ts';
import type { LocalBuilds } from './build/builds-local.ts';
import { BUILD_MIGRATIONS, type BuildTables, openBuilds } from './build/open.ts';
import type { EngineConfig } from './config.ts';
import { createContainerArchives } from './containers/archives.ts';
import { CONTAINER_MIGRATIONS, type ContainerTables } from './containers/container-store.ts';
import { createContainers, type LocalContainers } from './containers/containers-local.ts';
import { createContainerFiles } from './containers/files.ts';
import { createSharedMemory } from './containers/shared-memory.ts';
import { createSpecBuilder } from './containers/spec-builder.ts';
import type { ContainerSupervisor } from './containers/supervisor.ts';
import { createConmonSupervisor } from './containers/supervisor-conmon.ts';
import {
  chooseRuntime,
  containerObstacle,
  describeEngine,
  type HostNames,
  networkObstacle,
  readOsRelease,
} from './description.ts';
import { describeRemote } from './distribution.ts';
import type { Engine } from './engine.ts';
import { createEventLog, type EventLog } from './events.ts';
import type { GcPolicy } from './images/gc-policy.ts';
import type { CachedContent, Images, ImageUsers } from './images/images.ts';
import { openImages } from './images/open.ts';
import { IMAGE_MIGRATIONS, type ImageTables } from './images/tables.ts';
import { type CgroupMoves, createCgroupMoves } from './kernel/cgroup-moves.ts';
import { type Cgroups, createCgroups } from './kernel/cgroups.ts';
import type { RunCommand } from './kernel/command.ts';
import { chooseLayerBackend, forwardsIpv4, type HostFacts } from './kernel/host.ts';
import { createLauncher } from './kernel/launcher.ts';
import { createLinks } from './kernel/links.ts';
import { createMounts, type Mounts } from './kernel/mount.ts';
import { openNft } from './kernel/nft.ts';
import { createOciRuntime, type OciRuntime } from './kernel/oci-runtime.ts';
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
import { type LocalNetworks, openNetworks } from './networks/networks-local.ts';
import { createRegistries, type RegistrySettings } from './registries.ts';
import type { StateDirectory } from './state-directory.ts';
import { VOLUME_MIGRATIONS, type VolumeTables } from './volumes/tables.ts';
import type { Volumes } from './volumes/volumes.ts';
import { openVolumes } from './volumes/volumes-local.ts';

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
  const { config, directory, facts, log, now, randomId, version, proxies } = options;
  const { root, runDir, tag } = directory;
  await using undo = new AsyncDisposableStack();
  const layerBackend = chooseLayerBackend(config.layerBackend, facts);
  const obstacle = containerObstacle(facts);
  const setup: Setup = { ...options, undo, layerBackend, obstacle };

  const storage = openStorage(setup);
  const { database, events, layers, snapshotter } = storage;
  const registries: RegistrySettings = {
    mirrors: config.registryMirrors,
    insecure: config.insecureRegistries,
    proxies,
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
    mounts: storage.mounts,
    events,
    log: log.child({ component: 'volumes' }),
    now,
    randomId: newId,
  });
  const runtime = await openRuntime(setup, storage);
  const networks = await openHostNetworks(setup, storage);
  const containers = await openContainers(setup, { ...storage, ...runtime, images, volumes, networks });
  const archives = createContainerArchives({
    containers,
    files: createContainerFiles({
      runtime: runtime.runtime,
      mounts: storage.mounts,
      directory: join(runDir, 'files'),
      cgroupParent: runtime.cgroupParent,
      randomId: newId,
    }),
    images,
    snapshots: snapshotter,
    events,
  });
  const builds: LocalBuilds = await openBuilds({
    ...{ database, root, runDir, images, layers, snapshots: snapshotter, containers, connect, version, log, now },
    ...{ obstacle, proxies },
    architecture: facts.architecture,
    cpuCount: facts.cpuCount,
    policy: {
      maxBytes: config.buildCacheMaxBytes,
      maxAgeMs: config.buildCacheMaxAgeMs,
      minFreeBytes: config.buildCacheMinFreeBytes,
    },
    randomId: newId,
  });
  undo.defer(() => builds.close());

  // First what runs, so that nothing that it uses looks like garbage.
  await containers.adoptAll();
  await layers.sweep();
  await builds.sweep();
  await images.sweep();
  undo.use(startImageGc({ images, log }, { policy: gcPolicyOf(config), everyMs: config.imageGcEveryMs }));

  const description = describeEngine({
    ...{ tag, version, config, facts, layerBackend, registries },
    names: options.names,
    runtime: runtime.runtime.name,
    osRelease: await readOsRelease(),
    containerObstacle: obstacle,
    networkObstacle: networkObstacle(facts),
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

/** What every part is made from, and what takes the parts back. */
interface Setup extends EngineOptions {
  readonly undo: AsyncDisposableStack;
  readonly layerBackend: 'erofs' | 'directory';
  /** Why no container can run here; undefined when they can. */
  readonly obstacle: string | undefined;
}

const newId = () => randomBytes(32).toString('hex');

interface Storage {
  readonly database: Database<Tables>;
  readonly events: EventLog;
  /** Starts the host's programs. */
  readonly run: RunCommand;
  readonly mounts: Mounts;
  readonly layers: LayerStore;
  readonly snapshotter: Snapshotter;
}

function openStorage({ directory: { root }, facts, undo, log, now, randomId, layerBackend, obstacle }: Setup): Storage {
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
  const { run } = undo.use(createLauncher());
  const mounts = createMounts({ architecture: facts.architecture, run });
  // Copies are of use only where something can run.
  const unpack = layerBackend === 'directory' && obstacle === undefined;
  const layers = undo.use(
    createLayerStore({ root, database, log, now, randomId, workers: facts.cpuCount, keepsCached: unpack }),
  );
  const snapshotter = undo.use(createOverlaySnapshotter({ root, layers, mounts, unpack }));
  return { database, events, run, mounts, layers, snapshotter };
}

/** What runs containers: the OCI runtime, their monitors and their cgroups. */
interface Runtime {
  readonly runtime: OciRuntime;
  readonly supervisor: ContainerSupervisor;
  readonly cgroups: Cgroups;
  readonly moves: CgroupMoves;
  /** Below it are the cgroups of this engine's containers. */
  readonly cgroupParent: string;
}

async function openRuntime(setup: Setup, { mounts, run, snapshotter }: Storage): Promise<Runtime> {
  const { config, directory, facts, log, now, obstacle, undo } = setup;
  const { runDir, tag } = directory;
  const name = chooseRuntime(config, facts);
  const path = facts.programs[name]?.path;
  // Where nothing can be mounted, nothing runs either.
  const sealed =
    path === undefined || obstacle !== undefined
      ? undefined
      : await sealProgram(mounts, { program: path, directory: runDir });
  undo.use(sealed);
  const runtime = createOciRuntime({
    name,
    program: sealed?.path ?? name,
    env: sealed?.env ?? {},
    root: join(runDir, 'runtime'),
    run,
  });
  const cgroups = createCgroups(facts.cgroups);
  const moves = createCgroupMoves(facts.cgroups);
  const cgroupParent = `/berth_${tag}`;
  const supervisor = createConmonSupervisor({
    ...{ runtime, cgroups, moves, cgroupParent, now },
    runDirectory: join(runDir, 'containers'),
    log: log.child({ component: 'supervisor' }),
    conmon: facts.programs.conmon?.path ?? 'conmon',
    socat: facts.programs.socat?.path ?? 'socat',
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
  return { runtime, supervisor, cgroups, moves, cgroupParent };
}

async function openHostNetworks(setup: Setup, { database, events, run }: Storage): Promise<LocalNetworks> {
  const { config, directory, facts, log, now, undo } = setup;
  const { runDir, tag } = directory;
  const aardvark = facts.programs['aardvark-dns']?.path;
  const networks = await openNetworks({
    tag,
    store: createNetworkStore(database),
    links: createLinks({ program: facts.programs.ip?.path, run }),
    nft: await openNft({ program: facts.programs.nft?.path, directory: runDir, name: `nft-${tag}`, run }),
    dns: aardvark === undefined ? undefined : createDns({ program: aardvark, directory: join(runDir, 'dns') }),
    pools: poolsOf(config.addressPools, tag),
    obstacle: networkObstacle(facts),
    publish: (action, { id, name, driver }, attributes) =>
      events.publish({ type: 'network', action, id, attributes: { ...attributes, name, type: driver } }),
    log: log.child({ component: 'networks' }),
    now,
    randomId: newId,
  });
  undo.defer(() => networks.dispose());
  return networks;
}

interface ContainerParts extends Storage, Runtime {
  readonly images: Images;
  readonly volumes: Volumes;
  readonly networks: LocalNetworks;
}

async function openContainers(setup: Setup, parts: ContainerParts): Promise<LocalContainers> {
  const { config, directory, facts, log, names, now, obstacle, undo } = setup;
  const { root, runDir } = directory;
  const { layers, snapshotter, mounts, runtime, supervisor, cgroups, moves, cgroupParent, networks } = parts;
  const { capabilityMask, hasSeccomp, thermalThrottlePaths } = facts;
  const containers: LocalContainers = createContainers({
    obstacle,
    networks,
    images: parts.images,
    snapshots: snapshotter,
    volumes: parts.volumes,
    sharedMemory: createSharedMemory({ mounts, directory: join(runDir, 'shm') }),
    imageContent: (chain, path) => openSubtree(layers, chain, path),
    supervisor,
    runtime,
    cgroups,
    moves,
    spec: createSpecBuilder({
      host: {
        ...{ capabilityMask, hasSeccomp, thermalThrottlePaths },
        kernel: facts.kernel,
        architecture: facts.architecture,
        cgroupMode: facts.cgroups.mode,
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
    database: parts.database,
    events: parts.events,
    log: log.child({ component: 'containers' }),
    now,
    randomId: newId,
    random: randomInt,
    host: {
      cpus: facts.cpuCount,
      cgroupVersion: facts.cgroups.mode === 'v2' ? 2 : 1,
      runtimeName: runtime.name,
      hostname: names.hostname,
      thermalThrottlePaths,
      defaultNetwork: networks.defaultNetwork,
      memoryBytes: facts.memoryBytes,
    },
    directory: join(root, 'containers'),
    runDirectory: runDir,
    cgroupParent,
  });
  undo.defer(() => containers.close());
  return containers;
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

async function databaseBytes({ path }: Database<Tables>): Promise<number> {
  let bytes = 0;
  for (const suffix of ['', '-wal', '-shm']) {
    try {
      bytes += diskBytesOf(await stat(`${path}${suffix}`));
    } catch (error) {
      if (!hasCode(error, 'ENOENT')) throw error;
    }
  }
  return bytes;
}
