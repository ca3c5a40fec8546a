/** The containers' rows: run, exec and the memory of what is idle, beside dockerd and by the same docker client. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import { berth, type Place, run, startEngine, startRegistry, succeed } from '../fixtures/programs.ts';
import { crowdRows } from './crowd.ts';
import { compete, milliseconds, type Row } from './measure.ts';
import { type Engine, startBerthd, startDockerd } from './peers.ts';

/** One measurement is a few commands, which evens out what the scheduler does. */
const COMMANDS = 5;
const IDLE = 20;
const MIB = 1 << 20;
const GIB = 1 << 30;

export async function containerRows(place: Place, runs: number): Promise<readonly Row[]> {
  await using registry = await startRegistry(place);
  await using ours = await startBerthd(place);
  await using peer = await startDockerd(place);
  const image = `${registry.address}/busybox:1`;
  await pushBusybox(place, image);
  for (const engine of [ours, peer]) await engine.docker('pull', '-q', image);
  const rows = [
    await contest('docker run --rm IMAGE true', { ours, peer, runs, ratio: 0.35 }, (engine) =>
      engine.docker('run', '--rm', '--network', 'none', image, 'true'),
    ),
    await execRow({ ours, peer, runs, ratio: 0.7 }, image),
    await memoryRow({ ours, peer, runs: 1 }, image),
    await logRow({ ours, peer, runs: 1 }, image),
    ...(await crowdRows({ ours, peer, runs }, image)),
  ];
  return rows;
}

export async function cliRows(place: Place, runs: number): Promise<readonly Row[]> {
  await using engine = await startEngine(place);
  await using peer = await startDockerd(place);
  await berth(place, engine, ['version']);
  const wrapper = join(import.meta.dirname, '../../deploy/bin/berth');
  const env = { ...place.env, BERTH_HOST: engine.url };
  const row = await compete({
    what: 'berth version',
    unit: 'ms',
    runs: runs * COMMANDS,
    budget: { kind: 'at-most', value: 90 },
    ours: () => milliseconds(() => succeed(wrapper, ['version'], { env })),
    peer: { name: 'docker version', measure: () => milliseconds(() => peer.docker('version')) },
  });
  return [row];
}

interface Sides {
  readonly ours: Engine;
  readonly peer: Engine;
  readonly runs: number;
}

async function contest(
  what: string,
  { ours, peer, runs, ratio }: Sides & { readonly ratio: number },
  command: (engine: Engine) => Promise<unknown>,
): Promise<Row> {
  const measure = (engine: Engine) => async () => {
    const took = await milliseconds(async () => {
      for (let i = 0; i < COMMANDS; i++) await command(engine);
    });
    return took / COMMANDS;
  };
  // The first one of each also loads code and mounts layers.
  for (const engine of [ours, peer]) await command(engine);
  const budget = { kind: 'ratio-at-most', value: ratio } as const;
  return compete({
    what,
    unit: 'ms',
    runs,
    budget,
    ours: measure(ours),
    peer: { name: peer.name, measure: measure(peer) },
  });
}

async function execRow(sides: Sides & { readonly ratio: number }, image: string): Promise<Row> {
  const both = [sides.ours, sides.peer];
  for (const engine of both) {
    await engine.docker('run', '-d', '--name', 'target', '--network', 'none', image, 'sleep', '100000');
  }
  const row = await contest('docker exec CONTAINER true', sides, (engine) => engine.docker('exec', 'target', 'true'));
  for (const engine of both) await engine.docker('rm', '-f', 'target');
  return row;
}

/** What an idle container costs beyond its own process: memory of the monitors and of the engine's growth. */
async function memoryRow({ ours, peer, runs }: Sides, image: string): Promise<Row> {
  const measure = (engine: Engine) => async () => {
    const names = Array.from({ length: IDLE }, (_, i) => `idle${i}`);
    const before = await privateBytes(engine);
    for (const name of names) {
      await engine.docker('run', '-d', '--name', name, '--network', 'none', image, 'sleep', '100000');
    }
    const after = await privateBytes(engine);
    await engine.docker('rm', '-f', ...names);
    return (after - before) / IDLE;
  };
  return compete({
    what: `memory per idle container (of ${IDLE})`,
    unit: 'bytes',
    runs,
    budget: { kind: 'at-most', value: 4 * MIB },
    ours: measure(ours),
    peer: { name: peer.name, measure: measure(peer) },
  });
}

/** A container that prints 1 GiB in lines of 100 bytes while a client reads along. */
async function logRow({ ours, peer, runs }: Sides, image: string): Promise<Row> {
  const script = `yes ${'x'.repeat(99)} | head -c ${GIB}`;
  const measure = (engine: Engine) => async () => {
    const took = await milliseconds(async () => {
      const args = ['run', '--name', 'printer', '--network', 'none', image, 'sh', '-c', script];
      const client = spawn('docker', ['-H', `unix://${engine.socketPath}`, ...args], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let bytes = 0;
      client.stdout.on('data', (chunk: Buffer) => (bytes += chunk.length));
      await once(client, 'close');
      if (bytes !== GIB) throw new Error(`${engine.name}: the client read ${bytes} bytes of ${GIB}`);
    });
    await engine.docker('rm', 'printer');
    return (GIB / took) * 1000;
  };
  return compete({
    what: 'output of a container, followed',
    unit: 'bytes/s',
    runs,
    budget: { kind: 'ratio-at-least', value: 1 },
    ours: measure(ours),
    peer: { name: peer.name, measure: measure(peer) },
  });
}

/** Proportional memory of an engine's own process, of its monitors and of what they started, without the containers. */
async function privateBytes(engine: Engine): Promise<number> {
  let total = 0;
  for (const pid of (await readdir('/proc')).filter((name) => /^\d+$/.test(name))) {
    const command = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '');
    const helper = engine.name === 'dockerd' ? /containerd(?:-shim)?/.test(command) : /conmon|socat/.test(command);
    if (Number(pid) !== engine.pid && !helper) continue;
    const rollup = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8').catch(() => '');
    total += Number(/^Pss:\s+(\d+) kB/m.exec(rollup)?.[1] ?? 0) * 1024;
  }
  return total;
}

export async function pushBusybox(place: Place, image: string): Promise<void> {
  const layout = join(place.root, 'busybox-layout');
  await writeLayout(await busyboxImage(), layout);
  const args = [
    '--insecure-policy',
    'copy',
    '-q',
    '--dest-tls-verify=false',
    `oci:${layout}:latest`,
    `docker://${image}`,
  ];
  const { code, stderr } = await run('skopeo', args, { env: place.env });
  if (code !== 0) throw new Error(`cannot push the image: ${stderr}`);
}
