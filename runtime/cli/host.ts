/** Which engine a command talks to: BERTH_HOST, then DOCKER_HOST, then the default socket. Pure. */
import { AppError } from '../../shared/errors.ts';

export type EngineHost =
  | { readonly kind: 'unix'; readonly path: string; readonly isDefault: boolean }
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number };

export interface HostSources {
  /** `--host` on the command line. */
  readonly flag?: string | undefined;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** 0 = root. */
  readonly uid: number;
}

/** Where berthd listens when nobody says otherwise; without root below $XDG_RUNTIME_DIR. */
export function defaultSocket({ env, uid }: Pick<HostSources, 'env' | 'uid'>): string {
  if (uid === 0) return '/run/berth/berth.sock';
  return `${env.XDG_RUNTIME_DIR ?? `/run/user/${uid}`}/berth/berth.sock`;
}

/** @throws AppError 'invalid', 'unsupported' */
export function engineHost(sources: HostSources): EngineHost {
  const text = sources.flag ?? sources.env.BERTH_HOST ?? sources.env.DOCKER_HOST;
  if (text === undefined || text === '') return { kind: 'unix', path: defaultSocket(sources), isDefault: true };
  if (text.startsWith('unix://')) {
    const path = text.slice('unix://'.length);
    if (!path.startsWith('/'))
      throw new AppError('invalid', `cannot use host ${JSON.stringify(text)}: the socket path must be absolute`);
    return { kind: 'unix', path, isDefault: path === defaultSocket(sources) };
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
