/** What a container may have, of its host and of other containers, asked for by the docker CLI and by the API. */
import { spawn } from 'node:child_process';
import { createSocket } from 'node:dgram';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readdir, writeFile } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cgroupLayout, createCgroups } from '../../runtime/kernel/cgroups.ts';
import { createMounts } from '../../runtime/kernel/mount.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
let image: string;
beforeAll(async () => {
  place = await openEnginePlace((_registry, host) => ['--cdi-spec-dirs', join(host.root, 'cdi')]);
  image = place.image;
  await place.dockerOk(['pull', '-q', image]);
});
afterAll(() => place?.[Symbol.asyncDispose]());

const docker = (args: readonly string[], input?: string) => place.docker(args, input);
const dockerOk = (args: readonly string[], input?: string) => place.dockerOk(args, input);
const namespaceOf = (container: string, type: string) =>
  dockerOk(['exec', container, 'readlink', `/proc/self/ns/${type}`]);

describe('namespaces of another container', () => {
  it('are shared: IPC with its memory, processes, network', async () => {
    await dockerOk(['run', '-d', '--name', 'owner', '--ipc', 'shareable', '--shm-size', '1m', image, 'sleep', '1000']);
    const joined = ['--ipc', 'container:owner', '--pid', 'container:owner', '--network', 'container:owner'];
    await dockerOk(['run', '-d', '--name', 'guest', ...joined, image, 'sleep', '1000']);
    for (const type of ['ipc', 'pid', 'net'])
      expect(await namespaceOf('guest', type), type).toBe(await namespaceOf('owner', type));
    expect(await namespaceOf('guest', 'uts')).not.toBe(await namespaceOf('owner', 'uts'));
    await dockerOk(['exec', 'owner', 'sh', '-c', 'echo shared > /dev/shm/word']);
    expect(await dockerOk(['exec', 'guest', 'cat', '/dev/shm/word'])).toBe('shared');
    expect(await dockerOk(['exec', 'guest', 'df', '-k', '/dev/shm'])).toMatch(/ 1024 /);
    expect(await dockerOk(['inspect', '-f', '{{.HostConfig.IpcMode}}', 'owner'])).toBe('shareable');
  });

  it('run again after both have ended, the owner first', async () => {
    await dockerOk(['update', '--restart', 'always', 'owner', 'guest']);
    const guest = await dockerOk(['inspect', '-f', '{{.State.Pid}}', 'guest']);
    const owner = await dockerOk(['inspect', '-f', '{{.State.Pid}}', 'owner']);
    expect([guest, owner]).toEqual([expect.stringMatching(/^[1-9]\d+$/), expect.stringMatching(/^[1-9]\d+$/)]);
    // Everything that ran is gone when the next engine looks.
    await place.restart('SIGKILL', () => {
      for (const pid of [guest, owner]) process.kill(Number(pid), 'SIGKILL');
    });
    await expect
      .poll(() => dockerOk(['ps', '--format', '{{.Names}}', '--filter', 'status=running']))
      .toBe('guest\nowner');
    expect(await namespaceOf('guest', 'ipc')).toBe(await namespaceOf('owner', 'ipc'));
    await dockerOk(['rm', '-f', 'guest', 'owner']);
    expect(await readdir(join(place.host.runDir, 'engine', 'shm'))).toEqual([]);
  });

  it.each([
    [['--ipc', 'container:hermit'], "can't join IPC of container hermit: non-shareable IPC"],
    [['--ipc', 'container:nobody'], 'No such container: nobody'],
    [['--network', 'container:hermit', '--dns', '10.0.0.1'], 'conflicting options: dns and the network mode'],
  ])('refuses %j', async (flags, words) => {
    if ((await docker(['inspect', 'hermit'])).code !== 0)
      await dockerOk(['run', '-d', '--name', 'hermit', image, 'sleep', '1000']);
    const refused = await docker(['run', '--rm', ...flags, image, 'true']);
    expect(refused.code).toBe(125);
    expect(refused.stderr).toContain(words);
  });
});

