/**
 * Containers on this host: hands each verb to the one container it is about, and does what is about several of them. All
 * records are held in memory; the database is written through.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '../../shared/errors.ts';
import type { ImageUse, ImageUsers } from '../images/images.ts';
import { adoptContainers } from './adoption.ts';
import { isAlive } from './container.ts';
import type { OpenFiles } from './container-files.ts';
import { createContainerStore } from './container-store.ts';
import { ContainerTable } from './container-table.ts';
import type { Containers } from './containers.ts';
import { checkHostConfig } from './create-plan.ts';
import { createContainer } from './creation.ts';
import { Execs } from './exec.ts';
import { HealthMonitor } from './health.ts';
import { parseLinkName } from './links.ts';
import { isPrunable } from './list-filters.ts';
import { inspectContainer, type ListingPorts, listContainers } from './listing.ts';
import type { LiveContainer, LivePorts } from './live-container.ts';
import { parseName } from './names.ts';
import { networkKindOf, sandboxRequestOf } from './networking.ts';
import type { ContainerPorts } from './ports.ts';
import type { HostConfig, UpdateRequest } from './request.ts';
import { sampleStats } from './stats.ts';
import { processesOf } from './top.ts';

/** A log grows past its limit by what is printed in this time. */
const LOG_TRIM_MS = 1000;
/** How long the end of the engine waits for verbs that have begun. */
const CLOSE_MS = 5000;

export interface LocalContainers extends Containers {
  readonly users: Omit<ImageUsers, 'cached'>;
  /** A container's files; whoever opened them disposes them. @throws as every verb */
  openFiles(name: string): Promise<OpenFiles>;
  /** What the logs occupy, for `system df`. */
  logBytes(): Promise<number>;
}

