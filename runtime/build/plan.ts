/**
 * What a build has to do: which stages the target needs, and what each stage's names mean. Pure.
 *
 * A name in `--from` is a named context, else a stage, else a number of a stage, else an image; a name in FROM is the same
 * but for numbers, and only stages above it count.
 */
import { AppError } from '../../shared/errors.ts';
import type { Dockerfile, Stage } from '../dockerfile/dockerfile.ts';
import type { Instruction } from '../dockerfile/instructions.ts';
import { clip, errorAt, type Location } from '../dockerfile/source.ts';

export type Source =
  | { readonly kind: 'scratch' }
  | { readonly kind: 'stage'; readonly index: number }
  | { readonly kind: 'context'; readonly name: string }
  | { readonly kind: 'image'; readonly reference: string };

export interface Plan {
  readonly target: Stage;
  /** Those that the target needs, itself included, in the Dockerfile's order. */
  readonly stages: readonly Stage[];
}

export interface PlanOptions {
  readonly target: string | undefined;
  /** Names of `--build-context`. */
  readonly contexts: ReadonlySet<string>;
  /** FROM's image with its variables expanded. */
  readonly baseOf: (stage: Stage) => string;
}

/** @throws AppError 'invalid': no such target, or stages that need each other */
export function planBuild(dockerfile: Dockerfile, options: PlanOptions): Plan {
  const target = findTarget(dockerfile, options.target);
  const needed = new Set<Stage>();
  const visit = (stage: Stage, path: readonly Stage[], at: Location): void => {
    if (path.includes(stage)) throw errorAt(at, `circular dependency detected on stage: ${clip(stageName(stage))}`);
    if (needed.has(stage)) return;
    const base = baseSource(dockerfile, stage, options);
    const sources = [
      { source: base, at: stage.from.at },
      ...stage.instructions.flatMap((one) => namesIn(one, options, dockerfile)),
    ];
    for (const { source, at: place } of sources) {
      const next = source.kind === 'stage' ? dockerfile.stages[source.index] : undefined;
      if (next !== undefined) visit(next, [...path, stage], place);
    }
    needed.add(stage);
  };
  visit(target, [], target.from.at);
  return { target, stages: dockerfile.stages.filter((stage) => needed.has(stage)) };
}

/** What a stage stands on. */
export function baseSource(
  dockerfile: Dockerfile,
  stage: Stage,
  { contexts, baseOf }: Omit<PlanOptions, 'target'>,
): Source {
  const base = baseOf(stage);
  if (contexts.has(base)) return { kind: 'context', name: base };
  // The last of several stages with a name counts.
  const above = dockerfile.stages.findLast(({ index, name }) => index < stage.index && name === base.toLowerCase());
  if (above !== undefined) return { kind: 'stage', index: above.index };
  if (base === 'scratch') return { kind: 'scratch' };
  return { kind: 'image', reference: base };
}

/** What `--from=NAME` means. */
export function fromSource(dockerfile: Dockerfile, name: string, contexts: ReadonlySet<string>): Source {
  if (contexts.has(name)) return { kind: 'context', name };
  const stage =
    dockerfile.stages.findLast((one) => one.name === name.toLowerCase()) ??
    (/^\d{1,6}$/.test(name) ? dockerfile.stages[Number(name)] : undefined);
  return stage === undefined ? { kind: 'image', reference: name } : { kind: 'stage', index: stage.index };
}

export function stageName({ name, index }: Stage): string {
  return name ?? `stage-${index}`;
}

function findTarget({ stages }: Dockerfile, wanted: string | undefined): Stage {
  const last = stages.at(-1);
  const found =
    wanted === undefined || wanted === ''
      ? last
      : (stages.findLast((stage) => stage.name === wanted.toLowerCase()) ??
        (/^\d{1,6}$/.test(wanted) ? stages[Number(wanted)] : undefined));
  if (found !== undefined) return found;
  throw new AppError('invalid', `target stage ${JSON.stringify(clip(wanted ?? ''))} could not be found`);
}

function namesIn(
  instruction: Instruction,
  { contexts }: PlanOptions,
  dockerfile: Dockerfile,
): readonly { readonly source: Source; readonly at: Location }[] {
  const names =
    instruction.kind === 'COPY' ? [instruction.from] : instruction.kind === 'RUN' ? instruction.mountSources : [];
  return names
    .filter((name) => name !== undefined)
    .map((name) => ({ source: fromSource(dockerfile, name, contexts), at: instruction.at }));
}
