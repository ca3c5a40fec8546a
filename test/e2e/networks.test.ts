import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { HERE, IMAGE, type NetworkPlace, openNetworkPlace, THERE } from './network-place.ts';

let place: NetworkPlace;
beforeAll(async () => {
  place = await openNetworkPlace();
}, 60_000);
afterAll(() => place[Symbol.asyncDispose](), 60_000);
afterEach(async () => {
  const ids = (await place.dockerOk('ps', '-aq')).split('\n').filter((id) => id !== '');
  if (ids.length > 0) await place.dockerOk('rm', '-f', ...ids);
  await place.dockerOk('network', 'prune', '-f');
});

const dockerOk = (...args: readonly string[]) => place.dockerOk(...args);
/** Serves its own name on port 80, over IPv4 and IPv6. */
const serve = (name: string, ...flags: readonly string[]) =>
  dockerOk(
    'run',
    '-d',
    '--name',
    name,
    ...flags,
    IMAGE,
    'sh',
    '-c',
    `echo ${name} > /index.html && exec httpd -f -h / -p 80`,
  );
const idle = (name: string, ...flags: readonly string[]) =>
  dockerOk('run', '-d', '--name', name, ...flags, IMAGE, 'sleep', '1000');
const addressOf = (container: string, network: string) =>
  dockerOk('inspect', '-f', `{{(index .NetworkSettings.Networks "${network}").IPAddress}}`, container);
/** Addresses that a name has for a container; empty = none. */
const lookup = async (container: string, name: string, server = '') => {
  const { stdout } = await place.docker(
    'exec',
    container,
    'timeout',
    '3',
    'nslookup',
    name,
    ...(server === '' ? [] : [server]),
  );
  return [...stdout.matchAll(/^Address: (\S+)$/gm)].map(([, address]) => address);
};
async function eventually<T>(ask: () => Promise<T>, wanted: T): Promise<void> {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const got = await ask();
    if (got === wanted) return;
    if (Date.now() > deadline) throw new Error(`still ${String(got)} instead of ${String(wanted)}`);
    await delay(100);
  }
}

describe('names', () => {
  it('lead to containers of the same network, by name, alias and short id, and to no others', async () => {
    await dockerOk('network', 'create', 'one');
    await dockerOk('network', 'create', 'two');
    const id = await serve('web', '--network', 'one', '--network-alias', 'www');
    await idle('near', '--network', 'one');
    await serve('far', '--network', 'two');
    await idle('beyond', '--network', 'two', '--network-alias', 'horizon');
    await idle('between', '--network', 'one');
    await dockerOk('network', 'connect', 'two', 'between');
    const address = await addressOf('web', 'one');
    for (const name of ['web', 'www', id.slice(0, 12)]) expect(await lookup('near', name)).toEqual([address]);
    expect(await lookup('far', 'web')).toEqual([]);
    expect(await place.getFrom('near', address, 80)).toBe('web');
    // No route between networks, whoever knows the address.
    expect(await place.getFrom('far', address, 80)).toBeUndefined();
    expect(await place.getFrom('near', await addressOf('far', 'two'), 80)).toBeUndefined();
    // Who is in both reaches both.
    expect(await place.getFrom('between', 'www', 80)).toBe('web');
    expect(await place.getFrom('between', 'far', 80)).toBe('far');
    expect(await lookup('between', 'horizon')).toEqual([await addressOf('beyond', 'two')]);
    expect(await lookup('near', 'horizon')).toEqual([]);
    expect(await dockerOk('exec', 'near', 'nslookup', address)).toContain('web');
    // Where Docker's images look for it, and some say so themselves.
    expect(await dockerOk('exec', 'near', 'cat', '/etc/resolv.conf')).toBe('nameserver 127.0.0.11\noptions ndots:0');
    expect(await lookup('near', 'web', '127.0.0.11')).toEqual([address]);
  }, 60_000);

  it('come and go with live connections', async () => {
    await dockerOk('network', 'create', 'one');
    await dockerOk('network', 'create', '--subnet', '10.213.200.0/24', 'two');
    await serve('web', '--network', 'one');
    await idle('client', '--network', 'one');
    await dockerOk('network', 'connect', '--alias', 'other', '--ip', '10.213.200.77', 'two', 'web');
    await dockerOk('network', 'connect', 'two', 'client');
    expect(await addressOf('web', 'two')).toBe('10.213.200.77');
    const inspected = await place.on('here', `curl -s --unix-socket ${place.engine.socketPath} http://x/networks/two`);
    const usage = { IPsInUse: 5, DynamicIPsAvailable: 251 };
    expect(JSON.parse(inspected.stdout).Status).toEqual({ IPAM: { Subnets: { '10.213.200.0/24': usage } } });
    expect(await place.getFrom('client', '10.213.200.77', 80)).toBe('web');
    expect((await lookup('client', 'web')).toSorted()).toEqual(
      ['10.213.200.77', await addressOf('web', 'one')].toSorted(),
    );
    expect(await lookup('client', 'other')).toEqual(['10.213.200.77']);
    expect(await dockerOk('exec', 'web', 'cat', '/etc/hosts')).toContain('10.213.200.77');
    await dockerOk('network', 'disconnect', 'two', 'web');
    expect(await place.getFrom('client', '10.213.200.77', 80)).toBeUndefined();
    expect((await place.docker('network', 'rm', 'two')).stderr).toContain('has active endpoints (name:"client"');
    // The way out follows whoever has priority, as they come and go.
    const wayOut = async () => /dev (\w+)/.exec(await dockerOk('exec', 'web', 'ip', 'route', 'show', 'default'))?.[1];
    expect(await wayOut()).toBe('eth0');
    await dockerOk('network', 'connect', '--gw-priority', '1', 'two', 'web');
    expect(await wayOut()).toBe('eth1');
    await dockerOk('network', 'disconnect', 'two', 'web');
    expect(await wayOut()).toBe('eth0');
  }, 60_000);
});

