import { describe, expect, it } from 'vitest';
import { etcFilesOf, parseExtraHost } from '../../runtime/containers/etc-files.ts';
import { generateName, parseName, resolveName } from '../../runtime/containers/names.ts';
import { restartDelayMs, wantsRestart, wantsStartAtBoot } from '../../runtime/containers/restart.ts';
import { parseIoStat, parseNetDev, systemCpu } from '../../runtime/containers/stats.ts';
import { parsePs } from '../../runtime/containers/top.ts';

const one = { id: `ab1${'0'.repeat(61)}`, name: 'web' };
const two = { id: `ab2${'0'.repeat(61)}`, name: 'ab1' };
const containers = {
  byId: new Map([one, two].map((container) => [container.id, container])),
  idByName: new Map([one, two].map(({ id, name }) => [name, id])),
};

describe('names', () => {
  it.each([
    ['web', one],
    ['/web', one],
    [one.id, one],
    ['ab2', two],
    // A name wins over a prefix of an id.
    ['ab1', two],
  ])('finds %s', (text, expected) => {
    expect(resolveName(text, containers)).toBe(expected);
  });
  it.each([
    ['ab', 'Multiple IDs found with provided prefix: ab'],
    ['nosuch', 'No such container: nosuch'],
    ['', 'No such container: '],
  ])('does not find %j', (text, words) => {
    expect(() => resolveName(text, containers)).toThrow(words);
  });
  it('makes names up that are in the grammar, and adds a number when they are taken', () => {
    expect(
      parseName(
        generateName(
          () => 0,
          () => false,
        ),
      ),
    ).toMatch(/^[a-z]+_[a-z]+$/);
    let tries = 0;
    expect(
      generateName(
        () => 0,
        () => ++tries < 5,
      ),
    ).toMatch(/^[a-z]+_[a-z]+0$/);
  });
  it.each(['!bad', 'a', '', '-a', 'a b', 'a/b'])('refuses the name %j', (text) => {
    expect(() => parseName(text)).toThrow('only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed');
  });
});

describe('restart policies', () => {
  const run = { exitCode: 1, restartCount: 0, stoppedByUser: false };
  it.each([
    ['no', 0, run, false],
    ['always', 0, { ...run, exitCode: 0 }, true],
    ['always', 0, { ...run, stoppedByUser: true }, false],
    ['unless-stopped', 0, run, true],
    ['on-failure', 0, { ...run, restartCount: 99 }, true],
    ['on-failure', 0, { ...run, exitCode: 0 }, false],
    ['on-failure', 2, { ...run, restartCount: 1 }, true],
    ['on-failure', 2, { ...run, restartCount: 2 }, false],
  ] as const)('%s:%i after %j: %s', (Name, MaximumRetryCount, ended, expected) => {
    expect(wantsRestart({ Name, MaximumRetryCount }, ended)).toBe(expected);
  });
  it('starts at boot what was not stopped, and with always also what was', () => {
    const policy = (Name: 'always' | 'unless-stopped' | 'on-failure') => ({ Name, MaximumRetryCount: 0 });
    expect(wantsStartAtBoot(policy('always'), true)).toBe(true);
    expect(wantsStartAtBoot(policy('unless-stopped'), true)).toBe(false);
    expect(wantsStartAtBoot(policy('unless-stopped'), false)).toBe(true);
    expect(wantsStartAtBoot(policy('on-failure'), false)).toBe(false);
  });
  it('doubles its delay to a minute, and begins again after ten seconds of life', () => {
    let delay = 0;
    const delays = Array.from({ length: 12 }, () => (delay = restartDelayMs(delay, 1)));
    expect(delays.slice(0, 3)).toEqual([100, 200, 400]);
    expect(delays.at(-1)).toBe(60_000);
    expect(restartDelayMs(delay, 10_000)).toBe(100);
  });
});

describe('files in /etc', () => {
  const request = {
    hostname: 'h1',
    domainname: '',
    linked: [],
    extraHosts: ['db:10.0.0.9', 'six=[::5]'],
    dns: [],
    dnsSearch: [],
    dnsOptions: [],
    network: 'private',
    addresses: [],
    nameservers: [],
    hostAddress: undefined,
    host: { hosts: '127.0.0.1 localhost\n', resolvConf: '# made\nnameserver 9.9.9.9\nsearch a b\noptions ndots:2\n' },
  } as const;
  it('names the host and extra hosts', () => {
    const files = etcFilesOf(request);
    expect(files.hostname).toBe('h1\n');
    expect(files.hosts.split('\n').slice(-3)).toEqual(['10.0.0.9\tdb', '::5\tsix', '']);
    expect(files.resolvConf).toBe('nameserver 9.9.9.9\nsearch a b\noptions ndots:2\n');
  });
  it('takes what the flags say instead', () => {
    const files = etcFilesOf({ ...request, dns: ['1.1.1.1'], dnsSearch: ['.'], dnsOptions: ['x'], network: 'host' });
    expect(files.resolvConf).toBe('nameserver 1.1.1.1\noptions x\n');
    expect(files.hosts).toBe('127.0.0.1 localhost\n10.0.0.9\tdb\n::5\tsix\n');
  });
  it.each(['db', ':1', 'db:x', 'd b:1.1.1.1'])('refuses the extra host %j', (text) => {
    expect(() => parseExtraHost(text)).toThrow(/add-host/);
  });
});

describe('what the kernel tells', () => {
  it('reads ps with a last column of several words', () => {
    const text = 'UID   PID CMD\nroot    1 init\nroot   12 sh -c  a b\n';
    expect(parsePs(text, new Set([12]))).toEqual({
      titles: ['UID', 'PID', 'CMD'],
      processes: [['root', '12', 'sh -c a b']],
    });
    expect(() => parsePs('CMD\n', new Set())).toThrow("couldn't find PID field in ps output");
  });
  it('sums processor time without counting guests twice', () => {
    expect(systemCpu('cpu  1 1 1 1 1 1 1 9 9 9\ncpu0 1\ncpu1 1\nintr 5\n')).toEqual({
      systemNs: 70_000_000,
      onlineCpus: 2,
    });
  });
  it('reads io.stat and net/dev', () => {
    expect(parseIoStat('8:0 rbytes=10 wbytes=20 rios=1\n\n')).toEqual([
      { major: 8, minor: 0, op: 'read', bytes: 10 },
      { major: 8, minor: 0, op: 'write', bytes: 20 },
    ]);
    const dev = 'a|b\nc|d\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0\n';
    expect(parseNetDev(dev)).toMatchObject({ eth0: { rxBytes: 5, rxDropped: 8, txBytes: 9, txErrors: 11 } });
    expect(parseNetDev(dev)).not.toHaveProperty('lo');
  });
});
