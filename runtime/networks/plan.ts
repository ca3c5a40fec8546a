/** From what a client wants to a network: Docker's checks and defaults. Pure; what the host has comes in as facts. */
import { isIP } from 'node:net';
import { AppError } from '../../shared/errors.ts';
import {
  contains,
  firstHost,
  formatAddress,
  formatSubnet,
  freeSubnet,
  overlaps,
  parseAddress,
  parseSubnet,
  type Subnet,
} from './addresses.ts';
import {
  type AddressRange,
  type NetworkDriver,
  type NetworkRecord,
  type NetworkRequest,
  PREDEFINED,
} from './networks.ts';

export interface PlanFacts {
  readonly id: string;
  readonly createdAt: Date;
  /** Where subnets are chosen from, per family. */
  readonly pools: readonly Subnet[];
  /** Subnets of other networks. */
  readonly networks: readonly Subnet[];
  /** What the host has routes to. */
  readonly routes: readonly Subnet[];
  /** Name of the host's link, unless the options name one. */
  readonly link: string;
}

/** Prefix lengths of the subnets that we choose: small enough that a host does not run out of them. */
const CHOSEN_PREFIX = { 4: 24, 6: 64 } as const;
const LINK_NAME_MAX = 15;
const BRIDGE_NAME = 'com.docker.network.bridge.name';
/** The host's address for ports that are published without one. */
export const HOST_BINDING = 'com.docker.network.bridge.host_binding_ipv4';
const MTU_MIN = 68;
const MTU_MAX = 65_535;

/** Docker takes anything; what no path can name, or no terminal can show, is refused. */
const NAME = /^[^\p{Cc}/]{1,255}$/u;
const BRIDGE_OPTIONS: readonly string[] = [
  BRIDGE_NAME,
  'com.docker.network.bridge.default_bridge',
  'com.docker.network.bridge.enable_icc',
  'com.docker.network.bridge.enable_ip_masquerade',
  HOST_BINDING,
  'com.docker.network.driver.mtu',
  'com.docker.network.container_iface_prefix',
];
const FLAG_OPTIONS = [
  'com.docker.network.bridge.enable_icc',
  'com.docker.network.bridge.enable_ip_masquerade',
] as const;
const MODES: Readonly<Record<string, readonly string[]>> = {
  macvlan_mode: ['bridge', 'private', 'vepa', 'passthru'],
  ipvlan_mode: ['l2', 'l3', 'l3s'],
};
const VLAN_OPTIONS: readonly string[] = ['parent', 'macvlan_mode', 'ipvlan_mode', 'com.docker.network.driver.mtu'];

/** @throws AppError 'invalid', 'denied', 'conflict' and 'unsupported' as Networks.create tells */
export function planNetwork(request: NetworkRequest, facts: PlanFacts): NetworkRecord {
  const { name, internal, attachable, options, labels, ipv4, ipv6, ipamOptions } = request;
  if (PREDEFINED.some((predefined) => predefined === name) || name === 'default')
    throw new AppError('denied', `operation is not permitted on predefined ${name} network`);
  if (name.trim() === '') throw new AppError('invalid', 'invalid name: name is empty');
  if (!NAME.test(name)) throw new AppError('invalid', `network name ${JSON.stringify(name.slice(0, 300))} is invalid`);
  const driver = driverOf(request);
  if (!ipv4 && !ipv6) throw new AppError('invalid', 'IPv4 or IPv6 must be enabled');
  if (request.ipamDriver !== '' && request.ipamDriver !== 'default')
    throw new AppError(
      'unsupported',
      `cannot create network ${JSON.stringify(name)}: there is no IPAM driver ${JSON.stringify(request.ipamDriver)}`,
    );
  checkOptions(driver, options);
  return {
    id: facts.id,
    name,
    createdAt: facts.createdAt,
    driver,
    ipv4,
    ipv6,
    internal,
    attachable,
    ranges: rangesOf(request, facts),
    isChosen: request.ranges.every(({ subnet }) => subnet === undefined),
    ipamOptions,
    options,
    labels,
    link: driver === 'bridge' ? (options[BRIDGE_NAME] ?? facts.link) : (options.parent ?? ''),
  };
}

function driverOf({ driver, name }: NetworkRequest): NetworkDriver {
  switch (driver) {
    case '':
    case 'bridge':
      return 'bridge';
    case 'macvlan':
    case 'ipvlan':
      return driver;
    case 'host':
    case 'null':
      throw new AppError('denied', `only one instance of "${driver}" network is allowed`);
    default:
      throw new AppError(
        'not-found',
        `plugin ${JSON.stringify(driver)} not found: cannot create network ${JSON.stringify(name)}: the drivers are bridge, macvlan and ipvlan`,
      );
  }
}

