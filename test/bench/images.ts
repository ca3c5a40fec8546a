/**
 * The images' rows: pulls up to the first container, removal, memory, and disk usage, beside dockerd and podman. Every
 * pull starts from an engine that has nothing of the image.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { buildImage, buildLayer, busyboxLayer, debianImage, type Image, writeLayout } from '../fixtures/images.ts';
import { type Place, startRegistry, succeed } from '../fixtures/programs.ts';
import { type TarEntry, tarOf } from '../fixtures/tar.ts';
import { compete, median, milliseconds, type Row, type Sample } from './measure.ts';
import { type Engine, openPodman, startBerthd, startDockerd } from './peers.ts';
import { cpuMsOf, forgetPeak, peakBytesOf } from './processes.ts';

const LAYERS = 6;
const FILES_PER_LAYER = 4_500;
const SMALL_LAYERS = 59;
const SHARING = 500;
const LARGE_LAYER_BYTES = 2 ** 30;
const GONE_MS = 60_000;
const POLL_MS = 5;

interface Engines {
  readonly ours: Engine;
  readonly directories: Engine;
  readonly docker: Engine;
  readonly podman: Engine;
}

export async function imageRows(place: Place, runs: number): Promise<readonly Row[]> {
  await using registry = await startRegistry(place);
  const at = (name: string) => `${registry.address}/${name}:1`;
  await push(place, await largeImage(), at('large'));
  await push(place, await manyLayers(), at('many'));
  await push(place, await oneLayer(), at('one'));
  await using ours = await startBerthd(place);
  await using directories = await startBerthd(place, { name: 'directories', args: ['--layer-backend', 'directory'] });
  await using docker = await startDockerd(place);
  await using podman = await openPodman(place, registry.address);
  const engines: Engines = { ours, directories, docker, podman };
  return [
    ...(await pullRows(engines, { image: at('large'), runs })),
    ...(await manyLayersRows(engines, { image: at('many'), runs })),
    await memoryRow(engines, at('one')),
    await usageRow(place, { ours, docker, runs }),
  ];
}

interface Pulling {
  readonly image: string;
  readonly runs: number;
}

/** A pull up to the end of the first container. What the removal took until its last byte was gone goes to `removals`. */
function pulling(engine: Engine, image: string, removals: number[] = []): () => Promise<Sample> {
  return async () => {
    const content = await contentOf(engine);
    const before = await cpuMsOf(engine.pid);
    const value = await milliseconds(async () => {
      await engine.docker('pull', '-q', image);
      await engine.docker('run', '--rm', '--network', 'none', image, 'true');
    });
    const cpuMs = (await cpuMsOf(engine.pid)) - before;
    removals.push(
      await milliseconds(async () => {
        await engine.docker('rmi', image);
        await untilGone(engine, content);
      }),
    );
    return { value, cpuMs };
  };
}

/** Directories of the engines' own beside the layers: they stay. */
const OWN_DIRECTORIES: readonly string[] = ['ingest', 'l', 'unpacked'];

async function contentOf({ contentPaths }: Engine): Promise<ReadonlySet<string>> {
  const entries = await Promise.all(
    contentPaths.map(async (path) => (await readdir(path).catch(() => [])).map((name) => join(path, name))),
  );
  return new Set(entries.flat().filter((path) => !OWN_DIRECTORIES.includes(basename(path))));
}

/** An engine may answer before it has deleted anything, and some layers may wait for the mounts of the last container. */
async function untilGone(engine: Engine, before: ReadonlySet<string>): Promise<void> {
  const deadline = performance.now() + GONE_MS;
  for (;;) {
    const left = (await contentOf(engine)).difference(before);
    if (left.size === 0) return;
    if (performance.now() > deadline) throw new Error(`${engine.name} has not deleted ${[...left].join(' ')}`);
    await delay(POLL_MS);
  }
}

async function pullRows(engines: Engines, { image, runs }: Pulling): Promise<readonly Row[]> {
  const { ours, directories, docker, podman } = engines;
  const removals = { ours: [] as number[], docker: [] as number[] };
  const row = (what: string, sides: { readonly a: Engine; readonly b: Engine; readonly ratio: number }) =>
    compete({
      what,
      unit: 'ms',
      runs,
      budget: { kind: 'ratio-at-most', value: sides.ratio },
      ours: pulling(sides.a, image, sides.a === ours ? removals.ours : []),
      peer: { name: sides.b.name, measure: pulling(sides.b, image, sides.b === docker ? removals.docker : []) },
    });
  const rows = [
    await row('pull of a large image to its first container', { a: ours, b: docker, ratio: 0.4 }),
    await row('pull of a large image to its first container', { a: ours, b: podman, ratio: 0.4 }),
    await row('the same with layers as directories', { a: directories, b: docker, ratio: 0.9 }),
  ];
  const removal: Row = {
    what: 'rmi of it, to its last byte',
    unit: 'ms',
    ours: median(removals.ours),
    peer: { name: docker.name, value: median(removals.docker) },
    budget: { kind: 'ratio-at-most', value: 0.1 },
  };
  return [...rows, removal];
}

