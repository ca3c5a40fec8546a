/**
 * Starts berthd when a command needs an engine and nothing listens on the default socket. It outlives the command and
 * the session: a transient systemd unit where systemd runs, else a session of its own (docs/adr/0015). A user's own
 * engine has no containers that the end of the session could hurt, and needs no unit. Two commands at once may both
 * try; berthd's lock on its state directory lets one win, and both wait for the same socket.
 */
import { spawn } from 'node:child_process';
import { access, mkdir, open, readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { AppError } from '../../shared/errors.ts';
import { ownPrivilege } from '../../shared/privilege.ts';
import { say } from './output.ts';

const START_MS = 20_000;
const POLL_MS = 20;
/** What berthd ends with when another one has its directories: that one is on its way. */
const ANOTHER_ENGINE = 3;

/** True when something accepts connections on the socket. */
export function listens(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(socketPath);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
}

/** Brings an engine up on the default socket, and says so. @throws AppError 'unavailable' with what berthd said */
export async function startEngine(socketPath: string): Promise<void> {
  const runDir = dirname(socketPath);
  const isHosts = ownPrivilege() === 'full';
  await mkdir(runDir, { recursive: true, mode: isHosts ? 0o711 : 0o700 });
  const logPath = join(runDir, 'berthd.log');
  const daemon = fileURLToPath(new URL('../../deploy/bin/berthd', import.meta.url));
  const command = [daemon, '--run-dir', runDir, '--listen', `unix://${socketPath}`];
  say(`berth: no engine runs; starting berthd (log: ${logPath})`);
  await using log = await open(logPath, 'a', 0o600);
  const from = (await log.stat()).size;
  const underSystemd =
    isHosts &&
    (await access('/run/systemd/system').then(
      () => true,
      () => false,
    ));
  const [program = '', ...args] = underSystemd
    ? [
        'systemd-run',
        '--quiet',
        '--collect',
        '--unit=berthd-autostart',
        '--property=KillMode=process',
        '--property=Delegate=yes',
        `--property=StandardError=append:${logPath}`,
        ...command,
      ]
    : command;
  const child = spawn(program, args, { detached: true, stdio: ['ignore', 'ignore', log.fd], cwd: '/' });
  const failed = new Promise<Error>((resolve) => child.once('error', resolve));
  child.unref();
  const deadline = AbortSignal.timeout(START_MS);
  while (!deadline.aborted) {
    if (await listens(socketPath)) return;
    const error = await Promise.race([failed, delay(POLL_MS)]);
    if (error !== undefined)
      throw new AppError('unavailable', `cannot start berthd: ${error.message}`, { cause: error });
    const hasFailed = child.exitCode !== null && child.exitCode !== 0 && child.exitCode !== ANOTHER_ENGINE;
    if (!underSystemd && hasFailed && !(await listens(socketPath))) break;
  }
  const said = (await readFile(logPath)).subarray(from).toString('utf8').trim().split('\n').slice(-8).join('\n');
  throw new AppError(
    'unavailable',
    `cannot start berthd: it did not come up\n${said}\nsee ${logPath}, or start it by hand: berthd`,
  );
}