describe('links', () => {
  it('name another container in the default network, in hosts and in the environment', async () => {
    const linked = (name: string) => ['run', '--rm', '--link', name, IMAGE, 'sh', '-c', 'cat /etc/hosts; env'];
    expect((await place.docker(...linked('web:db'))).stderr).toContain('could not get container for web');
    await serve('web', '--expose', '80', '-e', 'COLOR=red', '--hostname', 'webhost');
    const said = await dockerOk(...linked('web:db'));
    const address = await addressOf('web', 'bridge');
    expect(said.split('\n')).toEqual(
      expect.arrayContaining([
        `${address}\tdb webhost web`,
        `DB_PORT=tcp://${address}:80`,
        `DB_PORT_80_TCP_ADDR=${address}`,
        'DB_ENV_COLOR=red',
      ]),
    );
    await idle('client', '--link', 'web:db');
    expect(await place.getFrom('client', 'db', 80)).toBe('web');
    expect(await dockerOk('inspect', '-f', '{{.HostConfig.Links}}', 'client')).toBe('[/web:/client/db]');
    expect(await dockerOk('ps', '--no-trunc', '--format', '{{.Names}}')).toBe('client\nclient/db,web');
    expect(await dockerOk('ps', '--filter', 'name=client/d', '--format', '{{.Names}}')).toBe('web');
    expect(await dockerOk('inspect', '-f', '{{.Name}}', 'client/db')).toBe('/web');
    // It may come back with another address.
    await dockerOk('stop', '-t', '0', 'web');
    await idle('between');
    await dockerOk('start', 'web');
    expect(await addressOf('web', 'bridge')).not.toBe(address);
    await eventually(() => place.getFrom('client', 'db', 80), 'web');
    await idle('former', '--link', 'web:db');
    await dockerOk('rm', '--link', 'former/db');
    expect(await place.getFrom('former', 'db', 80)).toBeUndefined();
    expect((await place.docker('rm', '--link', '/former/db')).stderr).toContain('No such container: former/db');
    expect((await place.docker('rm', '--link', 'former')).stderr).toContain('cannot remove the default link name');
    await dockerOk('stop', '-t', '0', 'web', 'client');
    expect((await place.docker('start', 'client')).stderr).toContain('Cannot link to a non running container: /web AS');
  }, 60_000);

  it('name another container for one container alone, in a network of names', async () => {
    await dockerOk('network', 'create', 'one');
    await idle('client', '--network', 'one', '--link', 'web:db');
    expect(await place.getFrom('client', 'db', 80)).toBeUndefined();
    await serve('web', '--network', 'one');
    await eventually(() => place.getFrom('client', 'db', 80), 'web');
    await idle('other', '--network', 'one');
    expect(await place.getFrom('other', 'db', 80)).toBeUndefined();
    await dockerOk('rename', 'web', 'renamed');
    await eventually(() => place.getFrom('client', 'db', 80), undefined);
    const refused = await place.docker('run', '--rm', '--network', 'host', '--link', 'renamed', IMAGE, 'true');
    expect(refused.stderr).toContain("host type networking can't be used with links");
  }, 60_000);
});

