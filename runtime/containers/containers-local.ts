/**
 * Containers on this host: finds them by name, makes and forgets them, and hands each verb to the one it is about. All
 * records are held in memory; the database is written through.
 */

import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Digest } from '../../shared/digest.ts';
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import type { ImageUse, ImageUsers, Lease } from '../images/images.ts';
import { type ContainerRecord, isAlive } from './container.ts';
import { createContainerStore } from './container-store.ts';
import { claimVolumes, releaseVolumes, volumeParts } from './container-volumes.ts';
import type {
  ContainerBase,
  ContainerDetails,
  ContainerSize,
  ContainerSummary,
  Containers,
  Created,
  CreateOptions,
  ListOptions,
} from './containers.ts';
import { checkHostConfig, planContainer } from './create.ts';
import { Execs } from './exec.ts';
import { HealthMonitor } from './health.ts';
import { hostLinks } from './links.ts';
import { checkFilters, isListed, isPrunable, matchesFilters } from './list.ts';
import { LiveContainer, type LivePorts, type OpenFiles } from './live-container.ts';
import { namesMatching } from './name-pattern.ts';
import { generateName, nameConflict, parseName, resolveName } from './names.ts';
import { joinedContainers } from './namespaces.ts';
import { networkKindOf, planEndpoints, sandboxRequestOf } from './networking.ts';
import type { ContainerPorts } from './ports.ts';
import type { CreateRequest, HostConfig, UpdateRequest } from './request.ts';
import { startOrder } from './start-order.ts';
import { sampleStats } from './stats.ts';
import { statusText } from './status-text.ts';
import { processesOf } from './top.ts';

/** A log grows past its limit by what is printed in this time. */
const LOG_TRIM_MS = 1000;
/** More at once only wait for the same two disks and the same kernel locks. */
const ADOPT_CONCURRENCY = 16;

export interface LocalContainers extends Containers {
  readonly users: Omit<ImageUsers, 'cached'>;
  /** A container's files; whoever opened them disposes them. @throws as every verb */
  openFiles(name: string): Promise<OpenFiles>;
  /** What the logs occupy, for `system df`. */
  logBytes(): Promise<number>;
}

