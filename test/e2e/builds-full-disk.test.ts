/** A disk that is full in the middle of a build: it is said, and afterwards everything is as it was. */
import { mkdir, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import { type EngineProgram, startEngine, startRegistry, succeed } from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';
import { type BuildOrder, buildAll, outcomes, printed } from './build-client.ts';
import { ask } from './http.ts';

const DISK_MIB = 96;
/** The disk is too small for what is kept free on others. */
const OPTIONS = { args: ['--build-cache-min-free-bytes', '0'] };
const undo = new AsyncDisposableStack();
let host: TestHost;
let engine: EngineProgram;
let image: string;

beforeAll(async () => {
  host = undo.use(await testHost());
  const { address } = undo.use(await startRegistry(host));
  image = `${address}/busybox:latest`;
  const layout = join(host.root, 'layout');
  await writeLayout(await busyboxImage(), layout);
  const copy = ['--insecure-policy', 'copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`];
  await succeed('skopeo', [...copy, `docker://${image}`], { env: host.env });
  const disk = join(host.root, 'disk');
  const directory = join(host.root, 'engine');
  await succeed('truncate', ['-s', `${DISK_MIB}M`, disk], { env: host.env });
  await succeed('mkfs.ext4', ['-q', '-m', '0', disk], { env: host.env });
  await mkdir(directory);
  await succeed('mount', ['-o', 'loop', disk, directory], { env: host.env });
  undo.defer(() => succeed('umount', [directory], { env: host.env }).then(() => {}));
  engine = await startEngine(host, OPTIONS);
  undo.defer(() => engine.end('SIGTERM').then(() => {}));
});
afterAll(() => undo.disposeAsync());

const build = (order: BuildOrder) => buildAll(engine.socketPath, order);

async function freeMib(): Promise<number> {
  const { bavail, bsize } = await statfs(engine.directory);
  return Math.floor((bavail * bsize) / 2 ** 20);
}

it('fails the build by name, loses nothing, and builds again', { timeout: 120_000 }, async () => {
  const noise = (mib: number) => `RUN head -c ${mib * 2 ** 20} /dev/urandom >/noise`;
  const good = [`FROM ${image}`, 'COPY small /', 'RUN echo done >/done'];
  const files = [{ name: 'small', content: 'small' }];
  expect((await build({ dockerfile: good.join('\n'), files })).error).toBeUndefined();
  const before = await freeMib();
  expect(before).toBeGreaterThan(60);

  // The command itself finds no room; its layer does not, once as an image and once as a blob; the context does not.
  for (const [order, words] of [
    [{ dockerfile: [...good, noise(DISK_MIB)].join('\n'), files }, /exit code: 1/],
    [{ dockerfile: [...good, noise(before - 24)].join('\n'), files }, /disk is full/],
    [{ dockerfile: [...good, noise(Math.floor(before / 3) + 4)].join('\n'), files }, /disk is full/],
    [
      { dockerfile: good.join('\n'), files: [...files, { name: 'big', content: Buffer.alloc(DISK_MIB << 20, 1) }] },
      /disk is full/,
    ],
  ] as const) {
    const error = await build(order).then(
      (built) => `${built.error?.message}\n${printed(built.events)}`,
      (refused: unknown) => String(refused),
    );
    expect(error).toMatch(words);
    await expect.poll(freeMib).toBeGreaterThan(before - 4);
  }

  const again = await build({ dockerfile: [...good, 'RUN cat /done'].join('\n'), files });
  expect(again.error).toBeUndefined();
  expect(outcomes(again.events)).toContain('RUN echo done >/done: cached');
  await engine.end('SIGKILL');
  engine = await startEngine(host, OPTIONS);
  const later = await build({ dockerfile: [...good, 'RUN cat /done'].join('\n'), files });
  expect(later.error).toBeUndefined();
  expect(outcomes(later.events)).toContain('RUN cat /done: cached');
  const { json } = await ask(engine.socketPath, { method: 'GET', path: '/system/df' });
  expect(json.BuildCache.length).toBeGreaterThan(2);
});
