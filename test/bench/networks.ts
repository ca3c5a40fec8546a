/**
 * The networks' rows, beside dockerd in the same network namespace: starts on a bridge, with a published port, on a full
 * network; TCP from container to host, to another container, and from a second host through a published port; names.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { type Place, startRegistry, succeed } from '../fixtures/programs.ts';
import { pushBusybox } from './containers.ts';
import { call, eachOf } from './crowd.ts';
import { type Budget, compete, median, milliseconds, type Row, type Unit } from './measure.ts';
import { type Engine, startBerthd, startDockerd } from './peers.ts';

const COMMANDS = 5;
const CROWD = 100;
const LAST = 10;
const TCP_SECONDS = 3;
const QUESTIONS = 200;
const NETWORK = 'measured';
const SECOND_HOST = { here: '10.215.0.1', there: '10.215.0.2' } as const;
const GIGABIT_BYTES = 1e9 / 8;

interface Sides {
  readonly ours: Engine;
  readonly peer: Engine;
  readonly runs: number;
}

export async function networkRows(place: Place, runs: number): Promise<readonly Row[]> {
  await using registry = await startRegistry(place);
  await using ours = await startBerthd(place);
  await using peer = await startDockerd(place);
  const image = `${registry.address}/busybox:1`;
  await pushBusybox(place, image);
  const both = [ours, peer];
  for (const engine of both) {
    await engine.docker('pull', '-q', image);
    await engine.docker('network', 'create', NETWORK);
    // The first one of each also loads code and mounts layers.
    await engine.docker('run', '--rm', image, 'true');
  }
  const sides = { ours, peer, runs };
  const rows = [
    ...(await startRows(sides, image)),
    await crowdedRow({ ...sides, runs: 1 }, image),
    ...(await trafficRows(place, sides, image)),
  ];
  for (const engine of both) await engine.docker('network', 'rm', NETWORK);
  return rows;
}

function row(
  { ours, peer, runs }: Sides,
  what: string,
  limit: { readonly unit: Unit; readonly budget: Budget },
  measure: (engine: Engine) => Promise<number>,
): Promise<Row> {
  return compete({
    ...{ what, runs, ...limit },
    ours: () => measure(ours),
    peer: { name: peer.name, measure: () => measure(peer) },
  });
}

async function startRows(sides: Sides, image: string): Promise<readonly Row[]> {
  const time = (engine: Engine, ...flags: readonly string[]) =>
    milliseconds(() => engine.docker('run', '--rm', ...flags, image, 'true'));
  const onBridge = await row(
    sides,
    'docker run --rm on the default bridge',
    { unit: 'ms', budget: { kind: 'ratio-at-most', value: 0.35 } },
    async (engine) => {
      const took: number[] = [];
      for (let i = 0; i < COMMANDS; i += 1) took.push(await time(engine));
      return median(took);
    },
  );
  const published = await row(
    sides,
    'what one published port costs over --network none',
    { unit: 'ms', budget: { kind: 'at-most', value: 25 } },
    async (engine) => {
      const took = { none: [] as number[], port: [] as number[] };
      for (let i = 0; i < COMMANDS; i += 1) {
        took.none.push(await time(engine, '--network', 'none'));
        took.port.push(await time(engine, '-p', '8080:80'));
      }
      return median(took.port) - median(took.none);
    },
  );
  return [onBridge, published];
}

/** Create and start of the last ten of a hundred on one network, over the API. */
function crowdedRow(sides: Sides, image: string): Promise<Row> {
  const body = { Image: image, Cmd: ['sleep', '100000'], HostConfig: { NetworkMode: NETWORK } };
  return row(
    sides,
    `create and start, the last ${LAST} of ${CROWD} on one network`,
    { unit: 'ms', budget: { kind: 'at-most', value: 40 } },
    async (engine) => {
      const names = Array.from({ length: CROWD }, (_, i) => `member${i}`);
      const start = async (name: string) => {
        await call(engine, 'POST', `/containers/create?name=${name}`, body);
        await call(engine, 'POST', `/containers/${name}/start`);
      };
      await eachOf(names.slice(0, -LAST), start);
      const took = await milliseconds(async () => {
        for (const name of names.slice(-LAST)) await start(name);
      });
      await eachOf(names, async (name) => void (await call(engine, 'DELETE', `/containers/${name}?force=1`)));
      return took / LAST;
    },
  );
}