export function createContainers(ports: ContainerPorts): LocalContainers {
  const byId = new Map<string, LiveContainer>();
  /** Also names that a create under way has taken. */
  const idByName = new Map<string, string>();
  const find = (name: string) => resolveName(name, { byId, idByName });
  const tryFind = (name: string) => {
    try {
      return find(name);
    } catch (error) {
      if (isKind(error, 'not-found', 'invalid')) return undefined;
      throw error;
    }
  };

  const livePorts: LivePorts = {
    ...ports,
    store: createContainerStore(ports.database),
    pidOf(name) {
      const { record } = find(name);
      if (isAlive(record.state)) return record.state.pid;
      throw new AppError('conflict', `cannot join container ${JSON.stringify(record.name)}: it is not running`);
    },
    etcOf: (name) => find(name).etcPaths,
    recordOf: (name) => find(name).record,
    onMoved() {
      for (const container of byId.values())
        container.followLinks().catch((error) => {
          ports.log.warn('the links of a container could not be followed', { containerId: container.id, error });
        });
    },
    ipcOf(name) {
      const { record } = find(name);
      const what = `can't join IPC of container ${name}`;
      if (!isAlive(record.state)) throw new AppError('conflict', `${what}: container ${record.id} is not running`);
      if (record.hostConfig.IpcMode !== 'shareable')
        throw new AppError(
          'invalid',
          `${what}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)`,
        );
      return {
        joinedIpc: `/proc/${record.state.pid}/ns/ipc`,
        sharedMemory: ports.sharedMemory.pathOf(record.id),
      };
    },
    isRestarting: (name) => tryFind(name)?.record.state.status === 'restarting',
    onRemoved(container) {
      byId.delete(container.id);
      idByName.delete(container.name);
      execs.forget(container);
      health.forget(container);
    },
    onStarted: (container) => health.start(container),
    onEnded: (container) => health.stop(container),
  };
  const execs = new Execs(ports);
  const health = new HealthMonitor({ execs, now: ports.now, log: ports.log });

  const takeName = (wanted: string | undefined, id: string): string => {
    if (wanted === undefined) {
      const name = generateName(ports.random, (candidate) => idByName.has(candidate));
      idByName.set(name, id);
      return name;
    }
    const name = parseName(wanted);
    const owner = idByName.get(name);
    if (owner !== undefined) throw nameConflict(name, owner);
    idByName.set(name, id);
    return name;
  };

  /** @throws AppError 'invalid' with Docker's words: 'not-found' would be the image */
  const mustExist = (target: string): void => {
    try {
      find(target);
    } catch (error) {
      throw new AppError('invalid', `could not get container for ${target}: ${messageOf(error)}`, { cause: error });
    }
  };

  const networkName = (name: string): string => ports.networks.inspect(name).record.name;

  const create = async (request: CreateRequest, options: CreateOptions = {}): Promise<Created> => {
    const reference = request.config.Image;
    // Before the image is looked for: nobody should pull one first, and in vain.
    if (ports.obstacle !== undefined) throw new AppError('unsupported', `cannot run a container: ${ports.obstacle}`);
    if (reference === '' && options.base === undefined) throw new AppError('invalid', 'no command specified');
    const id = ports.randomId();
    const name = takeName(options.name, id);
    let hasImage = false;
    try {
      await using lease = ports.images.lease();
      const base = options.base ?? (await imageBase(reference, options.platform, lease));
      hasImage = true;
      const { warnings, mountPlan, ...plan } = planContainer(request, base.config, {
        id,
        host: ports.host,
        mountsOf: (container) => find(container).record.mounts,
      });
      for (const { target } of hostLinks(plan.hostConfig)) mustExist(target);
      await using undo = new AsyncDisposableStack();
      const mounts = await claimVolumes(ports, mountPlan, { id, chain: base.chain });
      undo.defer(() => releaseVolumes(ports, { id, mounts }, { anonymous: true }));
      const record: ContainerRecord = {
        id,
        name,
        createdAt: ports.now(),
        imageId: base.imageId,
        imageName: reference,
        chain: base.chain,
        platform: base.platform,
        ...plan,
        mounts,
        endpoints: planEndpoints({ ...plan, endpoints: request.endpoints }, networkName),
        state: { status: 'created' },
        restartCount: 0,
        stoppedByUser: false,
      };
      if (networkKindOf(record.hostConfig) === 'networks') ports.networks.check(sandboxRequestOf(record));
      const container = new LiveContainer(record, livePorts);
      await container.create();
      undo.move();
      byId.set(id, container);
      return { id, warnings };
    } catch (error) {
      idByName.delete(name);
      throw hasImage ? notTheImage(error) : error;
    }
  };

  const imageBase = async (reference: string, platform: string | undefined, lease: Lease): Promise<ContainerBase> => {
    const image = await ports.images.resolve(reference);
    await lease.protectImage(image);
    checkPlatform(platform, image.config);
    const { config, os, architecture } = image.config;
    return { imageId: image.id, config, chain: image.chain, platform: { os, architecture } };
  };

  const sizeOf = async (container: LiveContainer): Promise<ContainerSize> => {
    const writableBytes = await ports.snapshots.diskBytes(container.id);
    return { writableBytes, totalBytes: writableBytes + (await ports.layerBytes(container.record.chain)) };
  };

  const summaryOf = async (container: LiveContainer, withSize: boolean): Promise<ContainerSummary> => {
    const { record } = container;
    const { connections, sandbox } = container.network;
    // Of what has ended, the addresses are given back a moment later.
    const hasNetwork = isAlive(record.state) || record.state.status === 'restarting';
    return {
      record,
      statusText: statusText(record.state, { now: ports.now(), health: health.of(container) }),
      health: health.of(container),
      connections: hasNetwork ? connections : connections.map((one) => ({ ...one, endpoint: undefined })),
      sandbox: hasNetwork ? sandbox : undefined,
      size: withSize ? await sizeOf(container) : undefined,
    };
  };

  const list = async (options: ListOptions = {}): Promise<readonly ContainerSummary[]> => {
    const { filters = {}, limit, size = false } = options;
    checkFilters(filters);
    const all = options.all === true || (limit !== undefined && limit > 0);
    const ancestors = await resolveAncestors(filters.ancestor ?? []);
    const names = [...byId.values()].map(({ name }) => name);
    const named = new Map((filters.name ?? []).map((pattern) => [pattern, namesMatching(pattern, names)]));
    const context = {
      find: (name: string) => find(name).record,
      isImage: (record: ContainerRecord, name: string) =>
        record.imageName === name || ancestors.get(name) === record.imageId,
      isNamed: (record: ContainerRecord, pattern: string) => named.get(pattern)?.has(record.name) === true,
    };
    const chosen = [...byId.values()]
      .map((container) => ({
        container,
        record: container.record,
        health: health.of(container),
        sandbox: container.network.sandbox,
      }))
      .filter((listed) => isListed(listed, filters, { all }) && matchesFilters(listed, filters, context))
      .sort((a, b) => b.record.createdAt.getTime() - a.record.createdAt.getTime())
      .slice(0, limit !== undefined && limit > 0 ? limit : undefined);
    return Promise.all(chosen.map(({ container }) => summaryOf(container, size)));
  };

  const resolveAncestors = async (names: readonly string[]): Promise<ReadonlyMap<string, Digest>> => {
    const found = new Map<string, Digest>();
    for (const name of names) {
      const image = await ports.images.resolve(name).catch(() => undefined);
      if (image !== undefined) found.set(name, image.id);
    }
    return found;
  };

  const inspect = async (name: string, options: { readonly size?: boolean } = {}): Promise<ContainerDetails> => {
    const container = find(name);
    const { state } = container.record;
    const hasStarted = state.status !== 'created' || state.failure !== undefined;
    const { hostname, hosts, resolvConf } = container.etcPaths;
    return {
      ...(await summaryOf(container, options.size === true)),
      paths: hasStarted
        ? { hostname, hosts, resolvConf, log: container.output.path }
        : { hostname: '', hosts: '', resolvConf: '', log: '' },
      execIds: execs.idsOf(container),
    };
  };

  const rename = async (name: string, newName: string): Promise<void> => {
    const container = find(name);
    const oldName = container.name;
    const wanted = parseName(newName);
    if (wanted === oldName)
      throw new AppError('invalid', 'Renaming a container with the same name as its current name');
    takeName(wanted, container.id);
    try {
      await container.update(() => ({ name: wanted }));
      await ports.networks.rename(container.id, wanted);
      livePorts.onMoved();
    } catch (error) {
      idByName.delete(wanted);
      throw error;
    }
    idByName.delete(oldName);
    container.publish('rename', { oldName: `/${oldName}` });
  };

  const update = async (name: string, request: UpdateRequest) => {
    const container = find(name);
    await container.update(({ hostConfig: before }) => {
      const hostConfig: HostConfig = { ...before, ...request };
      checkHostConfig(hostConfig, ports.host);
      return { hostConfig };
    });
    container.publish('update');
    return { warnings: [] };
  };

  const prune: Containers['prune'] = async (filters = {}) => {
    const deleted: string[] = [];
    let reclaimedBytes = 0;
    const now = ports.now();
    for (const container of [...byId.values()].filter(({ record }) => isPrunable(record, filters, now))) {
      const bytes = await ports.snapshots.diskBytes(container.id);
      // One that somebody has started or removed meanwhile is not ours to take.
      await container.remove().then(
        () => {
          deleted.push(container.id);
          reclaimedBytes += bytes;
        },
        (error) => ports.log.warn('a container could not be pruned', { containerId: container.id, error }),
      );
    }
    ports.events.publish({
      type: 'container',
      action: 'prune',
      id: '',
      attributes: { reclaimed: String(reclaimedBytes) },
    });
    return { deleted, reclaimedBytes };
  };

  /** What a crash left of a create or a remove. */
  const sweepDirectories = async (valid: ReadonlySet<string>): Promise<void> => {
    for (const parent of [ports.directory, join(ports.runDirectory, 'logs'), join(ports.runDirectory, 'execs')])
      for (const name of await readdir(parent).catch(() => []))
        if (!valid.has(name)) await rm(join(parent, name), { recursive: true, force: true });
  };

  const adoptAll = async (): Promise<void> => {
    for (const record of await livePorts.store.load()) {
      byId.set(record.id, new LiveContainer(record, livePorts));
      ports.volumes.refer(
        record.id,
        volumeParts(record).map(({ name: volume }) => volume),
      );
      idByName.set(record.name, record.id);
    }
    // A container that shares another's namespaces can start again only when that one runs.
    const joinedBy = ({ record }: LiveContainer) =>
      joinedContainers(record.hostConfig).flatMap((name) => {
        const id = tryFind(name)?.id;
        return id === undefined ? [] : [id];
      });
    const joins = new Map([...byId.values()].map((container) => [container.id, joinedBy(container)]));
    for (const wave of startOrder(joins)) {
      const waiting = [...wave];
      const adoptNext = async (): Promise<void> => {
        for (let id = waiting.pop(); id !== undefined; id = waiting.pop())
          await byId
            .get(id)
            ?.adopt()
            .catch((error) => {
              ports.log.error('a container could not be adopted', { containerId: id, error });
            });
      };
      await Promise.all(Array.from({ length: ADOPT_CONCURRENCY }, adoptNext));
    }
    const alive = [...byId.values()].filter(
      ({ record }) => isAlive(record.state) || record.state.status === 'restarting',
    );
    await ports.networks.reconcile(new Set(alive.map(({ id }) => id)));
    const valid = new Set(byId.keys());
    // Where no container can run there may be no runtime to ask.
    if (ports.obstacle === undefined) await ports.supervisor.sweep(valid);
    await ports.snapshots.sweep(valid);
    await ports.volumes.sweep();
    await ports.sharedMemory.sweep(valid);
    await sweepDirectories(valid);
  };

  const trimTimer = setInterval(() => {
    for (const container of byId.values())
      container.trimLog().catch((error) => {
        ports.log.warn('a log could not be rotated', { containerId: container.id, error });
      });
  }, LOG_TRIM_MS);
  trimTimer.unref();

  return {
    create,
    start: async (name, options) => find(name).start(options),
    stop: async (name, options) => find(name).stop(options),
    restart: async (name, options) => find(name).restart(options),
    kill: async (name, signal) => find(name).kill(signal),
    pause: async (name) => find(name).pause(),
    unpause: async (name) => find(name).unpause(),
    rename,
    update,
    async wait(name, { condition = 'not-running', signal } = {}) {
      const result = find(name).wait(condition, { signal });
      // Whoever asked may have gone before it came.
      result.catch(() => {});
      return { result };
    },
    remove: async (name, options) => find(name).remove(options),
    async connect(name, network, endpoint) {
      const container = find(name);
      const { endpoints, hostConfig } = container.record;
      mustHaveNetworks(hostConfig);
      const wanted = networkName(network);
      if (Object.hasOwn(endpoints, wanted))
        throw new AppError('denied', `endpoint with name ${container.name} already exists in network ${wanted}`);
      const all = { ...endpoints, [wanted]: endpoint };
      ports.networks.check(sandboxRequestOf({ ...container.record, endpoints: all }));
      await container.connect(wanted, all);
    },
    async disconnect(name, network) {
      const container = find(name);
      const wanted = networkName(network);
      const { [wanted]: left, ...endpoints } = container.record.endpoints;
      if (left === undefined)
        throw new AppError('denied', `container ${container.id} is not connected to network ${wanted}`);
      await container.disconnect(wanted, endpoints);
    },
    prune,
    list,
    inspect,
    async top(name, psArguments = '-ef') {
      const container = find(name);
      if (!isAlive(container.record.state)) throw new AppError('conflict', `container ${container.id} is not running`);
      const processes = await processesOf(await ports.cgroups.processes(container.cgroup), psArguments);
      container.publish('top');
      return processes;
    },
    async stats(name) {
      const container = find(name);
      const { state, hostConfig } = container.record;
      if (!isAlive(state)) return undefined;
      return sampleStats(ports.cgroups, {
        cgroup: container.cgroup,
        pid: state.pid,
        hasOwnNetwork: hostConfig.NetworkMode !== 'host',
        hostMemoryBytes: ports.host.memoryBytes,
        now: ports.now,
      });
    },
    async changes(name) {
      return ports.changes(find(name).id);
    },
    attach: async (name, options) => find(name).attach(options),
    logs: async (name, options) => find(name).logs(options),
    async resize(name, size) {
      const container = find(name);
      if (container.supervised === undefined)
        throw new AppError('conflict', `container ${container.id} is not running`);
      await container.supervised.resize(size);
      container.publish('resize', { height: String(size.rows), width: String(size.columns) });
    },
    createExec: async (name, request) => execs.create(find(name), request),
    startExec: (execId, options) => execs.start(execId, options),
    inspectExec: (execId) => execs.inspect(execId),
    resizeExec: (execId, size) => execs.resize(execId, size),
    openFiles: async (name) => find(name).openFiles(),
    adoptAll,
    async close() {
      clearInterval(trimTimer);
      health.close();
      for (const container of byId.values()) container.close();
      ports.supervisor.close();
    },
    async logBytes() {
      const sizes = await Promise.all([...byId.values()].map((container) => container.output.diskBytes()));
      return sizes.reduce((sum, bytes) => sum + bytes, 0);
    },
    users: imageUsersOf(byId),
  };
}

