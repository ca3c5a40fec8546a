/**
 * What instructions do to the config of an image: in a build, and as the `--change` of commit and import. Pure.
 * https://docs.docker.com/reference/cli/docker/container/commit/#change
 */
import { posix } from 'node:path';
import { AppError, isKind } from '../../shared/errors.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';
import { parseSignal } from '../../shared/signals.ts';
import type { CommandLine, Instruction, Pair, RunCommand } from './instructions.ts';
import { readLines } from './lines.ts';
import { parseInstruction } from './parse-instruction.ts';
import { resolveInstruction } from './resolve.ts';
import { Scope } from './scope.ts';
import { clip, errorAt } from './source.ts';
import { createMeter } from './words.ts';

export interface ChangeOptions {
  /** CMD was said in this stage before: then ENTRYPOINT leaves it alone. The base's goes, as it belongs to another program. */
  readonly keepsCmd?: boolean | undefined;
}

const DEFAULT_SHELL = ['/bin/sh', '-c'];

/**
 * The config after a resolved instruction; those that are about files and arguments change nothing. The directory of
 * WORKDIR is made by the build. @throws AppError 'invalid' with the place
 */
export function changeConfig(
  config: ImageRunConfig,
  instruction: Instruction,
  { keepsCmd = false }: ChangeOptions = {},
): ImageRunConfig {
  try {
    return changed(config, instruction, keepsCmd);
  } catch (cause) {
    if (!isKind(cause, 'invalid') || cause.detail?.line !== undefined) throw cause;
    throw errorAt(instruction.at, cause.message, { cause });
  }
}

function changed(config: ImageRunConfig, instruction: Instruction, keepsCmd: boolean): ImageRunConfig {
  switch (instruction.kind) {
    case 'CMD':
      return { ...config, Cmd: wordsOf(config, instruction.command) };
    case 'ENTRYPOINT': {
      const words = wordsOf(config, instruction.command);
      const entrypoint = { ...config, Entrypoint: words.length === 0 ? null : words };
      return keepsCmd ? entrypoint : { ...entrypoint, Cmd: null };
    }
    case 'ENV':
      return { ...config, Env: environment(config.Env ?? [], instruction.pairs) };
    case 'LABEL': {
      const labels = instruction.pairs.map(({ name, value }) => [name, value] as const);
      return { ...config, Labels: { ...config.Labels, ...Object.fromEntries(labels) } };
    }
    case 'EXPOSE':
      return { ...config, ExposedPorts: { ...config.ExposedPorts, ...namesOf(instruction.ports.flatMap(portsOf)) } };
    case 'VOLUME':
      return { ...config, Volumes: { ...config.Volumes, ...namesOf(instruction.paths) } };
    case 'USER':
      return { ...config, User: instruction.user };
    case 'WORKDIR':
      return { ...config, WorkingDir: directory(config.WorkingDir ?? '', instruction.path) };
    case 'SHELL':
      return { ...config, Shell: [...instruction.words] };
    case 'STOPSIGNAL':
      parseSignal(instruction.signal);
      return { ...config, StopSignal: instruction.signal };
    case 'HEALTHCHECK':
      return { ...config, Healthcheck: instruction.healthcheck };
    case 'ONBUILD':
      return { ...config, OnBuild: [...(config.OnBuild ?? []), instruction.expression] };
    case 'FROM':
    case 'RUN':
    case 'COPY':
    case 'ADD':
    case 'ARG':
    case 'MAINTAINER':
      return config;
  }
}

/** The words that start a command of this image. A script with `#!` is at `/dev/pipes/NAME` then. */
export function wordsOf({ Shell }: ImageRunConfig, command: CommandLine | RunCommand): string[] {
  if (command.form === 'exec') return [...command.words];
  const shell = Shell != null && Shell.length > 0 ? Shell : DEFAULT_SHELL;
  return [...shell, command.form === 'shell' ? command.script : `/dev/pipes/${command.name}`];
}

/** A variable keeps its place when it gets another value. */
function environment(env: readonly string[], pairs: readonly Pair[]): string[] {
  const entries = [...env];
  const places = new Map(entries.map((entry, index) => [entry.split('=', 1)[0] ?? '', index] as const).toReversed());
  for (const { name, value } of pairs) {
    const place = places.get(name) ?? entries.length;
    entries[place] = `${name}=${value}`;
    places.set(name, place);
  }
  return entries;
}

function namesOf(names: readonly string[]): Record<string, Record<string, never>> {
  return Object.fromEntries(names.map((name) => [name, {}]));
}

function directory(before: string, path: string): string {
  if (path === '') throw new AppError('invalid', 'WORKDIR requires exactly one argument');
  return posix.resolve('/', before, path);
}

/**
 * `8000-8001/UDP` as `8000/udp`, `8001/udp`. What stands before a `:` is of publishing and says nothing here, as with
 * Docker, whose build check objects to it.
 */
export function portsOf(text: string): readonly string[] {
  const [range = '', protocol = ''] = text.slice(text.lastIndexOf(':') + 1).split('/', 2);
  const [start, end = start] = range.split('-', 2).map(portNumber);
  const name = protocol.toLowerCase() || 'tcp';
  if (range === '' || text.split('/').length > 2) throw new AppError('invalid', `invalid port: ${quote(text)}`);
  if (!['tcp', 'udp', 'sctp'].includes(name))
    throw new AppError('invalid', `invalid port: ${quote(text)}: invalid proto: ${clip(protocol)}`);
  if (start === undefined || end === undefined || range.split('-').length > 2 || end < start)
    throw new AppError('invalid', `invalid containerPort: ${clip(range)}`);
  return Array.from({ length: end - start + 1 }, (_, index) => `${start + index}/${name}`);
}

function portNumber(text: string): number | undefined {
  return /^\d{1,5}$/.test(text) && Number(text) <= 65_535 ? Number(text) : undefined;
}

function quote(text: string): string {
  return JSON.stringify(clip(text));
}

/** What `--change` may say: what is in the config, and needs no build. */
const CHANGES: readonly string[] = [
  'CMD',
  'ENTRYPOINT',
  'ENV',
  'EXPOSE',
  'HEALTHCHECK',
  'LABEL',
  'ONBUILD',
  'STOPSIGNAL',
  'USER',
  'VOLUME',
  'WORKDIR',
];

/** The config after these texts, each one or more instructions. @throws AppError 'invalid' naming what is wrong */
export function applyChanges(config: ImageRunConfig, changes: readonly string[]): ImageRunConfig {
  const source = { name: 'change', lines: changes.join('\n').split('\n') };
  const { directives, lines } = readLines(source);
  const scope = scopeOf(config);
  let now = config;
  let keepsCmd = false;
  for (const line of lines) {
    const kind = line.keyword.toUpperCase();
    if (!CHANGES.includes(kind))
      throw new AppError('invalid', `${clip(kind.toLowerCase())} is not a valid change command`);
    const { instruction } = resolveInstruction(parseInstruction(line, directives.escape), scope);
    scope.apply(instruction);
    now = changeConfig(now, instruction, { keepsCmd });
    if (kind === 'CMD') keepsCmd = true;
  }
  return now;
}

function scopeOf({ Env }: ImageRunConfig): Scope {
  const none = { values: [], args: [], globals: new Map(), buildArgs: new Map() };
  return new Scope({ escape: '\\', meter: createMeter() }, none).stage(Env ?? []);
}
