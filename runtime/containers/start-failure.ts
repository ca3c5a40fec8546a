/** Why a command could not be run: the runtime's words as Docker's, and the exit code that goes with them. Pure. */
import { AppError, messageOf } from '../../shared/errors.ts';
import { startExitCode } from '../kernel/oci-runtime.ts';
import type { ContainerRecord } from './container.ts';

/** Docker's words, by which clients know that they have to exit with 126 or 127. */
export function startFailure(
  error: unknown,
  config: ContainerRecord['config'],
): { readonly message: string; readonly exitCode: number } {
  const words =
    error instanceof AppError && typeof error.detail?.runtime === 'string' ? error.detail.runtime : undefined;
  if (words === undefined) return { message: messageOf(error), exitCode: 125 };
  const exitCode = startExitCode(words);
  return {
    message: `${CREATE_FAILED}: ${commandFailure([...(config.Entrypoint ?? []), ...(config.Cmd ?? [])], words)}`,
    exitCode,
  };
}

const CREATE_FAILED =
  'failed to create task for container: failed to create shim task: OCI runtime create failed: unable to start container process';

/** Why a command could not be run, as Docker says it; `words` are the runtime's own. */
export function commandFailure(command: readonly string[], words: string): string {
  const program = command[0] ?? '';
  const quoted = JSON.stringify(program);
  switch (startExitCode(words)) {
    case 127:
      return program.includes('/')
        ? `error during container init: exec: ${quoted}: stat ${program}: no such file or directory`
        : `error during container init: exec: ${quoted}: executable file not found in $PATH`;
    case 126:
      return `error during container init: exec: ${quoted}: ${obstacleOf(words)}`;
    default:
      return words;
  }
}

/** Why a path that exists cannot be executed. Older crun says of a directory only that it is not permitted. */
function obstacleOf(words: string): string {
  if (/not a directory/i.test(words)) return 'not a directory';
  if (/is a directory|not a regular file/i.test(words)) return 'is a directory';
  return /format/i.test(words) ? 'exec format error' : 'permission denied';
}
