/** What a container asks of networks, out of its record. Pure. */
import { isIP } from 'node:net';
import { AppError } from '../../shared/errors.ts';
import type { EndpointWish, PortProtocol, PortWish, SandboxRequest } from '../networks/networks.ts';
import type { ContainerRecord } from './container.ts';
import { parseLink } from './links.ts';
import { type ContainerConfig, type EndpointRequest, type HostConfig, saysSomething } from './request.ts';

type Endpoints = Readonly<Record<string, EndpointRequest>>;

/** Which network namespace a container runs in. `networks` = one of its own, connected to networks. */
export type NetworkKind = 'none' | 'host' | 'container' | 'networks';

export function networkKindOf({ NetworkMode }: Pick<HostConfig, 'NetworkMode'>): NetworkKind {
  if (NetworkMode === 'none' || NetworkMode === 'host') return NetworkMode;
  return NetworkMode.startsWith('container:') ? 'container' : 'networks';
}

/** The container whose network this one shares. */
export function joinedContainer({ NetworkMode }: Pick<HostConfig, 'NetworkMode'>): string | undefined {
  return /^container:(.+)$/.exec(NetworkMode)?.[1];
}

/**
 * By network name, that of NetworkMode first. `nameOf` resolves ids and prefixes; clients call the default network by
 * its name or `default`. @throws AppError 'invalid' for settings of a network that there is none of; what nameOf throws
 */
export function planEndpoints(
  {
    endpoints,
    hostConfig,
    config,
  }: { readonly endpoints: Endpoints; readonly hostConfig: HostConfig; readonly config: ContainerConfig },
  nameOf: (network: string) => string,
): Endpoints {
  const kind = networkKindOf(hostConfig);
  const empty: EndpointRequest = {
    IPAMConfig: undefined,
    Links: [],
    Aliases: [],
    DriverOpts: {},
    GwPriority: 0,
    MacAddress: '',
  };
  if (kind !== 'networks') {
    if (hostConfig.Links.length > 0)
      throw new AppError(
        'invalid',
        `conflicting options: ${kind} type networking can't be used with links. This would result in undefined behavior`,
      );
    if (Object.values(endpoints).some(({ IPAMConfig }) => saysSomething(IPAMConfig)))
      throw new AppError('invalid', 'user specified IP address is supported on user defined networks only');
    for (const [network, wanted] of Object.entries(endpoints))
      if (saysSomething(wanted) || ![hostConfig.NetworkMode, 'default'].includes(network))
        throw new AppError(
          'invalid',
          `conflicting options: the container has the network mode ${hostConfig.NetworkMode}, and settings of the network ${network}`,
        );
    if (config.MacAddress !== '')
      throw new AppError('invalid', 'conflicting options: mac-address and the network mode');
    return {};
  }
  const main = nameOf(hostConfig.NetworkMode);
  const named = new Map<string, EndpointRequest>([[main, empty]]);
  for (const [network, wanted] of Object.entries(endpoints))
    named.set(network === 'default' ? main : nameOf(network), wanted);
  for (const { Links } of [...named.values(), hostConfig]) Links.forEach(parseLink);
  const first = named.get(main) ?? empty;
  // The default network has Docker's first kind of links, which are the container's.
  if (main !== 'bridge' && first.Links.length === 0 && hostConfig.Links.length > 0)
    named.set(main, { ...first, Links: hostConfig.Links });
  if (config.MacAddress !== '' && first.MacAddress === '')
    named.set(main, { ...(named.get(main) ?? empty), MacAddress: config.MacAddress });
  return Object.fromEntries(named);
}

export function sandboxRequestOf(record: ContainerRecord): SandboxRequest {
  const { id, name, config, hostConfig, endpoints } = record;
  return {
    containerId: id,
    containerName: name,
    hostname: config.Hostname,
    networks: Object.entries(endpoints).map(([network, wanted]) => ({ network, wish: wishOf(wanted) })),
    ports: portWishesOf(config, hostConfig),
    dns: hostConfig.Dns,
  };
}

export function wishOf({ IPAMConfig, MacAddress, Aliases, DriverOpts, GwPriority }: EndpointRequest): EndpointWish {
  return {
    ipv4: IPAMConfig?.IPv4Address ?? '',
    ipv6: IPAMConfig?.IPv6Address ?? '',
    mac: MacAddress,
    aliases: Aliases,
    driverOptions: DriverOpts,
    linkLocal: IPAMConfig?.LinkLocalIPs ?? [],
    gatewayPriority: GwPriority,
  };
}

/** What -p and -P ask for. @throws AppError 'invalid' with Docker's words */
export function portWishesOf(config: ContainerConfig, hostConfig: HostConfig): readonly PortWish[] {
  const bound = Object.entries(hostConfig.PortBindings).flatMap(([port, bindings]) => {
    const inside = parsePort(port);
    // An empty list is a port that nobody chose.
    const wanted = bindings.length === 0 ? [{ HostIp: '', HostPort: '' }] : bindings;
    return wanted.map(({ HostIp, HostPort }): PortWish => {
      // An address with a zone is one, but no firewall knows it.
      if (HostIp !== '' && (isIP(HostIp) === 0 || HostIp.includes('%')))
        throw new AppError('invalid', `invalid IP address: ${HostIp}`);
      return { ...inside, hostAddress: HostIp, hostPorts: parseHostPorts(HostPort) };
    });
  });
  if (!hostConfig.PublishAllPorts) return bound;
  const named = new Set(Object.keys(hostConfig.PortBindings).map((port) => JSON.stringify(parsePort(port))));
  const rest = config.ExposedPorts.map(parsePort).filter((port) => !named.has(JSON.stringify(port)));
  return [...bound, ...rest.map((port): PortWish => ({ ...port, hostAddress: '', hostPorts: undefined }))];
}

function parsePort(text: string): { readonly containerPort: number; readonly protocol: PortProtocol } {
  const [number = '', protocol = 'tcp'] = text.split('/');
  const containerPort = Number(number);
  if (!/^\d{1,5}$/.test(number) || containerPort < 1 || containerPort > 65_535)
    throw new AppError('invalid', `invalid port specification: ${JSON.stringify(text)}`);
  if (protocol !== 'tcp' && protocol !== 'udp' && protocol !== 'sctp')
    throw new AppError('invalid', `invalid proto: ${protocol}`);
  return { containerPort, protocol };
}

/** undefined: whichever is free. */
function parseHostPorts(text: string): PortWish['hostPorts'] {
  if (text === '' || text === '0') return undefined;
  const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(text);
  const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])];
  if (match === null || first < 1 || last > 65_535 || last < first)
    throw new AppError('invalid', `invalid port specification: ${JSON.stringify(text)}`);
  return { first, last };
}
