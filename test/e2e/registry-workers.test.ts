/** Two workers on one port: foreign clients, upload sessions that change the worker, sudden death, and the drain. */
import { randomBytes } from 'node:crypto';
import { mkdtempDisposable, readdir, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { digestOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { ask, descriptorOf, manifestJson } from '../contract/registry-http.ts';
import { buildImage, buildLayer, writeLayout } from '../fixtures/images.ts';
import { type RegistryProgram, run, startRegistry, succeed } from '../fixtures/programs.ts';

const MAIN = join(import.meta.dirname, '../../registry/main.ts');
const WORKERS = 2;
const STORM_MS = 4_000;
const CLIENTS = 4;

const undo = new AsyncDisposableStack();
let env: NodeJS.ProcessEnv;
let root: string;
let registry: RegistryProgram;

beforeAll(async () => {
  const directory = undo.use(await mkdtempDisposable(join(tmpdir(), 'berth-workers-')));
  root = directory.path;
  env = { PATH: process.env.PATH, HOME: root };
  registry = undo.use(await startRegistry({ root, runDir: join(root, 'run'), env }, { args: ['--workers', '2'] }));
});
afterAll(() => undo.disposeAsync());

const call = (method: string, path: string, options?: Parameters<typeof ask>[3]) =>
  ask(`http://${registry.address}`, method, path, options);

async function workerPids(): Promise<readonly number[]> {
  const children = await readFile(`/proc/${registry.pid}/task/${registry.pid}/children`, 'utf8');
  return children.split(' ').filter(Boolean).map(Number);
}

/** A connection is one worker's for its life; each request here has its own. */
it('says once that it is ready, and serves push and pull of skopeo', async () => {
  expect(await workerPids()).toHaveLength(WORKERS);
  expect(registry.output().match(/ready on/g)).toHaveLength(1);
  await writeLayout(buildImage({ layers: [buildLayer(randomBytes(1_000_000))] }), join(root, 'in'));
  const remote = `docker://${registry.address}/lib/hello:v1`;
  const copy = ['--insecure-policy', 'copy', '-q'];
  await succeed('skopeo', [...copy, '--dest-tls-verify=false', `oci:${join(root, 'in')}:latest`, remote], { env });
  await succeed('skopeo', [...copy, '--src-tls-verify=false', remote, `oci:${join(root, 'out')}:latest`], { env });
  const blobsIn = (name: string) => readdir(join(root, name, 'blobs/sha256'));
  expect((await blobsIn('out')).length).toBe((await blobsIn('in')).length);
});

it('takes each chunk of a session once, whichever workers it arrives at', async () => {
  const begun = await call('POST', '/v2/r/blobs/uploads/');
  const path = begun.headers.location ?? '';
  const chunks = Array.from({ length: 12 }, () => randomBytes(100_000));
  let start = 0;
  for (const chunk of chunks) {
    const headers = { 'content-range': `${start}-${start + chunk.length - 1}`, 'content-length': `${chunk.length}` };
    const replies = await Promise.all(Array.from({ length: 4 }, () => call('PATCH', path, { headers, body: chunk })));
    start += chunk.length;
    expect(replies.map(({ status }) => status).sort()).toEqual([202, 416, 416, 416]);
    for (const { headers } of replies) expect(headers.range).toBe(`0-${start - 1}`);
  }
  const bytes = Buffer.concat(chunks);
  const wrong = await call('POST', '/v2/r/blobs/uploads/');
  expect((await call('PUT', `${wrong.headers.location}?digest=${digestOf(bytes)}`, { body: 'x' })).status).toBe(400);
  const ends = await Promise.all([0, 1].map(() => call('PUT', `${path}?digest=${digestOf(bytes)}`)));
  expect(ends.map(({ status }) => status).sort()).toEqual([201, 404]);
  expect((await call('GET', `/v2/r/blobs/${digestOf(bytes)}`)).body.equals(bytes)).toBe(true);
});

it('sums the metrics of its workers', async () => {
  const counted = async () => {
    const text = (await call('GET', '/metrics')).body.toString();
    return Number(/^berth_registry_requests_total\{route="tags",method="GET",status="404"\} (\d+)$/m.exec(text)?.[1]);
  };
  for (let asked = 0; asked < 10; asked += 1) await call('GET', '/v2/nobody/tags/list');
  for (let asked = 0; asked < 4; asked += 1) expect(await counted()).toBe(10);
});

it('keeps what it acknowledged when a worker is killed in a storm of pushes, and replaces it', async () => {
  const [victim] = await workerPids();
  const stop = Date.now() + STORM_MS;
  const pushed = new Map<string, { readonly manifest: Buffer; readonly layer: Buffer }>();
  let cut = 0;
  const push = async (tag: string): Promise<void> => {
    const layer = randomBytes(200_000);
    const begun = await call('POST', '/v2/storm/blobs/uploads/');
    const path = begun.headers.location ?? '';
    expect((await call('PATCH', path, { body: layer })).status).toBe(202);
    expect((await call('PUT', `${path}?digest=${digestOf(layer)}`)).status).toBe(201);
    expect((await call('POST', `/v2/storm/blobs/uploads/?digest=${digestOf('{}')}`, { body: '{}' })).status).toBe(201);
    const manifest = manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), [
      descriptorOf(layer, MEDIA_TYPES.ociLayer),
    ]);
    const headers = { 'content-type': MEDIA_TYPES.ociManifest };
    expect((await call('PUT', `/v2/storm/manifests/${tag}`, { headers, body: manifest })).status).toBe(201);
    pushed.set(tag, { manifest, layer });
  };
  const client = async (number: number) => {
    for (let round = 0; Date.now() < stop; round += 1)
      await push(`t${number}-${round}`).catch((error: NodeJS.ErrnoException) => {
        if (error.code !== 'ECONNRESET' && error.message !== 'socket hang up') throw error;
        cut += 1;
      });
  };
  const killer = async () => {
    await delay(STORM_MS / 4);
    process.kill(victim ?? 0, 'SIGKILL');
  };
  await Promise.all([killer(), ...Array.from({ length: CLIENTS }, (_, number) => client(number))]);

  expect(cut).toBeLessThanOrEqual(CLIENTS);
  expect(pushed.size).toBeGreaterThan(CLIENTS);
  for (const [tag, { manifest, layer }] of pushed) {
    expect((await call('GET', `/v2/storm/manifests/${tag}`)).body.equals(manifest)).toBe(true);
    expect((await call('GET', `/v2/storm/blobs/${digestOf(layer)}`)).body.equals(layer)).toBe(true);
  }
  expect(registry.output()).toContain('worker ended, starting another');
  const pids = await workerPids();
  expect(pids).toHaveLength(WORKERS);
  expect(pids).not.toContain(victim);
}, 30_000);

it('drains all workers on SIGTERM and leaves nothing broken', async () => {
  const pids = await workerPids();
  expect(await registry.end('SIGTERM')).toBe(0);
  for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow('ESRCH');
  const fsck = await run(process.execPath, [MAIN, 'fsck', '--root', registry.directory], { env });
  expect(fsck).toMatchObject({ code: 0, stdout: expect.stringMatching(/^0 broken, /m) });
});
