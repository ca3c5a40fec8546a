/**
 * The config of an image that is made of a container: what the container runs, under Dockerfile instructions
 * (`commit --change`). Pure. https://docs.docker.com/reference/cli/docker/container/commit/#change
 */
import { posix } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';
import { parseDurationMs } from '../../shared/units.ts';
import { variableName } from './image-defaults.ts';
import type { ContainerConfig, Healthcheck } from './request.ts';

/** What of a container's config belongs to its image. */
export function imageConfigOf(config: ContainerConfig): ImageRunConfig {
  const set = (names: readonly string[]) => Object.fromEntries(names.map((name) => [name, {}]));
  return {
    ...(config.User !== '' && { User: config.User }),
    ...(config.ExposedPorts.length > 0 && { ExposedPorts: set(config.ExposedPorts) }),
    ...(config.Env.length > 0 && { Env: [...config.Env] }),
    ...(config.Entrypoint !== null && config.Entrypoint.length > 0 && { Entrypoint: [...config.Entrypoint] }),
    ...(config.Cmd !== null && config.Cmd.length > 0 && { Cmd: [...config.Cmd] }),
    ...(config.Volumes.length > 0 && { Volumes: set(config.Volumes) }),
    ...(config.WorkingDir !== '' && { WorkingDir: config.WorkingDir }),
    ...(Object.keys(config.Labels).length > 0 && { Labels: config.Labels }),
    ...(config.StopSignal !== '' && { StopSignal: config.StopSignal }),
    ...(config.StopTimeout !== undefined && { StopTimeout: config.StopTimeout }),
    ...(config.Healthcheck !== undefined && { Healthcheck: healthcheckOf(config.Healthcheck) }),
    ...(config.OnBuild.length > 0 && { OnBuild: [...config.OnBuild] }),
    ...(config.Shell.length > 0 && { Shell: [...config.Shell] }),
  };
}

function healthcheckOf({ Test, ...rest }: Healthcheck): NonNullable<ImageRunConfig['Healthcheck']> {
  const said = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== 0));
  return { Test: [...Test], ...said };
}

/** The config after these instructions, in their order. @throws AppError 'invalid' naming the instruction */
export function applyInstructions(config: ImageRunConfig, instructions: readonly string[]): ImageRunConfig {
  return instructions
    .flatMap((text) => text.split('\n'))
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .reduce(applyInstruction, config);
}

function applyInstruction(config: ImageRunConfig, line: string): ImageRunConfig {
  const [, word = '', rest = ''] = /^(\S+)\s*(.*)$/s.exec(line) ?? [];
  const instruction = word.toUpperCase();
  if (rest === '') throw invalid(`${instruction} requires at least one argument`);
  const one = () => expandVariables(rest, config.Env ?? []);
  switch (instruction) {
    case 'CMD':
      return { ...config, Cmd: commandIn(rest, config) };
    case 'ENTRYPOINT':
      return { ...config, Entrypoint: commandIn(rest, config) };
    case 'ENV':
      return { ...config, Env: pairsIn(instruction, rest).reduce(setVariable, [...(config.Env ?? [])]) };
    case 'LABEL':
      return { ...config, Labels: { ...config.Labels, ...Object.fromEntries(pairsIn(instruction, rest)) } };
    case 'EXPOSE':
      return { ...config, ExposedPorts: { ...config.ExposedPorts, ...namesIn(one().split(/\s+/).map(portIn)) } };
    case 'VOLUME':
      return { ...config, Volumes: { ...config.Volumes, ...namesIn(listIn(rest) ?? one().split(/\s+/)) } };
    case 'USER':
      return { ...config, User: one() };
    case 'WORKDIR':
      return { ...config, WorkingDir: posix.resolve('/', config.WorkingDir ?? '/', one()) };
    case 'STOPSIGNAL':
      return { ...config, StopSignal: one() };
    case 'ONBUILD':
      return { ...config, OnBuild: [...(config.OnBuild ?? []), rest] };
    case 'SHELL':
      return { ...config, Shell: listIn(rest) ?? fail('SHELL requires the arguments to be in JSON form') };
    case 'HEALTHCHECK':
      return { ...config, Healthcheck: healthcheckIn(rest) };
    default:
      throw invalid(`${word} is not a valid change command`);
  }
}

function invalid(message: string): AppError {
  return new AppError('invalid', message);
}

function fail(message: string): never {
  throw invalid(message);
}