describe('published ports', () => {
  it('are reachable from everywhere, over IPv4 and IPv6', async () => {
    await dockerOk('network', 'create', '--ipv6', '--subnet', 'fd00:213:1::/64', 'six');
    await serve('four', '-p', '8080:80');
    await serve('both', '--network', 'six', '-p', '8081:80');
    await idle('inside');
    for (const [port, name] of [
      [8080, 'four'],
      [8081, 'both'],
    ] as const) {
      for (const address of [HERE.v4, `[${HERE.v6}]`])
        await eventually(() => place.get('there', `http://${address}:${port}/`), name);
      for (const address of ['127.0.0.1', '[::1]', HERE.v4, `[${HERE.v6}]`])
        await eventually(() => place.get('here', `http://${address}:${port}/`), name);
      expect(await place.getFrom('inside', HERE.v4, port)).toBe(name);
    }
    expect(await place.getFrom('four', HERE.v4, 8080), 'to itself').toBe('four');
  }, 60_000);

  it('are the only way in', async () => {
    await dockerOk('network', 'create', '--ipv6', '--subnet', 'fd00:213:1::/64', 'six');
    await serve('web', '--network', 'six', '-p', '8080:80');
    const address = await addressOf('web', 'six');
    expect(await place.get('here', `http://${address}/`)).toBe('web');
    expect(await place.get('there', `http://${address}/`)).toBeUndefined();
    expect(await place.get('there', 'http://[fd00:213:1::2]/')).toBeUndefined();
  }, 60_000);

  it('CVE-2025-54388: on 127.0.0.1 are for this host alone, also after a flush of every rule', async () => {
    await serve('web', '-p', '127.0.0.1:8080:80');
    await idle('inside');
    await place.on('there', `ip route add 127.0.0.2/32 via ${HERE.v4}`);
    const probe = async () => {
      expect(await place.get('here', 'http://127.0.0.1:8080/')).toBe('web');
      expect(await place.get('there', `http://${HERE.v4}:8080/`)).toBeUndefined();
      expect(await place.getFrom('inside', HERE.v4, 8080)).toBeUndefined();
    };
    await probe();
    await place.on('here', 'nft flush ruleset');
    await eventually(async () => (await place.on('here', 'nft list ruleset')).stdout.includes('publish_at4'), true);
    await probe();
  }, 60_000);

  it('are reserved, and tell who holds them', async () => {
    await serve('web', '-p', '8080:80');
    const { code, stderr } = await place.docker('run', '--rm', '-p', '8080:80', IMAGE, 'true');
    expect(code).toBe(125);
    expect(stderr).toContain('Bind for 0.0.0.0:8080 failed: port is already allocated (held by container "web")');
    expect((await place.on('here', 'socat -u TCP-LISTEN:8080 -')).stderr).toContain('in use');
    await dockerOk('rm', '-f', 'web');
    await dockerOk('run', '--rm', '-p', '8080:80', IMAGE, 'true');
  }, 60_000);

  it('are chosen when nobody does', async () => {
    await serve('web', '--expose', '80', '-P');
    const port = (await dockerOk('port', 'web', '80/tcp')).split('\n')[0]?.split(':').at(-1);
    expect(await place.get('there', `http://${HERE.v4}:${port}/`)).toBe('web');
  }, 60_000);
});

