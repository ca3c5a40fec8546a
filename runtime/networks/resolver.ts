/**
 * Whom a container asks for names. In networks with names that is 127.0.0.11, as Docker's images expect: a rule inside
 * the container's namespace leads it to the name server on a gateway. Without IPv4 it is the gateways themselves. Pure.
 */
import type { StoredEndpoint } from './network-store.ts';
import { hasNames, type Topology } from './topology.ts';

/** Where Docker's images expect a resolver, and some of them name it. */
const RESOLVER = '127.0.0.11';
const TABLE = 'berth';

export interface Resolver {
  /** For resolv.conf; empty = as the host does. */
  readonly nameservers: readonly string[];
  /** Whom 127.0.0.11 leads to; undefined = it leads nowhere. */
  readonly gateway: string | undefined;
}

/** An internal network's server knows nobody outside: another one is asked if there is one. */
export function resolverOf(topology: Topology, endpoints: readonly StoredEndpoint[]): Resolver {
  const networks = endpoints.map(({ networkId }) => topology.get(networkId)).filter(hasNames);
  const gateways = networks
    .toSorted((a, b) => Number(a.internal) - Number(b.internal))
    .flatMap(({ ranges }) => ranges.flatMap((range) => range.gateway ?? []));
  const gateway = gateways.find((address) => !address.includes(':'));
  return { nameservers: gateway === undefined ? gateways.slice(0, 1) : [RESOLVER], gateway };
}

/** Set inside by whoever makes the interface: what is asked of 127.0.0.11 comes from a loopback address, too. */
export function resolverSysctls(topology: Topology, endpoints: readonly StoredEndpoint[]): Record<string, string> {
  return Object.fromEntries(
    endpoints
      .filter(({ networkId }) => hasNames(topology.get(networkId)))
      .map(({ interfaceName }) => [`net.ipv4.conf.${interfaceName}.route_localnet`, '1']),
  );
}

/** For nft inside the container's namespace; safe to repeat. Nobody else reaches its loopback addresses by that. */
export function resolverRuleset({ gateway }: Resolver): string {
  const cleared = `table ip ${TABLE} {}\ndelete table ip ${TABLE}\n`;
  if (gateway === undefined) return cleared;
  return `${cleared}table ip ${TABLE} {
  chain arriving {
    type filter hook prerouting priority raw; policy accept;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
  }
  chain asking {
    type nat hook output priority -100; policy accept;
    ip daddr ${RESOLVER} meta l4proto { tcp, udp } th dport 53 dnat to ${gateway}
  }
  chain leaving {
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr 127.0.0.0/8 ip daddr ${gateway} meta l4proto { tcp, udp } th dport 53 masquerade
  }
}
`;
}
