/** Build checks of the instructions inside stages, which need to know the variables and what came before. Pure. */
import { posix } from 'node:path';
import { isKind } from '../../shared/errors.ts';
import type { CheckOptions, Warn } from './check-config.ts';
import type { Stage } from './dockerfile.ts';
import type { Instruction } from './instructions.ts';
import { resolveInstruction } from './resolve.ts';
import type { Scope } from './scope.ts';
import { didYouMean, type Location } from './source.ts';

/** What a stage has come to. */
interface Progress {
  scope: Scope;
  /** The base's variables are known, so that one that is missing is a mistake. */
  isKnown: boolean;
  hasWorkdir: boolean;
  hasShell: boolean;
  readonly last: Map<string, { readonly at: Location; readonly keyword: string }>;
}

export type InstructionCheck = (instruction: Instruction, warn: Warn) => void;

/** Stages are asked for in their order; a stage upon another begins where that one ended. */
export function createInstructionCheck({
  globals,
  environmentOf,
  ignore,
}: CheckOptions & { readonly globals: Scope }): (stage: Stage) => InstructionCheck {
  const ends = new Map<string, Progress>();
  return (stage) => {
    const base = ends.get(imageOf(stage, globals));
    const progress = base === undefined ? fresh(stage, globals, environmentOf) : upon(base);
    if (stage.name !== undefined) ends.set(stage.name, progress);
    ends.set(String(stage.index), progress);
    return (instruction, warn) => {
      checkWritten(instruction, progress, warn);
      const resolved = resolveOrNothing(instruction, progress.scope);
      if (resolved === undefined) return;
      checkVariables(resolved, progress, { at: instruction.at, warn });
      checkResolved(resolved.instruction, progress, { ignore, warn });
      progress.scope.apply(resolved.instruction);
    };
  };
}

function imageOf({ from }: Stage, globals: Scope): string {
  return resolveOrNothing(from, globals)?.instruction.image.toLowerCase() ?? '';
}

function resolveOrNothing<T extends Instruction>(instruction: T, scope: Scope) {
  try {
    return resolveInstruction(instruction, scope);
  } catch (error) {
    if (isKind(error, 'invalid')) return undefined;
    throw error;
  }
}

function fresh(stage: Stage, globals: Scope, environmentOf: CheckOptions['environmentOf']): Progress {
  const env = stage.from.image === 'scratch' ? [] : environmentOf?.(stage);
  const scope = globals.stage(['PATH=', ...(env ?? [])]);
  return { scope, isKnown: env !== undefined, hasWorkdir: false, hasShell: false, last: new Map() };
}

function upon({ scope, isKnown, hasWorkdir, hasShell }: Progress): Progress {
  return { scope: scope.child(), isKnown, hasWorkdir, hasShell, last: new Map() };
}

function checkWritten(instruction: Instruction, progress: Progress, warn: Warn): void {
  const { kind, keyword, at } = instruction;
  if (kind === 'MAINTAINER')
    warn('MaintainerDeprecated', 'Maintainer instruction is deprecated in favor of using label', at);
  if (kind === 'SHELL') progress.hasShell = true;
  if ((kind === 'CMD' || kind === 'ENTRYPOINT') && instruction.command.form === 'shell' && !progress.hasShell) {
    const why = 'to prevent unintended behavior related to OS signals';
    warn('JSONArgsRecommended', `JSON arguments recommended for ${keyword} ${why}`, at);
  }
  if (kind !== 'CMD' && kind !== 'ENTRYPOINT' && kind !== 'HEALTHCHECK') return;
  const before = progress.last.get(kind);
  if (before !== undefined) {
    const why = 'should not be used in the same stage because only the last one will be used';
    // The one above is in vain.
    warn('MultipleInstructionsDisallowed', `Multiple ${keyword} instructions ${why}`, before.at);
  }
  progress.last.set(kind, { at, keyword });
}

