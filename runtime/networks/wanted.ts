/** What the firewall and the name servers are to know, out of what there is. Pure. */
import type { DnsNetwork } from './dns.ts';
import type { FirewallState } from './firewall.ts';
import type { NetworkRecord } from './networks.ts';
import { isOn } from './plan.ts';
import { hasNames, type Topology } from './topology.ts';

/** Of the bridges that are up. */
export function firewallStateOf(topology: Topology, isUp: (networkId: string) => boolean): FirewallState {
  const bridges = [...topology.networks.values()].filter(({ driver, id }) => driver === 'bridge' && isUp(id));
  const all = [...topology.sandboxes.values()].map(({ stored }) => stored);
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
        const network = topology.networks.get(networkId);
        if (network?.driver !== 'bridge') return [];
        return [{ link, master: network.link, mac, addresses: [ipv4, ipv6].flatMap((lease) => lease?.address ?? []) }];
      }),
    ),
    forwards: all.flatMap((stored) =>
      stored.ports.flatMap((port) => {
        const target = topology.targetOf(stored, port);
        return target === undefined ? [] : [{ ...port, target }];
      }),
    ),
  };
}

/**
 * Whoever is in an internal network and in another one asks the name server of the other, which therefore knows the
 * names of the internal network, too; it tells them to nobody else.
 */
export function dnsNetworksOf(topology: Topology): readonly DnsNetwork[] {
  const isOpen = (network: NetworkRecord) => hasNames(network) && !network.internal;
  const inOpen = new Set(
    [...topology.networks.values()].filter(isOpen).flatMap(({ id }) => [...topology.membersOf(id).keys()]),
  );
  return [...topology.networks.values()].filter(hasNames).flatMap((network): readonly DnsNetwork[] => {
    const members = topology.membersOf(network.id);
    if (members.size === 0) return [];
    const own = {
      id: network.id.slice(0, 12),
      internal: network.internal,
      gateways: network.ranges.flatMap(({ gateway }) => gateway ?? []),
      entries: [...members].map(([containerId, { endpoint }]) => ({
        containerId,
        ipv4: endpoint.ipv4?.address,
        ipv6: endpoint.ipv6?.address,
        names: endpoint.dnsNames,
        resolvers: topology.sandboxes.get(containerId)?.stored.dns ?? [],
      })),
    };
    const isSeen = network.internal && [...members.keys()].some((containerId) => inOpen.has(containerId));
    return isSeen ? [own, { ...own, id: `${own.id}-open`, internal: false, gateways: [placeOf(network)] }] : [own];
  });
}

/** The name server wants an address for each network: one of the host's own, where nobody asks. */
function placeOf({ id }: NetworkRecord): string {
  const [first = 0, second = 0, third = 0] = Buffer.from(id.slice(0, 6), 'hex');
  return `127.${1 + (first % 254)}.${second}.${1 + (third % 254)}`;
}