async function manyLayersRows({ ours, docker }: Engines, { image, runs }: Pulling): Promise<readonly Row[]> {
  const row = await compete({
    what: `pull of ${SMALL_LAYERS + 1} small layers to the first container`,
    unit: 'ms',
    runs,
    budget: { kind: 'ratio-at-most', value: 1 },
    ours: pulling(ours, image),
    peer: { name: docker.name, measure: pulling(docker, image) },
  });
  return [row];
}

/** Once: it is no matter of chance, and the layer is large. */
async function memoryRow({ ours, docker }: Engines, image: string): Promise<Row> {
  const peak = async ({ pid = 0, ...engine }: Engine) => {
    await forgetPeak(pid);
    await engine.docker('pull', '-q', image);
    const bytes = await peakBytesOf(pid);
    await engine.docker('rmi', image);
    return bytes;
  };
  return compete({
    what: 'peak memory of the engine, pull of one 1 GiB layer',
    unit: 'bytes',
    runs: 1,
    budget: { kind: 'at-most', value: 250 * 2 ** 20 },
    ours: () => peak(ours),
    peer: { name: docker.name, measure: () => peak(docker) },
  });
}

/** Disk usage with many images over one base, asked over the API: docker's client would take longer than the answer. */
async function usageRow(
  place: Place,
  options: { readonly ours: Engine; readonly docker: Engine; readonly runs: number },
): Promise<Row> {
  const { ours, docker, runs } = options;
  const archive = join(place.root, 'sharing.tar');
  await writeFile(archive, await sharingArchive());
  for (const engine of [ours, docker]) await engine.docker('load', '-q', '-i', archive);
  await rm(archive);
  const measure = (engine: Engine) => () => {
    const args = ['-sf', '-o', '/dev/null', '--unix-socket', engine.socketPath ?? '', 'http://engine/system/df'];
    return milliseconds(() => succeed('curl', args, { env: place.env }));
  };
  return compete({
    what: `GET /system/df, ${SHARING} images that share a base`,
    unit: 'ms',
    runs,
    budget: { kind: 'at-most', value: 50 },
    ours: measure(ours),
    peer: { name: docker.name, measure: measure(docker) },
  });
}

/** Many images in one archive, as `docker save` made them when it knew no other form. */
async function sharingArchive(): Promise<Buffer> {
  const base = await busyboxLayer('none');
  const entries: TarEntry[] = [{ name: 'base.tar', content: base.blob }];
  const list = Array.from({ length: SHARING }, (_, i) => {
    const own = buildLayer([{ name: 'etc/own', content: `${i}` }], 'none');
    entries.push({ name: `${i}.tar`, content: own.blob });
    entries.push({ name: `${i}.json`, content: buildImage({ layers: [base, own] }).config });
    return { Config: `${i}.json`, RepoTags: [`sharing:${i}`], Layers: ['base.tar', `${i}.tar`] };
  });
  return tarOf([...entries, { name: 'manifest.json', content: JSON.stringify(list) }]);
}

/** Busybox and many layers of a few files, which replace and remove some of the layers below. */
async function manyLayers(): Promise<Image> {
  const layers = Array.from({ length: SMALL_LAYERS }, (_, layer) => {
    const entries = Array.from({ length: 20 }, (__, i): TarEntry => {
      return {
        name: `data/${layer}/f${i}`,
        content: i % 2 === 0 ? randomBytes(13_000) : `${layer} ${i}\n`.repeat(2000),
      };
    });
    const gone: readonly TarEntry[] = layer % 10 === 9 ? [{ name: `data/${layer - 5}/.wh.f0`, content: '' }] : [];
    return buildLayer([...entries, { name: 'latest', content: `${layer}` }, ...gone]);
  });
  return buildImage({ layers: [await busyboxLayer(), ...layers], config: { Cmd: ['true'] } });
}

/** One layer that does not compress. */
async function oneLayer(): Promise<Image> {
  return buildImage({ layers: [buildLayer([{ name: 'random', content: randomBytes(LARGE_LAYER_BYTES) }])] });
}

/** Debian and six layers of many files, about 900 MB: pieces of Debian's own bytes, so that they compress as files do. */
async function largeImage(): Promise<Image> {
  const debian = await debianImage();
  const material = await readFile('/proc/self/exe');
  const layers = Array.from({ length: LAYERS }, (_, layer) => {
    const entries = Array.from({ length: FILES_PER_LAYER }, (__, i): TarEntry => {
      const size = 1024 + ((i * 7919) % 58_000);
      const from = (i * 104_729 + layer * 15_485_863) % (material.length - size);
      const name = `usr/lib/large${layer}/d${i % 97}/f${i}`;
      return { name, mode: 0o644, content: material.subarray(from, from + size) };
    });
    return buildLayer(entries);
  });
  return buildImage({ layers: [...debian.layers, ...layers], config: { Env: ['PATH=/usr/bin:/bin'], Cmd: ['true'] } });
}

async function push(place: Place, image: Image, reference: string): Promise<void> {
  const layout = join(place.root, 'layout');
  await mkdir(layout, { recursive: true });
  await writeLayout(image, layout);
  const args = ['copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`, `docker://${reference}`];
  await succeed('skopeo', ['--insecure-policy', ...args], { env: place.env, timeoutMs: 300_000 });
  await rm(layout, { recursive: true });
}
