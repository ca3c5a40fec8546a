/** What SIGTERM ends: the engine, whatever it is doing for others, and nothing that runs. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';

let place: EnginePlace;
beforeAll(async () => {
  place = await openEnginePlace();
});
afterAll(() => place[Symbol.asyncDispose]());

it('ends at once, with clients that follow, a registry that says nothing and a build that runs', async () => {
  const silent = createServer();
  silent.listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const { port } = silent.address() as AddressInfo;
  const { image, host, engine, dockerOk } = place;
  await dockerOk([
    'run',
    '-d',
    '--name',
    'steady',
    '-p',
    '127.0.0.1::80',
    image,
    'sh',
    '-c',
    'while :; do echo on; sleep 1; done',
  ]);
  await dockerOk(['run', '-d', '--name', 'restless', '--restart', 'always', image, 'false']);
  await dockerOk([
    'run',
    '-d',
    '--name',
    'watched',
    '--health-cmd',
    'sleep 1000',
    '--health-interval',
    '1s',
    image,
    'sleep',
    '1000',
  ]);
  const context = join(host.root, 'slow-build');
  await mkdir(context);
  await writeFile(join(context, 'Dockerfile'), `FROM ${image}\nRUN sleep 1000\n`);
  const clients = [
    ['logs', '-f', 'steady'],
    ['attach', '--sig-proxy=false', 'steady'],
    ['exec', 'steady', 'sleep', '1000'],
    ['wait', 'steady'],
    ['stats', 'steady'],
    ['events'],
    ['run', '--rm', '--name', 'attended', image, 'sleep', '1000'],
    ['pull', `127.0.0.1:${port}/x`],
    ['build', context],
  ].map((args) =>
    spawn('docker', ['-H', engine.url, ...args], { env: { ...host.env, DOCKER_BUILDKIT: '0' }, stdio: 'ignore' }),
  );
  const ended = Promise.all(clients.map((client) => once(client, 'exit')));
  await expect.poll(async () => (await dockerOk(['ps', '-q'])).split('\n').length).toBeGreaterThan(2);
  await delay(2000);
  const startedAt = performance.now();
  let durationMs = Number.POSITIVE_INFINITY;
  await place.restart('SIGTERM', () => {
    durationMs = performance.now() - startedAt;
  });
  expect(durationMs).toBeLessThan(8000);
  silent.close();
  // Docker's `stats` of a named container goes on for ever.
  for (const client of clients) client.kill('SIGKILL');
  await ended;
  const running = (await dockerOk(['ps', '--format', '{{.Names}}'])).split('\n');
  expect(running).toEqual(expect.arrayContaining(['attended', 'steady', 'watched']));
});
