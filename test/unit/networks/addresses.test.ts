import { describe, expect, it } from 'vitest';
import {
  formatAddress,
  formatSubnet,
  freeAddress,
  freeSubnet,
  linkLocalOf,
  overlaps,
  parseAddress,
  parseSubnet,
  poolsOf,
  type Subnet,
} from '../../../runtime/networks/addresses.ts';

describe('addresses', () => {
  it.each([
    ['10.0.0.1', '10.0.0.1'],
    ['255.255.255.255', '255.255.255.255'],
    ['::', '::'],
    ['::1', '::1'],
    ['fd00:0:0:1::2', 'fd00:0:0:1::2'],
    ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['2001:DB8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['fd00::', 'fd00::'],
    ['::ffff:10.0.0.1', '::ffff:a00:1'],
  ])('writes %s as %s', (text, canonical) => {
    expect(formatAddress(parseAddress(text))).toBe(canonical);
  });

  it.each(['', '10.0.0', '10.0.0.256', 'fe80::1%eth0', '1::2::3', 'a'])('refuses %j', (text) => {
    expect(() => parseAddress(text)).toThrow('invalid IP address');
  });

  it.each(['10.0.0.0', '10.0.0.0/33', 'fd00::/129', '10.0.0.0/8/9', '/24', '10.0.0.0/x'])(
    'refuses the subnet %j',
    (text) => {
      expect(() => parseSubnet(text)).toThrow('invalid subnet');
    },
  );

  it('clears the bits beyond the prefix', () => {
    expect(formatSubnet(parseSubnet('10.1.2.3/24'))).toBe('10.1.2.0/24');
    expect(formatSubnet(parseSubnet('fd00:1:2:3:4::5/64'))).toBe('fd00:1:2:3::/64');
  });

  it('derives link-local addresses as the kernel does', () => {
    expect(linkLocalOf('02:00:00:00:00:07')).toBe('fe80::ff:fe00:7');
    expect(linkLocalOf('96:cd:3f:6d:f9:21')).toBe('fe80::94cd:3fff:fe6d:f921');
  });
});

describe('the next free address', () => {
  const free = (subnet: string, taken: readonly string[], options: { range?: string; after?: string } = {}) => {
    const found = freeAddress(parseSubnet(subnet), {
      isTaken: (address) => taken.includes(address),
      after: options.after,
      range: options.range === undefined ? undefined : parseSubnet(options.range),
    });
    return found === undefined ? undefined : formatAddress(found);
  };
  it.each([
    ['10.0.0.0/24', ['10.0.0.1'], {}, '10.0.0.2'],
    ['10.0.0.0/24', ['10.0.0.1'], { after: '10.0.0.7' }, '10.0.0.8'],
    ['10.0.0.0/30', ['10.0.0.1'], { after: '10.0.0.2' }, '10.0.0.2'],
    ['10.0.0.0/30', ['10.0.0.1', '10.0.0.2'], {}, undefined],
    ['10.0.0.0/24', [], { range: '10.0.0.128/25' }, '10.0.0.128'],
    ['10.0.0.0/24', [], { range: '10.0.0.254/31', after: '10.0.0.254' }, '10.0.0.254'],
    ['10.0.0.0/31', [], {}, '10.0.0.0'],
    ['fd00::/64', ['fd00::1'], {}, 'fd00::2'],
  ])('in %s without %j, %j: %s', (subnet, taken, options, expected) => {
    expect(free(subnet, taken, options)).toBe(expected);
  });
});

describe('the next free subnet', () => {
  it('leaves out what others have, and goes on in the next pool', () => {
    const pools = ['10.0.0.0/23', '10.1.0.0/24'].map(parseSubnet);
    const next = (...taken: string[]) => {
      const found = freeSubnet(pools, { prefix: 24, taken: taken.map(parseSubnet) });
      return found === undefined ? undefined : formatSubnet(found);
    };
    expect(next()).toBe('10.0.0.0/24');
    expect(next('10.0.0.128/25')).toBe('10.0.1.0/24');
    expect(next('10.0.0.0/16')).toBe('10.1.0.0/24');
    expect(next('10.0.0.0/16', '10.1.0.1/32')).toBeUndefined();
  });

  it('gives hundreds of networks out of the default pools, all apart', () => {
    const pools = poolsOf(['172.17.0.0/16', '172.18.0.0/15'], 'seed').filter(({ family }) => family === 4);
    const taken: Subnet[] = [];
    for (let count = 0; count < 100; count += 1) {
      const found = freeSubnet(pools, { prefix: 24, taken });
      if (found === undefined) throw new Error('the pools are used up');
      expect(taken.some((other) => overlaps(other, found))).toBe(false);
      taken.push(found);
    }
  });
});
