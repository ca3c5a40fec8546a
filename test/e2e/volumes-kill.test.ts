/** SIGKILL of the engine at each step that a create, a copy-up or a removal of a volume takes in its directory. */
import { watch } from 'node:fs';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { buildImage, buildLayer, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { succeed } from '../fixtures/programs.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { type EnginePlace, openEnginePlace } from './engine-place.ts';
import { ask } from './http.ts';

const FILES = 40;
/** The steps themselves are fewer; the rest fall between them. */
const KILLS = 6;

it('loses nothing that was answered, leaks nothing, and removes nothing that is in use', async () => {
  await using place = await openEnginePlace();
  const image = await pushFilled(place);
  const directory = join(place.engine.directory, 'volumes');
  const call = (method: string, path: string, json?: unknown) =>
    ask(place.engine.socketPath, { method, path, ...(json !== undefined && { json }) });
  const create = (name: string, volume: string) =>
    call('POST', `/containers/create?name=${name}`, { Image: image, HostConfig: { Binds: [`${volume}:/data`] } });
  const contentOf = (name: string) => readdir(join(directory, name, '_data'));
  await create('keeper', 'used');

  for (let step = 1; step <= KILLS; step += 1) {
    const [plain, copied, old] = [`plain${step}`, `copied${step}`, `old${step}`];
    await call('POST', '/volumes/create', { Name: old });
    await writeFile(join(directory, old, '_data/precious'), 'precious');
    const asked = [
      () => call('POST', '/volumes/create', { Name: plain }),
      () => create(`c${step}`, copied),
      () => call('DELETE', `/volumes/${old}`),
    ];
    const answered = await untilKilled(place, { directory, step, asked });

    const known = new Set<string>(
      (await call('GET', '/volumes')).json.Volumes.map(({ Name }: { Name: string }) => Name),
    );
    const context = `after kill ${step}, answered ${answered}`;
    expect((await readdir(directory)).toSorted(), context).toEqual([...known].toSorted());
    for (const name of known) expect(await readdir(join(directory, name)), context).toEqual(['_data']);
    if (answered >= 1) expect(known, context).toContain(plain);
    if (answered >= 2) expect((await contentOf(copied)).length, context).toBe(FILES);
    const isMade = (await call('GET', `/containers/c${step}/json`)).status === 200;
    if (isMade) expect((await contentOf(copied)).length, context).toBe(FILES);
    // Whole or nothing, whether somebody has been told or not.
    if (known.has(copied)) expect([0, FILES], context).toContain((await contentOf(copied)).length);
    if (answered >= 3) expect(known, context).not.toContain(old);
    if (known.has(old)) expect(await readFile(join(directory, old, '_data/precious'), 'utf8')).toBe('precious');
    expect((await call('DELETE', '/volumes/used')).status, context).toBe(409);
    expect((await contentOf('used')).length, context).toBe(FILES);
  }
  await place.removeContainers();
  await place.dockerOk(['volume', 'prune', '-af']);
  expect(await readdir(directory)).toEqual([]);
}, 180_000);

/** Asks one after the other; the engine is killed at a change in the directory. Answers how many were answered well. */
async function untilKilled(
  place: EnginePlace,
  {
    directory,
    step,
    asked,
  }: {
    readonly directory: string;
    readonly step: number;
    readonly asked: readonly (() => Promise<{ status: number }>)[];
  },
): Promise<number> {
  let answered = 0;
  let changes = 0;
  let killed: Promise<void> | undefined;
  const kill = () => {
    killed ??= place.restart('SIGKILL');
  };
  const watcher = watch(directory, { recursive: true }, () => {
    changes += 1;
    // Whoever fills a volume makes many changes: what comes after the first few is one step.
    if (changes === step) kill();
  });
  try {
    for (const one of asked) {
      const answer = await one().catch(() => undefined);
      if (answer === undefined || killed !== undefined) break;
      if (answer.status < 300) answered += 1;
    }
  } finally {
    watcher.close();
  }
  kill();
  await killed;
  return answered;
}

/** An image whose /data has many files. */
async function pushFilled(place: EnginePlace): Promise<string> {
  const files = Array.from(
    { length: FILES },
    (_, i): TarEntry => ({ name: `data/f${i}`, content: `${i}`.repeat(999) }),
  );
  const filled = buildImage({
    layers: [await busyboxLayer(), buildLayer([{ name: 'data/', type: 'directory' }, ...files])],
    config: { Env: ['PATH=/bin'], Cmd: ['true'] },
  });
  const layout = join(place.host.root, 'filled');
  await writeLayout(filled, layout);
  const reference = `${place.registry.address}/filled:1`;
  await succeed('skopeo', ['copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`, `docker://${reference}`], {
    env: place.host.env,
  });
  await place.dockerOk(['pull', '-q', reference]);
  return reference;
}
