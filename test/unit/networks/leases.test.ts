import { describe, expect, it } from 'vitest';
import { checkWish, endpointSysctls } from '../../../runtime/networks/leases.ts';
import type { EndpointWish, NetworkRecord } from '../../../runtime/networks/networks.ts';

const NETWORK: NetworkRecord = {
  id: 'n',
  name: 'net',
  createdAt: new Date(0),
  driver: 'bridge',
  ipv4: true,
  ipv6: false,
  internal: false,
  attachable: false,
  ranges: [{ subnet: '10.0.0.0/24', gateway: '10.0.0.1', ipRange: undefined, auxiliary: {} }],
  isChosen: false,
  ipamOptions: {},
  options: {},
  labels: {},
  link: 'br0',
};
const NO_WISH: EndpointWish = {
  ipv4: '',
  ipv6: '',
  mac: '',
  aliases: [],
  driverOptions: {},
  linkLocal: [],
  gatewayPriority: 0,
};
const SYSCTLS = 'com.docker.network.endpoint.sysctls';

describe('a wish for an endpoint', () => {
  it.each<Partial<EndpointWish>>([
    {},
    { ipv4: '10.0.0.7', mac: '02:00:00:00:00:01' },
    { linkLocal: ['169.254.3.4'] },
    { driverOptions: { 'com.docker.network.endpoint.ifname': 'wan0', [SYSCTLS]: 'net.ipv4.conf.IFNAME.rp_filter=2' } },
  ])('may be %j', (wish) => {
    checkWish(NETWORK, { ...NO_WISH, ...wish });
  });
  it.each<[Partial<EndpointWish>, string]>([
    [{ ipv4: '10.0.1.7' }, 'no configured subnet or ip-range contain the IP address 10.0.1.7'],
    [{ mac: 'x' }, 'invalid MAC address: x'],
    [{ linkLocal: ['10.0.0.7'] }, 'invalid link-local IP address: 10.0.0.7'],
    [{ linkLocal: ['fe80::7'] }, 'network net has no IPv6'],
    [{ driverOptions: { 'com.docker.network.x': '1' } }, 'the driver option com.docker.network.x is not supported'],
    [{ driverOptions: { 'com.docker.network.endpoint.ifname': 'lo' } }, 'invalid name of an interface'],
    [{ driverOptions: { 'com.docker.network.endpoint.ifname': 'a b' } }, 'invalid name of an interface'],
    [{ driverOptions: { [SYSCTLS]: 'kernel.core_pattern=x' } }, 'invalid sysctl of an interface'],
    [{ driverOptions: { [SYSCTLS]: 'net.ipv4.conf.all.forwarding=1' } }, 'invalid sysctl of an interface'],
  ])('cannot be %j', (wish, message) => {
    expect(() => checkWish(NETWORK, { ...NO_WISH, ...wish })).toThrow(message);
  });
});

it('sysctls of an endpoint are those of its interface', () => {
  const driverOptions = { [SYSCTLS]: 'net.ipv4.conf.ifname.rp_filter=2,net.ipv6.conf.IFNAME.accept_ra=0' };
  expect(endpointSysctls({ interfaceName: 'eth1', driverOptions })).toEqual({
    'net.ipv4.conf.eth1.rp_filter': '2',
    'net.ipv6.conf.eth1.accept_ra': '0',
  });
});
