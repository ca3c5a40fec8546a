/**
 * One build: for each platform the stages that the target needs, side by side, and the image of the target.
 */
import { type Digest, digestOf } from '../../shared/digest.ts';
import type { Ignore } from '../../shared/dockerignore.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageHistory, ImageRunConfig, Platform } from '../../shared/oci.ts';
import { type Dockerfile, parseDockerfile, type Stage } from '../dockerfile/dockerfile.ts';
import type { FromInstruction } from '../dockerfile/instructions.ts';
import { platformArgs } from '../dockerfile/predefined.ts';
import { globalScope, resolveInstruction } from '../dockerfile/resolve.ts';
import type { ImageId, ImageLayer, Lease } from '../images/images.ts';
import { type ImagePlatform, parsePlatform, type WantedPlatform } from '../images/platform.ts';
import { resolveBase } from './bases.ts';
import type { BuildEvent, BuildRequest, BuiltImage } from './builds.ts';
import { copyWhole } from './copy-step.ts';
import { imageConfigOf, scratchConfig } from './image-config.ts';
import { baseSource, type Plan, planBuild, type Source, stageName } from './plan.ts';
import type { InlineCache } from './remote-cache.ts';
import type { MountTree } from './run-mounts.ts';
import { clamped, madeAt } from './source-date.ts';
import { buildStage } from './stage.ts';
import { type BuildWork, createTrees, type StagePorts, type StageState } from './stage-work.ts';
import type { RunningStep, Steps } from './steps.ts';

/** Larger ones are refused, too, once they are read as a Dockerfile. */
const DOCKERFILE_MAX_BYTES = 4 * 1024 * 1024;
/** What a stage begins with that has no base. */
const SCRATCH = { id: digestOf(''), name: 'scratch' } as const;

/** The Dockerfile of a request. @throws AppError 'not-found', 'invalid' */
export async function readDockerfile({
  context,
  dockerfile: { name, text },
}: Pick<BuildRequest, 'context' | 'dockerfile'>): Promise<Dockerfile> {
  const found = text ?? (await context.text(name, DOCKERFILE_MAX_BYTES));
  if (found === undefined)
    throw new AppError('not-found', `failed to read dockerfile: open ${name}: no such file or directory`);
  return parseDockerfile(found, { name });
}

export interface PlatformBuild {
  readonly signal: AbortSignal;
  readonly ports: StagePorts;
  readonly host: WantedPlatform;
  readonly request: BuildRequest;
  readonly dockerfile: Dockerfile;
  /** What was left out of the context. */
  readonly ignore: Ignore | undefined;
  readonly platform: Platform;
  /** undefined = there is only one. */
  readonly platformName: string | undefined;
  readonly lease: Lease;
  readonly steps: Steps;
  readonly onEvent: (event: BuildEvent) => void;
}

/** What a build has come to, before it is an image. */
export interface BuiltStage {
  readonly state: StageState;
  /** Names what is built: a change of any input that counts changes it. */
  readonly plan: Plan;
  /** The images that it stands on or takes files from, by platform and reference. */
  readonly bases: ReadonlyMap<string, { readonly reference: string; readonly id: ImageId }>;
}

