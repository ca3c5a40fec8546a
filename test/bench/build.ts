/**
 * The builds' rows, beside dockerd's classic builder and buildah: the same tree is built by each, cold, again without a
 * change, with one file changed, and from a context of many files, first all of them and then few that changed. Ours is
 * `berth build`; one row has docker's own client on both sides. Builds of many files take the peers minutes, so they are
 * measured once.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import { type EngineProgram, type Place, startEngine, startRegistry, succeed } from '../fixtures/programs.ts';
import { type Contest, compete, milliseconds, type Row } from './measure.ts';
import { startDockerd } from './peers.ts';

const BERTH = fileURLToPath(new URL('../../deploy/bin/berth', import.meta.url));
const MODULES = 3_000;
const HUGE = { directories: 100, filesEach: 500, changed: 10 };
const LONG_MS = 600_000;

/** Builds a directory under a name, with or without what it has cached; answers how long it took. */
interface Builder {
  readonly name: string;
  build(directory: string, options?: { readonly cold: boolean }): Promise<number>;
}

interface Measurement {
  readonly what: string;
  readonly runs: number;
  readonly budget: number;
  readonly measure: (builder: Builder, run: number) => Promise<number>;
}

export async function buildRows(place: Place, runs: number): Promise<readonly Row[]> {
  await using registry = await startRegistry(place);
  const base = `${registry.address}/busybox:latest`;
  const layout = join(place.root, 'build-base');
  await writeLayout(await busyboxImage(), layout);
  const copy = ['--insecure-policy', 'copy', '-q', '--dest-tls-verify=false', `oci:${layout}:latest`];
  await succeed('skopeo', [...copy, `docker://${base}`], { env: place.env });
  await using engine = await startEngine(place, { name: 'builder' });
  await using docker = await startDockerd(place);
  const dockerd = dockerBuilder(place, { name: docker.name, host: `unix://${docker.socketPath}` });
  const rows: Row[] = [];
  for (const peer of [dockerd, buildahBuilder(place)]) {
    const trees = await makeTrees(join(place.root, `for-${peer.name}`), { base, salt: peer.name });
    const duel = { ours: berthBuilder(place, engine), peer };
    for (const builder of [duel.ours, duel.peer]) await builder.build(trees.project);
    for (const measurement of measurements(trees, runs)) rows.push(await against(duel, measurement));
    if (peer !== dockerd) continue;
    const ours = dockerBuilder(place, { name: 'berthd', host: engine.url });
    await ours.build(trees.project);
    rows.push(await against({ ours, peer }, unchanged('nothing changed, both by the docker client', trees, runs)));
  }
  return rows;
}

function measurements(trees: Trees, runs: number): readonly Measurement[] {
  const { project, huge } = trees;
  const files = `context of ${(HUGE.directories * HUGE.filesEach).toLocaleString('en')} files`;
  return [
    unchanged('nothing changed', trees, runs),
    {
      ...{ what: 'one file changed in the last COPY', runs, budget: 0.5 },
      async measure(builder, run) {
        await writeFile(join(project, 'src/main.js'), `// ${builder.name} ${run}\n`);
        return await builder.build(project);
      },
    },
    { what: 'cold', runs, budget: 1, measure: (builder) => builder.build(project, { cold: true }) },
    { what: `${files}, the first time (one run)`, runs: 1, budget: 1, measure: (builder) => builder.build(huge) },
    {
      ...{ what: `${files}, ${HUGE.changed} changed (one run)`, runs: 1, budget: 0.3 },
      async measure(builder, run) {
        for (let i = 0; i < HUGE.changed; i++)
          await writeFile(join(huge, `d${i}`, 'f0'), `${builder.name} ${run} ${i}\n`);
        return await builder.build(huge);
      },
    },
  ];
}

function unchanged(what: string, { project }: Trees, runs: number): Measurement {
  return { what, runs, budget: 0.3, measure: (builder) => builder.build(project) };
}

