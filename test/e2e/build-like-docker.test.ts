/**
 * Dockerfiles of the kinds that people write, built by dockerd's classic builder and by our engine, through docker's own
 * client: the config of the image must be the same, and so must every file of a container of it, with owner, mode and
 * content. Where the two differ, DIFFERENCES says how and why; docs/build.md tells users.
 *
 * test/fixtures/dockerfiles/NN-name has `context/`, and may have `prepare.sh` (run in the context, for what no working
 * copy holds), `case.json` (CaseFile) and `expected.json`: what a builder must give that dockerd's is too old for.
 */
import { createReadStream, existsSync } from 'node:fs';
import { cp, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import Docker from 'dockerode';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { startDockerd } from '../bench/peers.ts';
import { buildImage, buildLayer, busyboxLayer, writeLayout } from '../fixtures/images.ts';
import { berth, type EngineProgram, startEngine, startNetworkNamespace, succeed } from '../fixtures/programs.ts';
import { type TestHost, testHost } from '../kernel/leaks.ts';
import { changesAbove, type FileTree, readFileTree } from './file-trees.ts';

interface CaseFile {
  /** More arguments of `docker build`; CONTEXT is the directory. */
  readonly args?: readonly string[];
  /** Images that the case begins with: name, and its Dockerfile in the context. */
  readonly bases?: Readonly<Record<string, string>>;
  /** buildah understands it as well. */
  readonly buildah?: boolean;
}

/** What is written down by hand, where dockerd's builder is too old. */
interface Expected {
  readonly config: Readonly<Record<string, unknown>>;
  /** Above the base. */
  readonly files: Readonly<Record<string, string | null>>;
}

const FIXTURES = fileURLToPath(new URL('../fixtures/dockerfiles/', import.meta.url));
const NAMES = (await readdir(FIXTURES)).sort();
const isWrittenDown = (name: string) => existsSync(join(FIXTURES, name, 'expected.json'));

/** Tools as far as the Dockerfiles can tell: what they write is always the same. */
const TOOLS = {
  npm: 'case $1 in ci) mkdir -p node_modules/dep && cp package.json node_modules/dep/;; *) mkdir -p dist && cat src/*.js > dist/server.js;; esac',
  pip: 'while [ "$1" != -r ]; do shift; done; while read -r name; do mkdir -p "$VIRTUAL_ENV/lib/$name"; done < "$2"',
  cc: 'cat "$3" "$4" > cc.tmp && mkdir -p "$(dirname "$2")" && mv cc.tmp "$2" && chmod 755 "$2"',
  'apt-get':
    'case $1 in update) mkdir -p /var/lib/apt/lists && echo list > /var/lib/apt/lists/main;; *) mkdir -p /usr/share/doc && for name; do case $name in -*) ;; *) echo "$name" > "/usr/share/doc/$name";; esac; done;; esac',
};

/** What is not the same, and why: what we have instead of what dockerd has; undefined is nothing at all. */
const DIFFERENCES: readonly {
  readonly name: string;
  readonly reason: string;
  readonly config?: Readonly<Record<string, unknown>>;
  readonly files?: Readonly<Record<string, string | undefined>>;
}[] = [
  {
    name: '03-c',
    reason: 'an image from scratch says where its commands start, as with BuildKit; it means the same',
    config: { WorkingDir: '/' },
  },
  { name: '03-c', reason: 'dockerd makes it for the files that it mounts', files: { '/etc': undefined } },
  {
    name: '05-variables',
    reason: 'directories of volumes are made when a container starts, and are no part of the image',
    files: { '/data': undefined, '/data/bye': undefined },
  },
  {
    name: '06-add-tar',
    reason: '--chown also counts for what ADD unpacks, as with BuildKit',
    files: {
      '/owned': 'directory 0755 33:33',
      '/owned/dir': 'directory 0750 33:33',
      '/owned/dir/file': 'file 0640 33:33 "file\\n"',
      '/owned/hard': 'file 0640 33:33 "file\\n" = /owned/dir/file',
      '/owned/link': 'symlink 33:33 -> dir/file',
    },
  },
  {
    name: '10-chown',
    reason: '--chown also counts for directories that are made on the way, as with BuildKit',
    files: { '/new': 'directory 0755 1:100', '/new/deep': 'directory 0755 1:100' },
  },
  {
    name: '13-volume',
    reason: 'a command may change a volume that was declared before, as with BuildKit',
    files: { '/before/later': 'file 0644 0:0 "later\\n"' },
  },
  {
    name: '13-volume',
    reason: 'directories of volumes are made when a container starts, and are no part of the image',
    files: { '/json': undefined, '/one': undefined, '/two': undefined, '/with space': undefined },
  },
  {
    name: '18-entrypoint',
    reason: 'a directory that WORKDIR makes belongs to the user, as with BuildKit',
    files: { '/base': 'directory 0755 33:33' },
  },
  {
    name: '21-scratch',
    reason: 'dockerd makes it for the files that it mounts',
    files: { '/etc': undefined },
  },
  {
    name: '25-modes',
    reason: 'setuid and setgid are kept, as with BuildKit',
    files: {
      '/fresh/tool': 'file 6755 0:0 "#!/bin/sh\\n"',
      '/kept/tool': 'file 6755 0:0 "#!/bin/sh\\n"',
    },
  },
  {
    name: '27-make',
    reason: 'a stage inherits the arguments of the stage that it begins with, as with BuildKit',
    files: { '/build-dir': 'file 0644 0:0 "/build\\n"' },
  },
  {
    name: '30-args',
    reason: 'commands see a proxy in both spellings, as with BuildKit',
    files: { '/one': 'file 0644 0:0 "2 http://proxy:1 http://proxy:1\\n"' },
  },
];

const undo = new AsyncDisposableStack();
let host: TestHost;
let ours: EngineProgram;
let dockerd: string;
let base: FileTree;

beforeAll(async () => {
  host = undo.use(await testHost());
  // dockerd changes the firewall of the network namespace that it is in.
  const { path: namespace } = undo.use(await startNetworkNamespace(host));
  const through = ['nsenter', `--net=${namespace}`, '--'];
  const [engine, peer] = await Promise.all([
    startEngine(host, { namespace }),
    startDockerd(host, { through, args: ['--bridge', 'none', '--iptables=false'] }),
  ]);
  ours = undo.use(engine);
  dockerd = `unix://${undo.use(peer).socketPath}`;
  const archive = await baseArchive();
  await Promise.all([ours.url, dockerd].map((url) => docker(url, ['load', '-q', '-i', archive])));
  base = await filesOf(ours.url, 'base:1');
}, 120_000);
afterAll(() => undo.disposeAsync());

describe('builds what dockerd builds', { timeout: 120_000 }, () => {
  it.for(NAMES.filter((name) => !isWrittenDown(name)))('%s', async (name) => {
    const context = await contextOf(name);
    const { args = [], bases = {} } = await readJson<CaseFile>(name, 'case.json');
    const build = async (url: string) => {
      for (const [tag, file] of Object.entries(bases)) await dockerBuild(url, context, ['-t', tag, '-f', file]);
      await dockerBuild(url, context, ['-t', `${name}:1`, ...args]);
      return { config: await configOf(url, `${name}:1`), files: await filesOf(url, `${name}:1`) };
    };
    const [theirs, own] = await Promise.all([build(dockerd), build(ours.url)]);
    const differences = DIFFERENCES.filter((difference) => difference.name === name);
    expect(own.config).toEqual(Object.assign(theirs.config, ...differences.map(({ config }) => config)));
    const files = Object.assign(changesOf(theirs.files), ...differences.map((difference) => difference.files));
    expect(changesOf(own.files)).toEqual(files);
  });
});

describe('builds what dockerd is too old for', { timeout: 120_000 }, () => {
  it.for(NAMES.filter(isWrittenDown))('%s', async (name) => {
    const context = await contextOf(name);
    const { args = [], buildah = false } = await readJson<CaseFile>(name, 'case.json');
    const expected = await readJson<Expected>(name, 'expected.json');
    const words = args.map((word) => word.replace('CONTEXT', context));
    const built = await berth(host, ours, ['build', '-q', '--network', 'none', '-t', `${name}:1`, ...words, context]);
    expect(built).toMatchObject({ code: 0 });
    expect(await configOf(ours.url, `${name}:1`)).toEqual(expected.config);
    expect(changesOf(await filesOf(ours.url, `${name}:1`))).toEqual(expected.files);
    // Whether what is written down is right. buildah also keeps the directories that it mounts on.
    if (buildah) expect(changesOf(await buildahFiles(context, words))).toMatchObject(expected.files);
  });
});

/** The files that buildah builds: it needs no daemon, and keeps everything in a directory of its own. */
async function buildahFiles(context: string, args: readonly string[]): Promise<FileTree> {
  const store = ['--root', join(host.root, 'buildah'), '--runroot', join(host.root, 'buildah-run')];
  const options = [...store, '--storage-driver', 'vfs'];
  const archive = join(host.root, 'buildah.tar');
  const environment = { ...host.env, TMPDIR: host.root };
  const base = `docker-archive:${join(host.root, 'base.tar')}`;
  await succeed('buildah', [...options, 'pull', '-q', base], { env: environment });
  const plain = ['--isolation', 'chroot', '--network', 'host', '--pull-never', '--output', `type=tar,dest=${archive}`];
  await succeed('buildah', [...options, 'bud', '-q', ...plain, ...args, context], { env: environment });
  return await readFileTree(createReadStream(archive));
}

function changesOf(files: FileTree) {
  return changesAbove(files, files.has('/bin/busybox') ? base : new Map());
}

const CONFIG = ['Env', 'Cmd', 'Entrypoint', 'WorkingDir', 'User', 'Volumes', 'ExposedPorts', 'Labels', 'OnBuild'];
const MORE_CONFIG = ['StopSignal', 'Healthcheck', 'Shell'];

/** Fields that say something. */
async function configOf(url: string, image: string): Promise<Readonly<Record<string, unknown>>> {
  const { Author, Config } = await clientOf(url).getImage(image).inspect();
  const isEmpty = (value: unknown) =>
    value == null || value === '' || (typeof value === 'object' && Object.keys(value).length === 0);
  const fields = [...CONFIG, ...MORE_CONFIG].map((field) => [field, Reflect.get(Config, field)] as const);
  return Object.fromEntries([...fields, ['Author', Author]].filter(([, value]) => !isEmpty(value)));
}

async function filesOf(url: string, image: string): Promise<FileTree> {
  const container = await clientOf(url).createContainer({ Image: image, Cmd: ['any'] });
  const files = await readFileTree(Readable.from(await container.export()));
  await container.remove({ v: true });
  return files;
}

/** Cheaper than a process of docker's client for each question. */
function clientOf(url: string): Docker {
  return new Docker({ socketPath: url.replace('unix://', '') });
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

/** Nothing where there is no such file. */
async function readJson<T>(name: string, file: string): Promise<T> {
  const text = await readFile(join(FIXTURES, name, file), 'utf8').catch(() => '{}');
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
