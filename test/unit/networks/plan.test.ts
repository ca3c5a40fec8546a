import { describe, expect, it } from 'vitest';
import { parseSubnet, poolsOf } from '../../../runtime/networks/addresses.ts';
import type { NetworkRequest } from '../../../runtime/networks/networks.ts';
import { planNetwork } from '../../../runtime/networks/plan.ts';

const REQUEST: NetworkRequest = {
  name: 'net',
  driver: '',
  ipv4: true,
  ipv6: false,
  internal: false,
  attachable: false,
  options: {},
  labels: {},
  ipamDriver: '',
  ipamOptions: {},
  ranges: [],
};
const range = (subnet: string | undefined, rest: { gateway?: string; ipRange?: string } = {}) => ({
  subnet,
  gateway: rest.gateway,
  ipRange: rest.ipRange,
  auxiliary: {},
});
const plan = (request: Partial<NetworkRequest>, taken: readonly string[] = []) =>
  planNetwork(
    { ...REQUEST, ...request },
    {
      id: 'i',
      createdAt: new Date(0),
      pools: poolsOf(['10.0.0.0/22'], 'seed'),
      networks: taken.map(parseSubnet),
      routes: [parseSubnet('10.0.0.0/24')],
      link: 'br0',
    },
  );

describe('a network', () => {
  it('gets a small subnet that neither networks nor the host have', () => {
    expect(plan({}, ['10.0.1.0/24']).ranges).toMatchObject([{ subnet: '10.0.2.0/24', gateway: '10.0.2.1' }]);
    expect(() => plan({}, ['10.0.0.0/22'])).toThrow('all predefined address pools have been fully subnetted');
  });
  it('gets one of IPv6 when it is asked for', () => {
    const { ranges } = plan({ ipv6: true, ranges: [range('10.9.0.0/16')] });
    expect(ranges).toMatchObject([{ subnet: '10.9.0.0/16' }, { subnet: expect.stringMatching(/^fd.*::\/64$/) }]);
  });
  it('takes what the user says', () => {
    const { ranges } = plan({ ranges: [range('10.9.0.7/16', { gateway: '10.9.0.9', ipRange: '10.9.128.0/17' })] });
    expect(ranges).toMatchObject([{ subnet: '10.9.0.0/16', gateway: '10.9.0.9', ipRange: '10.9.128.0/17' }]);
  });
  it.each<[Partial<NetworkRequest>, string]>([
    [{ name: 'bridge' }, 'operation is not permitted on predefined bridge network'],
    [{ name: 'a/b' }, 'network name "a/b" is invalid'],
    [{ name: ' ' }, 'invalid name: name is empty'],
    [{ name: '../x' }, 'is invalid'],
    [{ driver: 'overlay' }, 'plugin "overlay" not found'],
    [{ driver: 'macvlan' }, 'say by the option "parent"'],
    [{ ipv4: false }, 'IPv4 or IPv6 must be enabled'],
    [{ ipamDriver: 'dhcp' }, 'no IPAM driver "dhcp"'],
    [{ options: { nosuch: '1' } }, 'the option "nosuch" is not supported'],
    [{ options: { 'com.docker.network.driver.mtu': '12' } }, 'invalid MTU'],
    [{ options: { 'com.docker.network.bridge.enable_icc': 'maybe' } }, 'want true or false'],
    [{ options: { 'com.docker.network.bridge.name': 'x\nlink delete eth0' } }, 'invalid name of a link'],
    [{ driver: 'macvlan', options: { parent: 'eth0 up' } }, 'invalid name of a link'],
    [{ driver: 'macvlan', options: { parent: 'eth0', macvlan_mode: 'x\ny' } }, 'invalid macvlan_mode'],
    [{ ranges: [range('10.9.0.0/33')] }, 'invalid subnet'],
    [{ ranges: [range('10.9.0.0/24', { gateway: '10.8.0.1' })] }, "parent subnet 10.9.0.0/24 doesn't contain it"],
    [{ ranges: [range('10.9.0.0/24', { ipRange: '10.9.0.0/16' })] }, 'invalid ip-range'],
    [{ ranges: [range(undefined, { gateway: '10.9.0.1' })] }, 'needs a subnet'],
    [{ ranges: [range('fd00::/64')] }, 'a subnet of IPv6 in a network without IPv6'],
    [{ ranges: [range('10.9.0.0/24'), range('10.9.0.0/25')] }, 'Pool overlaps'],
  ])('is refused: %j', (request, words) => {
    expect(() => plan(request)).toThrow(words);
  });
  it('is refused when it meets another one', () => {
    expect(() => plan({ ranges: [range('10.9.0.0/24')] }, ['10.9.0.0/16'])).toThrow('Pool overlaps with other one');
  });
});
