/**
 * Build checks: what is legal in a Dockerfile and probably not meant, under the names that Docker gave them. Pure: what
 * base images bring is passed in. A `# check=` at the top, or above an instruction, leaves rules out.
 * https://docs.docker.com/reference/build-checks/
 */
import { AppError, isKind } from '../../shared/errors.ts';
import { parseReference } from '../../shared/reference.ts';
import {
  type CheckConfig,
  type CheckOptions,
  checkConfigOf,
  mergeCheckConfig,
  parseCheckConfig,
  type Warn,
} from './check-config.ts';
import type { Dockerfile } from './dockerfile.ts';
import { createInstructionCheck } from './instruction-checks.ts';
import type { FromInstruction, Instruction } from './instructions.ts';
import { globalScope, resolveInstruction } from './resolve.ts';
import type { Scope, ScopeOptions } from './scope.ts';
import { didYouMean, type Location, showSource } from './source.ts';

export interface CheckWarning {
  /** Well-known name: `StageNameCasing`. */
  readonly rule: string;
  readonly message: string;
  readonly url: string | undefined;
  /** 1-based; undefined for the whole file. */
  readonly line: number | undefined;
  /** The lines with their place and a mark, ready to be shown. */
  readonly source: string | undefined;
}

const RULES_URL = 'https://docs.docker.com/go/dockerfile/rule/';
const EXPERIMENTAL = ['InvalidDefinitionDescription'];
const WARNINGS_MAX = 1000;

/** In the order of lines, at most a thousand. @throws AppError 'invalid' for a `# check=` that says nothing known */
export function checkDockerfile(dockerfile: Dockerfile, options: CheckOptions = {}): readonly CheckWarning[] {
  const warnings: CheckWarning[] = [];
  const top = checkConfigOf(dockerfile);
  const warner = (config: CheckConfig): Warn => {
    return (rule, message, at) => {
      if (warnings.length < WARNINGS_MAX && isWanted(config, rule)) warnings.push(warning(rule, message, at));
    };
  };
  const warnFor = (instruction: Instruction) => warner(configAt(top, instruction));
  checkLines(dockerfile, warner(top));
  checkCasing(dockerfile, warner(top));
  checkStages(dockerfile, options, warnFor);
  checkInstructions(dockerfile, options, warnFor);
  return warnings.toSorted((a, b) => (a.line ?? 0) - (b.line ?? 0));
}

/** What `# check=error=true` makes of warnings; undefined = they stay warnings. */
export function checkError(dockerfile: Dockerfile, warnings: readonly CheckWarning[]): AppError | undefined {
  if (!checkConfigOf(dockerfile).isError || warnings.length === 0) return undefined;
  const rules = [...new Set(warnings.map(({ rule }) => rule))];
  return new AppError('invalid', `lint violation found for rules: ${rules.join(', ')}`);
}

function warning(rule: string, message: string, at: Location): CheckWarning {
  const page = rule.replace(
    /[A-Z]+(?![a-z])|[A-Z]/g,
    (word, at: number) => `${at === 0 ? '' : '-'}${word.toLowerCase()}`,
  );
  return { rule, message, url: `${RULES_URL}${page}/`, line: at.line, source: showSource(at) };
}

function isWanted({ skips, experimental }: CheckConfig, rule: string): boolean {
  const isIn = (rules: CheckConfig['skips']) => rules === 'all' || rules.includes(rule);
  return EXPERIMENTAL.includes(rule) ? isIn(experimental) : !isIn(skips);
}

/** `# check=skip=…` right above an instruction is about it alone. What cannot be read there is a comment. */
function configAt(top: CheckConfig, { comments }: Instruction): CheckConfig {
  for (const comment of comments) {
    const [, text] = /^check\s*=\s*(\S+)/i.exec(comment) ?? [];
    if (text === undefined) continue;
    try {
      return mergeCheckConfig(top, parseCheckConfig(text));
    } catch {
      return top;
    }
  }
  return top;
}

function checkLines({ source, emptyContinuations }: Dockerfile, warn: Warn): void {
  for (const line of emptyContinuations)
    warn('NoEmptyContinuation', 'Empty continuation line', { source, line, column: 1, endLine: line });
}

const isLower = (word: string) => word === word.toLowerCase();
const isUpper = (word: string) => word === word.toUpperCase();

function checkCasing({ stages }: Dockerfile, warn: Warn): void {
  const all = stages.flatMap((stage) => [stage.from, ...stage.instructions]);
  const lower = all.filter(({ keyword }) => isLower(keyword)).length;
  const upper = all.filter(({ keyword }) => !isLower(keyword) && isUpper(keyword)).length;
  const isRight = lower > upper ? isLower : isUpper;
  const majority = lower > upper ? 'lowercase' : 'uppercase';
  for (const { keyword, at } of all) {
    const message = `Command '${keyword}' should match the case of the command majority (${majority})`;
    if (!isRight(keyword)) warn('ConsistentInstructionCasing', message, at);
  }
}

