/**
 * Where an engine lives when nobody says otherwise, so that it and its clients agree without a word: the root of the
 * host has the system's directories, everybody else their own by the XDG base directory specification
 * (https://specifications.freedesktop.org/basedir-spec/latest/). Containers often have neither a home nor a runtime
 * directory: then it is one below /tmp, which must be claimed before anything in it is trusted.
 */
import { accessSync, constants, lstatSync, mkdirSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { isAbsolute, join } from 'node:path';
import { AppError, hasCode, messageOf } from './errors.ts';
import type { Privilege } from './privilege.ts';

export interface EnginePlace {
  /** What the engine keeps. */
  readonly root: string;
  /** What does not outlive a boot. */
  readonly runDir: string;
  readonly socketPath: string;
  readonly configFile: string;
  /** A directory that another user could have made before us; see claimDirectory. */
  readonly claim: string | undefined;
}

export interface PlaceFacts {
  readonly privilege: Privilege;
  readonly uid: number;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export const HOST_PLACE: EnginePlace = {
  root: '/var/lib/berth',
  runDir: '/run/berth',
  socketPath: '/run/berth/berth.sock',
  configFile: '/etc/berth/engine.yaml',
  claim: undefined,
};

/** Looks which directories there are, and changes nothing. */
export function enginePlace({ privilege, uid, env }: PlaceFacts): EnginePlace {
  if (privilege === 'full') return HOST_PLACE;
  const fallback = `/tmp/berth-${uid}`;
  const runtime = [env.XDG_RUNTIME_DIR, `/run/user/${uid}`].find(
    (path, index) => path !== undefined && isAbsolute(path) && isUsable(path, { uid, mayBeAbsent: index === 0 }),
  );
  const home = homeDirectory(env);
  const data = absolute(env.XDG_DATA_HOME) ?? (isWritable(home) ? join(home, '.local/share') : undefined);
  const runDir = runtime === undefined ? fallback : join(runtime, 'berth');
  return {
    root: data === undefined ? join(fallback, 'data') : join(data, 'berth'),
    runDir,
    socketPath: join(runDir, 'berth.sock'),
    configFile: join(absolute(env.XDG_CONFIG_HOME) ?? join(home, '.config'), 'berth/engine.yaml'),
    claim: runtime === undefined || data === undefined ? fallback : undefined,
  };
}

/** $HOME, else what the host's user database says; `/` for a user whom it does not know. */
export function homeDirectory(env: Readonly<Record<string, string | undefined>>): string {
  if (env.HOME !== undefined && env.HOME !== '') return env.HOME;
  try {
    return homedir();
  } catch {
    return '/';
  }
}

/**
 * Makes a directory that is this user's alone, below one where everybody may write. Who got there first could answer on
 * our socket and take our passwords: one that is somebody else's, a link, or open to others is refused.
 * @throws AppError 'denied'; 'unavailable' when it cannot be made
 */
export function claimDirectory(path: string, uid: number): void {
  try {
    mkdirSync(path, { mode: 0o700 });
  } catch (cause) {
    if (!hasCode(cause, 'EEXIST'))
      throw new AppError('unavailable', `cannot make directory ${JSON.stringify(path)}: ${messageOf(cause)}`, {
        cause,
      });
  }
  const found = lstatSync(path);
  if (found.isDirectory() && found.uid === uid && (found.mode & 0o077) === 0) return;
  throw new AppError(
    'denied',
    `cannot use directory ${JSON.stringify(path)}: others may have made or changed it; remove it, or set XDG_RUNTIME_DIR and XDG_DATA_HOME`,
  );
}

const absolute = (path: string | undefined): string | undefined =>
  path !== undefined && isAbsolute(path) ? path : undefined;

/** A runtime directory of another user is left over from `su`; it is none of ours. */
function isUsable(path: string, { uid, mayBeAbsent }: { uid: number; mayBeAbsent: boolean }): boolean {
  try {
    const found = statSync(path);
    return found.isDirectory() && found.uid === uid;
  } catch (error) {
    return mayBeAbsent && hasCode(error, 'ENOENT');
  }
}

function isWritable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK | constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
