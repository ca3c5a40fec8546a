/** What a running conmon takes: control messages, stdin, and a reader that holds its output back. */
import { type ChildProcess, spawn } from 'node:child_process';
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import type { Writable } from 'node:stream';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError, hasCode } from '../../shared/errors.ts';
import { PROGRAM_PATH } from '../kernel/command.ts';
import type { Brake } from './supervisor.ts';

const CTL_RETRIES = 50;
const CTL_RETRY_MS = 10;

/** Writes to conmon's control fifo. Opening it fails with ENXIO until conmon reads it. */
export async function control(bundle: string, message: string): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    try {
      await using handle = await open(join(bundle, 'ctl'), constants.O_WRONLY | constants.O_NONBLOCK);
      await handle.write(message);
      return;
    } catch (cause) {
      if (!hasCode(cause, 'ENXIO', 'ENOENT')) throw cause;
      if (attempt === CTL_RETRIES)
        throw new AppError('conflict', 'cannot control the container: its monitor has ended', { cause });
      await delay(CTL_RETRY_MS);
    }
  }
}

/**
 * Node opens no SOCK_SEQPACKET sockets; socat does. Output that comes back is thrown away, but it must be read: a
 * client of the attach socket that does not read stops conmon and the container. Packets are at most 32 KiB there.
 */
export async function connectStdin(socat: string, bundle: string): Promise<Writable> {
  const child = spawn(socat, ['-b', '32768', 'STDIN!!OPEN:/dev/null,wronly', 'UNIX-CONNECT:attach,type=5'], {
    stdio: ['pipe', 'ignore', 'ignore'],
    cwd: bundle,
    env: { PATH: PROGRAM_PATH },
  });
  await started(child, socat);
  child.unref();
  // The container may end, or close its stdin, at any time: that is no error of the one who writes.
  const { stdin } = child;
  stdin.on('error', () => stdin.destroy());
  child.on('exit', () => stdin.destroy());
  return stdin;
}

/** A client of the attach socket that reads only while it is released. It is connected when it is first needed. */
export function createBrake(socat: string, bundle: string): Brake {
  let child: ChildProcess | undefined;
  return {
    hold() {
      if (child !== undefined) return void child.stdout?.pause();
      child = spawn(socat, ['-u', '-b', '32768', 'UNIX-CONNECT:attach,type=5', 'STDOUT'], {
        stdio: ['ignore', 'pipe', 'ignore'],
        cwd: bundle,
        env: { PATH: PROGRAM_PATH },
      });
      child.on('error', () => {});
      child.unref();
      child.stdout?.on('data', () => {}).pause();
    },
    release: () => void child?.stdout?.resume(),
    close: () => void child?.kill('SIGKILL'),
  };
}

function started(child: ChildProcess, program: string): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('spawn', resolve);
    child.once('error', (cause) =>
      reject(new AppError('unsupported', `cannot start ${program}: ${cause.message}; is it installed?`, { cause })),
    );
  });
}
