/**
 * RUN: a command of a Dockerfile in a container of this engine, and what it changed as a layer tar.
 *
 * What is mounted into it is resolved inside read-only trees before, so that no link of an image leads to the host
 * (CVE-2024-1753, CVE-2024-9407, CVE-2024-23651); what the runtime makes to mount on is left out of the layer, and
 * nothing is deleted for that (CVE-2024-23652). The name of each container is written down before it is made, so that
 * the next engine removes what a crash left.
 */
import type { Readable } from 'node:stream';
import type { Database, Migration } from '../../shared/database.ts';
import type { Digest } from '../../shared/digest.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import type { Cancelable } from '../../shared/streams.ts';
import type { Containers, OutputChunk } from '../containers/containers.ts';
import { parseCreateRequest } from '../containers/request.ts';
import { changesOf } from '../layers/changes.ts';
import { diffUpper } from '../layers/diff.ts';
import type { Chain } from '../layers/layer-store.ts';
import type { Snapshotter } from '../layers/snapshotter.ts';
import { nameToUtf8 } from '../layers/tree.ts';
import type { RunOptions } from './builds.ts';
import { type FileTree, lookUp } from './file-tree.ts';

export interface RunTables {
  /** Containers of steps that run, or that a crash left. */
  buildContainer: { name: string };
}
export const BUILD_RUN_MIGRATIONS: readonly Migration[] = [
  { name: 'build-run-1', statements: ['create table buildContainer (name text primary key) strict, without rowid'] },
];

/** A path of the host that the command sees. */
export interface RunMount {
  readonly source: string;
  readonly target: string;
  readonly writable: boolean;
}
export interface TmpfsMount {
  readonly target: string;
  readonly sizeBytes: number | undefined;
}

export interface RunRequest {
  readonly argv: readonly string[];
  readonly env: readonly string[];
  /** More of it, which nothing writes down: secrets, and proxies with passwords. */
  readonly privateEnv: readonly string[];
  readonly user: string;
  readonly hostname: string;
  readonly workingDirectory: string;
  readonly chain: Chain;
  /** What the chain shows. */
  readonly tree: FileTree;
  /** Shown as what the container was made from. */
  readonly imageId: Digest;
  readonly imageName: string;
  readonly platform: { readonly os: string; readonly architecture: string };
  readonly mounts: readonly RunMount[];
  readonly tmpfs: readonly TmpfsMount[];
  readonly network: string;
  readonly isPrivileged: boolean;
  readonly options: RunOptions;
  /** Times in the layer are at most this; seconds since 1970. */
  readonly latestSeconds: number | undefined;
}

/** A command that has ended well. Disposing removes its container. */
export interface FinishedRun extends AsyncDisposable {
  /** What it changed; the caller owns the stream. */
  changes(): Promise<Readable>;
}

export interface RunPorts {
  readonly containers: Containers;
  readonly snapshots: Snapshotter;
  readonly database: Database<RunTables>;
  /** 64 hexadecimal characters. */
  readonly randomId: () => string;
}

export interface RunHooks extends Cancelable {
  readonly onStarted: (containerId: string) => void;
  readonly onOutput: (chunk: OutputChunk) => void;
}

const NAME_CHARACTERS = 24;
/** Every container has them mounted. */
const NETWORK_FILES = ['/etc/hosts', '/etc/hostname', '/etc/resolv.conf'];

