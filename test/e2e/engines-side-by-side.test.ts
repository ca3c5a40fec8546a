/**
 * dockerd, podman and our engine on one host, which is a network namespace: none of them takes the network from
 * another, and docker's client prints the same of networks and volumes whoever it talks to.
 */
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type Engine, openPodman, startDockerd } from '../bench/peers.ts';
import { run } from '../fixtures/programs.ts';
import { HERE, IMAGE, type NetworkPlace, openNetworkPlace, THERE } from './network-place.ts';

const undo = new AsyncDisposableStack();
let place: NetworkPlace;
let podman: Engine;
beforeAll(async () => {
  place = undo.use(await openNetworkPlace());
  podman = undo.use(await openPodman(place.host, 'registry.invalid', { through: place.through }));
  await podman.docker('load', '-q', '-i', place.archive);
}, 120_000);
afterAll(() => undo.disposeAsync(), 60_000);

/** Serves its own name, published on a port of the host. */
const service = (name: string, port: number) => [
  '-d',
  '--name',
  name,
  '-p',
  `${port}:80`,
  IMAGE,
  'sh',
  '-c',
  `echo ${name} >/index.html; exec httpd -f -h / -p 80`,
];
const PORTS = { docker: 8081, podman: 8082, berth: 8083 } as const;
type Name = keyof typeof PORTS;

async function startDocker(through: readonly string[]): Promise<Engine> {
  const dockerd = await startDockerd(place.host, { through });
  await dockerd.docker('load', '-q', '-i', place.archive);
  return dockerd;
}

/** Which way of these services is closed: in from the second host, out to it. */
async function closed(engines: Partial<Record<Name, (...args: readonly string[]) => Promise<string>>>) {
  const ways = Object.entries(engines).map(async ([name, docker]) => {
    const inside = await place.get('there', `http://${HERE.v4}:${PORTS[name as Name]}/`);
    // Nothing listens there: that it says so is an answer. Not every engine lets its containers ping.
    const ask = `nc -w 2 ${THERE.v4} 9 2>&1 | grep -q refused`;
    const outside = await docker('exec', name, 'sh', '-c', ask).catch(() => undefined);
    return [...(inside === name ? [] : [`into ${name}`]), ...(outside === undefined ? [`out of ${name}`] : [])];
  });
  return (await Promise.all(ways)).flat();
}

/** Within seconds: whoever came first may have to learn of the other's rules. */
async function allOpen(what: string, engines: Parameters<typeof closed>[0]): Promise<void> {
  const deadline = Date.now() + 30_000;
  for (;;) {
    const left = await closed(engines);
    if (left.length === 0) return;
    if (Date.now() > deadline) throw new Error(`after ${what}, still closed: ${left.join(', ')}`);
    await delay(200);
  }
}

describe('on one host', () => {
  it('no engine loses its network when another starts, stops or flushes', async () => {
    const berth = place.dockerOk;
    await berth('run', ...service('berth', PORTS.berth));
    await allOpen('the start of berth', { berth });
    await podman.docker('run', ...service('podman', PORTS.podman));
    await allOpen('the start of podman', { berth, podman: podman.docker });
    const dockerd = await startDocker(place.through);
    try {
      const docker = dockerd.docker;
      await docker('run', ...service('docker', PORTS.docker));
      const all = { berth, docker, podman: podman.docker };
      await allOpen('the start of dockerd', all);
      // Ours goes and comes, takes a network away, and loses its table.
      await place.restart('SIGKILL', () => allOpen('the end of berthd', { docker, podman: podman.docker }));
      await allOpen('the return of berthd', all);
      await berth('network', 'create', 'passing');
      await berth('run', '--rm', '--network', 'passing', IMAGE, 'true');
      await berth('network', 'rm', 'passing');
      await allOpen('a network of berth', all);
      const tables = (await place.on('here', 'nft list tables')).stdout.match(/^table \w+ berth_\w+$/gm) ?? [];
      await place.on('here', tables.map((table) => `nft delete ${table}`).join('; '));
      await allOpen('a flush of our tables', all);
      // So does each of the others.
      await podman.docker('rm', '-f', '-t', '0', 'podman');
      await allOpen('the end of podman', { berth, docker });
      await docker('rm', '-f', 'docker');
    } finally {
      await dockerd[Symbol.asyncDispose]();
    }
    await allOpen('the end of dockerd', { berth });
    const filter = (await place.on('here', 'iptables -S FORWARD; iptables -S DOCKER-USER')).stdout;
    await berth('rm', '-f', 'berth');
    expect(filter, 'what is theirs').toContain('-A DOCKER-USER -j RETURN');
  }, 180_000);
});

