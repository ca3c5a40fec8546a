/**
 * What a default container may and sees here, beside one of dockerd's and one of podman's on the same host, field by
 * field. Every difference is explained in docs/container-defaults.md, or the test fails and prints it.
 */
import { mkdir, readFile, readlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openPodman } from '../bench/peers.ts';
import { run, startProgram, succeed } from '../fixtures/programs.ts';
import { openEnginePlace } from './engine-place.ts';

const PROBE = `
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Groups):' /proc/self/status | sed 's/^/status /'
while read id parent dev root target options rest; do echo "mount $target $options $rest"; done < /proc/self/mountinfo
for path in /dev/*; do echo "dev $path $(stat -c '%F %t:%T %a' $path)"; done
for path in /proc/self/ns/*; do echo "ns $path $(readlink $path)"; done
for path in net/ipv4/ip_unprivileged_port_start net/ipv4/ping_group_range net/ipv6/conf/all/disable_ipv6 kernel/shmmax; do
  echo "sysctl $path $(cat /proc/sys/$path | tr '\\t' ' ')"; done
ulimit -a | sed 's/  */ /g; s/^/ulimit /'
echo "process umask $(umask)"; echo "process cwd $(pwd)"; echo "process oom_score_adj $(cat /proc/self/oom_score_adj)"
env | grep -v '^HOSTNAME=' | sed 's/^/env /; s/=/ /'
for path in /sys/fs/cgroup /proc/sys/kernel/hostname /sys/firmware /proc/kcore; do
  echo "write $path $( (echo x >> $path/x || echo x >> $path) 2>/dev/null && echo yes || echo no)"; done`;

type Facts = ReadonlyMap<string, string>;

/** Names are kept that mean the same in every engine; numbers that differ from run to run are not. */
function factsOf(output: string, hostNamespaces: ReadonlyMap<string, string>): Facts {
  const facts = new Map<string, string>();
  for (const line of output.split('\n')) {
    const [kind = '', name = '', ...rest] = line.split(' ');
    const value = rest.join(' ');
    if (kind === 'status') facts.set(`${kind} ${name.split(':')[0]}`, `${name.split('\t')[1] ?? ''}${value}`.trim());
    else if (kind === 'ns') {
      const type = name.split('/').at(-1) ?? '';
      facts.set(`ns ${type}`, hostNamespaces.get(type) === value ? 'of the host' : 'own');
    } else if (kind === 'mount') {
      const [options = '', after = ''] = [rest[0], value.split(' - ')[1] ?? ''];
      const kept = options.split(',').filter((option) => !/relatime|noatime/.test(option));
      facts.set(`mount ${name}`, `${after.split(' ')[0]} ${kept.sort().join(',')}`);
    } else if (kind === 'ulimit') {
      const match = /^ulimit (.*?):? (\S+)$/.exec(line);
      if (match !== null) facts.set(`ulimit ${match[1]}`, match[2] ?? '');
    } else if (kind !== '') facts.set(`${kind} ${name}`, value);
  }
  return facts;
}

/** Rows of the page: `| peer | what | why |`, where `*` in what stands for anything. */
async function explanations(): Promise<readonly { readonly peer: string; readonly what: RegExp }[]> {
  const page = await readFile(new URL('../../docs/container-defaults.md', import.meta.url), 'utf8');
  return [...page.matchAll(/^\| (dockerd|podman|both)\s+\| `([^`]+)`\s+\| \S/gm)].map(([, peer = '', what = '']) => ({
    peer,
    what: new RegExp(`^${what.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*')}$`),
  }));
}

it('is confined like a container of dockerd and of podman, but for what is explained', async () => {
  await using place = await openEnginePlace();
  const { host, image } = place;
  const at = (...names: string[]) => join(host.root, 'dockerd', ...names);
  await mkdir(at('data'), { recursive: true });
  await writeFile(at('config.json'), '{}');
  const url = `unix://${at('docker.sock')}`;
  await using _dockerd = await startProgram(host, {
    name: 'dockerd',
    // In a network of its own it cannot touch the host's rules.
    command: 'unshare',
    args: [
      ...['--net', '--', 'dockerd', '--host', url, '--data-root', at('data'), '--exec-root', at('exec')],
      ...['--pidfile', at('pid'), '--config-file', at('config.json'), '--log-level', 'warn'],
      ...['--bridge=none', '--iptables=false', '--ip6tables=false', '--storage-driver=overlay2'],
    ],
    ready: async (started) =>
      (await run('docker', ['-H', url, 'version'], { env: host.env })).code === 0 ? started : undefined,
  });
  await using podman = await openPodman(host, place.registry.address);
  await place.dockerOk(['pull', '-q', image]);
  await place.dockerOk(['save', '-o', join(host.root, 'image.tar'), image]);
  await succeed('docker', ['-H', url, 'load', '-i', join(host.root, 'image.tar')], { env: host.env });
  await podman.docker('pull', '--quiet', '--tls-verify=false', image);

  const namespaces = new Map<string, string>();
  for (const type of ['cgroup', 'ipc', 'mnt', 'net', 'pid', 'time', 'user', 'uts'])
    namespaces.set(type, await readlink(`/proc/self/ns/${type}`));
  const probe = ['--network', 'none', image, 'sh', '-c', PROBE];
  // The second container of a profile gets the filter that was compiled for the first.
  const first = factsOf(await place.dockerOk(['run', '--rm', ...probe]), namespaces);
  const ours = factsOf(await place.dockerOk(['run', '--rm', ...probe]), namespaces);
  expect(ours.get('status Seccomp')).toBe(first.get('status Seccomp'));
  const peers = {
    dockerd: factsOf(await succeed('docker', ['-H', url, 'run', '--rm', ...probe], { env: host.env }), namespaces),
    podman: factsOf(await podman.docker('run', '--rm', ...probe), namespaces),
  };
  await succeed('docker', ['-H', url, 'rmi', image], { env: host.env });

  const explained = await explanations();
  const unexplained: string[] = [];
  const rows: string[] = [];
  for (const [peer, theirs] of Object.entries(peers))
    for (const what of [...new Set([...ours.keys(), ...theirs.keys()])].sort()) {
      if (ours.get(what) === theirs.get(what)) continue;
      const row = `${peer} | ${what} | berth: ${ours.get(what) ?? 'absent'} | ${peer}: ${theirs.get(what) ?? 'absent'}`;
      rows.push(row);
      const isExplained = explained.some((row) => [peer, 'both'].includes(row.peer) && row.what.test(what));
      if (!isExplained) unexplained.push(row);
    }
  process.stderr.write(`${ours.size} facts compared; differences:\n${rows.join('\n')}\n`);
  expect(ours.size).toBeGreaterThan(60);
  expect(unexplained).toEqual([]);
});