export function createContainers(ports: ContainerPorts): LocalContainers {
  const table = new ContainerTable();
  /** Gone for everybody, while what they leave is put away. */
  const leaving = new Set<LiveContainer>();
  const find = (name: string) => table.find(name);

  const livePorts: LivePorts = {
    ...ports,
    store: createContainerStore(ports.database),
    pidOf(name) {
      const { record } = find(name);
      if (isAlive(record.state)) return record.state.pid;
      throw new AppError('conflict', `cannot join container ${record.name}: container ${record.id} is not running`);
    },
    etcOf: (name) => find(name).etcPaths,
    recordOf: (name) => find(name).record,
    onMoved() {
      for (const container of table)
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
    isRestarting: (name) => table.tryFind(name)?.record.state.status === 'restarting',
    onRemoved(container) {
      table.delete(container);
      leaving.add(container);
      void container.settled().finally(() => leaving.delete(container));
      execs.forget(container);
      health.forget(container);
    },
    onStarted: (container) => health.start(container),
    onEnded: (container) => health.stop(container),
  };
  const execs = new Execs(ports);
  const health = new HealthMonitor({ execs, now: ports.now, log: ports.log });

  const listing: ListingPorts = { ...ports, table, health, execs };
  const networkName = (name: string): string => ports.networks.inspect(name).record.name;

  const rename = async (name: string, newName: string): Promise<void> => {
    const container = find(name);
    const oldName = container.name;
    const wanted = parseName(newName);
    if (wanted === oldName)
      throw new AppError('invalid', 'Renaming a container with the same name as its current name');
    table.takeName(wanted, container.id);
    try {
      await container.update(() => ({ name: wanted }));
      await ports.networks.rename(container.id, wanted);
      livePorts.onMoved();
    } catch (error) {
      table.freeName(wanted);
      throw error;
    }
    table.freeName(oldName);
    container.publish('rename', { oldName: `/${oldName}` });
  };

  const update = async (name: string, request: UpdateRequest) => {
    const container = find(name);
    await container.update(({ hostConfig: before }) => {
      if (before.AutoRemove && (request.RestartPolicy?.Name ?? 'no') !== 'no')
        throw new AppError(
          'conflict',
          'Restart policy cannot be updated because AutoRemove is enabled for the container',
        );
      const hostConfig: HostConfig = { ...before, ...request };
      checkHostConfig(hostConfig, ports.host);
      return { hostConfig };
    });
    container.publish('update');
    return { warnings: [] };
  };

  const removeLink = async (name: string): Promise<void> => {
    const { parent, alias } = parseLinkName(name);
    await find(parent).unlink(alias);
  };

  const prune: Containers['prune'] = async (filters = {}) => {
    const deleted: string[] = [];
    let reclaimedBytes = 0;
    const now = ports.now();
    for (const container of [...table].filter(({ record }) => isPrunable(record, filters, now))) {
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

  const trimTimer = setInterval(() => {
    for (const container of table)
      container.trimLog().catch((error) => {
        ports.log.warn('a log could not be rotated', { containerId: container.id, error });
      });
  }, LOG_TRIM_MS);
  trimTimer.unref();

  return {
    create: (request, options = {}) => createContainer(request, options, { ports: livePorts, table }),
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
    removeLink,
    async connect(name, network, endpoint) {
      const container = find(name);
      const { endpoints, hostConfig } = container.record;
      mustHaveNetworks(hostConfig);
      const wanted = networkName(network);
      mustBeJoinable(wanted);
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
    list: (options = {}) => listContainers(listing, options),
    inspect: async (name, { size = false } = {}) => inspectContainer(listing, find(name), { size }),
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
    createExec: async (name, request) => await execs.create(find(name), request),
    startExec: (execId, options) => execs.start(execId, options),
    inspectExec: (execId) => execs.inspect(execId),
    resizeExec: (execId, size) => execs.resize(execId, size),
    openFiles: async (name) => find(name).openFiles(),
    adoptAll: () => adoptContainers(livePorts, table),
    async close() {
      clearInterval(trimTimer);
      await health.close();
      execs.close();
      // A verb may wait longer, for a process that does not end; what it waits for goes on without it.
      const closed = Promise.all([...table, ...leaving].map((container) => container.close()));
      await Promise.race([closed, delay(CLOSE_MS, undefined, { ref: false })]);
      await ports.supervisor.close();
    },
    async logBytes() {
      const sizes = await Promise.all([...table].map((container) => container.output.diskBytes()));
      return sizes.reduce((sum, bytes) => sum + bytes, 0);
    },
    users: imageUsersOf(table),
  };
}

function imageUsersOf(table: ContainerTable): Omit<ImageUsers, 'cached'> {
  const useOf = ({ id, record }: LiveContainer): ImageUse => ({ containerId: id, running: isAlive(record.state) });
  const byRunning = (a: ImageUse, b: ImageUse) => Number(b.running) - Number(a.running);
  return {
    async usedBy(image) {
      const users = [...table].filter(({ record }) => record.imageId === image);
      return users.map(useOf).sort(byRunning);
    },
    async imagesInUse() {
      const uses = Map.groupBy(table, ({ record }) => record.imageId);
      return new Map([...uses].map(([image, containers]) => [image, containers.map(useOf).sort(byRunning)]));
    },
    async layersInUse() {
      return new Set([...table].flatMap(({ record }) => record.chain));
    },
  };
}

/** @throws AppError 'invalid' with Docker's words */
function mustBeJoinable(network: string): void {
  if (network === 'host')
    throw new AppError('invalid', 'container cannot be disconnected from host network or connected to host network');
  if (network === 'none')
    throw new AppError(
      'invalid',
      'container cannot be connected to multiple networks with one of the networks in private (none) mode',
    );
}

function mustHaveNetworks(hostConfig: HostConfig): void {
  const kind = networkKindOf(hostConfig);
  if (kind !== 'networks')
    throw new AppError(
      'invalid',
      `container cannot be connected to a network: its network mode is ${hostConfig.NetworkMode}`,
    );
}