describe('what a container cannot do', () => {
  it('CVE-2024-29018: an internal network lets nothing out, DNS included', async () => {
    await dockerOk('network', 'create', '--internal', 'closed');
    await dockerOk('network', 'create', 'open');
    await idle('bystander', '--network', 'open');
    await idle('prisoner', '--network', 'closed');
    await serve('peer', '--network', 'closed', '-p', '8080:80');
    expect(await lookup('prisoner', 'peer')).toEqual([await addressOf('peer', 'closed')]);
    // Who is in both knows the names of both.
    await dockerOk('network', 'connect', 'closed', 'bystander');
    expect(await lookup('bystander', 'peer')).toEqual([await addressOf('peer', 'closed')]);
    expect(await lookup('prisoner', 'peer')).toEqual([await addressOf('peer', 'closed')]);
    await dockerOk('network', 'disconnect', 'closed', 'bystander');
    expect(await lookup('bystander', 'peer')).toEqual([]);
    expect(await place.getFrom('prisoner', await addressOf('peer', 'closed'), 80)).toBe('peer');
    expect((await place.docker('exec', 'prisoner', 'ping', '-c1', '-W1', THERE.v4)).code).not.toBe(0);
    expect((await place.docker('exec', 'prisoner', 'ping', '-c1', '-W1', HERE.v4)).code).not.toBe(0);
    // The resolver of another network would ask the outside.
    const gateway = await dockerOk('network', 'inspect', '-f', '{{(index .IPAM.Config 0).Gateway}}', 'open');
    expect(await lookup('prisoner', 'bystander', gateway)).toEqual([]);
    expect(await place.get('there', `http://${HERE.v4}:8080/`)).toBeUndefined();
  }, 60_000);

  it('take the address of another container', async () => {
    await dockerOk('network', 'create', '--subnet', '10.213.200.0/24', 'one');
    await serve('victim', '--network', 'one', '--ip', '10.213.200.10');
    await idle('client', '--network', 'one', '--ip', '10.213.200.12');
    await idle('thief', '--network', 'one', '--ip', '10.213.200.11', '--cap-add', 'NET_ADMIN');
    await dockerOk('exec', 'thief', 'ip', 'addr', 'add', '10.213.200.99/24', 'dev', 'eth0');
    await dockerOk('exec', 'thief', 'ip', 'addr', 'add', '10.213.200.10/24', 'dev', 'eth0');
    const from = (source: string) => place.docker('exec', 'thief', 'ping', '-c1', '-W1', '-I', source, '10.213.200.12');
    expect((await from('10.213.200.11')).code).toBe(0);
    expect((await from('10.213.200.99')).code, 'an address that is nobody’s').toBe(0);
    expect((await from('10.213.200.10')).code, 'the address of the victim').not.toBe(0);
    expect(await place.getFrom('client', '10.213.200.10', 80)).toBe('victim');
  }, 60_000);

  it('CVE-2020-13401, CVE-2024-32473: listen to router advertisements, or speak IPv6 in a network without it', async () => {
    await dockerOk('network', 'create', '--ipv6', 'six');
    await idle('four');
    await idle('six', '--network', 'six');
    const sysctl = (container: string, name: string) =>
      dockerOk('exec', container, 'cat', `/proc/sys/net/ipv6/conf/eth0/${name}`);
    expect(await sysctl('six', 'accept_ra')).toBe('0');
    expect(await sysctl('four', 'disable_ipv6')).toBe('1');
    expect(await dockerOk('exec', 'four', 'ip', 'addr', 'show', 'eth0')).not.toContain('inet6');
    expect(await dockerOk('exec', 'six', 'ip', '-6', 'addr', 'show', 'eth0')).toContain('inet6 fd');
  }, 60_000);

  it('reach its neighbours when they are kept apart', async () => {
    await dockerOk('network', 'create', '-o', 'com.docker.network.bridge.enable_icc=false', 'apart');
    await serve('web', '--network', 'apart');
    await idle('client', '--network', 'apart');
    expect(await place.getFrom('client', await addressOf('web', 'apart'), 80)).toBeUndefined();
    expect((await place.docker('exec', 'client', 'ping', '-c1', '-W1', THERE.v4)).code).toBe(0);
  }, 60_000);
});

it('CVE-2020-15257: a container with the host’s network finds no abstract socket of ours', async () => {
  await dockerOk('run', '-di', '--name', 'attached', IMAGE, 'cat');
  const sockets = await dockerOk('run', '--rm', '--network', 'host', IMAGE, 'cat', '/proc/net/unix');
  expect(sockets).toContain('/berth.sock');
  expect(sockets.split('\n').filter((line) => / @/.test(line))).toEqual([]);
}, 60_000);

