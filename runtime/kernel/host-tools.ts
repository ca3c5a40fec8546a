/**
 * Host programs made usable inside a foreign root filesystem: which directories hold them, their loader and their
 * libraries, and how to start them there so that nothing of that filesystem is loaded (CVE-2019-14271). Found with the
 * host's own ldd, once. It mounts and starts nothing.
 */
import { access, constants, realpath } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { AppError } from '../../shared/errors.ts';
import { PROGRAM_PATH, runCommand } from './command.ts';

export interface HostTools<Name extends string> {
  /** On the host; each is to be seen read-only at `<at>/<index>`. */
  readonly directories: readonly string[];
  /** What to execute where the directories are seen below `at`. */
  commandsAt(at: string): ToolCommands<Name>;
}

export interface ToolCommands<Name extends string> {
  /** The dynamic loader, which takes `--inhibit-cache --library-path <libraries> <program> <arguments>`. */
  readonly loader: string;
  readonly libraries: string;
  readonly programs: Readonly<Record<Name, string>>;
}

/** @throws AppError 'unsupported' when one is not installed, or is not a program of glibc */
export async function findHostTools<Name extends string>(names: readonly Name[]): Promise<HostTools<Name>> {
  const paths = await Promise.all(names.map(findProgram));
  const { exitCode, stdout, stderr } = await runCommand('ldd', paths);
  const loaders = stdout.match(/^\s+(?!.*=>)\/\S+/gm) ?? [];
  if (exitCode !== 0 || loaders[0] === undefined)
    throw new AppError(
      'unsupported',
      `cannot use ${names.join(', ')} in containers: ${stderr.trim() || 'they have no dynamic loader'}`,
    );
  const loader = await realpath(loaders[0].trim());
  const libraries = await Promise.all(
    [...stdout.matchAll(/=> (\/\S+)/g)].map(([, path = '']) => realpath(dirname(path))),
  );
  const directories = [...new Set([...paths.map(dirname), dirname(loader), ...libraries])];
  return {
    directories,
    commandsAt(at) {
      const seen = (path: string) => join(at, String(directories.indexOf(dirname(path))), basename(path));
      const programs = Object.fromEntries(names.map((name, index) => [name, seen(paths[index] ?? '')]));
      return {
        loader: seen(loader),
        libraries: [...new Set(libraries)].map((path) => join(at, String(directories.indexOf(path)))).join(':'),
        programs: programs as Record<Name, string>,
      };
    },
  };
}

async function findProgram(name: string): Promise<string> {
  for (const directory of PROGRAM_PATH.split(':')) {
    const path = join(directory, name);
    const isThere = await access(path, constants.X_OK).then(
      () => true,
      () => false,
    );
    if (isThere) return realpath(path);
  }
  throw new AppError('unsupported', `cannot find ${JSON.stringify(name)} on this host: install it`);
}