function checkStages(dockerfile: Dockerfile, options: CheckOptions, warnFor: (instruction: Instruction) => Warn): void {
  const names = new Set<string>();
  const declared = new Set(Object.keys(options.predefined ?? {}));
  for (const { arguments: args } of dockerfile.globalArgs) for (const { name } of args) declared.add(name);
  const given = scopeOrNothing(dockerfile, options);
  const defaults = scopeOrNothing(dockerfile, { predefined: options.predefined });
  for (const { from } of dockerfile.stages) {
    const warn = warnFor(from);
    checkStageName(from, names, warn);
    if (given !== undefined) checkFrom(from, { scope: given, declared, warn });
    if (defaults !== undefined) checkDefaultImage(from, defaults, warn);
  }
}

function scopeOrNothing(dockerfile: Dockerfile, options: ScopeOptions): Scope | undefined {
  return orNothing(() => globalScope(dockerfile, options));
}

/** What cannot be resolved is no warning but the build's error. */
export function orNothing<T>(resolve: () => T): T | undefined {
  try {
    return resolve();
  } catch (error) {
    if (isKind(error, 'invalid')) return undefined;
    throw error;
  }
}

function checkStageName({ keyword, as, written, at, comments }: FromInstruction, names: Set<string>, warn: Warn): void {
  if (as === undefined || written === undefined) return;
  if (!isLower(written.name)) warn('StageNameCasing', `Stage name '${written.name}' should be lowercase`, at);
  const isSame = isLower(keyword) ? isLower(written.as) : !isUpper(keyword) || isUpper(written.as);
  if (!isSame) warn('FromAsCasing', `'${written.as}' and '${keyword}' keywords' casing do not match`, at);
  if (as === 'context' || as === 'scratch')
    warn('ReservedStageName', `Stage name should not use the same name as reserved stage ${JSON.stringify(as)}`, at);
  if (names.has(as))
    warn('DuplicateStageName', `Duplicate stage name ${JSON.stringify(as)}, stage names should be unique`, at);
  names.add(as);
  checkDescription({ kind: 'FROM', names: [as], comments, at }, warn);
}

/** The comment above a stage or an argument describes it, and begins with its name. */
function checkDescription(
  { kind, names, comments, at }: { kind: string; names: readonly string[]; comments: readonly string[]; at: Location },
  warn: Warn,
): void {
  const word = comments.at(-1)?.split(' ')[0];
  if (word === undefined || names.includes(word)) return;
  const example = names.length > 1 ? '<arg_key>' : (names[0] ?? '');
  const message = `Comment for ${kind} should follow the format: \`# ${example} <description>\``;
  warn('InvalidDefinitionDescription', message, at);
}

function checkFrom(
  from: FromInstruction,
  { scope, declared, warn }: { readonly scope: Scope; readonly declared: ReadonlySet<string>; readonly warn: Warn },
): void {
  const resolved = orNothing(() => resolveInstruction(from, scope));
  if (resolved === undefined) return;
  for (const name of resolved.missing) {
    const hint = didYouMean(name, declared);
    if (!declared.has(name)) warn('UndefinedArgInFrom', `FROM argument '${name}' is not declared${hint}`, from.at);
  }
  const { platform } = resolved.instruction;
  if (from.platform === undefined || platform === undefined) return;
  if (/^"?\$(?:TARGETPLATFORM|\{TARGETPLATFORM\})"?$/.test(from.platform)) {
    const why = 'in FROM is redundant as this is the default behavior';
    warn('RedundantTargetPlatform', `Setting platform to predefined ${from.platform} ${why}`, from.at);
  }
  // Where a stage is called after its platform, it is meant to be for that one.
  const [os = '', architecture = os] = platform.split('/');
  const isNamedSo = from.as !== undefined && (from.as.includes(os) || from.as.includes(architecture));
  const message = `FROM --platform flag should not use constant value ${JSON.stringify(platform)}`;
  if (!from.platform.includes('$') && !isNamedSo) warn('FromPlatformFlagConstDisallowed', message, from.at);
}

function checkDefaultImage(from: FromInstruction, scope: Scope, warn: Warn): void {
  const image = orNothing(() => resolveInstruction({ ...from, platform: undefined }, scope).instruction.image);
  const isName = image !== undefined && orNothing(() => parseReference(image)) !== undefined;
  const message = `Default value for ARG ${from.image} results in empty or invalid base image name`;
  if (!isName) warn('InvalidDefaultArgInFrom', message, from.at);
}

function checkInstructions(
  dockerfile: Dockerfile,
  options: CheckOptions,
  warnFor: (instruction: Instruction) => Warn,
): void {
  const globals = scopeOrNothing(dockerfile, options);
  for (const arg of dockerfile.globalArgs) checkArgDescription(arg, warnFor(arg));
  if (globals === undefined) return;
  const check = createInstructionCheck({ globals, ...options });
  for (const stage of dockerfile.stages) {
    const isLookedAt = options.stages?.has(stage.index) ?? true;
    const state = check(stage);
    for (const instruction of stage.instructions) {
      const warn = warnFor(instruction);
      if (isLookedAt) checkArgDescription(instruction, warn);
      state(instruction, isLookedAt ? warn : () => {});
    }
  }
}

function checkArgDescription(instruction: Instruction, warn: Warn): void {
  if (instruction.kind !== 'ARG') return;
  const { kind, comments, at } = instruction;
  checkDescription({ kind, names: instruction.arguments.map(({ name }) => name), comments, at }, warn);
}
