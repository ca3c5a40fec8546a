/** RUN: what its key is made of, what the command gets, and the layer of what it changed. */
import { AppError } from '../../shared/errors.ts';
import { wordsOf } from '../dockerfile/image-config.ts';
import type { RunInstruction } from '../dockerfile/instructions.ts';
import { proxyEnvironment } from '../dockerfile/predefined.ts';
import type { StepResult } from './cache.ts';
import { runCommandStep } from './run.ts';
import { type PlannedMount, planMounts, prepareMounts } from './run-mounts.ts';
import { digestSelection, selectFiles } from './selection.ts';
import { type BuildWork, isFresh, type Performing, treeFrom, treeOfState } from './stage-work.ts';
import { stepKey } from './step-key.ts';

const SCRIPT_MODE = 0o755;
/** The same in each build, because commands write it down; BuildKit's. */
const HOSTNAME = 'buildkitsandbox';

/** @throws AppError 'conflict' (the command failed), 'denied' (an entitlement), 'not-found', 'unsupported' */
export async function runStep(
  work: BuildWork,
  { state, stage, instruction, step }: Performing<RunInstruction>,
): Promise<StepResult & { readonly isCached: boolean }> {
  const { request, ports, signal, lease } = work;
  const { config, layers, platform } = state;
  const { security } = instruction;
  const run = request.run ?? {};
  const network = networkOf(instruction, run.networkMode);
  for (const entitlement of needed(instruction))
    if (run.allow?.includes(entitlement) !== true)
      throw new AppError('denied', `${entitlement} is not allowed: allow it by --allow ${entitlement}`);

  const argv = wordsOf(config, instruction.command);
  const workingDirectory = config.WorkingDir || '/';
  const hostname = request.buildArgs?.BUILDKIT_SANDBOX_HOSTNAME || HOSTNAME;
  const env = environmentOf(config.Env ?? [], state.scope.args());
  const mounts = await planMounts(instruction.mounts, {
    workingDirectory,
    cacheNamespace: request.buildArgs?.BUILDKIT_CACHE_MOUNT_NS,
    secrets: request.secrets ?? new Map(),
    ssh: request.ssh ?? new Map(),
    treeOf: (from) => treeFrom(work, from, { stage, state }),
    digestOf: async ({ tree }, source) => {
      const selection = await selectFiles({ tree, sources: [source], owners: 'kept' });
      return await digestSelection(selection, ports.digests);
    },
  });
  const key = stepKey('run', [
    layers.map((layer) => layer.diffId),
    [platform.os, platform.architecture, platform.variant],
    [argv, instruction.command.form === 'file' ? instruction.command.content : null],
    [env, config.User ?? '', workingDirectory],
    [network, security, mounts.key, hostname],
    request.sourceDateEpoch,
  ]);

  const make = async (): Promise<StepResult> => {
    const obstacle = await ports.runObstacle(platform);
    if (obstacle !== undefined) throw new AppError('unsupported', `cannot run a command: ${obstacle}`);
    const tree = await treeOfState(work, state);
    // The mounts first: a command that waits for a locked cache must not keep others from their turn.
    await using prepared = await prepareMounts(ports, [...scriptOf(instruction), ...mounts.mounts], { signal });
    using _ = await ports.slots.acquire('steps', signal);
    await using finished = await runCommandStep(
      ports,
      {
        argv,
        env,
        privateEnv: [...proxiesOf(env, request.buildArgs ?? {}), ...mounts.env],
        user: config.User ?? '',
        hostname,
        workingDirectory,
        chain: layers.map((layer) => layer.layerId),
        tree,
        imageId: state.base.id,
        imageName: state.base.name,
        platform,
        mounts: prepared.mounts,
        tmpfs: prepared.tmpfs,
        network,
        isPrivileged: security === 'insecure',
        options: run,
        latestSeconds: request.sourceDateEpoch,
      },
      {
        onStarted: step.running,
        onOutput: ({ stream, bytes }) => step.output(stream, bytes),
        signal,
      },
    );
    const layer = await ports.images.putLayer(await finished.changes(), { lower: layers, lease, signal });
    return { layer, createdAt: ports.now() };
  };
  return await work.steps.obtain({ key, isFresh: isFresh(work, stage), lower: layers, make }, instruction.text, work);
}

function needed({ network, security }: RunInstruction): readonly string[] {
  return [...(network === 'host' ? ['network.host'] : []), ...(security === 'insecure' ? ['security.insecure'] : [])];
}

function networkOf({ network }: RunInstruction, wanted: string | undefined): string {
  if (network !== 'default') return network;
  return wanted === undefined || wanted === 'default' ? '' : wanted;
}

/** The image's variables, and the arguments that are declared; an argument hides a variable of its name. */
function environmentOf(env: readonly string[], args: ReadonlyMap<string, string>): readonly string[] {
  const nameOf = (entry: string) => entry.split('=', 1)[0] ?? '';
  const own = env.filter((entry) => !args.has(nameOf(entry)));
  return [...own, ...[...args].map(([name, value]) => `${name}=${value}`)];
}

/** The caller's proxies, where nobody has said otherwise: they are for commands, and no part of what these make. */
function proxiesOf(env: readonly string[], buildArgs: Readonly<Record<string, string>>): readonly string[] {
  const known = new Set(env.map((entry) => entry.split('=', 1)[0]));
  return Object.entries(proxyEnvironment(buildArgs))
    .filter(([name]) => !known.has(name))
    .map(([name, value]) => `${name}=${value}`);
}

/** A here-document with `#!` is a program of its own. */
function scriptOf({ command }: RunInstruction): readonly PlannedMount[] {
  if (command.form !== 'file') return [];
  const bytes = Buffer.from(command.content);
  return [{ kind: 'file', target: `/dev/pipes/${command.name}`, bytes, mode: SCRIPT_MODE, uid: 0, gid: 0 }];
}