/** OWN is a directory of the engine's own; a line that begins with `!` must fail. */
const SCRIPT: readonly string[] = [
  'network ls --format {{.Name}}|{{.Driver}}|{{.Scope}}',
  'network create --subnet 10.213.150.0/24 --gateway 10.213.150.9 --label a=b one',
  '! network create one',
  '! network create --subnet 10.213.150.128/25 overlap',
  '! network create --driver nosuch other',
  'network create --internal -o com.docker.network.driver.mtu=1400 two',
  'network ls --filter label=a=b --format {{.Name}}',
  'network inspect --format {{.Name}}|{{.Driver}}|{{.Internal}}|{{json_.IPAM.Config}}|{{json_.Labels}} one',
  'network inspect --format {{.Internal}}|{{.Options}}|{{.EnableIPv6}} two',
  '! network inspect nosuch',
  '! network rm bridge',
  'volume create --label a=b data',
  'volume create data',
  '! volume create --driver nosuch other',
  '! volume create a/b',
  'volume ls --format {{.Driver}}|{{.Name}}',
  'volume ls --filter label=a=b --filter dangling=true -q',
  'volume inspect --format {{.Name}}|{{.Driver}}|{{.Scope}}|{{json_.Labels}}|{{json_.Options}} data',
  '! volume inspect nosuch',
  '! volume rm nosuch',
  'volume rm -f nosuch',
  'run -d --name web --network one --network-alias www --ip 10.213.150.77 -p 127.0.0.1:8090:80 -v data:/data IMAGE sleep 1000',
  'port web',
  'inspect --format {{range_.Mounts}}{{.Type}}|{{.Name}}|{{.Destination}}|{{.Driver}}|{{.Mode}}|{{.RW}}{{end}} web',
  'inspect --format {{json_.NetworkSettings.Ports}}|{{.HostConfig.NetworkMode}}|{{.NetworkSettings.Networks.one.IPAddress}} web',
  'inspect --format {{json_.NetworkSettings.Networks.one.IPAMConfig}}|{{.NetworkSettings.Networks.one.Gateway}} web',
  'exec web cat /etc/resolv.conf',
  'run --rm --network one IMAGE ping -c1 -W2 www -q',
  'run --rm --network one IMAGE nslookup -type=a web 127.0.0.11',
  '! run --rm --network one IMAGE nslookup nosuch.invalid 127.0.0.11',
  'run --rm --network container:web IMAGE ip -o -4 addr show eth0',
  'run --rm --network none IMAGE ls /sys/class/net',
  '! run --rm --network nosuch IMAGE true',
  '! run --rm -p 127.0.0.1:8090:80 IMAGE true',
  '! run --rm --network host --ip 10.0.0.1 IMAGE true',
  '! run --rm --network container:web -p 80:80 IMAGE true',
  '! run --rm -v rel/path:/x IMAGE true',
  '! run --rm -v data:rel IMAGE true',
  '! run --rm --mount type=bind,source=/no/such,target=/x IMAGE true',
  'run --rm -v data:/d:ro IMAGE touch /d/x || refused',
  'run --rm --volumes-from web:ro IMAGE touch /data/x || refused',
  'run --rm --mount type=volume,source=data,target=/d IMAGE sh -c ls_/d',
  'run --rm --add-host host:10.0.0.1 --dns 10.0.0.2 --dns-search s.test --dns-opt ndots:3 IMAGE cat /etc/resolv.conf',
  'network connect --alias other two web',
  '! network connect two web',
  '! network rm two',
  'network inspect --format {{range_.Containers}}{{.Name}}{{end}} two',
  'network disconnect two web',
  '! network disconnect two web',
  '! volume rm data',
  'network prune -f',
  'volume prune -f',
  'rm -f web',
  'volume rm data',
  'volume ls -q',
  'network rm one',
];

describe('docker’s client', () => {
  it('prints the same of networks and volumes as with dockerd', async () => {
    // On a host of its own, as both make the same networks.
    const dockerd = await startDocker(['unshare', '--net', '--', 'sh', '-c', 'ip link set lo up && exec "$@"', 'sh']);
    try {
      const urls = [`unix://${dockerd.socketPath}`, place.engine.url];
      const [theirs, ours] = await Promise.all(urls.map(transcript));
      expect(ours).toEqual(theirs);
    } finally {
      await dockerd[Symbol.asyncDispose]();
    }
  }, 240_000);
});

async function transcript(url: string): Promise<readonly string[]> {
  const lines: string[] = [];
  for (const line of SCRIPT) {
    const mustFail = line.startsWith('! ');
    const mayFail = line.endsWith(' || refused');
    const words = line.replace(/^! | \|\| refused$/g, '').split(' ');
    const args = words.map((word) => word.replace('IMAGE', IMAGE).replaceAll(/(json|range|ls)_/g, '$1 '));
    const { code, stdout, stderr } = await run('docker', ['-H', url, ...args], { env: place.host.env });
    if (!mayFail && (code !== 0) !== mustFail)
      throw new Error(`${url}: docker ${args.join(' ')} ended with ${code}: ${stdout}${stderr}`);
    lines.push(`$ ${line} -> ${code}`, ...normalized(stdout), ...normalized(stderr).map((said) => `  ${said}`));
  }
  return lines;
}

function normalized(text: string): readonly string[] {
  return text
    .split('\n')
    .map((line) =>
      line
        .replaceAll(/\b[0-9a-f]{64}\b/g, 'ID')
        .replaceAll(/\b[0-9a-f]{12}\b/g, 'ID')
        // Texts that have changed since the dockerd of Debian 12, and names that each engine chooses.
        .replace('invalid pool request: ', '')
        .replace(/(?<=plugin "nosuch" not found): cannot create network .*/, '')
        .replace(/network two(?: id ID)? has active endpoints.*/, 'network two has active endpoints')
        .replace(/ \(held by container "web"\)/, '')
        // Newer ones say so first.
        .replace('failed to set up container networking: ', '')
        .replace(/endpoint \w+ \(ID\)/, 'endpoint NAME (ID)')
        .replaceAll(/eth0@if\d+|^\d+: eth0/g, 'eth0')
        .replaceAll(/\d+(?:\.\d+)? ?(?:[kM]?B|ms)\b|\d+\.\d+\/\d+\.\d+\/\d+\.\d+/g, 'AMOUNT')
        .trim(),
    )
    .filter((line) => line !== '')
    .sort();
}
