/** How full the subnets of a network are, as `network inspect` tells it. Pure. */
import {
  contains,
  formatAddress,
  hostAddresses,
  parseAddress,
  parseSubnet,
  reservedAddresses,
  type Subnet,
} from './addresses.ts';
import type { NetworkDetails } from './networks.ts';

export interface AddressUsage {
  readonly subnet: string;
  /** The network's own, the broadcast and the gateway's address among them. */
  readonly inUse: number;
  /** How many endpoints that name no address can still get one: those of the range that are free. */
  readonly available: bigint;
}

export function addressUsage({ record, members }: NetworkDetails): readonly AddressUsage[] {
  const endpoints = [...members.values()].flatMap(({ endpoint: { ipv4, ipv6 } }) => [ipv4, ipv6]);
  return record.ranges.map(({ subnet: text, gateway, ipRange, auxiliary }) => {
    const subnet = parseSubnet(text);
    const taken = [gateway, ...Object.values(auxiliary), ...endpoints.map((lease) => lease?.address)];
    const used = new Map(reservedAddresses(subnet).map((address) => [formatAddress(address), address]));
    for (const each of taken) {
      if (each === undefined) continue;
      const address = parseAddress(each);
      if (contains(subnet, address)) used.set(formatAddress(address), address);
    }
    const range: Subnet = ipRange === undefined ? subnet : parseSubnet(ipRange);
    const usedInRange = [...used.values()].filter((address) => contains(range, address)).length;
    return { subnet: text, inUse: used.size, available: hostAddresses(range) - BigInt(usedInRange) };
  });
}