describe('--cgroup-parent', () => {
  it('is where the cgroup of the container is', async () => {
    const parent = `berth-test-${process.pid}`;
    place.host.owns(parent);
    const id = await dockerOk(['run', '-d', '--name', 'placed', '--cgroup-parent', parent, image, 'sleep', '1000']);
    expect(await dockerOk(['exec', 'placed', 'cat', '/proc/self/cgroup'])).toContain(`/${parent}/${id}`);
    await dockerOk(['rm', '-f', 'placed']);
    // The parent is whoever's asked for it, and stays, as with dockerd.
    const cgroups = createCgroups(cgroupLayout(await createMounts({ architecture: process.arch }).list()));
    expect(await cgroups.children(`/${parent}`)).toEqual([]);
    await cgroups.remove(`/${parent}`);
  });
});

describe('limits', () => {
  it('that two clients change at once are both changed', async () => {
    await dockerOk(['run', '-d', '--name', 'both', image, 'sleep', '1000']);
    await Promise.all([
      dockerOk(['update', '--pids-limit', '77', 'both']),
      dockerOk(['update', '--cpus', '0.5', 'both']),
    ]);
    expect(await dockerOk(['inspect', '-f', '{{.HostConfig.PidsLimit}} {{.HostConfig.NanoCpus}}', 'both'])).toBe(
      '77 500000000',
    );
    // Lifted again, by whatever is less than one.
    await dockerOk(['update', '--pids-limit', '-1', 'both']);
    expect(await dockerOk(['inspect', '-f', '{{.HostConfig.PidsLimit}}', 'both'])).toBe('0');
    await dockerOk(['rm', '-f', 'both']);
  });
});

