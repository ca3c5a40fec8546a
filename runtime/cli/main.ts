/**
 * `berth`: one more client of the Docker Engine API. Data on stdout, talk on stderr; errors are one line, with their
 * causes under --debug. Exit codes are docker's.
 */
import { accessSync, constants } from 'node:fs';
import { CommanderError } from 'commander';
import { enginePlace, HOST_PLACE, homeDirectory } from '../../shared/engine-place.ts';
import { AppError, hasCode, messageOf } from '../../shared/errors.ts';
import { ownPrivilege } from '../../shared/privilege.ts';
import { buildProgram } from './commands.ts';
import { DockerCommand } from './declare/docker-command.ts';
import type { Act } from './declare/group.ts';
import type { DefaultEngine } from './host.ts';
import { ExitError, openSession, type Session } from './session.ts';
import { CLIENT_VERSION } from './version.ts';

/** Closed pipes are how `berth logs | head` ends. */
process.stdout.on('error', (error) => {
  if (hasCode(error, 'EPIPE')) process.exit(0);
  throw error;
});

async function main(argv: readonly string[]): Promise<number> {
  const program = new DockerCommand('berth');
  let session: Session | undefined;
  program
    .description('Runs containers, keeps images. The engine (berthd) is started when it is needed.')
    .version(CLIENT_VERSION, '-v, --version', 'show the version of this program')
    .option(
      '-H, --host <HOST>',
      'engine to talk to: unix:///PATH or tcp://HOST:PORT (default: BERTH_HOST, DOCKER_HOST, the local engine)',
    )
    .option('-D, --debug', 'show the causes of an error')
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(text) });
  const act: Act =
    (work) =>
    async (...args) => {
      session = openSession({
        host: program.opts<{ host?: string }>().host,
        env: process.env,
        uid: uidOf(),
        defaultEngine: defaultEngine(),
        home: homeDirectory(process.env),
        now: Date.now,
      });
      await work(session, ...(args as never[]));
    };
  buildProgram({ program, act, words: new Set(argv) });
  try {
    await program.parseAsync([...argv], { from: 'user' });
    return session?.exitCode ?? 0;
  } catch (error) {
    return report(error, {
      debug: program.opts<{ debug?: boolean }>().debug === true,
      running: ['run', 'create'].includes(program.args[0] ?? ''),
    });
  }
}

function uidOf(): number {
  return process.geteuid?.() ?? 0;
}

/** The host's own engine for everybody who may use it, else this user's. */
function defaultEngine(): DefaultEngine {
  const own = enginePlace({ privilege: ownPrivilege(), uid: uidOf(), env: process.env });
  if (own.socketPath === HOST_PLACE.socketPath) return { ...own, isOwn: true };
  try {
    accessSync(HOST_PLACE.socketPath, constants.W_OK);
    return { ...HOST_PLACE, isOwn: false };
  } catch {
    return { ...own, isOwn: true };
  }
}

function report(error: unknown, { debug, running }: { readonly debug: boolean; readonly running: boolean }): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : running ? 125 : 1;
  if (
    !(error instanceof AppError) &&
    !(error instanceof ExitError) &&
    !debug &&
    !(error instanceof Error && 'code' in error)
  )
    throw error;
  process.stderr.write(`error: ${messageOf(error)}\n`);
  if (debug)
    for (let cause = error; cause instanceof Error; cause = cause.cause) process.stderr.write(`${cause.stack}\n`);
  if (error instanceof ExitError) return error.exitCode;
  return running ? 125 : 1;
}

// Not process.exit: what is still being written to a pipe must get there.
process.exitCode = await main(process.argv.slice(2));
// A terminal or pipe as stdin would keep the process alive.
process.stdin.unref?.();