/** Builds the target for one platform. @throws what Builds.build says */
export async function buildPlatform(options: PlatformBuild): Promise<BuiltStage> {
  const { ports, host, request, dockerfile, platform, lease, steps } = options;
  const predefined = platformArgs(platform, platformOf(host), { stage: request.target });
  const globals = globalScope(dockerfile, { buildArgs: request.buildArgs, predefined });
  const contexts = new Set(Object.keys(request.namedContexts ?? {}));
  const baseOf = (stage: Stage) => resolveInstruction(stage.from, globals).instruction.image;
  const plan = planBuild(dockerfile, { target: request.target, contexts, baseOf });
  options.onEvent({
    kind: 'planned',
    platform: options.platformName,
    stages: plan.stages.map((stage) => ({ name: stageName(stage), steps: stage.instructions.length + 1 })),
  });

  // The first failure stops the other stages; all of them are waited for, so that nothing runs on after the answer.
  const stop = new AbortController();
  const signal = AbortSignal.any([options.signal, stop.signal]);
  const tree = createTrees(ports.layers);
  const stages = new Map<number, Promise<StageState>>();
  const trees = new Map<string, Promise<MountTree>>();
  const waits = new Map<number, Set<number>>();
  const files = async (source: FilesSource, wanted: Platform): Promise<MountTree> => {
    const chain = await chainOf(source, wanted);
    return { chain, tree: await tree(chain) };
  };
  const chainOf = async (source: FilesSource, wanted: Platform): Promise<readonly Digest[]> => {
    if (source.kind === 'image') return (await image(source.reference, wanted, () => {})).chain;
    const named = request.namedContexts?.[source.name];
    if (named === undefined) throw new RangeError('a named context is none');
    if (named.kind === 'context') return named.context.chain;
    return (await image(named.reference, wanted, () => {})).chain;
  };
  const bases = new Map<string, { readonly reference: string; readonly id: ImageId }>();
  const image = async (reference: string, wanted: Platform, onProgress: RunningStep['progress']) => {
    const found = await resolveBase(ports.images, reference, { platform: wanted, lease, request, signal, onProgress });
    bases.set(JSON.stringify([wanted, reference]), { reference, id: found.id });
    return found;
  };

  const work: BuildWork = {
    ...{ ports, request, dockerfile, platform, globals, contexts, lease, steps, signal, tree },
    platformName: options.platformName,
    ignored: options.ignore,
    async stage(index, waiting) {
      mustNotWait(waits, waiting, index);
      return await begin(index);
    },
    base: (stage, from, step) => baseState({ work, dockerfile, image }, { stage, from, step }),
    files(source, wanted) {
      const name = JSON.stringify([source, wanted]);
      const known = trees.get(name) ?? files(source, wanted);
      trees.set(name, known);
      return known;
    },
    context: async () => ({ chain: request.context.chain, tree: await tree(request.context.chain) }),
  };

  const begin = (index: number): Promise<StageState> => {
    const stage = dockerfile.stages[index];
    if (stage === undefined) throw new RangeError('there is no such stage');
    const known = stages.get(index) ?? buildStage(work, stage);
    stages.set(index, known);
    return known;
  };
  let failure: unknown;
  const running = plan.stages.map((stage) =>
    begin(stage.index).catch((error: unknown) => {
      failure ??= error;
      stop.abort(new AppError('timeout', 'cannot go on: another stage has failed'));
      throw error;
    }),
  );
  const settled = await Promise.allSettled(running);
  if (settled.some(({ status }) => status === 'rejected')) throw failure;
  return { state: await begin(plan.target.index), plan, bases };
}

/**
 * Writes down who waits for whom. The plan has no cycles, but triggers of a base image are only known later.
 * @throws AppError 'invalid' when each would wait for the other
 */
function mustNotWait(waits: Map<number, Set<number>>, waiting: Stage, index: number): void {
  const pending = [index];
  const seen = new Set<number>();
  for (let at = pending.pop(); at !== undefined; at = pending.pop()) {
    if (at === waiting.index)
      throw new AppError('invalid', `circular dependency detected on stage: ${stageName(waiting)}`);
    if (seen.has(at)) continue;
    seen.add(at);
    pending.push(...(waits.get(at) ?? []));
  }
  const mine = waits.get(waiting.index) ?? new Set<number>();
  waits.set(waiting.index, mine.add(index));
}

type FilesSource = Exclude<Source, { kind: 'stage' | 'scratch' }>;

interface BaseContext {
  readonly work: BuildWork;
  readonly dockerfile: Dockerfile;
  image(reference: string, platform: Platform, onProgress: RunningStep['progress']): ReturnType<typeof resolveBase>;
}