describe('--log-driver', () => {
  const say = (name: string, driver: readonly string[], script: string) =>
    dockerOk(['run', '--name', name, '--log-driver', ...driver, image, 'sh', '-c', script]);

  it('syslog hands lines on over UDP, TCP and a local socket, and logs reads them here', async () => {
    const [udp, tcp] = [createSocket('udp4').bind(0, '127.0.0.1'), createServer().listen(0, '127.0.0.1')];
    await Promise.all([once(udp, 'listening'), once(tcp, 'listening')]);
    const local = join(place.host.root, 'syslog');
    const receiver = spawn('socat', ['-u', `UNIX-RECV:${local}`, 'STDOUT'], { stdio: ['ignore', 'pipe', 'inherit'] });
    const got = { udp: '', tcp: '', local: '' };
    udp.on('message', (message) => (got.udp += `${message}\n`));
    tcp.on('connection', (socket) => {
      socket.unref();
      socket.on('data', (bytes) => (got.tcp += bytes));
    });
    receiver.stdout.on('data', (bytes) => (got.local += bytes));
    try {
      await expect.poll(() => existsSync(local)).toBe(true);
      const port = ({ port: number = 0 }: { port?: number }) => number;
      await say(
        'by-udp',
        ['syslog', '--log-opt', `syslog-address=udp://127.0.0.1:${port(udp.address())}`, '--log-opt', 'tag={{.Name}}'],
        'echo one; echo two >&2',
      );
      await say(
        'by-tcp',
        [
          'syslog',
          '--log-opt',
          `syslog-address=tcp://127.0.0.1:${port(tcp.address() as { port: number })}`,
          '--log-opt',
          'syslog-format=rfc5424',
          '--log-opt',
          'syslog-facility=local0',
        ],
        'seq 1 2000; printf unended',
      );
      await say('by-socket', ['syslog', '--log-opt', `syslog-address=unix://${local}`], 'echo here');
      await expect
        .poll(() => got.udp)
        .toMatch(/^<30>.* by-udp\[\d+\]: one\n<27>.* by-udp\[\d+\]: two\n$|^<27>.*two\n<30>.*one\n$/);
      await expect.poll(() => got.tcp).toMatch(/ - unended\n$/);
      const numbers = got.tcp.split('\n').map((line) => / - (.*)$/.exec(line)?.[1]);
      expect(numbers.slice(0, 2000)).toEqual(Array.from({ length: 2000 }, (_, index) => String(index + 1)));
      expect(got.tcp).toMatch(/^<134>1 \d{4}-/);
      await expect.poll(() => got.local).toMatch(/^<30>\w{3} [ \d]\d \d\d:\d\d:\d\d [0-9a-f]{12}\[\d+\]: here/);
      expect(await docker(['logs', 'by-udp'])).toMatchObject({ stdout: 'one\n', stderr: 'two\n' });
    } finally {
      udp.close();
      tcp.close();
      receiver.kill('SIGKILL');
      await docker(['rm', '-f', 'by-udp', 'by-tcp', 'by-socket']);
    }
  });

  it('syslog waits for a server that is away, across a kill of the engine, and loses nothing', async () => {
    const server = createServer().listen(0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as { port: number };
    server.close();
    await say(
      'patient',
      ['syslog', '--log-opt', `syslog-address=tcp://127.0.0.1:${port}`, '--log-opt', 'cache-disabled=true'],
      'seq 1 50',
    );
    expect((await docker(['logs', 'patient'])).stderr).toContain('configured logging driver does not support reading');
    let got = '';
    const sockets = new Set<Socket>();
    server.on('connection', (socket) => {
      sockets.add(socket);
      socket.on('data', (bytes) => (got += bytes));
    });
    await place.restart('SIGKILL', async () => {
      server.listen(port, '127.0.0.1');
      await once(server, 'listening');
    });
    try {
      await expect.poll(() => got.split('\n').length - 1).toBe(50);
    } finally {
      for (const socket of sockets) socket.destroy();
      server.close();
      await docker(['rm', '-f', 'patient']);
    }
  });
});

describe('devices by CDI', () => {
  const spec = {
    cdiVersion: '0.6.0',
    kind: 'nvidia.com/gpu',
    containerEdits: { env: ['COMMON=1'] },
    devices: [
      {
        name: '0',
        containerEdits: {
          env: ['GPU=zero'],
          deviceNodes: [{ path: '/dev/gpu0', hostPath: '/dev/zero', permissions: 'r' }],
          mounts: [{ hostPath: '/etc/hostname', containerPath: '/opt/driver', options: ['ro', 'nosuid', 'nodev'] }],
          additionalGids: [4242],
        },
      },
      { name: 'all', containerEdits: { env: ['GPU=all'] } },
      { name: 'new', containerEdits: { netDevices: [] } },
    ],
  };
  beforeAll(async () => {
    await mkdir(join(place.host.root, 'cdi'));
    await writeFile(join(place.host.root, 'cdi', 'nvidia.yaml'), JSON.stringify(spec));
  });

  it('bring their nodes, mounts, variables and groups', async () => {
    const script =
      'echo $COMMON $GPU; stat -c %t:%T /dev/gpu0; cat /opt/driver >/dev/null; id -G; (echo >/dev/gpu0) 2>&1';
    const { stdout } = await docker(['run', '--rm', '--gpus', 'device=0', image, 'sh', '-c', script]);
    expect(stdout).toMatch(/^1 zero\n1:5\n.*4242.*\n/);
    expect(await dockerOk(['run', '--rm', '--gpus', 'all', image, 'sh', '-c', 'echo $GPU'])).toBe('all');
    expect(
      await dockerOk([
        'run',
        '--rm',
        '--device',
        'nvidia.com/gpu=all',
        '-e',
        'GPU=mine',
        image,
        'sh',
        '-c',
        'echo $GPU',
      ]),
    ).toBe('all');
  });

  it.each([
    [['--device', 'acme.org/thing=7'], 'unresolvable CDI devices acme.org/thing=7'],
    [['--gpus', '2'], 'unresolvable CDI devices nvidia.com/gpu=1'],
    [['--gpus', 'driver=acme,count=1'], 'could not select device driver "acme" with capabilities: [[gpu]]'],
    [['--gpus', 'device=new'], 'netDevices'],
  ])('refuse %j', async (flags, words) => {
    expect((await docker(['run', '--rm', ...flags, image, 'true'])).stderr).toContain(words);
  });
});
