/**
 * Engines side by side: berthd and dockerd behind the same docker client, and podman. All of them live in the
 * benchmark's directory and network namespace, and are ended with it.
 */
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type Place, type Program, run, startEngine, startProgram, succeed } from '../fixtures/programs.ts';

export interface Engine extends AsyncDisposable {
  readonly name: string;
  /** Its own server process; undefined for podman, which has none. */
  readonly pid: number | undefined;
  readonly socketPath: string | undefined;
  /** Directories that hold what images are made of: an entry for each layer or blob. */
  readonly contentPaths: readonly string[];
  /** Runs a command of the docker client, or of podman; it must succeed. Answers stdout. */
  docker(...args: readonly string[]): Promise<string>;
}

const LONG_MS = 600_000;

export interface EngineOptions {
  readonly name?: string;
  readonly args?: readonly string[];
}

export async function startBerthd(place: Place, options: EngineOptions = {}): Promise<Engine> {
  const engine = await startEngine(place, options);
  const contentPaths = ['layers', 'layers/unpacked', 'content/blobs/sha256'].map((name) =>
    join(engine.directory, name),
  );
  return dockerEngine(place, { name: 'berthd', program: engine, host: engine.url, contentPaths });
}

/** Where a peer runs: a command that starts others there, `nsenter` or `unshare` with arguments. */
export interface Elsewhere {
  readonly through?: readonly string[];
}

export interface DockerdOptions extends Elsewhere {
  /** More arguments. */
  readonly args?: readonly string[];
}

export async function startDockerd(place: Place, { through = [], args = [] }: DockerdOptions = {}): Promise<Engine> {
  const at = (name: string) => join(place.root, 'dockerd', name);
  await mkdir(at('data'), { recursive: true });
  // It must not read the host's configuration.
  await writeFile(at('config.json'), '{}');
  const host = `unix://${at('docker.sock')}`;
  const [command = '', ...before] = [...through, 'dockerd'];
  const program = await startProgram(place, {
    name: 'dockerd',
    command,
    args: [
      ...before,
      ...['--host', host, '--data-root', at('data'), '--exec-root', at('exec'), '--pidfile', at('pid')],
      ...['--config-file', at('config.json'), '--log-level', 'warn', ...args],
    ],
    ready: async (started) => {
      const asked = await run('docker', ['-H', host, 'version'], { env: place.env });
      return asked.code === 0 ? started : undefined;
    },
  });
  return dockerEngine(place, { name: 'dockerd', program, host, contentPaths: [at('data/overlay2')] });
}

interface DockerHost {
  readonly name: string;
  readonly program: Program;
  readonly host: string;
  readonly contentPaths: readonly string[];
}

function dockerEngine(place: Place, { name, program, host, contentPaths }: DockerHost): Engine {
  return {
    name,
    pid: program.pid,
    socketPath: host.replace('unix://', ''),
    contentPaths,
    docker: (...args) => succeed('docker', ['-H', host, ...args], { env: place.env, timeoutMs: LONG_MS }),
    [Symbol.asyncDispose]: () => program[Symbol.asyncDispose](),
  };
}

/** podman without a configuration of the host's; `registry` may be spoken to over plain http. */
export async function openPodman(place: Place, registry: string, { through = [] }: Elsewhere = {}): Promise<Engine> {
  const at = (name: string) => join(place.root, 'podman', name);
  await mkdir(at('tmp'), { recursive: true });
  await writeFile(at('policy.json'), JSON.stringify({ default: [{ type: 'insecureAcceptAnything' }] }));
  await writeFile(at('registries.conf'), `[[registry]]\nlocation = "${registry}"\ninsecure = true\n`);
  const env = { ...place.env, CONTAINERS_REGISTRIES_CONF: at('registries.conf'), TMPDIR: at('tmp') };
  const common = ['--root', at('root'), '--runroot', at('run'), '--cgroup-manager', 'cgroupfs'];
  const storage = ['--storage-driver', 'overlay', '--network-config-dir', at('net'), '--tmpdir', at('tmp')];
  const docker = (...args: readonly string[]) => {
    const [verb = '', ...rest] = args;
    const extra: Readonly<Record<string, readonly string[]>> = {
      pull: ['--signature-policy', at('policy.json')],
      // Its default limits are more than a process may ask for where the host itself is a container.
      run: ['--ulimit', 'nofile=1024:4096', '--ulimit', 'nproc=4096:4096'],
    };
    const [command = '', ...before] = [...through, 'podman'];
    return succeed(command, [...before, ...common, ...storage, verb, ...(extra[verb] ?? []), ...rest], {
      env,
      timeoutMs: LONG_MS,
    });
  };
  return {
    name: 'podman',
    pid: undefined,
    socketPath: undefined,
    contentPaths: [],
    docker,
    async [Symbol.asyncDispose]() {
      await docker('rm', '--all', '--force', '--time', '0');
      await docker('rmi', '--all', '--force');
      // podman keeps its overlay directory mounted on itself.
      await run('umount', [at('root/overlay')], { env });
      await rm(at(''), { recursive: true, force: true });
    },
  };
}
