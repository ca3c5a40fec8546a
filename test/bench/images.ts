/**
 * The images' rows: pull of a large image of seven layers up to its first container, its removal, and disk usage,
 * beside dockerd and podman. Every pull starts from an engine that has nothing of the image.
 */
import { mkdir, readFile, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { buildImage, buildLayer, busyboxLayer, debianImage, type Image, writeLayout } from '../fixtures/images.ts';
import { type Place, startRegistry, succeed } from '../fixtures/programs.ts';
import type { TarEntry } from '../fixtures/tar.ts';
import { compete, median, milliseconds, type Row } from './measure.ts';
import { type Engine, openPodman, startBerthd, startDockerd } from './peers.ts';

const LAYERS = 6;
const FILES_PER_LAYER = 4_500;
const SHARING = 500;

export async function imageRows(place: Place, runs: number): Promise<readonly Row[]> {
  await using registry = await startRegistry(place);
  const image = `${registry.address}/large:1`;
  await push(place, await largeImage(), image);
  await using ours = await startBerthd(place);
  await using directories = await startBerthd(place, { name: 'directories', args: ['--layer-backend', 'directory'] });
  await using docker = await startDockerd(place);
  await using podman = await openPodman(place, registry.address);
  const removals = new Map<Engine, number[]>();
  const pull = (engine: Engine) => async () => {
    const took = await milliseconds(async () => {
      await engine.docker('pull', '-q', image);
      await engine.docker('run', '--rm', '--network', 'none', image, 'true');
    });
    removals.set(engine, [...(removals.get(engine) ?? []), await milliseconds(() => engine.docker('rmi', image))]);
    return took;
  };
  const row = (what: string, sides: { readonly a: Engine; readonly b: Engine; readonly ratio: number }) =>
    compete({
      what,
      unit: 'ms',
      runs,
      budget: { kind: 'ratio-at-most', value: sides.ratio },
      ours: pull(sides.a),
      peer: { name: sides.b.name, measure: pull(sides.b) },
    });
  const rows = [
    await row('pull of a large image to its first container', { a: ours, b: docker, ratio: 0.4 }),
    await row('pull of a large image to its first container', { a: ours, b: podman, ratio: 0.4 }),
    await row('the same with layers as directories', { a: directories, b: docker, ratio: 0.9 }),
  ];
  rows.push({
    what: 'rmi of it',
    unit: 'ms',
    ours: median(removals.get(ours) ?? []),
    peer: { name: docker.name, value: median(removals.get(docker) ?? []) },
    budget: { kind: 'ratio-at-most', value: 0.1 },
  });
  rows.push(await usageRow(place, { ours, docker, registry: registry.address, runs }));
  return rows;
}

/** Disk usage with many images over one base, asked over the API: docker's client would take longer than the answer. */
async function usageRow(
  place: Place,
  options: { readonly ours: Engine; readonly docker: Engine; readonly registry: string; readonly runs: number },
): Promise<Row> {
  const { ours, docker, registry, runs } = options;
  const base = await busyboxLayer();
  for (let i = 0; i < SHARING; i++) {
    const own = buildLayer([{ name: `etc/own`, content: `${i}` }]);
    const reference = `${registry}/sharing:${i}`;
    await push(place, buildImage({ layers: [base, own] }), reference);
    for (const engine of [ours, docker]) await engine.docker('pull', '-q', reference);
  }
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
