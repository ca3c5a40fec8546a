import { describe, expect, it } from 'vitest';
import { changeOf, clearedRuleset, type FirewallState, rulesetOf } from '../../../runtime/networks/firewall.ts';

const NETWORK = {
  link: 'br0',
  subnets: ['10.0.0.0/24', 'fd00::/64'],
  gateways: ['10.0.0.1', 'fd00::1'],
  internal: false,
  masquerade: true,
  icc: true,
};
const PORT = { link: 've0', master: 'br0', mac: '02:00:00:00:00:07', addresses: ['10.0.0.2', 'fd00::2'] };
const state = (change: Partial<FirewallState> = {}): FirewallState => ({
  networks: [NETWORK],
  ports: [PORT],
  forwards: [],
  ...change,
});
/** Elements of the sets and maps of that name, in all tables. */
function elements(title: string, wanted: FirewallState): readonly string[] {
  const text = rulesetOf('abc123', wanted);
  const found = new RegExp(`(?:set|map) ${title} \\{[^}]*?elements = \\{ ([^}]*) \\}`).exec(text)?.[1];
  return found === undefined ? [] : found.split(', ');
}

describe('the rules', () => {
  it('replace both tables, and nothing else', () => {
    const tables = [...rulesetOf('abc123', state()).matchAll(/^(?:delete )?table \w+ (\w+)/gm)].map(([, name]) => name);
    expect(new Set(tables)).toEqual(new Set(['berth_abc123']));
    expect(rulesetOf('abc123', state()).startsWith(clearedRuleset('abc123'))).toBe(true);
  });

  it('tell addresses of each family and whom they belong to', () => {
    expect(elements('addresses4', state())).toEqual(['10.0.0.2', '10.0.0.1']);
    expect(elements('own_address6', state())).toEqual(['"ve0" . fd00::2', '"ve0" . fe80::ff:fe00:7']);
    expect(elements('own_gateway4', state())).toEqual(['"br0" . 10.0.0.1']);
  });

  it('hide what goes out, unless it is internal or shall be seen', () => {
    expect(elements('hidden4', state())).toEqual(['10.0.0.0/24']);
    expect(elements('hidden4', state({ networks: [{ ...NETWORK, masquerade: false }] }))).toEqual([]);
    const internal = state({ networks: [{ ...NETWORK, internal: true }] });
    expect(elements('hidden4', internal)).toEqual([]);
    expect(elements('internal', internal)).toEqual(['"br0"']);
  });

  it('keep containers apart where they are not to talk', () => {
    expect(elements('same', state())).toEqual(['"br0" . "br0"']);
    const apart = state({ networks: [{ ...NETWORK, icc: false }] });
    expect(elements('same', apart)).toEqual([]);
    expect(elements('separated', apart)).toEqual(['"ve0"']);
  });

  it('publish in the family of the address alone, and leave ::1 to the listener', () => {
    const forward = { protocol: 'tcp', containerPort: 80, hostPort: 8080 } as const;
    const published = state({
      forwards: [
        { ...forward, hostAddress: '0.0.0.0', target: '10.0.0.2' },
        { ...forward, hostAddress: '::', target: 'fd00::2' },
        { ...forward, hostAddress: '::', hostPort: 8081, target: '10.0.0.2' },
        { ...forward, hostAddress: '::1', hostPort: 8082, target: 'fd00::2' },
        { ...forward, hostAddress: '127.0.0.1', hostPort: 8083, protocol: 'udp', target: '10.0.0.2' },
      ],
    });
    expect(elements('publish4', published)).toEqual(['tcp . 8080 : 10.0.0.2 . 80']);
    expect(elements('publish6', published)).toEqual(['tcp . 8080 : fd00::2 . 80']);
    expect(elements('publish_at6', published)).toEqual([]);
    expect(elements('publish_at4', published)).toEqual(['127.0.0.1 . udp . 8083 : 10.0.0.2 . 80']);
  });
});

describe('a change of the rules', () => {
  const OTHER = { link: 've1', master: 'br0', mac: '02:00:00:00:00:08', addresses: ['10.0.0.3'] };
  const forward = { protocol: 'tcp', containerPort: 80, hostPort: 8080, hostAddress: '0.0.0.0' } as const;
  const lines = (before: FirewallState, after: FirewallState) => changeOf('abc123', before, after)?.trim().split('\n');

  it('is what one container adds or takes away, whatever others there are', () => {
    const added = [
      'add element bridge berth_abc123 same_port { "ve1" . "ve1" }',
      'add element bridge berth_abc123 ports { "ve1" }',
      'add element bridge berth_abc123 macs { 02:00:00:00:00:08 }',
      'add element bridge berth_abc123 own_mac { "ve1" . 02:00:00:00:00:08 }',
      'add element bridge berth_abc123 addresses4 { 10.0.0.3 }',
      'add element bridge berth_abc123 own_address4 { "ve1" . 10.0.0.3 }',
    ];
    expect(lines(state(), state({ ports: [PORT, OTHER] }))).toEqual(added);
    const removed = added.map((line) => line.replace('add', 'delete'));
    expect(lines(state({ ports: [OTHER, PORT] }), state())).toEqual(removed);
    expect(changeOf('abc123', state(), state())).toBe('');
  });

  it('gives a port to another container in one go', () => {
    const before = state({ forwards: [{ ...forward, target: '10.0.0.2' }] });
    expect(lines(before, state({ forwards: [{ ...forward, target: '10.0.0.3' }] }))).toEqual([
      'delete element inet berth_abc123 publish4 { tcp . 8080 }',
      'add element inet berth_abc123 publish4 { tcp . 8080 : 10.0.0.3 . 80 }',
    ]);
  });

  it('is all of them when networks change', () => {
    expect(changeOf('abc123', state(), state({ networks: [{ ...NETWORK, icc: false }] }))).toBeUndefined();
  });
});