function imageUsersOf(byId: ReadonlyMap<string, LiveContainer>): Omit<ImageUsers, 'cached'> {
  const useOf = ({ id, record }: LiveContainer): ImageUse => ({ containerId: id, running: isAlive(record.state) });
  const byRunning = (a: ImageUse, b: ImageUse) => Number(b.running) - Number(a.running);
  return {
    async usedBy(image) {
      const users = [...byId.values()].filter(({ record }) => record.imageId === image);
      return users.map(useOf).sort(byRunning);
    },
    async imagesInUse() {
      const uses = Map.groupBy(byId.values(), ({ record }) => record.imageId);
      return new Map([...uses].map(([image, containers]) => [image, containers.map(useOf).sort(byRunning)]));
    },
    async layersInUse() {
      return new Set([...byId.values()].flatMap(({ record }) => record.chain));
    },
  };
}

/** Clients take the 'not-found' of a create for the image's, and pull one: of anything else it is 'invalid'. */
function notTheImage(error: unknown): unknown {
  return isKind(error, 'not-found') ? new AppError('invalid', error.message, { cause: error }) : error;
}

function mustHaveNetworks(hostConfig: HostConfig): void {
  const kind = networkKindOf(hostConfig);
  if (kind !== 'networks')
    throw new AppError(
      'invalid',
      `container cannot be connected to a network: its network mode is ${hostConfig.NetworkMode}`,
    );
}

function checkPlatform(
  wanted: string | undefined,
  image: { readonly os: string; readonly architecture: string; readonly variant: string | undefined },
): void {
  if (wanted === undefined || wanted === '') return;
  const [os, architecture, variant] = wanted.split('/');
  const isSame =
    os === image.os &&
    (architecture === undefined || architecture === image.architecture) &&
    (variant === undefined || image.variant === undefined || variant === image.variant);
  if (!isSame)
    throw new AppError(
      'not-found',
      `image with reference was found but its platform (${image.os}/${image.architecture}) does not match the specified platform (${wanted})`,
    );
}
