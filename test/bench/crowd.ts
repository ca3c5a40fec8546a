/**
 * Rows of many containers on one engine: listing 500, statistics of 50 that run, the engine's memory with 100 that run.
 * The crowd is made through the API, four at a time; what is measured is what users wait for.
 */
import { readFile } from 'node:fs/promises';
import { request } from 'node:http';
import { compete, milliseconds, type Row } from './measure.ts';
import type { Engine } from './peers.ts';

const SAMPLED = 50;
const RUNNING = 100;
const LISTED = 500;
const AT_ONCE = 4;
const MIB = 1 << 20;

interface Sides {
  readonly ours: Engine;
  readonly peer: Engine;
  readonly runs: number;
}

export async function crowdRows({ ours, peer, runs }: Sides, image: string): Promise<readonly Row[]> {
  const both = [ours, peer];
  const row = (what: string, limit: Pick<Row, 'unit' | 'budget'>, measure: (engine: Engine) => Promise<number>) =>
    compete({
      what,
      runs,
      ...limit,
      ours: () => measure(ours),
      peer: { name: peer.name, measure: () => measure(peer) },
    });
  const atMostMs = (value: number) => ({ unit: 'ms', budget: { kind: 'at-most', value } }) as const;
  for (const engine of both) await grow(engine, image, { from: 0, to: SAMPLED, start: true });
  const stats = await row(`docker stats --no-stream, ${SAMPLED} running`, atMostMs(1200), (engine) =>
    milliseconds(() => engine.docker('stats', '--no-stream')),
  );
  for (const engine of both) await grow(engine, image, { from: SAMPLED, to: RUNNING, start: true });
  const memory = await row(
    `memory of the engine, ${RUNNING} running`,
    { unit: 'bytes', budget: { kind: 'at-most', value: 120 * MIB } },
    residentBytes,
  );
  for (const engine of both) await grow(engine, image, { from: RUNNING, to: LISTED, start: false });
  const list = await row(`GET /containers/json, ${LISTED} containers`, atMostMs(40), (engine) =>
    milliseconds(() => call(engine, 'GET', '/containers/json?all=1')),
  );
  for (const engine of both) {
    const names = Array.from({ length: LISTED }, (_, i) => crowdName(i));
    await eachOf(names, async (name) => void (await call(engine, 'DELETE', `/containers/${name}?force=1`)));
  }
  return [stats, memory, list];
}

interface Growth {
  readonly from: number;
  readonly to: number;
  readonly start: boolean;
}

async function grow(engine: Engine, image: string, { from, to, start }: Growth): Promise<void> {
  const names = Array.from({ length: to - from }, (_, i) => crowdName(from + i));
  const body = { Image: image, Cmd: ['sleep', '100000'], HostConfig: { NetworkMode: 'none' } };
  await eachOf(names, async (name) => {
    await call(engine, 'POST', `/containers/create?name=${name}`, body);
    if (start) await call(engine, 'POST', `/containers/${name}/start`);
  });
}

function crowdName(index: number): string {
  return `crowd${index}`;
}

/** A few at a time. */
export async function eachOf(names: readonly string[], work: (name: string) => Promise<void>): Promise<void> {
  const waiting = [...names];
  const worker = async () => {
    for (let name = waiting.shift(); name !== undefined; name = waiting.shift()) await work(name);
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
}

async function residentBytes(engine: Engine): Promise<number> {
  const status = await readFile(`/proc/${engine.pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]) * 1024;
}

/** One request; anything but success is an error. */
export function call(engine: Engine, method: string, path: string, body?: unknown): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const headers = body === undefined ? {} : { 'Content-Type': 'application/json' };
  const asked = request({ socketPath: engine.socketPath, method, path, headers }, (response) => {
    let text = '';
    response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
    response.on('end', () => {
      if ((response.statusCode ?? 500) < 300) resolve();
      else reject(new Error(`${engine.name}: ${method} ${path} answered ${response.statusCode}: ${text}`));
    });
  });
  asked.on('error', reject);
  asked.end(body === undefined ? undefined : JSON.stringify(body));
  return promise;
}
