/**
 * Networks on this host: keeps what is wanted in memory and in the database, and makes the kernel agree with it.
 *
 * Names carry the engine's tag: bridges `br<tag>-<n>`, the host's ends of pairs `ve<tag><random>`, namespaces
 * `berth_<tag>_<container>`, tables `berth_<tag>`. Whatever carries it and is not known is swept at the start.
 *
 * Order, so that a crash leaves nothing unknown: the row first, then what it names; on the way back the kernel first,
 * the row last, so that an address is free only when nobody can use it any more.
 */
import { readFile, writeFile } from 'node:fs/promises';
import { AppError, isKind, messageOf } from '../../shared/errors.ts';
import type { Log } from '../../shared/log.ts';
import { runCommand } from '../kernel/command.ts';
import type { Links } from '../kernel/links.ts';
import type { Nft } from '../kernel/nft.ts';
import { contains, formatAddress, freeAddress, overlaps, parseAddress, parseSubnet, type Subnet } from './addresses.ts';
import {
  bridgeAddressCommands,
  bridgeCreateCommand,
  endpointCommands,
  interfaceCommands,
  portCommands,
} from './bridge.ts';
import type { Dns } from './dns.ts';
import { matchesNetworkFilters } from './filters.ts';
import { clearedRuleset, type FirewallState, rulesetOf, tableName } from './firewall.ts';
import { hostFirewallChange } from './host-firewall.ts';
import type { NetworkStore, StoredEndpoint, StoredSandbox } from './network-store.ts';
import {
  type Endpoint,
  type EndpointWish,
  type LeasedAddress,
  type NetworkDetails,
  type NetworkRecord,
  type Networks,
  type OpenSandbox,
  type PortWish,
  PREDEFINED,
  type PublishedPort,
  type SandboxRequest,
  type SandboxState,
} from './networks.ts';
import { chooseRange, isOn, planNetwork, subnetsOf } from './plan.ts';
import { type HeldPort, holdPort } from './ports.ts';

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

interface Sandbox {
  stored: StoredSandbox;
  readonly held: HeldPort[];
  /** The kernel has it. */
  ready: Promise<void>;
}

const WATCH_MS = 5000;
const DEFAULT_MTU = 1500;

