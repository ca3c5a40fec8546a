/**
 * Dockerfiles of the kinds that people write, built by dockerd's classic builder and by our engine, through docker's own
 * client: the config of the image must be the same, and so must every file of a container of it, with owner, mode and
 * content. Where the two differ, DIFFERENCES says how and why; docs/build-differences.md tells users.
 *
 * test/fixtures/dockerfiles/NN-name has `context/`, and may have `prepare.sh` (run in the context, for what no working
 * copy holds), `case.json` (CaseFile) and `expected.json`: what a builder must give that dockerd's is too old for.
 */
import { createReadStream } from 'node:fs';
import { cp, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { buildImage, buildLayer, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { type EngineProgram, run, startEngine, startProgram, succeed } from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';
import { changesAbove, type FileTree, readFileTree } from './file-trees.ts';

interface CaseFile {
  /** More arguments of `docker build`; CONTEXT is the directory. */
  readonly args?: readonly string[];
  /** Images that the case begins with: name, and its Dockerfile in the context. */
  readonly bases?: Readonly<Record<string, string>>;
}

const FIXTURES = fileURLToPath(new URL('../fixtures/dockerfiles/', import.meta.url));
const CASES = (await readdir(FIXTURES)).sort();

/** Tools as far as the Dockerfiles can tell: what they write is always the same. */
const TOOLS = {
  npm: 'case $1 in ci) mkdir -p node_modules/dep && cp package.json node_modules/dep/;; *) mkdir -p dist && cat src/*.js > dist/server.js;; esac',
  pip: 'while [ "$1" != -r ]; do shift; done; while read -r name; do mkdir -p "$VIRTUAL_ENV/lib/$name"; done < "$2"',
  cc: 'cat "$3" "$4" > cc.tmp && mkdir -p "$(dirname "$2")" && mv cc.tmp "$2" && chmod 755 "$2"',
  'apt-get':
    'case $1 in update) mkdir -p /var/lib/apt/lists && echo list > /var/lib/apt/lists/main;; *) mkdir -p /usr/share/doc && for name; do case $name in -*) ;; *) echo "$name" > "/usr/share/doc/$name";; esac; done;; esac',
};

/** What is not the same, and why. `config` and `files` name fields and paths, of all cases or of one. */
const DIFFERENCES: readonly {
  readonly name: string;
  readonly reason: string;
  readonly config?: readonly string[];
  readonly files?: RegExp;
}[] = [];

const undo = new AsyncDisposableStack();
let host: TestHost;
let ours: EngineProgram;
let dockerd: string;
let base: FileTree;

beforeAll(async () => {
  host = undo.use(await testHost());
  const namespace = await networkNamespace();
  [ours, dockerd] = await Promise.all([startEngine(host, { namespace }), startDockerd(namespace)]);
  undo.use(ours);
  const archive = await baseArchive();
  await Promise.all([ours.url, dockerd].map((url) => docker(url, ['load', '-q', '-i', archive])));
  base = await filesOf(ours.url, 'base:1');
}, 120_000);
afterAll(() => undo.disposeAsync());

describe('builds what dockerd builds', { timeout: 120_000 }, () => {
  it.for(CASES)('%s', async (name) => {
    const context = await contextOf(name);
    const { args = [], bases = {} } = await caseOf(name);
    const build = async (url: string) => {
      for (const [tag, file] of Object.entries(bases)) await dockerBuild(url, context, ['-t', tag, '-f', file]);
      await dockerBuild(url, context, ['-t', `${name}:1`, ...args]);
      return { config: await configOf(url, `${name}:1`), files: await filesOf(url, `${name}:1`) };
    };
    const [theirs, own] = await Promise.all([build(dockerd), build(ours.url)]);
    expect(own.config).toEqual(theirs.config);
    expect(changesOf(own.files)).toEqual(changesOf(theirs.files));
  });
});

function changesOf(files: FileTree) {
  return changesAbove(files, files.has('/bin/busybox') ? base : new Map());
}

const CONFIG = ['Env', 'Cmd', 'Entrypoint', 'WorkingDir', 'User', 'Volumes', 'ExposedPorts', 'Labels', 'OnBuild'];
const MORE_CONFIG = ['StopSignal', 'Healthcheck', 'Shell'];

/** Fields that say something. */
async function configOf(url: string, image: string): Promise<Readonly<Record<string, unknown>>> {
  const [inspected] = JSON.parse(await docker(url, ['image', 'inspect', image]));
  const isEmpty = (value: unknown) => value == null || Object.keys(value).length === 0;
  const fields = [...CONFIG, ...MORE_CONFIG].map((field) => [field, inspected.Config[field]] as const);
  return Object.fromEntries([...fields, ['Author', inspected.Author]].filter(([, value]) => !isEmpty(value)));
}

async function filesOf(url: string, image: string): Promise<FileTree> {
  const id = (await docker(url, ['create', image, 'any'])).trim();
  const path = join(host.root, `${id}.tar`);
  await docker(url, ['export', '-o', path, id]);
  await docker(url, ['rm', '-v', id]);
  return await readFileTree(createReadStream(path));
}

async function dockerBuild(url: string, context: string, args: readonly string[]): Promise<void> {
  const words = args.map((word) => word.replace('CONTEXT', context));
  await docker(url, ['build', '-q', '--network', 'none', ...words, '.'], context);
}

async function docker(url: string, args: readonly string[], cwd?: string): Promise<string> {
  const env = { ...host.env, DOCKER_BUILDKIT: '0' };
  return await succeed('docker', ['-H', url, ...args], { env, ...(cwd !== undefined && { cwd }) });
}

async function contextOf(name: string): Promise<string> {
  const context = join(host.root, 'contexts', name);
  await cp(join(FIXTURES, name, 'context'), context, { recursive: true, verbatimSymlinks: true });
  // Whatever the umask of the working copy is.
  const prepare = await readFile(join(FIXTURES, name, 'prepare.sh'), 'utf8').catch(() => '');
  await succeed('sh', ['-euc', `umask 022; chmod -R u=rwX,go=rX .\n${prepare}`], { env: host.env, cwd: context });
  return context;
}

async function caseOf(name: string): Promise<CaseFile> {
  const text = await readFile(join(FIXTURES, name, 'case.json'), 'utf8').catch(() => '{}');
  return JSON.parse(text);
}

/** docker's own form, which every dockerd loads. */
async function baseArchive(): Promise<string> {
  const tools = Object.entries(TOOLS).map(([name, script]) => ({
    name: `usr/local/bin/${name}`,
    mode: 0o755,
    content: `#!/bin/sh\n${script}\n`,
  }));
  const image = buildImage({
    layers: [await busyboxLayer(), buildLayer(tools)],
    config: { Env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'], Cmd: ['sh'] },
  });
  const layout = join(host.root, 'layout');
  await writeLayout(image, layout);
  const archive = join(host.root, 'base.tar');
  const copy = ['--insecure-policy', 'copy', '-q', `oci:${layout}:latest`, `docker-archive:${archive}:base:1`];
  await succeed('skopeo', copy, { env: host.env });
  return archive;
}

/** dockerd changes the firewall of the network namespace that it is in. */
async function networkNamespace(): Promise<string> {
  const holder = await startProgram(host, {
    name: 'namespace',
    command: 'unshare',
    args: ['--net', '--', 'sh', '-c', 'ip link set lo up && echo up && exec sleep infinity'],
    ready: (program) => (program.output().includes('up') ? program : undefined),
  });
  undo.use(holder);
  return `/proc/${holder.pid}/ns/net`;
}

async function startDockerd(namespace: string): Promise<string> {
  const at = (name: string) => join(host.root, 'dockerd', name);
  await mkdir(at('data'), { recursive: true });
  await writeFile(at('config.json'), '{}');
  const url = `unix://${at('docker.sock')}`;
  const places = ['--data-root', at('data'), '--exec-root', at('exec'), '--pidfile', at('pid')];
  const quiet = ['--config-file', at('config.json'), '--log-level', 'warn', '--bridge', 'none', '--iptables=false'];
  undo.use(
    await startProgram(host, {
      name: 'dockerd',
      command: 'nsenter',
      args: [`--net=${namespace}`, '--', 'dockerd', '--host', url, ...places, ...quiet],
      ready: async (program) => {
        const { code } = await run('docker', ['-H', url, 'version'], { env: host.env });
        return code === 0 ? program : undefined;
      },
    }),
  );
  return url;
}