async function against(
  { ours, peer }: { readonly ours: Builder; readonly peer: Builder },
  { what, runs, budget, measure }: Measurement,
): Promise<Row> {
  console.error(`bench: build: ${what}, beside ${peer.name}`);
  const contest: Contest = {
    ...{ what: `build: ${what}`, unit: 'ms', runs, budget: { kind: 'ratio-at-most', value: budget } },
    ours: (run) => measure(ours, run),
    peer: { name: peer.name, measure: (run) => measure(peer, run) },
  };
  return await compete(contest);
}

/** Each pair of builders has its own, which no step of another pair has seen. */
interface Trees {
  readonly project: string;
  readonly huge: string;
}

interface TreeContent {
  readonly base: string;
  /** Stands in every file. */
  readonly salt: string;
}

async function makeTrees(root: string, content: TreeContent): Promise<Trees> {
  const trees = { project: join(root, 'project'), huge: join(root, 'huge') };
  await makeProject(trees.project, content);
  await makeHuge(trees.huge, content);
  return trees;
}

/** What a project in Node or Python looks like: dependencies first, then its own files. */
async function makeProject(root: string, { base, salt }: TreeContent): Promise<void> {
  await mkdir(join(root, 'src'), { recursive: true });
  const install = `for i in $(seq ${MODULES}); do mkdir -p modules/m$i; echo "module $i" >modules/m$i/index.js; done`;
  const lines = [
    `FROM ${base}`,
    'WORKDIR /app',
    'COPY package.json .',
    `RUN ${install}`,
    'COPY src src',
    'CMD ["true"]',
  ];
  await writeFile(join(root, 'Dockerfile'), `${lines.join('\n')}\n`);
  await writeFile(join(root, 'package.json'), '{}\n');
  for (let i = 0; i < 200; i++) await writeFile(join(root, 'src', `f${i}.js`), `// ${salt} ${i}\n`.repeat(50));
}

async function makeHuge(root: string, { base, salt }: TreeContent): Promise<void> {
  await mkdir(root);
  await writeFile(join(root, 'Dockerfile'), `FROM ${base}\nCOPY . /all\n`);
  for (let d = 0; d < HUGE.directories; d++) {
    await mkdir(join(root, `d${d}`));
    for (let f = 0; f < HUGE.filesEach; f++) await writeFile(join(root, `d${d}`, `f${f}`), `${salt} ${d} ${f}\n`);
  }
}

function berthBuilder(place: Place, engine: EngineProgram): Builder {
  const env = { ...place.env, BERTH_HOST: engine.url };
  return builder('berth', BERTH, { args: ['build'], env });
}

/** Docker's client with the classic builder. */
function dockerBuilder(place: Place, { name, host }: { readonly name: string; readonly host: string }): Builder {
  return builder(name, 'docker', { args: ['-H', host, 'build'], env: { ...place.env, DOCKER_BUILDKIT: '0' } });
}

function buildahBuilder(place: Place): Builder {
  const at = (name: string) => join(place.root, 'buildah', name);
  const inner = builder('buildah', 'buildah', {
    args: [
      ...['--root', at('root'), '--runroot', at('run'), 'bud', '--layers', '--tls-verify=false'],
      ...['--signature-policy', at('policy.json')],
    ],
    env: { ...place.env, TMPDIR: at('tmp') },
  });
  return {
    name: inner.name,
    async build(directory, options) {
      await mkdir(at('tmp'), { recursive: true });
      await writeFile(at('policy.json'), JSON.stringify({ default: [{ type: 'insecureAcceptAnything' }] }));
      return await inner.build(directory, options);
    },
  };
}

function builder(
  name: string,
  command: string,
  { args, env }: { readonly args: readonly string[]; readonly env: NodeJS.ProcessEnv },
): Builder {
  return {
    name,
    build: (directory, { cold } = { cold: false }) => {
      const build = [...args, '-q', ...(cold ? ['--no-cache'] : []), '-t', 'bench', directory];
      return milliseconds(() => succeed(command, build, { env, timeoutMs: LONG_MS }));
    },
  };
}
