/** What the firewall and the name servers are to know, out of what there is. Pure. */
import type { DnsNetwork } from './dns.ts';
import type { FirewallState } from './firewall.ts';
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

export function dnsNetworksOf(topology: Topology): readonly DnsNetwork[] {
  return [...topology.networks.values()]
    .filter(hasNames)
    .map((network) => ({ network, members: topology.membersOf(network.id) }))
    .filter(({ members }) => members.size > 0)
    .map(({ network, members }) => ({
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
    }));
}