function checkOptions(driver: NetworkDriver, options: Readonly<Record<string, string>>): void {
  const known = driver === 'bridge' ? BRIDGE_OPTIONS : VLAN_OPTIONS;
  for (const key of Object.keys(options))
    if (!known.includes(key))
      throw new AppError('unsupported', `cannot create network: the option ${JSON.stringify(key)} is not supported`);
  const mtu = options['com.docker.network.driver.mtu'];
  if (mtu !== undefined && !(/^\d+$/.test(mtu) && Number(mtu) >= MTU_MIN && Number(mtu) <= MTU_MAX))
    throw new AppError('invalid', `invalid MTU: ${JSON.stringify(mtu)}`);
  for (const key of FLAG_OPTIONS)
    if (options[key] !== undefined && !/^(?:true|false|1|0)$/.test(options[key]))
      throw new AppError('invalid', `invalid value ${JSON.stringify(options[key])} of ${key}: want true or false`);
  for (const link of [options[BRIDGE_NAME], options.parent])
    if (link !== undefined && !(link.length <= LINK_NAME_MAX && /^[a-zA-Z0-9][\w.-]*$/.test(link)))
      throw new AppError('invalid', `invalid name of a link: ${JSON.stringify(link)}`);
  for (const [key, modes] of Object.entries(MODES))
    if (options[key] !== undefined && !modes.includes(options[key]))
      throw new AppError('invalid', `invalid ${key} ${JSON.stringify(options[key])}: want ${modes.join(', ')}`);
  const binding = options[HOST_BINDING];
  if (binding !== undefined && isIP(binding) === 0)
    throw new AppError('invalid', `invalid ${HOST_BINDING}: ${JSON.stringify(binding)} is not an IP address`);
  const prefix = options['com.docker.network.container_iface_prefix'];
  if (prefix !== undefined && !/^[a-z][a-z0-9]{0,9}$/.test(prefix))
    throw new AppError('invalid', `invalid prefix of interfaces: ${JSON.stringify(prefix)}`);
  if (driver !== 'bridge' && options.parent === undefined)
    throw new AppError(
      'invalid',
      `cannot create ${driver} network: say by the option "parent" which link of the host it is on`,
    );
}

function rangesOf(request: NetworkRequest, facts: PlanFacts): readonly AddressRange[] {
  const ranges = request.ranges.map((range) => {
    if (range.subnet !== undefined) return completed({ ...range, subnet: range.subnet }, request);
    if (range.gateway !== undefined || range.ipRange !== undefined)
      throw new AppError('invalid', 'invalid network config: a gateway or range needs a subnet');
    return undefined;
  });
  const given = ranges.filter((range) => range !== undefined);
  const subnets = given.map(({ subnet }) => parseSubnet(subnet));
  for (const [index, subnet] of subnets.entries()) {
    const others = [...facts.networks, ...subnets.slice(0, index)];
    if (others.some((other) => overlaps(other, subnet)))
      throw new AppError('denied', 'invalid pool request: Pool overlaps with other one on this address space');
    if (subnet.family === 4 ? !request.ipv4 : !request.ipv6)
      throw new AppError(
        'invalid',
        `invalid network config: a subnet of IPv${subnet.family} in a network without IPv${subnet.family}`,
      );
  }
  const chosen = ([4, 6] as const)
    .filter(
      (family) => (family === 4 ? request.ipv4 : request.ipv6) && !subnets.some((subnet) => subnet.family === family),
    )
    .map((family) => chooseRange(family, { ...facts, networks: [...facts.networks, ...subnets] }));
  return [...given, ...chosen].sort((a, b) => Number(a.subnet.includes(':')) - Number(b.subnet.includes(':')));
}

/** @throws AppError 'unavailable' when the pools are used up */
export function chooseRange(
  family: 4 | 6,
  { pools, networks, routes }: Pick<PlanFacts, 'pools' | 'networks' | 'routes'>,
): AddressRange {
  const subnet = freeSubnet(
    pools.filter((pool) => pool.family === family),
    { prefix: CHOSEN_PREFIX[family], taken: [...networks, ...routes] },
  );
  if (subnet === undefined)
    throw new AppError(
      'unavailable',
      `all predefined address pools have been fully subnetted: remove networks, name a subnet, or give the engine more of IPv${family} (--address-pools)`,
    );
  return {
    subnet: formatSubnet(subnet),
    gateway: formatAddress(firstHost(subnet)),
    ipRange: undefined,
    auxiliary: {},
  };
}

function completed(range: AddressRange, { driver }: NetworkRequest): AddressRange {
  const subnet = parseSubnet(range.subnet);
  const inside = (text: string, what: string) => {
    const address = parseAddress(text);
    if (!contains(subnet, address))
      throw new AppError(
        'invalid',
        `invalid ${what} ${text}: parent subnet ${formatSubnet(subnet)} doesn't contain it`,
      );
    return formatAddress(address);
  };
  const ipRange = range.ipRange === undefined ? undefined : parseSubnet(range.ipRange);
  if (ipRange !== undefined && (!overlaps(subnet, ipRange) || ipRange.prefix < subnet.prefix))
    throw new AppError('invalid', `invalid ip-range ${range.ipRange}: parent subnet is ${formatSubnet(subnet)}`);
  const isBridge = driver === '' || driver === 'bridge';
  return {
    subnet: formatSubnet(subnet),
    gateway:
      range.gateway === undefined
        ? isBridge || subnet.prefix < 31
          ? formatAddress(firstHost(subnet))
          : undefined
        : inside(range.gateway, 'gateway'),
    ipRange: ipRange === undefined ? undefined : formatSubnet(ipRange),
    auxiliary: Object.fromEntries(
      Object.entries(range.auxiliary).map(([key, text]) => [key, inside(text, 'auxiliary address')]),
    ),
  };
}

/** Options with their defaults. */
export function isOn(record: NetworkRecord, option: (typeof FLAG_OPTIONS)[number]): boolean {
  const value = record.options[option];
  return value === undefined || value === 'true' || value === '1';
}

export function subnetsOf(record: Pick<NetworkRecord, 'ranges'>): readonly Subnet[] {
  return record.ranges.map(({ subnet }) => parseSubnet(subnet));
}