/** Reads what is stored. Nothing on the host changes before the first container, or reconcile. */
export async function openNetworks(options: NetworksOptions): Promise<LocalNetworks> {
  const { tag, store, links, nft, dns, log, now, randomId } = options;
  const networks = new Map((await store.networks()).map((record) => [record.id, record]));
  const sandboxes = new Map<string, Sandbox>(
    (await store.sandboxes()).map((stored) => [stored.containerId, { stored, held: [], ready: Promise.resolve() }]),
  );
  const defaultNetwork = options.obstacle === undefined ? 'bridge' : 'none';
  const hasIpv6 = (await readFile('/proc/sys/net/ipv6/conf/all/disable_ipv6', 'utf8').catch(() => '1')).trim() === '0';
  /** Bridges that are up, or on their way. */
  const up = new Map<string, Promise<number>>();
  /** What was given last, so that addresses rest. */
  const lastGiven = new Map<string, string>();
  let writtenRules = '';

  // --- finding ---

  const find = (name: string): NetworkRecord => {
    const exact = networks.get(name) ?? [...networks.values()].find((network) => network.name === name);
    if (exact !== undefined) return exact;
    const begun = /^[0-9a-f]+$/.test(name) ? [...networks.values()].filter(({ id }) => id.startsWith(name)) : [];
    if (begun.length > 1)
      throw new AppError('invalid', `network ${name} is ambiguous (${begun.length} matches found on name)`);
    const [only] = begun;
    if (only === undefined) throw new AppError('not-found', `network ${name} not found`);
    return only;
  };

  const membersOf = (id: string): NetworkDetails['members'] => {
    const members = new Map<string, { containerName: string; endpoint: Endpoint }>();
    for (const { stored } of sandboxes.values()) {
      const endpoint = stored.endpoints.find(({ networkId }) => networkId === id);
      if (endpoint !== undefined) members.set(stored.containerId, { containerName: stored.containerName, endpoint });
    }
    return members;
  };
  const detailsOf = (record: NetworkRecord): NetworkDetails => ({ record, members: membersOf(record.id) });

  // --- what is wanted of the host ---

  const firewallState = (): FirewallState => {
    const bridges = [...networks.values()].filter(({ driver, id }) => driver === 'bridge' && up.has(id));
    const all = [...sandboxes.values()].map(({ stored }) => stored);
    return {
      networks: bridges.map((network) => ({
        link: network.link,
        subnets: network.ranges.map(({ subnet }) => subnet),
        gateways: network.ranges.flatMap(({ gateway }) => gateway ?? []),
        internal: network.internal,
        masquerade: isOn(network, 'com.docker.network.bridge.enable_ip_masquerade'),
        icc: isOn(network, 'com.docker.network.bridge.enable_icc'),
      })),
      ports: all.flatMap(({ endpoints }) =>
        endpoints.flatMap(({ link, mac, ipv4, ipv6, networkId }) => {
          const network = networks.get(networkId);
          if (network?.driver !== 'bridge') return [];
          return [
            { link, master: network.link, mac, addresses: [ipv4, ipv6].flatMap((lease) => lease?.address ?? []) },
          ];
        }),
      ),
      forwards: all.flatMap((stored) =>
        stored.ports.flatMap((port) => {
          const target = targetOf(stored, port);
          return target === undefined ? [] : [{ ...port, target }];
        }),
      ),
    };
  };

  /** Where a published port leads: the first endpoint that is reachable from outside, in the port's own family if it can be. */
  const targetOf = ({ endpoints }: Pick<StoredSandbox, 'endpoints'>, port: PublishedPort): string | undefined => {
    const open = endpoints.filter(({ networkId }) => {
      const network = networks.get(networkId);
      return network?.driver === 'bridge' && !network.internal;
    });
    const v4 = open.find(({ ipv4 }) => ipv4 !== undefined)?.ipv4?.address;
    const v6 = open.find(({ ipv6 }) => ipv6 !== undefined)?.ipv6?.address;
    return port.hostAddress.includes(':') ? (v6 ?? v4) : (v4 ?? v6);
  };

  const writeRules = coalesced(async () => {
    const state = firewallState();
    await nft.apply(state.networks.length === 0 ? clearedRuleset(tag) : rulesetOf(tag, state));
    writtenRules = '';
  });

  /** See host-firewall.ts. */
  const passHostFirewall = coalesced(async () => {
    const bridges = firewallState().networks.map(({ link }) => link);
    for (const family of ['ip', 'ip6'] as const) {
      const [forward, dockerUser] = await Promise.all([
        nft.chain(family, 'filter', 'FORWARD'),
        nft.chain(family, 'filter', 'DOCKER-USER'),
      ]);
      const change = hostFirewallChange(tableName(tag), bridges, { family, forward, dockerUser });
      if (change === '') continue;
      await nft.apply(change);
      log.info('the accepts of bridges in the FORWARD rules of the host have been brought up to date', { family });
    }
  });

  const writeNames = coalesced(async () => {
    if (dns === undefined) return;
    const named = [...networks.values()].filter((network) => isNamed(network) && membersOf(network.id).size > 0);
    await dns.write(
      named.map((network) => ({
        id: network.id.slice(0, 12),
        internal: network.internal,
        gateways: network.ranges.flatMap(({ gateway }) => gateway ?? []),
        entries: [...membersOf(network.id)].map(([containerId, { endpoint }]) => ({
          containerId,
          ipv4: endpoint.ipv4?.address,
          ipv6: endpoint.ipv6?.address,
          names: endpoint.dnsNames,
          resolvers: sandboxes.get(containerId)?.stored.dns ?? [],
        })),
      })),
    );
  });

  /** Docker resolves names in every network but the default one. */
  const isNamed = ({ driver, name }: NetworkRecord): boolean => driver === 'bridge' && name !== 'bridge';

  // --- networks on the host ---

  const otherSubnets = (id: string): readonly Subnet[] =>
    [...networks.values()].filter((network) => network.id !== id).flatMap(subnetsOf);

  const bringUp = async (id: string): Promise<number> => {
    let network = found(id);
    const [existing, routes] = await Promise.all([links.list(), links.routes()]);
    const mtu = mtuOf(network, existing, routes);
    if (network.driver !== 'bridge') {
      if (!existing.some(({ name }) => name === network.link))
        throw new AppError(
          'not-found',
          `cannot use network ${JSON.stringify(network.name)}: the host has no link ${JSON.stringify(network.link)}`,
        );
      return mtu;
    }
    const foreign = routes.filter(({ link, destination }) => link !== network.link && destination !== 'default');
    const routed = foreign.map(({ destination }) => parseSubnet(withPrefix(destination)));
    const collides = subnetsOf(network).some((subnet) =>
      routed.some((route) => route.prefix > 0 && overlaps(route, subnet)),
    );
    const isUsed = [...sandboxes.values()].some(({ stored }) =>
      stored.endpoints.some((endpoint) => endpoint.networkId === id && endpoint.ipv4 !== undefined),
    );
    if (collides && network.isChosen && !isUsed) {
      network = {
        ...network,
        ranges: network.ranges.map(({ subnet }) =>
          chooseRange(subnet.includes(':') ? 6 : 4, {
            pools: options.pools,
            networks: otherSubnets(id),
            routes: routed,
          }),
        ),
      };
      await store.updateNetwork(network);
      networks.set(id, network);
    }
    const { link } = network;
    const commands = bridgeAddressCommands(network);
    if (existing.some(({ name }) => name === link)) await links.run(commands);
    else await links.run([bridgeCreateCommand(link, { mac: randomMac(randomId()), mtu }), ...commands]);
    await Promise.all([prepareHost(network), passHostFirewall()]);
    return mtu;
  };

  const found = (id: string): NetworkRecord => {
    const network = networks.get(id);
    if (network === undefined) throw new AppError('not-found', `network ${id} not found`);
    return network;
  };

  const ensureUp = (id: string): Promise<number> => {
    const known = up.get(id);
    if (known !== undefined) return known;
    const made = bringUp(id);
    up.set(id, made);
    made.catch(() => up.delete(id));
    return made;
  };

  /** Forwarding is the host's, everything else the bridge's own. */
  const prepareHost = async ({ link, ipv6 }: NetworkRecord): Promise<void> => {
    const wanted: (readonly [path: string, value: string])[] = [
      ['net/ipv4/ip_forward', '1'],
      // What is published is reachable on 127.0.0.1; the firewall keeps loopback addresses from coming back.
      [`net/ipv4/conf/${link}/route_localnet`, '1'],
      ...(hasIpv6
        ? ([
            [`net/ipv6/conf/${link}/accept_ra`, '0'],
            ...(ipv6
              ? ([['net/ipv6/conf/all/forwarding', '1']] as const)
              : ([[`net/ipv6/conf/${link}/disable_ipv6`, '1']] as const)),
          ] as const)
        : []),
    ];
    for (const [path, value] of wanted) {
      const file = `/proc/sys/${path}`;
      if ((await readFile(file, 'utf8')).trim() !== value) await writeFile(file, value);
    }
  };

  // --- leases ---

  const isLeased = (network: NetworkRecord, address: string): boolean =>
    network.ranges.some(
      ({ gateway, auxiliary }) => gateway === address || Object.values(auxiliary).includes(address),
    ) ||
    [...membersOf(network.id).values()].some(
      ({ endpoint }) => endpoint.ipv4?.address === address || endpoint.ipv6?.address === address,
    );

  const lease = (network: NetworkRecord, family: 4 | 6, wanted: string): LeasedAddress | undefined => {
    const ranges = network.ranges.filter(({ subnet }) => parseSubnet(subnet).family === family);
    if (wanted !== '') checkWanted(network, family, wanted);
    for (const { subnet: text, gateway, ipRange } of ranges) {
      const subnet = parseSubnet(text);
      const isTaken = (address: string) => isLeased(network, address);
      let address: string | undefined;
      if (wanted !== '') {
        if (!contains(subnet, parseAddress(wanted))) continue;
        address = formatAddress(parseAddress(wanted));
        if (isTaken(address)) throw new AppError('denied', 'Address already in use');
      } else {
        const key = `${network.id} ${text}`;
        const range = ipRange === undefined ? undefined : parseSubnet(ipRange);
        const free = freeAddress(subnet, { range, isTaken, after: lastGiven.get(key) });
        if (free === undefined) continue;
        address = formatAddress(free);
        lastGiven.set(key, address);
      }
      return { address, prefix: subnet.prefix, gateway: network.internal ? undefined : gateway };
    }
    if (ranges.length === 0) return undefined;
    throw new AppError(
      'unavailable',
      `no available IPv${family} addresses on this network's address pools: ${network.name} (${network.id})`,
    );
  };

  const checkWanted = (network: NetworkRecord, family: 4 | 6, wanted: string): void => {
    if (network.name === 'bridge' || network.isChosen)
      throw new AppError(
        'invalid',
        'user specified IP address is supported only when connecting to networks with user configured subnets',
      );
    const address = parseAddress(wanted);
    const subnets = subnetsOf(network).filter((subnet) => subnet.family === family);
    if (address.family !== family || !subnets.some((subnet) => contains(subnet, address)))
      throw new AppError('invalid', `no configured subnet or ip-range contain the IP address ${wanted}`);
  };

  const newEndpoint = (
    network: NetworkRecord,
    wish: EndpointWish,
    sandbox: { readonly request: SandboxRequest; readonly interfaces: readonly string[] },
  ): StoredEndpoint => {
    const { containerId, containerName, hostname } = sandbox.request;
    const id = randomId();
    const prefix = network.options['com.docker.network.container_iface_prefix'] ?? 'eth';
    let number = 0;
    while (sandbox.interfaces.includes(`${prefix}${number}`)) number += 1;
    const names = isNamed(network) ? [containerName, ...wish.aliases, containerId.slice(0, 12), hostname] : [];
    return {
      id,
      networkId: network.id,
      networkName: network.name,
      interfaceName: `${prefix}${number}`,
      mac: wish.mac === '' ? randomMac(id) : wish.mac.toLowerCase().replaceAll('-', ':'),
      ipv4: network.ipv4 ? lease(network, 4, wish.ipv4) : undefined,
      ipv6: network.ipv6 ? lease(network, 6, wish.ipv6) : undefined,
      aliases: wish.aliases,
      dnsNames: [...new Set(names.filter((name) => /^[\w.-]+$/.test(name)))],
      driverOptions: wish.driverOptions,
      link: `ve${tag}${id.slice(0, 7)}`,
    };
  };

  // --- sandboxes ---

  /** Reserves what is to be published; the whole or nothing. */
  const holdPorts = async (wishes: readonly PortWish[], endpointName: string): Promise<HeldPort[]> => {
    const held: HeldPort[] = [];
    try {
      for (const wish of wishes) held.push(...(await holdPort(wish, { ipv6: hasIpv6 })));
      return held;
    } catch (error) {
      await release(held);
      if (!isKind(error, 'conflict')) throw error;
      const owner = ownerOf(wishes, error.message);
      throw new AppError(
        'conflict',
        `driver failed programming external connectivity on endpoint ${endpointName}: ${owner === undefined ? error.message : error.message.replace(/ \(held by .*\)$/, ` (held by container ${JSON.stringify(owner)})`)}`,
        { cause: error },
      );
    }
  };

  const ownerOf = (wishes: readonly PortWish[], message: string): string | undefined => {
    const number = Number(/:(\d+) failed/.exec(message)?.[1]);
    const protocols = wishes.map(({ protocol }) => protocol);
    return [...sandboxes.values()].find(({ stored }) =>
      stored.ports.some(({ hostPort, protocol }) => hostPort === number && protocols.includes(protocol)),
    )?.stored.containerName;
  };

  const release = async (held: HeldPort[]): Promise<void> => {
    await Promise.all(held.splice(0).map((each) => each[Symbol.asyncDispose]()));
  };

  const priorities = (endpoints: readonly StoredEndpoint[], wishes: ReadonlyMap<string, EndpointWish>) => {
    const first = (family: 'ipv4' | 'ipv6') =>
      endpoints
        .filter((endpoint) => endpoint[family]?.gateway !== undefined)
        .reduce<StoredEndpoint | undefined>((best, each) => {
          const priority = (endpoint: StoredEndpoint) => wishes.get(endpoint.networkId)?.gatewayPriority ?? 0;
          return best === undefined || priority(each) > priority(best) ? each : best;
        }, undefined);
    return { ipv4: first('ipv4'), ipv6: first('ipv6') };
  };

  const open = async (request: SandboxRequest): Promise<OpenSandbox> => {
    const { containerId } = request;
    const existing = sandboxes.get(containerId);
    if (existing !== undefined) return opened(existing);
    if (options.obstacle !== undefined)
      throw new AppError('unsupported', `cannot connect the container to a network: ${options.obstacle}`);
    const wanted = request.networks.map(({ network, wish }) => ({ network: find(network), wish }));
    // The default network may move to another subnet before its first use.
    await Promise.all(wanted.map(({ network }) => ensureUp(network.id)));
    const endpoints: StoredEndpoint[] = [];
    for (const { network, wish } of wanted)
      endpoints.push(
        newEndpoint(found(network.id), wish, {
          request,
          interfaces: endpoints.map(({ interfaceName }) => interfaceName),
        }),
      );
    const stored: StoredSandbox = {
      containerId,
      containerName: request.containerName,
      hostname: request.hostname,
      namespace: `${tableName(tag)}_${containerId.slice(0, 12)}`,
      ports: [],
      dns: request.dns,
      endpoints,
    };
    const sandbox: Sandbox = { stored, held: [], ready: Promise.resolve() };
    sandboxes.set(containerId, sandbox);
    const byId = new Map(wanted.map(({ network, wish }) => [network.id, wish]));
    try {
      const isReachable = wanted.some(({ network }) => network.driver === 'bridge' && !network.internal);
      if (isReachable) {
        const name = `${request.containerName} (${endpoints[0]?.id ?? ''})`;
        sandbox.held.push(...(await holdPorts(request.ports, name)));
        sandbox.stored = { ...stored, ports: sandbox.held.map(({ port }) => port) };
        for (const each of sandbox.held) each.target = targetOf(stored, each.port);
      }
    } catch (error) {
      sandboxes.delete(containerId);
      throw error;
    }
    sandbox.ready = make(sandbox, byId);
    sandbox.ready.catch(() => {});
    return opened(sandbox);
  };

  const make = async (sandbox: Sandbox, wishes: ReadonlyMap<string, EndpointWish>): Promise<void> => {
    const { stored } = sandbox;
    await store.putSandbox(stored);
    const kernel = async () => {
      const { namespace, endpoints } = stored;
      const plans = await Promise.all(endpoints.map((endpoint) => planOf(endpoint)));
      await links.run([`netns add ${namespace}`, ...plans.flatMap((plan) => endpointCommands(namespace, plan))]);
      const defaults = priorities(endpoints, wishes);
      await links.run(
        [
          'link set lo up',
          ...endpoints.flatMap((endpoint) =>
            interfaceCommands(endpoint, {
              defaultRoutes: { ipv4: defaults.ipv4 === endpoint, ipv6: defaults.ipv6 === endpoint },
            }),
          ),
        ],
        { namespace },
      );
    };
    await Promise.all([kernel(), writeRules(), writeNames()]);
    for (const endpoint of stored.endpoints) announce('connect', endpoint, stored.containerId);
  };

  const planOf = async (endpoint: StoredEndpoint) => ({
    endpoint,
    network: found(endpoint.networkId),
    link: endpoint.link,
    mtu: await ensureUp(endpoint.networkId),
  });

  const announce = (action: string, { networkId }: Endpoint, containerId: string): void => {
    const network = networks.get(networkId);
    if (network !== undefined) options.publish(action, network, { container: containerId });
  };

  const stateOf = ({ stored }: Sandbox): SandboxState => ({
    path: links.namespacePath(stored.namespace),
    endpoints: stored.endpoints,
    ports: stored.ports,
  });

  const opened = (sandbox: Sandbox): OpenSandbox => {
    const { endpoints } = sandbox.stored;
    const asked = dns === undefined ? [] : endpoints.filter(({ networkId }) => isNamed(found(networkId)));
    return {
      ...stateOf(sandbox),
      ready: sandbox.ready,
      sysctls: hasIpv6 ? interfaceSysctls(endpoints) : {},
      nameservers: asked.flatMap(({ networkId }) => {
        const gateways = found(networkId).ranges.flatMap(({ gateway }) => gateway ?? []);
        return gateways.slice(0, 1);
      }),
    };
  };

  const close = async (containerId: string): Promise<void> => {
    const sandbox = sandboxes.get(containerId);
    if (sandbox === undefined) return;
    await sandbox.ready.catch(() => {});
    const { stored } = sandbox;
    await release(sandbox.held);
    await links.attempt([
      ...stored.endpoints.map(({ link }) => `link delete ${link}`),
      `netns delete ${stored.namespace}`,
    ]);
    await store.deleteSandbox(containerId);
    sandboxes.delete(containerId);
    for (const endpoint of stored.endpoints) announce('disconnect', endpoint, containerId);
    await Promise.all([writeRules(), writeNames()]);
  };

  const connect = async (request: SandboxRequest, name: string): Promise<Endpoint> => {
    const network = find(name);
    const sandbox = sandboxes.get(request.containerId);
    const wish = request.networks.find((each) => each.network === name)?.wish;
    if (sandbox === undefined || wish === undefined)
      throw new AppError('conflict', `cannot connect container ${request.containerId}: it has no network of its own`);
    await sandbox.ready;
    const { stored } = sandbox;
    if (stored.endpoints.some(({ networkId }) => networkId === network.id))
      throw new AppError(
        'denied',
        `endpoint with name ${stored.containerName} already exists in network ${network.name}`,
      );
    await ensureUp(network.id);
    const interfaces = stored.endpoints.map(({ interfaceName }) => interfaceName);
    const endpoint = newEndpoint(found(network.id), wish, { request, interfaces });
    sandbox.stored = { ...stored, endpoints: [...stored.endpoints, endpoint] };
    try {
      await store.putSandbox(sandbox.stored);
      const { namespace } = stored;
      await links.run(endpointCommands(namespace, await planOf(endpoint)));
      await setInside(stateOf(sandbox).path, hasIpv6 ? interfaceSysctls([endpoint]) : {});
      const has = (family: 'ipv4' | 'ipv6') => stored.endpoints.some((each) => each[family]?.gateway !== undefined);
      await links.run(interfaceCommands(endpoint, { defaultRoutes: { ipv4: !has('ipv4'), ipv6: !has('ipv6') } }), {
        namespace,
      });
    } catch (error) {
      await links.attempt([`link delete ${endpoint.link}`]);
      sandbox.stored = stored;
      await store.putSandbox(stored);
      throw error;
    }
    for (const each of sandbox.held) each.target = targetOf(sandbox.stored, each.port);
    await Promise.all([writeRules(), writeNames()]);
    announce('connect', endpoint, stored.containerId);
    return endpoint;
  };

  const disconnect = async (containerId: string, name: string): Promise<void> => {
    const network = find(name);
    const sandbox = sandboxes.get(containerId);
    const endpoint = sandbox?.stored.endpoints.find(({ networkId }) => networkId === network.id);
    if (sandbox === undefined || endpoint === undefined)
      throw new AppError('denied', `container ${containerId} is not connected to network ${network.name}`);
    await sandbox.ready;
    if (network.driver === 'bridge') await links.attempt([`link delete ${endpoint.link}`]);
    else await links.run([`link delete ${endpoint.interfaceName}`], { namespace: sandbox.stored.namespace });
    const endpoints = sandbox.stored.endpoints.filter((each) => each !== endpoint);
    const heir = endpoints[0];
    if (heir !== undefined)
      await links.run(
        interfaceCommands(heir, { defaultRoutes: { ipv4: true, ipv6: true } }).filter((command) =>
          command.includes('default'),
        ),
        { namespace: sandbox.stored.namespace },
      );
    sandbox.stored = { ...sandbox.stored, endpoints };
    await store.putSandbox(sandbox.stored);
    for (const each of sandbox.held) each.target = targetOf(sandbox.stored, each.port);
    await Promise.all([writeRules(), writeNames()]);
    announce('disconnect', endpoint, containerId);
  };

  // --- networks as people see them ---

  const create: Networks['create'] = async (request) => {
    if ([...networks.values()].some(({ name }) => name === request.name))
      throw new AppError('already-exists', `network with name ${request.name} already exists`);
    if (options.obstacle !== undefined)
      throw new AppError('unsupported', `cannot create network ${JSON.stringify(request.name)}: ${options.obstacle}`);
    const routes = (await links.routes()).filter(({ destination }) => destination !== 'default');
    const record = planNetwork(request, {
      id: randomId(),
      createdAt: now(),
      pools: options.pools,
      networks: otherSubnets(''),
      routes: routes.map(({ destination }) => parseSubnet(withPrefix(destination))),
      link: freeLink(),
    });
    await store.insertNetwork(record);
    networks.set(record.id, record);
    options.publish('create', record, {});
    return record;
  };

  const freeLink = (): string => {
    const taken = new Set([...networks.values()].map(({ link }) => link));
    for (let number = 0; ; number += 1) {
      const link = `br${tag}-${number.toString(36)}`;
      if (!taken.has(link)) return link;
    }
  };

  const remove = async (name: string): Promise<void> => {
    const network = find(name);
    if (isPredefined(network))
      throw new AppError('denied', `${network.name} is a pre-defined network and cannot be removed`);
    const members = [...membersOf(network.id).values()];
    if (members.length > 0)
      throw new AppError(
        'denied',
        `error while removing network: network ${network.name} has active endpoints (${members.map(({ containerName, endpoint }) => `name:"${containerName}" id:"${endpoint.id.slice(0, 12)}"`).join(', ')})`,
      );
    await takeDown(network);
    await store.deleteNetwork(network.id);
    networks.delete(network.id);
    options.publish('destroy', network, {});
  };

  const takeDown = async (network: NetworkRecord): Promise<void> => {
    if (!up.has(network.id)) return;
    await up.get(network.id)?.catch(() => {});
    up.delete(network.id);
    if (network.driver === 'bridge') await links.attempt([`link delete ${network.link}`]);
    await Promise.all([writeRules(), writeNames(), passHostFirewall()]);
  };

  const ensurePredefined = async (): Promise<void> => {
    for (const name of PREDEFINED) {
      if ([...networks.values()].some((network) => network.name === name)) continue;
      const isBridge = name === 'bridge';
      if (isBridge && options.obstacle !== undefined) continue;
      const routes = isBridge ? (await links.routes()).filter(({ destination }) => destination !== 'default') : [];
      const record: NetworkRecord = {
        id: randomId(),
        name,
        createdAt: now(),
        driver: isBridge ? 'bridge' : name === 'host' ? 'host' : 'null',
        ipv4: true,
        ipv6: false,
        internal: false,
        attachable: false,
        ranges: isBridge
          ? [
              chooseRange(4, {
                pools: options.pools,
                networks: otherSubnets(''),
                routes: routes.map(({ destination }) => parseSubnet(withPrefix(destination))),
              }),
            ]
          : [],
        isChosen: true,
        ipamOptions: {},
        options: isBridge ? defaultBridgeOptions(freeLink()) : {},
        labels: {},
        link: isBridge ? freeLink() : '',
      };
      await store.insertNetwork(record);
      networks.set(record.id, record);
    }
  };

  const reconcile = async (running: ReadonlySet<string>): Promise<void> => {
    if (options.obstacle !== undefined) return;
    for (const containerId of [...sandboxes.keys()]) if (!running.has(containerId)) await close(containerId);
    const used = new Set(
      [...sandboxes.values()].flatMap(({ stored }) => stored.endpoints.map(({ networkId }) => networkId)),
    );
    await mend(used);
    for (const sandbox of sandboxes.values()) if (sandbox.held.length === 0) await holdAgain(sandbox);
    const [existing, namespaces] = await Promise.all([links.list(), links.namespaces()]);
    const known = new Set([
      ...[...networks.values()].filter(({ id }) => up.has(id)).map(({ link }) => link),
      ...[...sandboxes.values()].flatMap(({ stored }) => [
        stored.namespace,
        ...stored.endpoints.map(({ link }) => link),
      ]),
    ]);
    const stray = existing
      .filter(({ name }) => isOurs(name) && !known.has(name))
      .map(({ name }) => `link delete ${name}`);
    const lost = namespaces.filter((name) => name.startsWith(`${tableName(tag)}_`) && !known.has(name));
    await links.attempt([...stray, ...lost.map((name) => `netns delete ${name}`)]);
    await Promise.all([writeRules(), writeNames(), passHostFirewall()]);
  };

  const isOurs = (link: string): boolean => link.startsWith(`ve${tag}`) || link.startsWith(`br${tag}-`);

  /** The ports of a container that an earlier engine started. */
  const holdAgain = async (sandbox: Sandbox): Promise<void> => {
    for (const { protocol, containerPort, hostAddress, hostPort } of sandbox.stored.ports) {
      try {
        const wish = { protocol, containerPort, hostAddress, hostPorts: { first: hostPort, last: hostPort } };
        const held = await holdPort(wish, { ipv6: false });
        for (const each of held) each.target = targetOf(sandbox.stored, each.port);
        sandbox.held.push(...held);
      } catch (error) {
        log.warn('a published port could not be reserved again', { containerId: sandbox.stored.containerId, error });
      }
    }
  };

  /** Bridges and ports of bridges that somebody deleted are made again; containers find their own side unchanged. */
  const mend = async (used: Iterable<string>): Promise<boolean> => {
    const existing = new Map((await links.list()).map((link) => [link.name, link]));
    let changed = false;
    for (const id of used) {
      const network = networks.get(id);
      if (network === undefined) continue;
      if (!existing.has(network.link)) up.delete(id);
      if (up.has(id)) continue;
      await ensureUp(id);
      changed = true;
    }
    for (const { stored } of sandboxes.values())
      for (const { link, networkId } of stored.endpoints) {
        const network = networks.get(networkId);
        const port = existing.get(link);
        if (network?.driver !== 'bridge' || port === undefined || port.master === network.link) continue;
        await links.run(portCommands(link, network.link));
        changed = true;
      }
    return changed;
  };

  const watch = async (): Promise<void> => {
    const active = [...sandboxes.values()];
    if (active.length === 0) return;
    await Promise.all(active.map(({ ready }) => ready.catch(() => {})));
    await passHostFirewall();
    const changed = await mend(new Set(up.keys()));
    const rules = await nft.table('inet', tableName(tag));
    const shape = rules === undefined ? '' : rules.split('\n').sort().join('\n');
    if (changed || rules === undefined || (writtenRules !== '' && shape !== writtenRules)) {
      log.warn('something on the host changed what belongs to networks; it is made again');
      await Promise.all([writeRules(), writeNames()]);
      return;
    }
    writtenRules = shape;
  };

  let watching: Promise<void> = Promise.resolve();
  const timer = setInterval(() => {
    watching = watching.then(watch).catch((error) => log.warn('networks could not be checked', { error }));
  }, WATCH_MS).unref();

  await ensurePredefined();

  return {
    defaultNetwork,
    create,
    list(filters = {}) {
      return [...networks.values()].map(detailsOf).filter((details) => matchesNetworkFilters(details, filters, now()));
    },
    inspect: (name) => detailsOf(find(name)),
    remove,
    async prune({ filters = {}, used }) {
      const removed: string[] = [];
      for (const details of [...networks.values()].map(detailsOf)) {
        const { record, members } = details;
        if (isPredefined(record) || members.size > 0 || used.has(record.name) || used.has(record.id)) continue;
        if (!matchesNetworkFilters(details, filters, now())) continue;
        await remove(record.id);
        removed.push(record.name);
      }
      return removed;
    },
    check(request) {
      for (const { network: name, wish } of request.networks) {
        const network = find(name);
        for (const [family, wanted] of [
          [4, wish.ipv4],
          [6, wish.ipv6],
        ] as const)
          if (wanted !== '') checkWanted(network, family, wanted);
        if (wish.mac !== '' && !/^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$/i.test(wish.mac))
          throw new AppError('invalid', `invalid MAC address: ${wish.mac}`);
      }
    },
    open,
    sandbox(containerId) {
      const sandbox = sandboxes.get(containerId);
      return sandbox === undefined ? undefined : stateOf(sandbox);
    },
    close,
    connect,
    disconnect,
    async rename(containerId, containerName) {
      const sandbox = sandboxes.get(containerId);
      if (sandbox === undefined) return;
      const { stored } = sandbox;
      sandbox.stored = {
        ...stored,
        containerName,
        endpoints: stored.endpoints.map((endpoint) => ({
          ...endpoint,
          dnsNames: endpoint.dnsNames.map((name) => (name === stored.containerName ? containerName : name)),
        })),
      };
      await store.putSandbox(sandbox.stored);
      await writeNames();
    },
    reconcile,
    hostAddress({ endpoints }) {
      return endpoints
        .map(({ networkId }) => found(networkId).ranges[0]?.gateway)
        .find((gateway) => gateway !== undefined);
    },
    async dispose() {
      clearInterval(timer);
      await watching;
      for (const { held } of sandboxes.values()) await release(held);
      for (const network of networks.values()) {
        const isUsed = membersOf(network.id).size > 0;
        if (!isUsed)
          await takeDown(network).catch((error) =>
            log.warn('a network stays on the host', { error: messageOf(error) }),
          );
      }
    },
  };
}

