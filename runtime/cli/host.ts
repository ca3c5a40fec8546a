/** Which engine a command talks to: BERTH_HOST, then DOCKER_HOST, then the default socket. Pure. */
import type { EnginePlace } from '../../shared/engine-place.ts';
import { AppError } from '../../shared/errors.ts';

export type EngineHost =
  | { readonly kind: 'unix'; readonly path: string; readonly isStartable: boolean }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

/** The engine that commands talk to when nobody says otherwise. */
export interface DefaultEngine extends Pick<EnginePlace, 'socketPath' | 'claim'> {
  /** It is this user's to start. */
  readonly isOwn: boolean;
}

export interface HostSources {
  /** `--host` on the command line. */
  readonly flag?: string | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly default: DefaultEngine;
}

/** @throws AppError 'invalid', 'unsupported' */
export function engineHost(sources: HostSources): EngineHost {
  const { socketPath, isOwn } = sources.default;
  const text = sources.flag ?? sources.env.BERTH_HOST ?? sources.env.DOCKER_HOST;
  if (text === undefined || text === '') return { kind: 'unix', path: socketPath, isStartable: isOwn };
  if (text.startsWith('unix://')) {
    const path = text.slice('unix://'.length);
    if (!path.startsWith('/'))
      throw new AppError('invalid', `cannot use host ${JSON.stringify(text)}: the socket path must be absolute`);
    return { kind: 'unix', path, isStartable: isOwn && path === socketPath };
  }
  const tcp = /^tcp:\/\/(\[[0-9a-fA-F:]+\]|[^:/]+):(\d{1,5})$/.exec(text);
  if (tcp !== null) {
    if (sources.env.DOCKER_TLS_VERIFY)
      throw new AppError(
        'unsupported',
        'cannot use DOCKER_TLS_VERIFY: TLS to the engine is not supported by berth; use a unix socket',
      );
    return { kind: 'tcp', host: (tcp[1] ?? '').replace(/^\[|\]$/g, ''), port: Number(tcp[2]) };
  }
  throw new AppError('unsupported', `cannot use host ${JSON.stringify(text)}: want unix:///PATH or tcp://HOST:PORT`);
}