/** A JSON list of words; undefined = it is not one. */
function listIn(text: string): string[] | undefined {
  if (!text.startsWith('[')) return undefined;
  try {
    const list: unknown = JSON.parse(text);
    if (Array.isArray(list) && list.every((item) => typeof item === 'string')) return list;
  } catch {
    // Then it is a command that begins with a bracket.
  }
  return undefined;
}

function commandIn(text: string, { Shell }: ImageRunConfig): string[] {
  return listIn(text) ?? [...(Shell && Shell.length > 0 ? Shell : ['/bin/sh', '-c']), text];
}

/** `KEY=value KEY2="two words"`, or the old `KEY the rest`. */
function pairsIn(instruction: string, text: string): readonly (readonly [string, string])[] {
  const words = wordsIn(text);
  const first = words[0] ?? '';
  if (!first.includes('=')) {
    const old = /^(\S+)\s+(.+)$/s.exec(text);
    if (old === null) throw invalid(`${instruction} must have two arguments`);
    return [[old[1] ?? '', old[2] ?? '']];
  }
  return words.map((word) => {
    const equals = word.indexOf('=');
    if (equals <= 0)
      throw invalid(`Syntax error - can't find = in ${JSON.stringify(word)}. Must be of the form: name=value`);
    return [word.slice(0, equals), word.slice(equals + 1)];
  });
}

/** Words split at blanks; quotes hold them together, a backslash keeps the next character. */
function wordsIn(text: string): readonly string[] {
  return [...text.matchAll(/(?:[^\s"'\\]|\\.|"(?:[^"\\]|\\.)*"|'[^']*')+/gs)].map(([word]) =>
    word.replace(
      /\\(.)|"((?:[^"\\]|\\.)*)"|'([^']*)'/gs,
      (_match, plain, double, single) => plain ?? (double === undefined ? single : double.replace(/\\(["\\$])/g, '$1')),
    ),
  );
}

function setVariable(env: string[], [name, value]: readonly [string, string]): string[] {
  const at = env.findIndex((entry) => variableName(entry) === name);
  return at === -1 ? [...env, `${name}=${value}`] : env.with(at, `${name}=${value}`);
}

/** `$NAME` and `${NAME}` by what the image sets. */
function expandVariables(text: string, env: readonly string[]): string {
  const valueIn = (name: string) => env.find((entry) => variableName(entry) === name)?.slice(name.length + 1) ?? '';
  return text.replace(/\\\$|\$(?:\{(\w+)\}|(\w+))/g, (match, braced, bare) =>
    match === '\\$' ? '$' : valueIn(braced ?? bare),
  );
}

function portIn(text: string): string {
  if (!/^\d{1,5}(?:-\d{1,5})?(?:\/(?:tcp|udp|sctp))?$/i.test(text)) throw invalid(`invalid containerPort: ${text}`);
  return text.includes('/') ? text.toLowerCase() : `${text}/tcp`;
}

function namesIn(names: readonly string[]): Record<string, Record<string, never>> {
  return Object.fromEntries(names.map((name) => [name, {}]));
}

const DURATIONS = {
  interval: 'Interval',
  timeout: 'Timeout',
  'start-period': 'StartPeriod',
  'start-interval': 'StartInterval',
} as const;

function healthcheckIn(text: string): NonNullable<ImageRunConfig['Healthcheck']> {
  const numbers: Record<string, number> = {};
  let rest = text;
  for (let flag = FLAG.exec(rest); flag !== null; flag = FLAG.exec(rest)) {
    const [whole, name = '', value = ''] = flag;
    rest = rest.slice(whole.length);
    if (name === 'retries') numbers.Retries = Number(value);
    else if (isDuration(name)) numbers[DURATIONS[name]] = parseDurationMs(value) * 1e6;
    else throw invalid(`Unknown flag: ${name}`);
  }
  if (/^NONE$/i.test(rest.trim())) return { Test: ['NONE'] };
  const command = /^CMD\s+(.+)$/is.exec(rest)?.[1];
  if (command === undefined)
    throw invalid(`Unknown type ${JSON.stringify(rest.split(/\s/)[0])} in HEALTHCHECK (try CMD)`);
  const list = listIn(command);
  return { Test: list === undefined ? ['CMD-SHELL', command] : ['CMD', ...list], ...numbers };
}

const FLAG = /^--([a-z-]+)=(\S+)\s+/;

function isDuration(name: string): name is keyof typeof DURATIONS {
  return Object.hasOwn(DURATIONS, name);
}
