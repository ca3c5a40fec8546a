import { expect, it } from 'vitest';
import { addressUsage } from '../../../runtime/networks/address-usage.ts';
import type { AddressRange, Endpoint, LeasedAddress, NetworkDetails } from '../../../runtime/networks/networks.ts';

const leased = (address: string): LeasedAddress => ({ address, prefix: 24, gateway: undefined });

function network(ranges: readonly Partial<AddressRange>[], ...addresses: readonly string[]): NetworkDetails {
  const members = addresses.map((address, index) => {
    const family = address.includes(':') ? { ipv6: leased(address) } : { ipv4: leased(address) };
    return [String(index), { containerName: `c${index}`, endpoint: family as unknown as Endpoint }] as const;
  });
  const record = { ranges: ranges.map((range) => ({ auxiliary: {}, ...range })) };
  return { record: record as unknown as NetworkDetails['record'], members: new Map(members) };
}

it.each<readonly [what: string, details: NetworkDetails, inUse: number, available: bigint]>([
  ['gateway and one container', network([{ subnet: '172.30.0.0/24', gateway: '172.30.0.1' }], '172.30.0.2'), 4, 252n],
  ['others’ addresses', network([{ subnet: '172.30.0.0/24', gateway: '172.30.0.1' }], '172.31.0.2'), 3, 253n],
  [
    'a range of its own, and an address outside of it',
    network([{ subnet: '10.0.0.0/24', gateway: '10.0.0.1', ipRange: '10.0.0.128/29' }], '10.0.0.129', '10.0.0.9'),
    5,
    7n,
  ],
  ['addresses that are named', network([{ subnet: '10.0.0.0/24', auxiliary: { a: '10.0.0.5' } }]), 3, 253n],
  ['two hosts', network([{ subnet: '10.0.0.0/31', gateway: '10.0.0.0' }], '10.0.0.1'), 2, 0n],
  ['two hosts of IPv6', network([{ subnet: 'fd00::/127', gateway: 'fd00::' }], 'fd00::1'), 2, 0n],
  ['IPv6', network([{ subnet: 'fd00::/64', gateway: 'fd00::1' }], 'fd00:0::2'), 3, 2n ** 64n - 3n],
])('counts what is given out and what is left: %s', (_what, details, inUse, available) => {
  expect(addressUsage(details)).toEqual([{ subnet: details.record.ranges[0]?.subnet, inUse, available }]);
});

it('tells nothing of a network without subnets', () => {
  expect(addressUsage(network([]))).toEqual([]);
});