/** Runs work once for all who asked before it began. */
function coalesced(work: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> = Promise.resolve();
  let next: Promise<void> | undefined;
  return () => {
    next ??= running
      .catch(() => {})
      .then(() => {
        next = undefined;
        running = work();
        return running;
      });
    return next;
  };
}

function isPredefined({ name }: NetworkRecord): boolean {
  return PREDEFINED.some((predefined) => predefined === name);
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

/** Locally administered, unicast. */
function randomMac(hex: string): string {
  const bytes = hex.slice(0, 12).match(/../g) ?? [];
  const first = (Number.parseInt(bytes[0] ?? '0', 16) & 0xfe) | 0x02;
  return [first.toString(16).padStart(2, '0'), ...bytes.slice(1)].join(':');
}

/** Router advertisements are never listened to (CVE-2020-13401); without IPv6 there is none at all (CVE-2024-32473). */
function interfaceSysctls(endpoints: readonly StoredEndpoint[]): Readonly<Record<string, string>> {
  return Object.fromEntries([
    ['net.ipv6.conf.default.accept_ra', '0'],
    ...endpoints.flatMap(({ interfaceName, ipv6 }) => [
      [`net.ipv6.conf.${interfaceName}.accept_ra`, '0'],
      ...(ipv6 === undefined ? [[`net.ipv6.conf.${interfaceName}.disable_ipv6`, '1']] : []),
    ]),
  ]);
}

async function setInside(path: string, sysctls: Readonly<Record<string, string>>): Promise<void> {
  const script = Object.entries(sysctls)
    .map(([name, value]) => `echo ${value} > /proc/sys/${name.replaceAll('.', '/')}`)
    .join(' && ');
  if (script === '') return;
  const { exitCode, stderr } = await runCommand('nsenter', [`--net=${path}`, 'sh', '-c', script]);
  if (exitCode !== 0) throw new AppError('unavailable', `cannot prepare an interface: ${stderr.trim()}`);
}

function withPrefix(destination: string): string {
  if (destination.includes('/')) return destination;
  return destination.includes(':') ? `${destination}/128` : `${destination}/32`;
}

/** What the user says, else that of the host's way out: a larger one would lose packets there. */
function mtuOf(
  network: NetworkRecord,
  existing: readonly { readonly name: string; readonly mtu: number }[],
  routes: readonly { readonly destination: string; readonly link: string }[],
): number {
  const wanted = network.options['com.docker.network.driver.mtu'];
  if (wanted !== undefined) return Number(wanted);
  const way = routes.find(({ destination }) => destination === 'default')?.link ?? network.link;
  return existing.find(({ name }) => name === way)?.mtu ?? DEFAULT_MTU;
}