it('CVE-2021-20199: no client seems to come from the loopback address of the container', async () => {
  const script = `mkdir -p /cgi-bin; printf '#!/bin/sh\\necho; echo from $REMOTE_ADDR\\n' > /cgi-bin/who; chmod +x /cgi-bin/who; exec httpd -f -h / -p 80`;
  await dockerOk('network', 'create', '--ipv6', '--subnet', 'fd00:213:1::/64', 'six');
  await dockerOk('run', '-d', '--name', 'web', '--network', 'six', '-p', '8080:80', IMAGE, 'sh', '-c', script);
  const saidAt = async (where: 'here' | 'there', address: string): Promise<string> => {
    const ask = () => place.get(where, `http://${address}:8080/cgi-bin/who`);
    await eventually(async () => (await ask())?.startsWith('from '), true);
    return (await ask()) ?? '';
  };
  expect(await saidAt('there', HERE.v4)).toContain(THERE.v4);
  expect(await saidAt('there', `[${HERE.v6}]`)).toContain(THERE.v6);
  for (const address of ['127.0.0.1', '[::1]', HERE.v4, `[${HERE.v6}]`])
    expect(await saidAt('here', address), address).not.toMatch(/127\.0\.0|from \[?::1\b/);
}, 60_000);

it('CVE-2025-54410: networks are kept apart again after all rules were flushed', async () => {
  await dockerOk('network', 'create', 'one');
  await dockerOk('network', 'create', 'two');
  await serve('web', '--network', 'one');
  await idle('far', '--network', 'two');
  const rules = async () => (await place.on('here', 'nft list ruleset')).stdout;
  const table = /table inet (berth_\w+)/.exec(await rules())?.[1] ?? '';
  const listener = `/${table.replace('berth_', 'nft-')} monitor$`;
  // All of it, a part of what is routed, and what passes between ports of a bridge; with word of it, and without.
  for (const [damage, sign] of [
    ['nft flush ruleset', 'iifname . oifname @same '],
    [`nft flush chain inet ${table} through`, 'iifname . oifname @same '],
    [`nft delete table bridge ${table}`, 'arp saddr ip @addresses4'],
    [`pkill -f '${listener}'; nft flush chain inet ${table} through`, 'iifname . oifname @same '],
    [`nft flush chain inet ${table} through`, 'iifname . oifname @same '],
  ] as const) {
    expect((await place.on('here', damage)).code, damage).toBe(0);
    await eventually(async () => `${damage}: ${(await rules()).includes(sign)}`, `${damage}: true`);
    expect(await place.getFrom('far', await addressOf('web', 'one'), 80)).toBeUndefined();
  }
}, 120_000);

describe('the host', () => {
  it.each(['DOCKER-USER', 'FORWARD'])(
    'lets containers out although its FORWARD policy drops, by rules in %s that go with the networks',
    async (chain) => {
      await place.on('here', 'iptables -P FORWARD DROP');
      await place.on(
        'here',
        chain === 'DOCKER-USER'
          ? 'iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER'
          : 'iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT',
      );
      await dockerOk('network', 'create', 'one');
      await serve('web', '--network', 'one', '-p', '8080:80');
      expect((await place.docker('exec', 'web', 'ping', '-c1', '-W2', THERE.v4)).code).toBe(0);
      // A firewall that is not dockerd's decides itself what comes in.
      expect(await place.get('there', `http://${HERE.v4}:8080/`)).toBe(chain === 'FORWARD' ? undefined : 'web');
      expect((await place.on('here', 'iptables -S')).stdout).toMatch(new RegExp(`-A ${chain} -i br\\S+ .*-j ACCEPT`));
      await dockerOk('rm', '-f', 'web');
      await dockerOk('network', 'rm', 'one');
      const bridges = (await place.on('here', 'ip -o link show type bridge')).stdout.match(/br\w+-\w+/g) ?? [];
      const named = (await place.on('here', 'iptables -S')).stdout.match(/br\w+-\w+/g) ?? [];
      await place.on('here', 'iptables -P FORWARD ACCEPT; iptables -F; iptables -X');
      expect(bridges).toEqual(expect.arrayContaining(named));
    },
    60_000,
  );

  it('is put in order while the engine runs', async () => {
    await dockerOk('network', 'create', 'one');
    await serve('web', '--network', 'one', '-p', '8080:80');
    const gateway = await dockerOk('network', 'inspect', '-f', '{{(index .IPAM.Config 0).Gateway}}', 'one');
    const bridge = async () => (await place.on('here', `ip -o addr show to ${gateway}`)).stdout.split(' ');
    const [before, name] = await bridge();
    await place.on('here', `ip link delete ${name}`);
    await eventually(async () => !['', before].includes((await bridge())[0] ?? ''), true);
    await eventually(() => place.get('there', `http://${HERE.v4}:8080/`), 'web');
  }, 60_000);

  it('is put in order after SIGKILL of the engine, and containers stay connected meanwhile', async () => {
    await dockerOk('network', 'create', 'one');
    await serve('web', '--network', 'one', '-p', '8080:80');
    await idle('client', '--network', 'one');
    await idle('gone', '--network', 'one');
    const address = await addressOf('web', 'one');
    await place.restart('SIGKILL', async () => {
      expect(await place.get('there', `http://${HERE.v4}:8080/`)).toBe('web');
      await place.on('here', 'nft flush ruleset; nft delete table inet nobody');
    });
    expect(await addressOf('web', 'one')).toBe(address);
    expect(await place.get('there', `http://${HERE.v4}:8080/`)).toBe('web');
    expect(await lookup('client', 'web')).toEqual([address]);
    await dockerOk('rm', '-f', 'web', 'client', 'gone');
    await dockerOk('network', 'rm', 'one');
    expect((await place.on('here', 'ip -o link')).stdout).not.toMatch(/: ve\w{6}/);
  }, 60_000);
});