async function trafficRows(place: Place, sides: Sides, image: string): Promise<readonly Row[]> {
  const { env } = place;
  await using there = await openSecondHost(place);
  const ports = new Map([
    [sides.ours, 5301],
    [sides.peer, 5302],
  ]);
  const within = new Map<string, string>();
  const at = (engine: Engine, name: string) => within.get(`${engine.name} ${name}`) ?? '';
  for (const engine of [sides.ours, sides.peer]) {
    await engine.docker('run', '-d', '--name', 'client', '--network', NETWORK, image, 'sleep', '100000');
    const publish = ['-p', `${ports.get(engine)}:5201`];
    await engine.docker('run', '-d', '--name', 'server', '--network', NETWORK, ...publish, image, 'sleep', '100000');
    for (const name of ['client', 'server'])
      within.set(
        `${engine.name} ${name}`,
        `/proc/${(await engine.docker('inspect', '-f', '{{.State.Pid}}', name)).trim()}/ns/net`,
      );
  }
  const addressOf = async (engine: Engine, field: string) =>
    (await engine.docker('inspect', '-f', `{{.NetworkSettings.Networks.${NETWORK}.${field}}}`, 'server')).trim();
  const tcp = (what: string, way: (engine: Engine) => Promise<Way> | Way) =>
    row(sides, `TCP, ${what}`, { unit: 'bytes/s', budget: { kind: 'ratio-at-least', value: 0.95 } }, async (engine) =>
      throughput(env, await way(engine)),
    );
  const rows = [
    await tcp('container to host', async (engine) => ({
      from: at(engine, 'client'),
      to: '/proc/self/ns/net',
      address: await addressOf(engine, 'Gateway'),
    })),
    await tcp('container to container', async (engine) => ({
      from: at(engine, 'client'),
      to: at(engine, 'server'),
      address: await addressOf(engine, 'IPAddress'),
    })),
    await tcp('a second host to a published port', (engine) => ({
      from: there.path,
      to: at(engine, 'server'),
      address: SECOND_HOST.here,
      port: ports.get(engine) ?? 0,
    })),
    await row(
      sides,
      'a name of the network, answered at 127.0.0.11',
      { unit: 'ms', budget: { kind: 'at-most', value: 2 } },
      async (engine) => {
        const probe = join(import.meta.dirname, 'dns-probe.ts');
        const args = [`--net=${at(engine, 'client')}`, process.execPath, probe, 'server', String(QUESTIONS)];
        return Number(await succeed('nsenter', args, { env }));
      },
    ),
  ];
  for (const engine of [sides.ours, sides.peer]) await engine.docker('rm', '-f', 'client', 'server');
  return rows;
}

interface Way {
  /** Paths of network namespaces. */
  readonly from: string;
  readonly to: string;
  readonly address: string;
  /** Where the client goes; the server listens on 5201. */
  readonly port?: number;
}

/** Bytes per second of one TCP stream, as its receiver counts them. */
async function throughput(env: NodeJS.ProcessEnv, { from, to, address, port = 5201 }: Way): Promise<number> {
  const server = spawn('nsenter', [`--net=${to}`, 'iperf3', '--server', '--one-off', '--forceflush'], {
    env,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = once(server, 'exit');
  await once(server.stdout, 'data');
  server.stdout.resume();
  const client = ['--client', address, '--port', String(port), '--time', String(TCP_SECONDS), '--json'];
  try {
    const said: unknown = JSON.parse(await succeed('nsenter', [`--net=${from}`, 'iperf3', ...client], { env }));
    const bits = /"sum_received":\{[^}]*"bits_per_second":([\d.e+]+)/.exec(JSON.stringify(said))?.[1];
    return (Number(bits) / 1e9) * GIGABIT_BYTES;
  } finally {
    server.kill('SIGTERM');
    await ended;
  }
}

/** On a wire to this namespace. */
async function openSecondHost({ env }: Place): Promise<AsyncDisposable & { readonly path: string }> {
  const name = `berth-bench-${process.pid}`;
  const ip = (...args: readonly string[]) => succeed('ip', args, { env });
  await ip('netns', 'add', name);
  await ip('link', 'add', 'wire', 'type', 'veth', 'peer', 'name', 'wire', 'netns', name);
  await ip('addr', 'add', `${SECOND_HOST.here}/24`, 'dev', 'wire');
  await ip('link', 'set', 'wire', 'up');
  await ip('-n', name, 'addr', 'add', `${SECOND_HOST.there}/24`, 'dev', 'wire');
  await ip('-n', name, 'link', 'set', 'wire', 'up');
  return {
    path: `/run/netns/${name}`,
    async [Symbol.asyncDispose]() {
      await ip('netns', 'delete', name);
    },
  };
}
