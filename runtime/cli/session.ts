/** What a command works with: the engine (started when it is the default one and absent), the environment, exits. */
import { join } from 'node:path';
import type { CredentialStore } from '../../shared/credentials.ts';
import { claimDirectory } from '../../shared/engine-place.ts';
import { AppError, isKind } from '../../shared/errors.ts';
import { type CallOptions, createEngineClient, type EngineClient } from './client.ts';
import { type DefaultEngine, engineHost } from './host.ts';

export interface Session {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** The engine; the first request starts it if need be. */
  readonly engine: EngineClient;
  /** Milliseconds since 1970. */
  readonly now: () => number;
  /** docker's, so that what is kept for it is found here: $DOCKER_CONFIG, else ~/.docker. */
  readonly configDirectory: string;
  /** docker's own file, so that a login there is one here. */
  credentials(): Promise<CredentialStore>;
  /** The process's exit code, set when it is not 0 and nothing was thrown. */
  exitCode: number;
}

export interface SessionOptions {
  readonly host?: string | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly uid: number;
  readonly defaultEngine: DefaultEngine;
  readonly home: string;
  readonly now: () => number;
}

export function openSession(options: SessionOptions): Session {
  const { claim } = options.defaultEngine;
  const host = engineHost({ flag: options.host, env: options.env, default: options.defaultEngine });
  // Before anything is said to whoever answers there.
  if (host.kind === 'unix' && claim !== undefined && host.path.startsWith(claim)) claimDirectory(claim, options.uid);
  const client = createEngineClient(host);
  const configDirectory = options.env.DOCKER_CONFIG || join(options.home, '.docker');

  async function startingIfAbsent<T>(attempt: () => Promise<T>, options?: CallOptions): Promise<T> {
    if (host.kind !== 'unix' || !host.isStartable) return attempt();
    if (options?.body !== undefined) {
      // A body cannot be read twice, so the engine must be there before.
      const { listens, startEngine } = await import('./autostart.ts');
      if (!(await listens(host.path))) await startEngine(host.path);
      return attempt();
    }
    try {
      return await attempt();
    } catch (error) {
      // Nothing was sent when the connection failed, so the request can be made again.
      if (!isKind(error, 'unavailable') || error.cause === undefined) throw error;
      const { startEngine } = await import('./autostart.ts');
      await startEngine(host.path);
      return attempt();
    }
  }

  return {
    env: options.env,
    now: options.now,
    configDirectory,
    async credentials() {
      const { createCredentialStore } = await import('../../shared/credentials.ts');
      return createCredentialStore({ path: join(configDirectory, 'config.json'), env: options.env });
    },
    exitCode: 0,
    engine: {
      host,
      call: (method, path, call) => startingIfAbsent(() => client.call(method, path, call), call),
      stream: (method, path, call) => startingIfAbsent(() => client.stream(method, path, call), call),
      hijack: (path, call) => startingIfAbsent(() => client.hijack(path, call), call),
    },
  };
}

/** An error after which the process ends with this code: 125 to 127 of `run`, `create` and `start`. */
export class ExitError extends Error {
  readonly exitCode: number;
  constructor(exitCode: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'ExitError';
    this.exitCode = exitCode;
  }
}

/** Runs `work` for each name; a failing one is reported and the others go on, as docker does. */
export async function forEachName(
  session: Session,
  names: readonly string[],
  work: (name: string) => Promise<void>,
): Promise<void> {
  for (const name of names) {
    try {
      await work(name);
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      process.stderr.write(`error: ${error.message}\n`);
      session.exitCode = 1;
    }
  }
}
