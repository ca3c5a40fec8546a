/**
 * One stage of a Dockerfile, line by line: what its base is, what each instruction makes of files, config and history.
 */
import { digestOf, hexOf } from '../../shared/digest.ts';
import { AppError } from '../../shared/errors.ts';
import type { ImageHistory } from '../../shared/oci.ts';
import { parseTrigger, type Stage } from '../dockerfile/dockerfile.ts';
import { changeConfig, wordsOf } from '../dockerfile/image-config.ts';
import type { Instruction } from '../dockerfile/instructions.ts';
import { resolveInstruction } from '../dockerfile/resolve.ts';
import { errorAt } from '../dockerfile/source.ts';
import type { StepResult } from './cache.ts';
import { copyStep } from './copy-step.ts';
import { baseConfig } from './image-config.ts';
import { stageName } from './plan.ts';
import { runStep } from './run-step.ts';
import { madeAt } from './source-date.ts';
import { type BuildWork, isFresh, type Performing, type StageState } from './stage-work.ts';
import type { RunningStep } from './steps.ts';
import { workdirStep } from './workdir-step.ts';

/** @throws AppError with the place in the Dockerfile; `detail` is a BuildFailure */
export async function buildStage(work: BuildWork, stage: Stage): Promise<StageState> {
  const { instruction: from } = located(stage.from, () => resolveInstruction(stage.from, work.globals));
  const total = stage.instructions.length + 1;
  const name = stageName(stage);
  let index = 0;
  const during = async (
    instruction: Instruction,
    make: (step: RunningStep) => Promise<{ readonly state: StageState; readonly isCached: boolean }>,
  ): Promise<StageState> => {
    index += 1;
    const about = {
      text: instruction.text,
      stage: name,
      position: { index, total: Math.max(total, index) },
      platform: work.platformName,
      line: instruction.at.line,
    };
    const { state } = await work.steps.during(about, async (step) => {
      work.signal.throwIfAborted();
      try {
        const made = await make(step);
        return { ...made, result: resultOf(made.state, instruction) };
      } catch (error) {
        throw failureAt(instruction, error);
      }
    });
    return state;
  };

  let state = await during(from, async (step) => ({ state: await work.base(stage, from, step), isCached: false }));
  const triggers = (state.config.OnBuild ?? []).map((expression) => parseTrigger(expression, stage.from.at));
  state = { ...state, config: baseConfig(state.config) };
  let hasCmd = false;
  for (const written of [...triggers, ...stage.instructions]) {
    const before = state;
    state = await during(written, async (step) => {
      const { instruction } = resolveInstruction(written, before.scope);
      const done = await perform(work, { state: before, stage, instruction, step, keepsCmd: hasCmd });
      before.scope.apply(instruction);
      return done;
    });
    hasCmd ||= written.kind === 'CMD';
  }
  return state;
}

interface Performed {
  readonly state: StageState;
  readonly isCached: boolean;
}

async function perform(work: BuildWork, performing: Performing): Promise<Performed> {
  const { state, instruction, keepsCmd } = performing;
  switch (instruction.kind) {
    case 'RUN': {
      const result = await runStep(work, { ...performing, instruction });
      return layered(work, state, { result, createdBy: runText(state, instruction) });
    }
    case 'COPY':
    case 'ADD': {
      const result = await copyStep(work, { ...performing, instruction });
      return layered(work, state, { result, createdBy: instruction.text });
    }
    case 'WORKDIR': {
      const changed = { ...state, config: changeConfig(state.config, instruction) };
      const result = await workdirStep(work, { ...performing, state: changed, instruction });
      return layered(work, changed, { result, createdBy: instruction.text });
    }
    case 'MAINTAINER':
      return described(work, { ...state, author: instruction.name }, performing);
    case 'FROM':
      throw new RangeError('a stage has one FROM');
    default:
      return described(work, { ...state, config: changeConfig(state.config, instruction, { keepsCmd }) }, performing);
  }
}

/** The state with a step's layer, if it has one, and its line of history. */
function layered(
  work: BuildWork,
  state: StageState,
  done: { readonly result: StepResult & { readonly isCached: boolean }; readonly createdBy: string },
): Performed {
  const { layer, createdAt: at, isCached } = done.result;
  const createdAt = madeAt(at, work.request.sourceDateEpoch);
  const entry: ImageHistory = {
    created: createdAt.toISOString(),
    created_by: done.createdBy,
    ...(layer === undefined && { empty_layer: true }),
  };
  const layers = layer === undefined ? state.layers : [...state.layers, layer];
  return { state: { ...state, layers, createdAt, history: [...state.history, entry] }, isCached };
}

/** The state with a line of history for what changed no file. Its time is that of the step before, so that it is the same in every build. */
function described(work: BuildWork, state: StageState, { instruction, stage }: Performing): Performed {
  const { author, createdAt, history } = state;
  const entry: ImageHistory = {
    ...(createdAt !== undefined && { created: createdAt.toISOString() }),
    created_by: instruction.text,
    empty_layer: true,
  };
  const isKnown = work.ports.wasDescribed(JSON.stringify([resultOf(state, instruction), author, instruction.text]));
  return { state: { ...state, history: [...history, entry] }, isCached: isKnown && !isFresh(work, stage) };
}

/** As docker history shows a command: with the arguments that it saw. */
function runText({ config, scope }: StageState, { command }: Extract<Instruction, { kind: 'RUN' }>): string {
  const args = [...scope.args()].map(([name, value]) => `${name}=${value}`);
  return ['RUN', ...(args.length > 0 ? [`|${args.length}`, ...args] : []), ...wordsOf(config, command)].join(' ');
}

function resultOf({ layers, config, base }: StageState, instruction: Instruction): string {
  if (instruction.kind === 'FROM') return hexOf(base.id);
  return hexOf(digestOf(JSON.stringify([layers.map((layer) => layer.diffId), config])));
}

function located<T>(instruction: Instruction, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw failureAt(instruction, error);
  }
}

function failureAt(instruction: Instruction, error: unknown): unknown {
  // What went wrong first counts; that giving back failed as well is for the log of whoever answers.
  if (error instanceof SuppressedError)
    return new SuppressedError(error.error, failureAt(instruction, error.suppressed), error.message);
  if (!(error instanceof AppError) || error.kind === 'timeout' || error.detail?.line !== undefined) return error;
  const detail = { ...error.detail, step: instruction.text };
  return errorAt(instruction.at, `failed to build ${JSON.stringify(instruction.text)}: ${error.message}`, {
    kind: error.kind,
    cause: error,
    detail,
  });
}
