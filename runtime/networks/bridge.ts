/** What ip(8) is told to make a network or an endpoint: pure lists of commands. */

import { parseSubnet } from './addresses.ts';
import type { Endpoint, NetworkRecord } from './networks.ts';

/** Of a bridge that exists; safe to repeat. */
export function bridgeAddressCommands(network: NetworkRecord): readonly string[] {
  const addresses = network.ranges.flatMap(({ subnet, gateway }) =>
    gateway === undefined
      ? []
      : [
          `addr replace ${gateway}/${parseSubnet(subnet).prefix} dev ${network.link}${gateway.includes(':') ? ' nodad' : ''}`,
        ],
  );
  return [...addresses, `link set ${network.link} up`];
}

export function bridgeCreateCommand(
  link: string,
  { mac, mtu }: { readonly mac: string; readonly mtu: number },
): string {
  return `link add ${link} address ${mac} mtu ${mtu} type bridge`;
}

export interface EndpointPlan {
  readonly endpoint: Endpoint;
  readonly network: NetworkRecord;
  /** The host's end. */
  readonly link: string;
  readonly mtu: number;
}

/** On the host: the pair, with its other end in the namespace, and the port of the bridge. */
export function endpointCommands(namespace: string, { endpoint, network, link, mtu }: EndpointPlan): readonly string[] {
  const { interfaceName, mac } = endpoint;
  switch (network.driver) {
    case 'bridge':
      return [
        `link add ${link} mtu ${mtu} type veth peer name ${interfaceName} address ${mac} mtu ${mtu} netns ${namespace}`,
        ...portCommands(link, network.link),
      ];
    case 'macvlan':
      return [
        `link add link ${network.link} name ${interfaceName} netns ${namespace} address ${mac} type macvlan mode ${network.options.macvlan_mode ?? 'bridge'}`,
      ];
    case 'ipvlan':
      return [
        `link add link ${network.link} name ${interfaceName} netns ${namespace} type ipvlan mode ${network.options.ipvlan_mode ?? 'l2'}`,
      ];
    case 'host':
    case 'null':
      return [];
    default:
      throw network.driver satisfies never;
  }
}

/**
 * Makes a link a port of a bridge; safe to repeat. Where br_netfilter is loaded, a container that asks for itself by the
 * host's address is answered through the port that it asked by: hence hairpin.
 */
export function portCommands(link: string, bridge: string): readonly string[] {
  return [`link set ${link} master ${bridge} addrgenmode none up`, `link set ${link} type bridge_slave hairpin on`];
}

/** Inside the namespace. Only one endpoint brings the default route of a family. */
export function interfaceCommands(
  { interfaceName, ipv4, ipv6, linkLocal = [] }: Endpoint,
  { defaultRoutes }: { readonly defaultRoutes: { readonly ipv4: boolean; readonly ipv6: boolean } },
): readonly string[] {
  return [
    ...(ipv4 === undefined ? [] : [`addr add ${ipv4.address}/${ipv4.prefix} broadcast + dev ${interfaceName}`]),
    ...(ipv6 === undefined ? [] : [`addr add ${ipv6.address}/${ipv6.prefix} dev ${interfaceName} nodad`]),
    ...linkLocal.map((address) =>
      address.includes(':')
        ? `addr add ${address}/64 dev ${interfaceName} nodad`
        : `addr add ${address}/16 scope link dev ${interfaceName}`,
    ),
    `link set ${interfaceName} up`,
    ...(defaultRoutes.ipv4 && ipv4?.gateway !== undefined
      ? [`route replace default via ${ipv4.gateway} dev ${interfaceName}`]
      : []),
    ...(defaultRoutes.ipv6 && ipv6?.gateway !== undefined
      ? [`route replace default via ${ipv6.gateway} dev ${interfaceName}`]
      : []),
  ];
}
