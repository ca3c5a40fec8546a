/**
 * Who has which address: the endpoints of containers, each with a name of its link, a MAC and addresses that no other
 * endpoint of the network holds. What is leased is what the topology has; an address that was given back rests for as
 * long as there are others.
 */
import { AppError } from '../../shared/errors.ts';
import { contains, formatAddress, freeAddress, parseAddress, parseSubnet } from './addresses.ts';
import type { StoredEndpoint } from './network-store.ts';
import type { EndpointWish, LeasedAddress, NetworkRecord, SandboxRequest } from './networks.ts';
import { subnetsOf } from './plan.ts';
import { hasNames, type Topology } from './topology.ts';

export interface Leases {
  /**
   * A new endpoint. It is leased once the caller has put it into the topology, before anything else is awaited.
   * @throws AppError 'denied' (address in use), 'invalid' (outside of the subnets), 'unavailable' (none is left)
   */
  endpoint(
    network: NetworkRecord,
    wish: EndpointWish,
    sandbox: { readonly request: SandboxRequest; readonly interfaces: readonly string[] },
  ): StoredEndpoint;
}

export function createLeases(
  topology: Topology,
  { tag, randomId }: { readonly tag: string; readonly randomId: () => string },
): Leases {
  /** What was given last, so that addresses rest. */
  const lastGiven = new Map<string, string>();

  const isLeased = (network: NetworkRecord, address: string): boolean =>
    network.ranges.some(
      ({ gateway, auxiliary }) => gateway === address || Object.values(auxiliary).includes(address),
    ) ||
    [...topology.membersOf(network.id).values()].some(
      ({ endpoint }) => endpoint.ipv4?.address === address || endpoint.ipv6?.address === address,
    );

  const lease = (network: NetworkRecord, family: 4 | 6, wanted: string): LeasedAddress | undefined => {
    const ranges = network.ranges.filter(({ subnet }) => parseSubnet(subnet).family === family);
    if (wanted !== '') checkWantedAddress(network, family, wanted);
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

  return {
    endpoint(network, wish, { request, interfaces }) {
      const { containerId, containerName, hostname } = request;
      const id = randomId();
      const prefix = network.options['com.docker.network.container_iface_prefix'] ?? 'eth';
      let number = 0;
      while (interfaces.includes(`${prefix}${number}`)) number += 1;
      const interfaceName = wish.driverOptions[INTERFACE_NAME] ?? `${prefix}${number}`;
      if (interfaces.includes(interfaceName))
        throw new AppError('conflict', `the container has an interface ${JSON.stringify(interfaceName)} already`);
      const names = hasNames(network) ? [containerName, ...wish.aliases, containerId.slice(0, 12), hostname] : [];
      return {
        id,
        networkId: network.id,
        networkName: network.name,
        interfaceName,
        mac: wish.mac === '' ? randomMac(id) : wish.mac.toLowerCase().replaceAll('-', ':'),
        ipv4: network.ipv4 ? lease(network, 4, wish.ipv4) : undefined,
        ipv6: network.ipv6 ? lease(network, 6, wish.ipv6) : undefined,
        aliases: wish.aliases,
        dnsNames: [...new Set(names.filter((name) => /^[\w.-]+$/.test(name)))],
        driverOptions: wish.driverOptions,
        linkLocal: wish.linkLocal,
        link: `ve${tag}${id.slice(0, 7)}`,
        gatewayPriority: wish.gatewayPriority,
      };
    },
  };
}

/** @throws AppError 'invalid' with Docker's words */
export function checkWish(network: NetworkRecord, wish: EndpointWish): void {
  if (wish.ipv4 !== '') checkWantedAddress(network, 4, wish.ipv4);
  if (wish.ipv6 !== '') checkWantedAddress(network, 6, wish.ipv6);
  if (wish.mac !== '' && !/^[0-9a-f]{2}([:-][0-9a-f]{2}){5}$/i.test(wish.mac))
    throw new AppError('invalid', `invalid MAC address: ${wish.mac}`);
  for (const address of wish.linkLocal) {
    if (!LINK_LOCAL.some((subnet) => contains(subnet, parseAddress(address))))
      throw new AppError('invalid', `invalid link-local IP address: ${address}`);
    if (address.includes(':') && !network.ipv6)
      throw new AppError('invalid', `cannot use ${address}: network ${network.name} has no IPv6`);
  }
  checkDriverOptions(wish.driverOptions);
}

const INTERFACE_NAME = 'com.docker.network.endpoint.ifname';
const SYSCTLS = 'com.docker.network.endpoint.sysctls';
const LINK_LOCAL = [parseSubnet('169.254.0.0/16'), parseSubnet('fe80::/10')];

function checkDriverOptions(options: EndpointWish['driverOptions']): void {
  for (const [key, value] of Object.entries(options)) {
    // Others are for drivers of others, or a client's own notes: Docker keeps and tells them, and so do we.
    if (key.startsWith('com.docker.network.') && key !== INTERFACE_NAME && key !== SYSCTLS)
      throw new AppError('unsupported', `cannot connect a container: the driver option ${key} is not supported`);
    if (key === INTERFACE_NAME && (!/^[a-zA-Z][\w-]{0,14}$/.test(value) || value === 'lo'))
      throw new AppError('invalid', `invalid name of an interface: ${JSON.stringify(value)}`);
    if (key === SYSCTLS) endpointSysctls({ interfaceName: 'eth0', driverOptions: options });
  }
}

/**
 * What a user sets for one interface, which is written IFNAME there: `net.ipv4.conf.IFNAME.log_martians=1,…`; docker's
 * client makes small letters of it.
 * @throws AppError 'invalid' for anything else
 */
export function endpointSysctls({
  interfaceName,
  driverOptions,
}: Pick<StoredEndpoint, 'interfaceName' | 'driverOptions'>): Readonly<Record<string, string>> {
  const settings = driverOptions[SYSCTLS]?.split(',') ?? [];
  return Object.fromEntries(
    settings.map((setting) => {
      const [, before, after, value] = /^(net\.\w+\.\w+\.)IFNAME(\.\w+)=([\w:.-]+)$/i.exec(setting) ?? [];
      if (value === undefined)
        throw new AppError('invalid', `invalid sysctl of an interface: ${JSON.stringify(setting)}`);
      return [`${before}${interfaceName}${after}`, value];
    }),
  );
}

function checkWantedAddress(network: NetworkRecord, family: 4 | 6, wanted: string): void {
  if (network.name === 'bridge' || network.isChosen)
    throw new AppError(
      'invalid',
      'user specified IP address is supported only when connecting to networks with user configured subnets',
    );
  const address = parseAddress(wanted);
  const subnets = subnetsOf(network).filter((subnet) => subnet.family === family);
  if (address.family !== family || !subnets.some((subnet) => contains(subnet, address)))
    throw new AppError('invalid', `no configured subnet or ip-range contain the IP address ${wanted}`);
}

/** Locally administered, unicast. */
export function randomMac(hex: string): string {
  const bytes = hex.slice(0, 12).match(/../g) ?? [];
  const first = (Number.parseInt(bytes[0] ?? '0', 16) & 0xfe) | 0x02;
  return [first.toString(16).padStart(2, '0'), ...bytes.slice(1)].join(':');
}