async function baseState(
  { work, dockerfile, image }: BaseContext,
  { stage, from, step }: { readonly stage: Stage; readonly from: FromInstruction; readonly step: RunningStep },
): Promise<StageState> {
  const { contexts, ports, globals } = work;
  const platform =
    from.platform === undefined ? work.platform : platformOf(parsePlatform(from.platform, wantedOf(work.platform)));
  const source = baseSource(dockerfile, stage, { contexts, baseOf: () => from.image });
  const nothing = { layers: [], history: [], platform, author: undefined, createdAt: undefined };
  if (source.kind === 'scratch')
    return { ...nothing, config: scratchConfig(), base: SCRATCH, scope: globals.stage(environmentOf(scratchConfig())) };
  if (source.kind === 'stage') {
    const state = await work.stage(source.index, stage);
    return { ...state, scope: state.scope.child() };
  }
  const named = source.kind === 'context' ? work.request.namedContexts?.[source.name] : undefined;
  if (source.kind === 'context' && named?.kind === 'context') {
    const { tree } = await work.files(source, platform);
    const { layer, createdAt } = await copyWhole(work, { stage, tree, text: from.text });
    const state = { ...nothing, createdAt, config: scratchConfig(), base: { ...SCRATCH, name: source.name } };
    return { ...state, layers: layer === undefined ? [] : [layer], scope: globals.stage(environmentOf(state.config)) };
  }
  const reference = source.kind === 'image' ? source.reference : named?.kind === 'image' ? named.reference : '';
  const found = await image(reference, platform, step.progress);
  const layers: readonly ImageLayer[] = await ports.images.layers(found.id);
  const { config, history, author, created } = found.config;
  const createdAt = created === undefined ? undefined : new Date(created);
  return {
    layers,
    config,
    history,
    platform: { os: found.config.os, architecture: found.config.architecture, ...variantOf(found.config.variant) },
    author,
    createdAt: createdAt === undefined || Number.isNaN(createdAt.getTime()) ? undefined : createdAt,
    base: { id: found.id, name: reference },
    scope: globals.stage(environmentOf(config)),
  };
}

function environmentOf(config: ImageRunConfig): readonly string[] {
  return config.Env ?? [];
}

function wantedOf({ os, architecture, variant }: Platform): WantedPlatform {
  return { os, architecture, variant, explicit: true };
}

function variantOf(variant: string | undefined): { readonly variant?: string } {
  return variant === undefined ? {} : { variant };
}

export function platformOf({ os, architecture, variant }: ImagePlatform): Platform {
  return { os, architecture, ...variantOf(variant) };
}

/** Makes the image of a stage. */
export async function assembleStage(
  { ports, request, lease }: Pick<PlatformBuild, 'ports' | 'request' | 'lease'>,
  state: StageState,
  inlineCache: InlineCache | undefined,
): Promise<BuiltImage> {
  const { sourceDateEpoch } = request;
  const { layers, config, platform, author, createdAt } = state;
  const madeOn = createdAt === undefined ? madeAt(ports.now(), sourceDateEpoch) : clamped(createdAt, sourceDateEpoch);
  // Nothing was made before these lines.
  const dated = (entry: ImageHistory): ImageHistory => ({ created: madeOn.toISOString(), ...entry });
  const { id, manifest } = await ports.images.assemble({
    layers,
    config: imageConfigOf({
      ...{ platform, config, author, inlineCache },
      createdAt: madeOn,
      history: state.history.map((entry) => dated(clampedEntry(entry, sourceDateEpoch))),
      labels: request.labels ?? {},
    }),
    annotations: request.annotations,
    lease,
  });
  return { id, platform, manifest };
}

function clampedEntry(entry: ImageHistory, epochSeconds: number | undefined): ImageHistory {
  const at = new Date(entry.created ?? '');
  if (epochSeconds === undefined || Number.isNaN(at.getTime())) return entry;
  return at.getTime() <= epochSeconds * 1000 ? entry : { ...entry, created: clamped(at, epochSeconds).toISOString() };
}