function checkVariables(
  { missing }: { readonly missing: ReadonlySet<string> },
  { scope, isKnown }: Progress,
  { at, warn }: { readonly at: Location; readonly warn: Warn },
): void {
  if (!isKnown) return;
  for (const name of missing) {
    if (scope.isDeclared(name)) continue;
    const guess = didYouMean(name, scope.names()).replace('mean ', 'mean $');
    warn('UndefinedVar', `Usage of undefined variable '$${name}'${guess}`, at);
  }
}

function checkResolved(
  instruction: Instruction,
  progress: Progress,
  { ignore, warn }: { readonly ignore: CheckOptions['ignore']; readonly warn: Warn },
): void {
  const { at, keyword } = instruction;
  switch (instruction.kind) {
    case 'ENV':
    case 'LABEL':
      if (instruction.pairs.some(({ isLegacy }) => isLegacy)) {
        const message = `"${keyword} key=value" should be used instead of legacy "${keyword} key value" format`;
        warn('LegacyKeyValueFormat', message, at);
      }
      if (instruction.kind === 'ENV') for (const { name } of instruction.pairs) checkSecret('ENV', name, { at, warn });
      return;
    case 'ARG':
      for (const { name } of instruction.arguments) checkSecret('ARG', name, { at, warn });
      return;
    case 'WORKDIR': {
      const path = JSON.stringify(instruction.path);
      const message = `Relative workdir ${path} can have unexpected results if the base image changes`;
      if (!progress.hasWorkdir && !posix.isAbsolute(instruction.path)) warn('WorkdirRelativePath', message, at);
      // One absolute path above cures all below, and so does one warning.
      progress.hasWorkdir = true;
      return;
    }
    case 'EXPOSE':
      for (const port of instruction.ports) checkPort(port, at, warn);
      return;
    case 'COPY':
      if (instruction.from === undefined)
        for (const path of instruction.sources) checkIgnored('Copy', path, { ignore, at, warn });
      return;
    case 'ADD':
      for (const path of instruction.sources)
        if (!/^(?:https?|git|ssh):\/\/|^git@/.test(path)) checkIgnored('Add', path, { ignore, at, warn });
  }
}

const SECRET = /(?:_|^)(?:apikey|auth|credentials?|key|password|pword|passwd|secret|token)(?:_|$)/i;
const NO_SECRET = /(?:_|^)(?:public|file|version)(?:_|$)/i;

function checkSecret(
  kind: 'ARG' | 'ENV',
  name: string,
  { at, warn }: { readonly at: Location; readonly warn: Warn },
): void {
  if (!SECRET.test(name) || NO_SECRET.test(name)) return;
  const message = `Do not use ARG or ENV instructions for sensitive data (${kind} ${JSON.stringify(name)})`;
  warn('SecretsUsedInArgOrEnv', message, at);
}

function checkPort(port: string, at: Location, warn: Warn): void {
  const protocol = port.split('/')[1] ?? '';
  const casing = `Defined protocol '${port}' in EXPOSE instruction should be lowercase`;
  if (protocol !== protocol.toLowerCase()) warn('ExposeProtoCasing', casing, at);
  const format = `EXPOSE instruction should not define an IP address or host-port mapping, found '${port}'`;
  if (port.includes(':')) warn('ExposeInvalidFormat', format, at);
}

/** Where something is taken back it cannot be told from the patterns alone. */
function checkIgnored(
  verb: 'Copy' | 'Add',
  path: string,
  { ignore, at, warn }: { readonly ignore: CheckOptions['ignore']; readonly at: Location; readonly warn: Warn },
): void {
  if (ignore === undefined || ignore.hasExceptions) return;
  const clean = posix.normalize(path).replace(/(?<=.)\/$/, '');
  const isRoot = clean === '.' || clean === '/' || clean === './';
  if (isRoot ? !ignore.ignoresAll : !ignore.ignores(clean)) return;
  const message = `Attempting to ${verb} file ${JSON.stringify(clean)} that is excluded by .dockerignore`;
  warn('CopyIgnoredFile', message, at);
}
