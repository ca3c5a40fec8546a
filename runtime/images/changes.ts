/**
 * Changes: the `--change` of import and commit, Dockerfile instructions that alter what a container of the image runs.
 * Only the classic ones, which need no build. Pure: no I/O.
 * https://docs.docker.com/reference/cli/docker/container/commit/#change
 */
import { posix } from 'node:path';
import { DockerfileParser, type Instruction, JSONInstruction, PropertyInstruction } from 'dockerfile-ast';
import { AppError } from '../../shared/errors.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';

type Change = (config: ImageRunConfig, instruction: Instruction) => ImageRunConfig;

const DEFAULT_SHELL = ['/bin/sh', '-c'];

const CHANGES: Readonly<Record<string, Change>> = {
  CMD: (config, instruction) => ({ ...config, Cmd: commandOf(config, instruction) }),
  // As in a build: a new entrypoint makes what its parent gave it as arguments meaningless.
  ENTRYPOINT: (config, instruction) => ({ ...config, Entrypoint: commandOf(config, instruction), Cmd: null }),
  ENV(config, instruction) {
    const env = new Map((config.Env ?? []).map((entry) => [entry.split('=', 1)[0] ?? '', entry]));
    for (const [name, value] of propertiesOf(instruction)) env.set(name, `${name}=${value}`);
    return { ...config, Env: [...env.values()] };
  },
  EXPOSE(config, instruction) {
    const ports = wordsOf(instruction).map((port) => {
      if (!/^\d{1,5}(?:-\d{1,5})?(?:\/(?:tcp|udp|sctp))?$/.test(port))
        throw invalid(instruction, `${JSON.stringify(port)} is no port`);
      return [port.includes('/') ? port : `${port}/tcp`, {}] as const;
    });
    return { ...config, ExposedPorts: { ...config.ExposedPorts, ...Object.fromEntries(ports) } };
  },
  LABEL: (config, instruction) => ({
    ...config,
    Labels: { ...config.Labels, ...Object.fromEntries(propertiesOf(instruction)) },
  }),
  ONBUILD: (config, instruction) => ({ ...config, OnBuild: [...(config.OnBuild ?? []), textOf(instruction)] }),
  STOPSIGNAL: (config, instruction) => ({ ...config, StopSignal: textOf(instruction) }),
  USER: (config, instruction) => ({ ...config, User: textOf(instruction) }),
  VOLUME(config, instruction) {
    const paths = jsonOf(instruction) ?? wordsOf(instruction);
    return { ...config, Volumes: { ...config.Volumes, ...Object.fromEntries(paths.map((path) => [path, {}])) } };
  },
  WORKDIR(config, instruction) {
    return { ...config, WorkingDir: posix.resolve('/', config.WorkingDir ?? '', textOf(instruction)) };
  },
};

/** @throws AppError 'invalid' for what is no instruction, or none of these */
export function applyChanges(config: ImageRunConfig, changes: readonly string[]): ImageRunConfig {
  return changes
    .flatMap((text) => DockerfileParser.parse(text).getInstructions())
    .reduce((changed, instruction) => {
      const name = instruction.getInstruction().toUpperCase();
      const change = Object.hasOwn(CHANGES, name) ? CHANGES[name] : undefined;
      if (change === undefined) throw new AppError('invalid', `${name.toLowerCase()} is not a valid change command`);
      return change(changed, instruction);
    }, config);
}

function invalid(instruction: Instruction, why: string): AppError {
  return new AppError('invalid', `cannot change the image by ${instruction.getInstruction().toUpperCase()}: ${why}`);
}

function textOf(instruction: Instruction): string {
  const text = instruction.getArgumentsContent()?.trim() ?? '';
  if (text === '') throw invalid(instruction, 'it needs an argument');
  return text;
}

function wordsOf(instruction: Instruction): readonly string[] {
  return textOf(instruction).split(/\s+/);
}

/** The form in brackets; undefined when it is written as words. */
function jsonOf(instruction: Instruction): readonly string[] | undefined {
  if (!(instruction instanceof JSONInstruction) || instruction.getOpeningBracket() === null) return undefined;
  try {
    const parsed: unknown = JSON.parse(textOf(instruction));
    if (Array.isArray(parsed) && parsed.every((word) => typeof word === 'string')) return parsed;
  } catch {
    // What only looks like JSON is words, as with Docker.
  }
  return undefined;
}

function commandOf(config: ImageRunConfig, instruction: Instruction): string[] {
  return [...(jsonOf(instruction) ?? shellForm(config, instruction))];
}

function shellForm(config: ImageRunConfig, instruction: Instruction): readonly string[] {
  return [...(config.Shell ?? DEFAULT_SHELL), textOf(instruction)];
}

function propertiesOf(instruction: Instruction): readonly (readonly [name: string, value: string])[] {
  textOf(instruction);
  if (!(instruction instanceof PropertyInstruction)) throw invalid(instruction, 'it needs NAME=VALUE');
  return instruction.getProperties().map((property) => {
    const name = property.getName();
    if (name === '') throw invalid(instruction, 'a name is empty');
    return [name, property.getValue() ?? ''];
  });
}
