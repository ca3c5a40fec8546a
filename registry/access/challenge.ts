/**
 * WWW-Authenticate: how a client is told to say who it is. The realm comes from the configuration, never from a header
 * of the request: whoever could choose it would be sent passwords.
 * https://distribution.github.io/distribution/spec/auth/token/
 */
import type { Action } from './access.ts';

export interface ChallengeOptions {
  /** URL of the token endpoint; undefined = passwords are taken directly. */
  readonly realm: string | undefined;
  readonly service: string;
}

export type ChallengeError = 'invalid_token' | 'insufficient_scope';

export type Challenger = (action: Action | undefined, error?: ChallengeError) => string;

export function createChallenger({ realm, service }: ChallengeOptions): Challenger {
  if (realm === undefined) return () => `Basic realm="${service}",charset="UTF-8"`;
  return (action, error) => {
    const scope = action === undefined ? undefined : scopeOf(action);
    const parameters = { realm, service, scope, error };
    const shown = Object.entries(parameters).filter(([, value]) => value !== undefined);
    return `Bearer ${shown.map(([name, value]) => `${name}="${value}"`).join(',')}`;
  };
}

/** What a token must cover to do this; undefined = any token does. */
export function scopeOf(action: Action): string | undefined {
  switch (action.kind) {
    case 'probe':
    case 'metrics':
      return undefined;
    case 'catalog':
    case 'list':
      return 'registry:catalog:*';
    case 'pull':
      return `repository:${action.repository}:pull`;
    case 'push':
    case 'tag-create':
    case 'tag-overwrite':
      return `repository:${action.repository}:pull,push`;
    case 'delete':
    case 'tag-delete':
      return `repository:${action.repository}:delete`;
    default:
      return action satisfies never;
  }
}