/** @throws AppError 'conflict' when the command fails, with its exit code as `detail.exitCode`; 'timeout' (cancelled) */
export async function runCommandStep(ports: RunPorts, request: RunRequest, hooks: RunHooks): Promise<FinishedRun> {
  const { containers } = ports;
  const { signal } = hooks;
  signal?.throwIfAborted();
  await using undo = new AsyncDisposableStack();
  const name = `build-${ports.randomId().slice(0, NAME_CHARACTERS)}`;
  await ports.database.write((transaction) => transaction.insertInto('buildContainer').values({ name }).execute());
  // One step, so that a container that stays keeps its row and the next engine removes it.
  undo.defer(async () => {
    await removeContainer(containers, name);
    await forget(ports, name);
  });
  const { imageId, chain, platform } = request;
  const { id } = await containers.create(parseCreateRequest(createBody(request)), {
    name,
    base: { imageId, chain, platform, config: {} },
  });

  const { result } = await containers.wait(id, { condition: 'next-exit' });
  await using attachment = await containers.attach(id, { stdout: true, stderr: true, stream: true });
  const stop = () => void containers.kill(id, 'SIGKILL').catch(() => {});
  signal?.addEventListener('abort', stop, { once: true });
  try {
    await containers.start(id, { signal, env: request.privateEnv });
    hooks.onStarted(id);
    if (signal?.aborted) stop();
    for await (const chunk of attachment.output) hooks.onOutput(chunk);
    const { exitCode } = await result;
    signal?.throwIfAborted();
    if (exitCode !== 0) throw await commandFailed(containers, request, { id, exitCode });
  } finally {
    signal?.removeEventListener('abort', stop);
  }

  const owned = undo.move();
  return {
    async changes() {
      const { mounts, tmpfs, tree, latestSeconds } = request;
      const upper = ports.snapshots.upperOf(id);
      const targets = [...mounts, ...tmpfs].map(({ target }) => target);
      // The runtime follows the image's links to where it mounts, and that is where it leaves something.
      const mountPoints = [...targets, ...NETWORK_FILES].map((target) => `/${nameToUtf8(lookUp(tree, target).path)}`);
      const changed = new Set((await changesOf(upper, tree.root, { mountPoints })).map(({ path }) => path));
      return diffUpper(upper, { includes: (path) => changed.has(path), latestSeconds });
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** At the start of an engine: removes what builds of an earlier one left. */
export async function sweepRuns(ports: RunPorts): Promise<void> {
  for (const { name } of await ports.database.kysely.selectFrom('buildContainer').selectAll().execute()) {
    await removeContainer(ports.containers, name);
    await forget(ports, name);
  }
}

async function forget({ database }: RunPorts, name: string): Promise<void> {
  await database.write((transaction) => transaction.deleteFrom('buildContainer').where('name', '=', name).execute());
}

async function removeContainer(containers: Containers, name: string): Promise<void> {
  try {
    await containers.remove(name, { force: true, volumes: true });
  } catch (error) {
    // Somebody may have removed it by hand.
    if (!isKind(error, 'not-found')) throw error;
  }
}

async function commandFailed(
  containers: Containers,
  { argv }: RunRequest,
  { id, exitCode }: { readonly id: string; readonly exitCode: number },
): Promise<AppError> {
  const { state } = (await containers.inspect(id)).record;
  const why = state.status === 'exited' && state.oomKilled ? ' (it ran out of memory)' : '';
  return new AppError(
    'conflict',
    `process ${JSON.stringify(argv.join(' '))} did not complete successfully: exit code: ${exitCode}${why}`,
    { detail: { exitCode } },
  );
}

function createBody(request: RunRequest): Record<string, unknown> {
  const { options } = request;
  const { memoryBytes: Memory, memorySwapBytes: MemorySwap, cpuShares: CpuShares, cgroupParent } = options;
  return {
    Image: request.imageName,
    Cmd: request.argv,
    Entrypoint: [],
    Env: request.env,
    User: request.user,
    Hostname: request.hostname,
    WorkingDir: request.workingDirectory,
    HostConfig: {
      NetworkMode: request.network,
      Privileged: request.isPrivileged,
      ExtraHosts: options.extraHosts,
      ShmSize: options.shmBytes,
      Ulimits: options.ulimits,
      SecurityOpt: options.securityOptions,
      CgroupParent: cgroupParent,
      ...{ Memory, MemorySwap, CpuShares },
      CpuPeriod: options.cpuPeriod,
      CpuQuota: options.cpuQuota,
      CpusetCpus: options.cpusetCpus,
      CpusetMems: options.cpusetMems,
      Mounts: [
        ...request.mounts.map(({ source, target, writable }) => ({
          Type: 'bind',
          Source: source,
          Target: target,
          ReadOnly: !writable,
        })),
        ...request.tmpfs.map(({ target, sizeBytes }) => ({
          Type: 'tmpfs',
          Target: target,
          TmpfsOptions: { SizeBytes: sizeBytes },
        })),
      ],
    },
  };
}
