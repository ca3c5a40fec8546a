/** SIGKILL at many points of pull, load, rmi and prune: afterwards the store is legal, and nothing leaks. */
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdir, mkdtemp, readdir, rm, stat } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { openImagesRig } from '../contract/images-rig.ts';
import { startFixtureRegistry } from '../fixtures/fixture-registry.ts';
import { buildImage, buildLayer } from '../fixtures/images.ts';

const WORKER = fileURLToPath(new URL('../fixtures/images-worker.ts', import.meta.url));
const KILLS = 20;
/** A round of the worker says about this many lines. */
const LINES_PER_ROUND = 80;

it('is legal after a kill at any point', { timeout: 180_000 }, async () => {
  const root = await mkdtemp(join(tmpdir(), 'berth-crash-'));
  await using registry = await startFixtureRegistry();
  const layer = (name: string) => buildLayer([{ name, content: randomBytes(2_000_000) }]);
  const shared = [layer('a'), layer('b')];
  registry.add('one', '1', buildImage({ layers: [...shared, layer('one')] }));
  registry.add('two', '1', buildImage({ layers: [...shared, layer('two')] }));
  const references = ['one', 'two'].map((name) => `${registry.host}/${name}:1`);
  try {
    for (let kill = 0; kill < KILLS; kill++) {
      await workUntilLine(root, references, 1 + Math.floor((kill * LINES_PER_ROUND) / KILLS));
      await expectLegal(root);
    }
    await using rig = await openImagesRig(root);
    await rig.images.prune({ dangling: false });
    expect(await bytesOnDisk(root)).toBe(0);
    expect((await rig.images.usage()).actualBytes).toBe(0);
  } finally {
    await rm(root, { recursive: true, force: true });
  }
});

async function workUntilLine(root: string, references: readonly string[], line: number): Promise<void> {
  const worker = spawn(process.execPath, [WORKER, root, ...references], { stdio: ['ignore', 'pipe', 'inherit'] });
  const ended = once(worker, 'exit');
  let seen = 0;
  for await (const _line of createInterface({ input: worker.stdout })) if (++seen === line) worker.kill('SIGKILL');
  expect(await ended).toEqual([null, 'SIGKILL']);
}

async function expectLegal(root: string): Promise<void> {
  await using rig = await openImagesRig(root);
  await rig.reopen();
  for (const { id } of await rig.images.list({ all: true })) {
    const image = await rig.images.inspect(id);
    for (const layerId of image.chain) {
      const layer = await rig.layers.get(layerId);
      expect(layer).toBeDefined();
      if (layer !== undefined) expect((await stat(rig.layers.pathOf(layer))).size).toBeGreaterThan(0);
    }
  }
  const named = await rig.database.kysely.selectFrom('manifestBlob').select('blobDigest').distinct().execute();
  for (const { blobDigest } of named) expect(await rig.blobs.stat(blobDigest)).toBeDefined();
  const { actualBytes } = await rig.images.usage();
  expect(Math.abs(actualBytes - (await bytesOnDisk(root)))).toBeLessThanOrEqual(0.01 * actualBytes + 4096);
}

/** Blocks of every file of the content and layer stores. */
async function bytesOnDisk(root: string): Promise<number> {
  let bytes = 0;
  for (const part of ['content', 'layers']) {
    await mkdir(join(root, part), { recursive: true });
    const entries = await readdir(join(root, part), { recursive: true, withFileTypes: true });
    for (const entry of entries)
      if (entry.isFile()) bytes += (await stat(join(entry.parentPath, entry.name))).blocks * 512;
  }
  return bytes;
}
