/** The engine is killed at every part of a build: nothing of it stays on the host, and the next build goes on from there. */
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { request } from 'node:http';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { succeed } from '../fixtures/programs.ts';
import { type TarEntry, tarOf } from '../fixtures/tar.ts';
import { type Build, type BuildOrder, buildAll, outcomes, startBuild } from './build-client.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { ask } from './http.ts';

const SECRET = 'correct-horse-battery-staple';
const CONTENT = Buffer.alloc(16 << 20, 'not the same in every block, or it would be too small: ');

it('leaves nothing when the engine is killed in a build, and forgets no step that was done', async () => {
  await using place = await openEnginePlace();
  const files: readonly TarEntry[] = [{ name: 'large', content: CONTENT }];
  const directory = join(place.host.root, 'cache');
  const mounts = [
    'type=secret,id=s',
    'type=secret,id=s,env=TOKEN',
    'type=bind,target=/ctx,rw',
    'type=tmpfs,target=/t',
    'type=cache,target=/c,sharing=locked',
  ].map((mount) => `--mount=${mount}`);
  const order: BuildOrder = {
    dockerfile: [
      `FROM ${place.image}`,
      'RUN echo first > /first',
      'COPY large /large',
      `RUN ${mounts.join(' ')} head -c 50000 /dev/urandom > /c/x && [ -e /c/go ] || { touch /c/go; echo ready; sleep 1000; }`,
      'RUN echo last > /last',
    ].join('\n'),
    files,
    body: {
      secrets: { s: Buffer.from(SECRET).toString('base64') },
      cacheTo: [{ kind: 'local', directory, mode: 'max' }],
    },
  };
  const [first = '', copy = '', slow = '', last = ''] = order.dockerfile.split('\n').slice(1);
  const begin = () => startBuild(place.engine.socketPath, order);
  const at = (kind: string, line: number) => (build: Build) =>
    build.until((event) => {
      const started = build.events.find(
        (one) => one.kind === 'started' && one.step.id === (event.step?.id ?? event.step),
      );
      return event.kind === kind && started?.step.line === line;
    });

  const { dockerfile, files: _, ...rest } = order;
  using waiting = await startBuild(place.engine.socketPath, {
    dockerfile,
    ...rest,
    body: { context: { kind: 'files' } },
  });
  await sendHalf(place, `/berth/v1/builds/${waiting.id}/context`, tarOf(files));
  await place.restart('SIGKILL');
  await expectNothingLeft(place);

  for (const reach of [at('started', 2), at('ended', 2), at('started', 3), at('output', 4)]) {
    using build = await begin();
    expect(await reach(build)).toBeDefined();
    await place.restart('SIGKILL');
    await expectNothingLeft(place);
  }

  using exporting = await begin();
  await at('ended', 5)(exporting);
  await place.restart('SIGKILL');
  await expectNothingLeft(place);

  const { events, error } = await buildAll(place.engine.socketPath, order);
  expect(error).toBeUndefined();
  for (const line of [first, copy, slow]) expect(outcomes(events)).toContain(`${line}: cached`);
  expect(outcomes(events).filter((line) => line.startsWith(`${last}: `))).toHaveLength(1);
  expect(await readdir(directory)).toContain('index.json');

  // What the engine tells is what the disk has, once the last build's context is gone.
  await expect.poll(async () => (await toldBytes(place)) - (await diskBytes(place))).toBe(0);
}, 120_000);

/** Resolves when the engine has taken some of it. */
async function sendHalf(place: EnginePlace, path: string, bytes: Buffer): Promise<void> {
  const { socketPath } = place.engine;
  const headers = { 'content-length': bytes.length };
  const asked = request({ socketPath, path, method: 'PUT', headers });
  asked.on('error', () => {});
  if (!asked.write(bytes.subarray(0, bytes.length / 2))) await once(asked, 'drain');
}

async function expectNothingLeft({ engine, dockerOk }: EnginePlace): Promise<void> {
  expect(await dockerOk(['ps', '-aq'])).toBe('');
  const containers = await readdir(engine.directory, { recursive: true });
  expect(containers.filter((name) => name.startsWith('containers/'))).toEqual([]);
  expect(await readdir(join(engine.socketPath, '..', 'build'))).toEqual([]);
  const mounted = (await readFile('/proc/self/mounts', 'utf8'))
    .split('\n')
    .filter((line) => line.includes(engine.directory));
  expect(mounted.filter((line) => line.startsWith('overlay') || line.includes('/containers/'))).toEqual([]);
  const { json } = await ask(engine.socketPath, { method: 'GET', path: '/v1.52/system/df' });
  expect(json.BuildCacheUsage.ActiveCount).toBeUndefined();
}

async function toldBytes({ engine }: EnginePlace): Promise<number> {
  const { json } = await ask(engine.socketPath, { method: 'GET', path: '/berth/v1/usage' });
  const told = json.Parts.filter(({ Name }: { Name: string }) => ['images', 'orphans', 'build cache'].includes(Name));
  return told.reduce((sum: number, { Bytes }: { Bytes: number }) => sum + Bytes, 0);
}

async function diskBytes({ engine, host }: EnginePlace): Promise<number> {
  const directories = ['content/blobs', 'content/ingest', 'layers', 'build/mounts'].map((name) =>
    join(engine.directory, name),
  );
  // Not what is mounted below: that is what the images hold.
  const args = [...directories, '-xdev', '(', '-type', 'f', '-o', '-path', '*/mounts/?*', ')', '-printf', '%b\n'];
  const blocks = (await succeed('find', args, { env: host.env })).split('\n').map(Number);
  return blocks.reduce((sum, count) => sum + count, 0) * 512;
}
