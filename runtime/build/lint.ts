/** The build checks with what this engine knows beside the Dockerfile: what was left out of the context, and base images that are here. */
import {
  createIgnore,
  DOCKERIGNORE_MAX_BYTES,
  dockerignoreNames,
  type Ignore,
  parseDockerignore,
} from '../../shared/dockerignore.ts';
import { isKind } from '../../shared/errors.ts';
import { checkDockerfile, orNothing } from '../dockerfile/checks.ts';
import type { Dockerfile, Stage } from '../dockerfile/dockerfile.ts';
import { platformArgs } from '../dockerfile/predefined.ts';
import { globalScope, resolveInstruction } from '../dockerfile/resolve.ts';
import type { Images } from '../images/images.ts';
import { parsePlatform, type WantedPlatform } from '../images/platform.ts';
import { platformOf } from './build.ts';
import type { BuildRequest, BuildWarning } from './builds.ts';
import { baseSource } from './plan.ts';

export type CheckedRequest = Pick<
  BuildRequest,
  'context' | 'dockerfile' | 'target' | 'buildArgs' | 'platforms' | 'namedContexts'
>;

/** What was left out of the context; undefined = nothing, as far as anybody says. @throws AppError 'invalid', 'too-large' */
export async function ignoreOf({ context, dockerfile }: CheckedRequest): Promise<Ignore | undefined> {
  let text = dockerfile.ignore;
  for (const name of dockerignoreNames(dockerfile.name)) text ??= await context.text(name, DOCKERIGNORE_MAX_BYTES);
  return text === undefined ? undefined : createIgnore(parseDockerignore(text));
}

export interface LintPorts {
  readonly images: Pick<Images, 'resolve'>;
  readonly host: WantedPlatform;
}

/** @throws AppError 'invalid' for a `# check=` that says nothing known */
export async function lint(
  { images, host }: LintPorts,
  dockerfile: Dockerfile,
  { request, ignore }: { readonly request: CheckedRequest; readonly ignore: Ignore | undefined },
): Promise<readonly BuildWarning[]> {
  const { target, buildArgs, platforms = [], namedContexts = {} } = request;
  const [first] = platforms.map((text) => platformOf(parsePlatform(text, host)));
  const predefined = platformArgs(first ?? platformOf(host), platformOf(host), { stage: target });
  const contexts = new Set(Object.keys(namedContexts));
  const environments = new Map<Stage, readonly string[]>();
  const globals = orNothing(() => globalScope(dockerfile, { buildArgs, predefined }));
  for (const stage of dockerfile.stages) {
    const image = globals && orNothing(() => resolveInstruction(stage.from, globals).instruction.image);
    if (image === undefined) continue;
    const source = baseSource(dockerfile, stage, { contexts, baseOf: () => image });
    const found = source.kind === 'image' ? await imageHere(images, source.reference) : undefined;
    if (found !== undefined) environments.set(stage, found.config.config.Env ?? []);
  }
  return checkDockerfile(dockerfile, {
    ...{ buildArgs, predefined, ignore },
    environmentOf: (stage) => environments.get(stage),
  });
}

async function imageHere(images: LintPorts['images'], reference: string) {
  try {
    return await images.resolve(reference);
  } catch (error) {
    // One that has to be pulled is not asked for its variables, and one that is none is the build's error.
    if (isKind(error, 'not-found', 'invalid')) return undefined;
    throw error;
  }
}
