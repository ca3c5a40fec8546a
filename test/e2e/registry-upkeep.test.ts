/** Upkeep as users run it: the sample configuration, the commands, and what happens in the background. */
import { mkdtempDisposable, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { digestOf, hexOf } from '../../shared/digest.ts';
import { MEDIA_TYPES } from '../../shared/media-types.ts';
import { ask, descriptorOf, manifestJson } from '../contract/registry-http.ts';
import { type Place, type RegistryProgram, run, startRegistry } from '../fixtures/programs.ts';

const MAIN = join(import.meta.dirname, '../../registry/main.ts');
const SAMPLE = join(import.meta.dirname, '../../deploy/registry/upkeep.yaml');

async function makePlace(): Promise<Place & AsyncDisposable> {
  const directory = await mkdtempDisposable(join(tmpdir(), 'berth-upkeep-'));
  return {
    root: directory.path,
    runDir: join(directory.path, 'run'),
    env: { PATH: process.env.PATH, HOME: directory.path },
    [Symbol.asyncDispose]: () => directory.remove(),
  };
}

async function push(program: RegistryProgram, repository: string, tag: string): Promise<string> {
  const url = `http://${program.address}`;
  const text = `layer of ${repository}:${tag}`;
  for (const body of [text, '{}'])
    await ask(url, 'POST', `/v2/${repository}/blobs/uploads/?digest=${digestOf(body)}`, { body });
  const manifest = manifestJson(descriptorOf('{}', MEDIA_TYPES.ociEmpty), [descriptorOf(text, MEDIA_TYPES.ociLayer)]);
  const put = { headers: { 'content-type': MEDIA_TYPES.ociManifest }, body: manifest };
  expect((await ask(url, 'PUT', `/v2/${repository}/manifests/${tag}`, put)).status).toBe(201);
  return text;
}

async function eventually(what: string, holds: () => Promise<boolean>): Promise<void> {
  for (const deadline = Date.now() + 20_000; !(await holds()); await delay(20))
    if (Date.now() > deadline) throw new Error(`not within twenty seconds: ${what}`);
}

it('the sample: retention says what it would do, does it, and frees the disk in the same run', async () => {
  await using place = await makePlace();
  let directory: string;
  const freed: string[] = [];
  {
    // The bytes of a push are safe for the grace that held then.
    await using program = await startRegistry(place, { args: ['--config', SAMPLE, '--gc-grace-ms', '0s'] });
    directory = program.directory;
    for (const tag of ['n1', 'n2', 'n3', 'n4', 'pr-1']) freed.push(await push(program, 'nightly/app', tag));
  }
  const call = (...args: readonly string[]) => {
    const all = [MAIN, ...args, '--root', directory, '--config', SAMPLE, '--gc-grace-ms', '0s'];
    return run(process.execPath, all, { env: place.env });
  };
  const planned = await call('retention', '--dry-run');
  const done = await call('retention');
  expect(planned.stdout.replaceAll('would remove', 'removed').replaceAll('would free', 'freed')).toBe(done.stdout);
  const bytes = freed.slice(0, 2).join('').length;
  expect(done.stdout).toContain('removed: nightly/app:n1\n');
  expect(done.stdout).toContain('removed by retention: 2 tags, 2 manifests\n');
  expect(done.stdout).toContain(`(${bytes} bytes)`);
  await using program = await startRegistry(place, { args: ['--config', SAMPLE] });
  const { body } = await ask(`http://${program.address}`, 'GET', '/v2/nightly/app/tags/list');
  expect(JSON.parse(body.toString()).tags).toEqual(['n3', 'n4', 'pr-1']);
});

it('finds in the background what rots and what is too old; a push heals', async () => {
  await using place = await makePlace();
  const rules = join(place.root, 'rules.yaml');
  await writeFile(rules, 'retention: [{ repositories: ["old/**"], keepLast: 0 }]');
  const often = ['--scrub-interval-ms', '50ms', '--retention-interval-ms', '50ms', '--gc-grace-ms', '500ms'];
  await using program = await startRegistry(place, { args: ['--config', rules, ...often] });
  const url = `http://${program.address}`;
  await push(program, 'old/app', 'v1');
  await eventually('the tag goes', async () => (await ask(url, 'HEAD', '/v2/old/app/manifests/v1')).status === 404);

  const digest = digestOf(await push(program, 'app', 'v1'));
  await writeFile(join(program.directory, 'blobs', 'sha256', hexOf(digest)), 'rotten');
  const status = async (method = 'HEAD') => (await ask(url, method, `/v2/app/blobs/${digest}`)).status;
  await eventually('the blob goes', async () => (await status()) === 404);
  expect(await status('GET')).toBe(404);
  // The index knows before the log is written, and the log before this process reads it.
  await expect.poll(() => program.output()).toContain('blob quarantined: push it again');
  const metrics = (await ask(url, 'GET', '/metrics')).body.toString();
  expect(metrics).toContain('berth_registry_quarantined_total 1');
  expect(metrics).toMatch(/berth_registry_retention_removed_total\{kind="tags"\} 1/);
  await push(program, 'app', 'v1');
  expect(await status('GET')).toBe(200);
});
