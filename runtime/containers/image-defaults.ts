/**
 * An image's config under a request: what the client left open, the image says. Docker's rules. Pure.
 */
import { posix } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import type { ImageRunConfig } from '../../shared/oci.ts';
import type { ContainerConfig, Healthcheck } from './request.ts';

/** @throws AppError 'invalid' in Docker's words when neither names a command */
export function mergeImageConfig(image: ImageRunConfig, request: ContainerConfig): ContainerConfig {
  // A new entrypoint makes the image's arguments meaningless; new arguments keep its entrypoint.
  const saysCommand = (request.Entrypoint?.length ?? 0) > 0 || (request.Cmd?.length ?? 0) > 0;
  const merged: ContainerConfig = {
    ...request,
    User: request.User || (image.User ?? ''),
    ExposedPorts: union(request.ExposedPorts, Object.keys(image.ExposedPorts ?? {})),
    Env: [...request.Env, ...missingFrom(request.Env, image.Env ?? [])],
    Cmd: saysCommand ? request.Cmd : (image.Cmd ?? null),
    Entrypoint: request.Entrypoint ?? image.Entrypoint ?? null,
    Volumes: union(request.Volumes, Object.keys(image.Volumes ?? {})),
    WorkingDir: cleanDirectory(request.WorkingDir || (image.WorkingDir ?? '')),
    Labels: { ...image.Labels, ...request.Labels },
    StopSignal: request.StopSignal || (image.StopSignal ?? ''),
    StopTimeout: request.StopTimeout ?? image.StopTimeout ?? undefined,
    Healthcheck: mergeHealthcheck(image.Healthcheck ?? undefined, request.Healthcheck),
    Shell: request.Shell.length > 0 ? request.Shell : (image.Shell ?? []),
  };
  if (commandOf(merged).length === 0) throw new AppError('invalid', 'no command specified');
  return merged;
}

/** Without `..`, double slashes and one at the end. */
function cleanDirectory(path: string): string {
  return path === '' ? '' : posix.normalize(path).replace(/(?<=.)\/$/, '');
}

/** What runs: entrypoint and arguments. An entrypoint of one empty word means none. */
export function commandOf({ Entrypoint, Cmd }: Pick<ContainerConfig, 'Entrypoint' | 'Cmd'>): readonly string[] {
  const entrypoint = Entrypoint?.length === 1 && Entrypoint[0] === '' ? [] : (Entrypoint ?? []);
  return [...entrypoint, ...(Cmd ?? [])];
}

/** The name of a variable in `NAME=value` or `NAME`. */
export function variableName(entry: string): string {
  const equals = entry.indexOf('=');
  return equals === -1 ? entry : entry.slice(0, equals);
}

function missingFrom(present: readonly string[], entries: readonly string[]): readonly string[] {
  const names = new Set(present.map(variableName));
  return entries.filter((entry) => !names.has(variableName(entry)));
}

function union(first: readonly string[], second: readonly string[]): readonly string[] {
  return [...new Set([...first, ...second])];
}

function mergeHealthcheck(
  image: ImageRunConfig['Healthcheck'] | undefined,
  request: Healthcheck | undefined,
): Healthcheck | undefined {
  if (image === undefined || image === null) return request;
  return {
    Test: request?.Test.length ? request.Test : (image.Test ?? []),
    Interval: request?.Interval || (image.Interval ?? 0),
    Timeout: request?.Timeout || (image.Timeout ?? 0),
    StartPeriod: request?.StartPeriod || (image.StartPeriod ?? 0),
    StartInterval: request?.StartInterval || (image.StartInterval ?? 0),
    Retries: request?.Retries || (image.Retries ?? 0),
  };
}
