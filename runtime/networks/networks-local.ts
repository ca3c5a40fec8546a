/**
 * Networks on this host: keeps what is wanted in memory (topology.ts) and in the database, and has the kernel agree
 * with it (host-side.ts for bridges, rules and names, sandboxes.ts for what containers have of them).
 *
 * Names carry the engine's tag: bridges `br<tag>-<n>`, the host's ends of pairs `ve<tag><random>`, namespaces
 * `berth_<tag>_<container>`, tables `berth_<tag>`. Whatever carries it and is not known is swept at the start.
 */
import { readFile } from 'node:fs/promises';
import { AppError, messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import type { Links } from '../kernel/links.ts';
import type { Nft } from '../kernel/nft.ts';
import type { Subnet } from './addresses.ts';
import type { Dns } from './dns.ts';
import { matchesNetworkFilters } from './filters.ts';
import { tableName } from './firewall.ts';
import { createHostSide } from './host-side.ts';
import { checkWish, createLeases } from './leases.ts';
import type { NetworkStore } from './network-store.ts';
import { type NetworkRecord, type Networks, PREDEFINED } from './networks.ts';
import { chooseRange, planNetwork } from './plan.ts';
import { createSandboxes } from './sandboxes.ts';
import { isPredefined, Topology } from './topology.ts';
import { createWatch } from './watch.ts';

export interface NetworksOptions {
  readonly tag: string;
  readonly store: NetworkStore;
  readonly links: Links;
  readonly nft: Nft;
  /** undefined = names are not resolved. */
  readonly dns: Dns | undefined;
  readonly pools: readonly Subnet[];
  /** What keeps bridges from being made here; undefined = nothing. */
  readonly obstacle: string | undefined;
  readonly publish: (action: string, network: NetworkRecord, attributes: Readonly<Record<string, string>>) => void;
  readonly log: Log;
  readonly now: () => Date;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
}

export interface LocalNetworks extends Networks {
  /** Stops watching; takes back from the host what no container uses. */
  dispose(): Promise<void>;
}

/** Reads what is stored. Nothing on the host changes before the first container, or reconcile. */
export async function openNetworks(options: NetworksOptions): Promise<LocalNetworks> {
  const { tag, store, links, dns, log, now, randomId, obstacle } = options;
  const topology = new Topology(await store.networks(), await store.sandboxes());
  const { networks } = topology;
  const hasIpv6 = (await readFile('/proc/sys/net/ipv6/conf/all/disable_ipv6', 'utf8').catch(() => '1')).trim() === '0';
  const host = createHostSide(topology, { ...options, hasIpv6 });
  const leases = createLeases(topology, options);
  const hasNameServers = dns !== undefined;
  const sandboxes = createSandboxes(topology, { ...options, host, leases, hasNameServers, hasIpv6 });

  const create: Networks['create'] = async (request) => {
    if ([...networks.values()].some(({ name }) => name === request.name))
      throw new AppError('already-exists', `network with name ${request.name} already exists`);
    if (obstacle !== undefined)
      throw new AppError('unsupported', `cannot create network ${JSON.stringify(request.name)}: ${obstacle}`);
    const record = planNetwork(request, {
      id: randomId(),
      createdAt: now(),
      pools: options.pools,
      routes: await host.routed(),
      networks: topology.subnetsBeside(''),
      link: freeLink(),
    });
    await keep(record);
    options.publish('create', record, {});
    return record;
  };

  /** In memory at once, so that nobody else is given the same name, subnet or link meanwhile. */
  const keep = async (record: NetworkRecord): Promise<void> => {
    networks.set(record.id, record);
    try {
      await store.insertNetwork(record);
    } catch (error) {
      networks.delete(record.id);
      throw error;
    }
  };

  const freeLink = (): string => {
    const taken = new Set([...networks.values()].map(({ link }) => link));
    for (let number = 0; ; number += 1) {
      const link = `br${tag}-${number.toString(36)}`;
      if (!taken.has(link)) return link;
    }
  };

  /** What has ended is no member any more, though its place is still being taken back. */
  const endings = async (): Promise<void> => {
    await Promise.allSettled([...topology.sandboxes.values()].map(({ closing }) => closing));
  };

  const remove = async (name: string): Promise<void> => {
    const network = topology.find(name);
    if (isPredefined(network))
      throw new AppError('denied', `${network.name} is a pre-defined network and cannot be removed`);
    await endings();
    const members = [...topology.membersOf(network.id).values()];
    if (members.length > 0)
      throw new AppError(
        'denied',
        `error while removing network: network ${network.name} has active endpoints (${members.map(({ containerName, endpoint }) => `name:"${containerName}" id:"${endpoint.id.slice(0, 12)}"`).join(', ')})`,
      );
    await host.takeDown(network);
    await store.deleteNetwork(network.id);
    networks.delete(network.id);
    options.publish('destroy', network, {});
  };

  const ensurePredefined = async (): Promise<void> => {
    for (const name of PREDEFINED) {
      if ([...networks.values()].some((network) => network.name === name)) continue;
      const isBridge = name === 'bridge';
      if (isBridge && obstacle !== undefined) continue;
      const link = isBridge ? freeLink() : '';
      const facts = { pools: options.pools, networks: topology.subnetsBeside(''), routes: await host.routed() };
      await keep({
        id: randomId(),
        name,
        createdAt: now(),
        driver: isBridge ? 'bridge' : name === 'host' ? 'host' : 'null',
        ipv4: true,
        ipv6: false,
        internal: false,
        attachable: false,
        ranges: isBridge ? [chooseRange(4, facts)] : [],
        isChosen: true,
        ipamOptions: {},
        options: isBridge ? defaultBridgeOptions(link) : {},
        labels: {},
        link,
      });
    }
  };

  const reconcile = async (running: ReadonlySet<string>): Promise<void> => {
    if (obstacle !== undefined) return;
    for (const containerId of [...topology.sandboxes.keys()])
      if (!running.has(containerId)) await sandboxes.close(containerId);
    const kept = [...topology.sandboxes.values()].map(({ stored }) => stored);
    await host.mend(new Set(kept.flatMap(({ endpoints }) => endpoints.map(({ networkId }) => networkId))));
    await sandboxes.holdAgain();
    await sweep();
    await host.writeAll();
    if (topology.sandboxes.size > 0) watch.begin();
  };

  /** Whatever carries our mark and is not known. */
  const sweep = async (): Promise<void> => {
    const [existing, namespaces] = await Promise.all([links.list(), links.namespaces()]);
    const known = new Set([
      ...[...networks.values()].filter(({ id }) => host.isUp(id)).map(({ link }) => link),
      ...[...topology.sandboxes.values()].flatMap(({ stored }) => [
        stored.namespace,
        ...stored.endpoints.map(({ link }) => link),
      ]),
    ]);
    const isOurs = (link: string) => link.startsWith(`ve${tag}`) || link.startsWith(`br${tag}-`);
    const stray = existing.filter(({ name }) => isOurs(name) && !known.has(name));
    const lost = namespaces.filter((name) => name.startsWith(`${tableName(tag)}_`) && !known.has(name));
    await links.attempt([
      ...stray.map(({ name }) => `link delete ${name}`),
      ...lost.map((name) => `netns delete ${name}`),
    ]);
  };

  const watch = createWatch({
    nft: options.nft,
    log,
    isNeeded: () => topology.sandboxes.size > 0,
    tableName: tableName(tag),
    async check(rules) {
      await Promise.all([...topology.sandboxes.values()].map(({ ready }) => ready.catch(() => {})));
      if (topology.sandboxes.size > 0) await host.check(rules);
    },
  });

  await ensurePredefined();

  const { open, sandbox, close, connect, disconnect, rename } = sandboxes;
  return {
    defaultNetwork: obstacle === undefined ? 'bridge' : 'none',
    create,
    list(filters = {}) {
      return topology.details().filter((details) => matchesNetworkFilters(details, filters, now()));
    },
    inspect: (name) => topology.detailsOf(topology.find(name)),
    remove,
    async prune({ filters = {}, used }) {
      const removed: string[] = [];
      await endings();
      for (const details of topology.details()) {
        const { record, members } = details;
        if (isPredefined(record) || members.size > 0 || used.has(record.name) || used.has(record.id)) continue;
        if (!matchesNetworkFilters(details, filters, now())) continue;
        await remove(record.id);
        removed.push(record.name);
      }
      return removed;
    },
    check(request) {
      for (const { network, wish } of request.networks) checkWish(topology.find(network), wish);
    },
    open(request) {
      watch.begin();
      return open(request);
    },
    sandbox,
    close,
    connect,
    disconnect,
    rename,
    reconcile,
    hostAddress({ endpoints }) {
      return endpoints
        .map(({ networkId }) => topology.get(networkId).ranges[0]?.gateway)
        .find((gateway) => gateway !== undefined);
    },
    async dispose() {
      await watch[Symbol.asyncDispose]();
      await sandboxes.releasePorts();
      for (const { record, members } of topology.details()) {
        if (members.size > 0) continue;
        await host
          .takeDown(record)
          .catch((error) => log.warn('a network stays on the host', { error: messageOf(error) }));
      }
    },
  };
}

function defaultBridgeOptions(link: string): Readonly<Record<string, string>> {
  return {
    'com.docker.network.bridge.default_bridge': 'true',
    'com.docker.network.bridge.enable_icc': 'true',
    'com.docker.network.bridge.enable_ip_masquerade': 'true',
    'com.docker.network.bridge.host_binding_ipv4': '0.0.0.0',
    'com.docker.network.bridge.name': link,
  };
}
