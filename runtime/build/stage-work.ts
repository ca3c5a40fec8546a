/**
 * What the stages of a build work with: the build for one platform as they see it, and what there is after each
 * instruction.
 */
import type { Digest } from '../../shared/digest.ts';
import type { Ignore } from '../../shared/dockerignore.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageHistory, ImageRunConfig, Platform } from '../../shared/oci.ts';
import type { Slots } from '../../shared/slots.ts';
import type { Dockerfile, Stage } from '../dockerfile/dockerfile.ts';
import type { FromInstruction, Instruction } from '../dockerfile/instructions.ts';
import type { Scope } from '../dockerfile/scope.ts';
import type { ImageId, ImageLayer, Images, Lease } from '../images/images.ts';
import type { LayerStore } from '../layers/layer-store.ts';
import type { BuildRequest } from './builds.ts';
import type { FileDigests } from './file-digests.ts';
import { type FileTree, openFileTree } from './file-tree.ts';
import type { GitTrees } from './git.ts';
import { fromSource, type Source, stageName } from './plan.ts';
import type { RemoteFiles } from './remote-files.ts';
import type { RunPorts } from './run.ts';
import type { MountPorts, MountTree } from './run-mounts.ts';
import type { RunningStep, Steps } from './steps.ts';

/** What there is after an instruction. */
export interface StageState {
  /** Base first. */
  readonly layers: readonly ImageLayer[];
  readonly config: ImageRunConfig;
  readonly history: readonly ImageHistory[];
  readonly platform: Platform;
  readonly author: string | undefined;
  /** Of the last step; undefined as long as nobody knows. */
  readonly createdAt: Date | undefined;
  /** The image that the stage began with, for `ps` while a RUN runs. */
  readonly base: { readonly id: ImageId; readonly name: string };
  readonly scope: Scope;
}

export interface StagePorts extends RunPorts, MountPorts {
  readonly images: Images;
  readonly layers: LayerStore;
  readonly digests: FileDigests;
  readonly remote: RemoteFiles;
  readonly git: GitTrees;
  /** Commands and copies that work at the same time, in the whole engine. */
  readonly slots: Slots;
  readonly now: () => Date;
  /** Whether this was asked before, of a step that changes no file: it has no record, and is told as cached all the same. */
  readonly wasDescribed: (key: string) => boolean;
  /** Why no program of this platform can run here; undefined when it can. */
  readonly runObstacle: (platform: Platform) => Promise<string | undefined>;
}

/** A build for one platform, as its stages see it. */
export interface BuildWork {
  readonly signal: AbortSignal;
  readonly ports: StagePorts;
  readonly request: BuildRequest;
  readonly dockerfile: Dockerfile;
  readonly platform: Platform;
  /** How steps call the platform; undefined = there is only one. */
  readonly platformName: string | undefined;
  /** Of the arguments before the first stage. */
  readonly globals: Scope;
  readonly contexts: ReadonlySet<string>;
  /** What was left out of the context. */
  readonly ignored: Ignore | undefined;
  readonly lease: Lease;
  readonly steps: Steps;
  /** Another stage's end. @throws AppError 'invalid' when that stage waits for this one */
  stage(index: number, waiting: Stage): Promise<StageState>;
  /** What a stage begins with. */
  base(stage: Stage, from: FromInstruction, step: RunningStep): Promise<StageState>;
  /** The files of an image, for the platform, or of a context. */
  files(source: Exclude<Source, { kind: 'stage' | 'scratch' }>, platform: Platform): Promise<MountTree>;
  /** The files of the build's context. */
  context(): Promise<MountTree>;
  /** Called once per layer and build: trees are read again and again. */
  tree(layers: readonly Digest[]): Promise<FileTree>;
}

export interface Performing<T extends Instruction = Instruction> {
  readonly state: StageState;
  readonly stage: Stage;
  /** Resolved. */
  readonly instruction: T;
  readonly step: RunningStep;
  readonly keepsCmd: boolean;
}

/** Where a `--from` stands. */
export type Where = Pick<Performing, 'stage' | 'state'>;

/** What `--from=NAME` leads to. */
export async function treeFrom(work: BuildWork, name: string | undefined, { stage, state }: Where): Promise<MountTree> {
  if (name === undefined) return await work.context();
  const source = fromSource(work.dockerfile, name, work.contexts);
  if (source.kind === 'scratch') throw new AppError('invalid', 'scratch has no files');
  if (source.kind !== 'stage') return await work.files(source, state.platform);
  const { layers } = await work.stage(source.index, stage);
  const chain = layers.map((layer) => layer.layerId);
  return { chain, tree: await work.tree(chain) };
}

/** The files of a state, as steps upon it see them. */
export async function treeOfState(work: BuildWork, { layers }: StageState): Promise<FileTree> {
  return await work.tree(layers.map((layer) => layer.layerId));
}

/** Whether this stage looks nothing up. */
export function isFresh({ request: { noCache } }: BuildWork, stage: Stage): boolean {
  if (typeof noCache === 'boolean' || noCache === undefined) return noCache === true;
  return noCache.some((name) => name.toLowerCase() === stageName(stage) || name === String(stage.index));
}

export function createTrees(layers: LayerStore): (chain: readonly Digest[]) => Promise<FileTree> {
  const open = new Map<Digest, ReturnType<LayerStore['tree']>>();
  const remembering: Pick<LayerStore, 'get' | 'tree' | 'openFile' | 'pathOf'> = {
    get: (id) => layers.get(id),
    openFile: (layer, entry) => layers.openFile(layer, entry),
    pathOf: (layer) => layers.pathOf(layer),
    tree(id) {
      const known = open.get(id) ?? layers.tree(id);
      open.set(id, known);
      return known;
    },
  };
  return (chain) => openFileTree(remembering, chain);
}
