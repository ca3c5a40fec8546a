/**
 * The builds' rows, beside dockerd's classic builder and buildah: the same tree is built by each, cold, again without a
 * change, with one file changed, and from a context of many files of which few changed. Ours is `berth build`.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { busyboxImage, writeLayout } from '../fixtures/images.ts';
import { type EngineProgram, type Place, startEngine, startRegistry, succeed } from '../fixtures/programs.ts';
import { type Contest, compete, milliseconds, type Row } from './measure.ts';
import { type Engine, startDockerd } from './peers.ts';

const BERTH = fileURLToPath(new URL('../../deploy/bin/berth', import.meta.url));
const MODULES = 3_000;
const HUGE = { directories: 100, filesEach: 500, changed: 10 };
const LONG_MS = 600_000;

/** Builds a directory under a name, with or without what it has cached; answers how long it took. */
interface Builder {
  readonly name: string;
  build(directory: string, options: { readonly cold: boolean }): Promise<number>;
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
  const project = await makeProject(place, base);
  const huge = await makeHuge(place, base);
  const ours = berthBuilder(place, engine);
  const rows: Row[] = [];
  for (const peer of [dockerBuilder(place, docker), buildahBuilder(place)]) {
    for (const builder of [ours, peer]) for (const tree of [project, huge]) await builder.build(tree, { cold: false });
    const against = (what: string, value: number, measure: (builder: Builder, run: number) => Promise<number>) => {
      const contest: Contest = {
        ...{ what: `build: ${what}`, unit: 'ms', runs, budget: { kind: 'ratio-at-most', value } },
        ours: (run) => measure(ours, run),
        peer: { name: peer.name, measure: (run) => measure(peer, run) },
      };
      return compete(contest);
    };
    rows.push(
      await against('nothing changed', 0.3, (builder) => builder.build(project, { cold: false })),
      await against('one file changed in the last COPY', 0.5, async (builder, run) => {
        await writeFile(join(project, 'src/main.js'), `// ${builder.name} ${run}\n`);
        return await builder.build(project, { cold: false });
      }),
      await against('cold', 1, (builder) => builder.build(project, { cold: true })),
      await against(`context of 50,000 files, ${HUGE.changed} changed`, 0.3, async (builder, run) => {
        for (let i = 0; i < HUGE.changed; i++)
          await writeFile(join(huge, `d${i}`, 'f0'), `${builder.name} ${run} ${i}\n`);
        return await builder.build(huge, { cold: false });
      }),
    );
  }
  return rows;
}

/** What a project in Node or Python looks like: dependencies first, then its own files. */
async function makeProject(place: Place, base: string): Promise<string> {
  const root = join(place.root, 'project');
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
  for (let i = 0; i < 200; i++) await writeFile(join(root, 'src', `f${i}.js`), `// ${i}\n`.repeat(50));
  return root;
}

async function makeHuge(place: Place, base: string): Promise<string> {
  const root = join(place.root, 'huge');
  await mkdir(root);
  await writeFile(join(root, 'Dockerfile'), `FROM ${base}\nCOPY . /all\n`);
  for (let d = 0; d < HUGE.directories; d++) {
    await mkdir(join(root, `d${d}`));
    for (let f = 0; f < HUGE.filesEach; f++) await writeFile(join(root, `d${d}`, `f${f}`), `${d} ${f}\n`);
  }
  return root;
}

function berthBuilder(place: Place, engine: EngineProgram): Builder {
  const env = { ...place.env, BERTH_HOST: engine.url };
  return {
    name: 'berth',
    build: (directory, { cold }) =>
      milliseconds(() =>
        succeed(BERTH, ['build', '-q', ...(cold ? ['--no-cache'] : []), '-t', 'bench', directory], {
          ...{ env, timeoutMs: LONG_MS },
        }),
      ),
  };
}

function dockerBuilder(place: Place, docker: Engine): Builder {
  const env = { ...place.env, DOCKER_BUILDKIT: '0' };
  return {
    name: docker.name,
    build: (directory, { cold }) =>
      milliseconds(() =>
        succeed(
          'docker',
          [
            '-H',
            `unix://${docker.socketPath}`,
            'build',
            '-q',
            ...(cold ? ['--no-cache'] : []),
            '-t',
            'bench',
            directory,
          ],
          { env, timeoutMs: LONG_MS },
        ),
      ),
  };
}

function buildahBuilder(place: Place): Builder {
  const at = (name: string) => join(place.root, 'buildah', name);
  return {
    name: 'buildah',
    async build(directory, { cold }) {
      await mkdir(at('tmp'), { recursive: true });
      await writeFile(at('policy.json'), JSON.stringify({ default: [{ type: 'insecureAcceptAnything' }] }));
      const args = [
        ...['--root', at('root'), '--runroot', at('run'), 'bud', '-q', '--layers', '--tls-verify=false'],
        ...['--signature-policy', at('policy.json'), ...(cold ? ['--no-cache'] : []), '-t', 'bench', directory],
      ];
      return await milliseconds(() =>
        succeed('buildah', args, { env: { ...place.env, TMPDIR: at('tmp') }, timeoutMs: LONG_MS }),
      );
    },
  };
}
