/** What is told of containers: the lists that clients ask for, and all about one of them. */
import type { Digest } from '../../shared/digest.ts';
import { type ContainerRecord, isAlive } from './container.ts';
import type { ContainerTable } from './container-table.ts';
import type { ContainerDetails, ContainerSize, ContainerSummary, ListOptions } from './containers.ts';
import type { Execs } from './exec.ts';
import type { HealthMonitor } from './health.ts';
import { linkNames } from './links.ts';
import { checkFilters, isListed, matchesFilters } from './list-filters.ts';
import type { LiveContainer } from './live-container.ts';
import { namesMatching } from './name-pattern.ts';
import type { ContainerPorts } from './ports.ts';
import { statusText } from './status-text.ts';

export interface ListingPorts extends Pick<ContainerPorts, 'images' | 'snapshots' | 'layerBytes' | 'now'> {
  readonly table: ContainerTable;
  readonly health: Pick<HealthMonitor, 'of'>;
  readonly execs: Pick<Execs, 'idsOf'>;
}

/** See Containers.list. */
export async function listContainers(ports: ListingPorts, options: ListOptions): Promise<readonly ContainerSummary[]> {
  const { table, health } = ports;
  const { filters = {}, limit, size = false } = options;
  checkFilters(filters);
  const all = options.all === true || (limit !== undefined && limit > 0);
  const ancestors = await resolveAncestors(ports, filters.ancestor ?? []);
  const linked = linkNamesIn(table);
  const namesOf = ({ id, name }: ContainerRecord) => [name, ...(linked.get(id) ?? [])];
  const names = [...table].flatMap(({ record }) => namesOf(record));
  const named = new Map((filters.name ?? []).map((pattern) => [pattern, namesMatching(pattern, names)]));
  const context = {
    find: (name: string) => table.find(name).record,
    isImage: (record: ContainerRecord, name: string) =>
      record.imageName === name || ancestors.get(name) === record.imageId,
    isNamed: (record: ContainerRecord, pattern: string) =>
      namesOf(record).some((name) => named.get(pattern)?.has(name) === true),
  };
  const chosen = [...table]
    .map((container) => ({
      container,
      record: container.record,
      health: health.of(container),
      sandbox: container.network.sandbox,
    }))
    .filter((listed) => isListed(listed, filters, { all }) && matchesFilters(listed, filters, context))
    .sort((a, b) => b.record.createdAt.getTime() - a.record.createdAt.getTime())
    .slice(0, limit !== undefined && limit > 0 ? limit : undefined);
  return Promise.all(chosen.map(({ container }) => summaryOf(ports, container, { size, linked })));
}

function linkNamesIn(table: ContainerTable): ReturnType<typeof linkNames> {
  return linkNames(
    [...table].map(({ record }) => record),
    (name) => table.tryFind(name)?.record,
  );
}

async function resolveAncestors(
  { images }: ListingPorts,
  names: readonly string[],
): Promise<ReadonlyMap<string, Digest>> {
  const found = new Map<string, Digest>();
  for (const name of names) {
    const image = await images.resolve(name).catch(() => undefined);
    if (image !== undefined) found.set(name, image.id);
  }
  return found;
}

/** See Containers.inspect. */
export async function inspectContainer(
  ports: ListingPorts,
  container: LiveContainer,
  { size }: { readonly size: boolean },
): Promise<ContainerDetails> {
  const { state } = container.record;
  const hasStarted = state.status !== 'created' || state.failure !== undefined;
  const { hostname, hosts, resolvConf } = container.etcPaths;
  return {
    ...(await summaryOf(ports, container, { size, linked: linkNamesIn(ports.table) })),
    paths: hasStarted
      ? { hostname, hosts, resolvConf, log: container.output.path }
      : { hostname: '', hosts: '', resolvConf: '', log: '' },
    execIds: ports.execs.idsOf(container),
  };
}

async function summaryOf(
  ports: ListingPorts,
  container: LiveContainer,
  { size, linked }: { readonly size: boolean; readonly linked: ReturnType<typeof linkNames> },
): Promise<ContainerSummary> {
  const { record } = container;
  const { connections, sandbox } = container.network;
  const health = ports.health.of(container);
  // Of what has ended, the addresses are given back a moment later.
  const hasNetwork = isAlive(record.state) || record.state.status === 'restarting';
  return {
    record,
    linkNames: linked.get(record.id) ?? [],
    statusText: statusText(record.state, { now: ports.now(), health }),
    health,
    connections: hasNetwork ? connections : connections.map((one) => ({ ...one, endpoint: undefined })),
    sandbox: hasNetwork ? sandbox : undefined,
    size: size ? await sizeOf(ports, container) : undefined,
  };
}

async function sizeOf({ snapshots, layerBytes }: ListingPorts, { id, record }: LiveContainer): Promise<ContainerSize> {
  const writableBytes = await snapshots.diskBytes(id);
  return { writableBytes, totalBytes: writableBytes + (await layerBytes(record.chain)) };
}
