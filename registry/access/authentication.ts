/**
 * Access for a registry with users: Basic and Bearer become an identity, the policy decides what it may do, and a token
 * allows no more than it says. What strangers may try is limited before anything costs time.
 */
import { isKind } from '../../shared/errors.ts';
import { OciError } from '../oci-errors.ts';
import { type Access, type Action, ALLOWED, ANONYMOUS, type Caller, type Decision, type Identity } from './access.ts';
import type { Accounts } from './accounts.ts';
import { type Challenger, scopeOf } from './challenge.ts';
import type { Policy } from './policy.ts';
import { assertWithin, networkOf, type RateLimit } from './rate-limit.ts';

/** undefined = it is no valid token of anybody whom we know. */
export type TokenVerifier = (token: string) => Promise<Identity | undefined>;

export interface AuthenticationPorts {
  readonly accounts: Accounts;
  readonly policy: () => Policy;
  readonly challenge: Challenger;
  readonly verifyToken: TokenVerifier | undefined;
  readonly limits: AccessLimits;
}

export interface AccessLimits {
  /** Wrong passwords, by network. */
  readonly failures: RateLimit;
  /** Requests of somebody with a name, by name. */
  readonly requests: RateLimit;
  /** Requests of somebody without one, by network. */
  readonly anonymousRequests: RateLimit;
}

/** Access, and the login that the token endpoint shares with it. */
export interface Authentication extends Access {
  /** @throws OciError UNAUTHORIZED, TOOMANYREQUESTS */
  login(credentials: Credentials, remoteAddress: string | undefined): Promise<Identity>;
}

export interface Credentials {
  readonly name: string;
  readonly password: string;
}

export function createAuthentication(ports: AuthenticationPorts): Authentication {
  const { accounts, policy, challenge, verifyToken, limits } = ports;

  const wrong = (error?: 'invalid_token') =>
    new OciError('UNAUTHORIZED', 'cannot log in: the name, the password or the token is wrong', {
      headers: { 'www-authenticate': challenge(undefined, error) },
    });

  async function login({ name, password }: Credentials, remoteAddress: string | undefined): Promise<Identity> {
    const network = networkOf(remoteAddress);
    assertWithin(limits.failures.waitMs(network), 'too many failed logins');
    if (await verify({ name, password, network })) return { id: name, isAnonymous: false };
    limits.failures.take(network);
    throw wrong();
  }

  async function verify(question: Parameters<Accounts['verify']>[0]): Promise<boolean> {
    try {
      return await accounts.verify(question);
    } catch (error) {
      if (!isKind(error, 'unavailable')) throw error;
      throw new OciError('TOOMANYREQUESTS', error.message, { headers: { 'retry-after': '1' }, cause: error });
    }
  }

  async function identify({ headers, remoteAddress }: Caller): Promise<Identity> {
    const { authorization } = headers;
    if (authorization === undefined) return ANONYMOUS;
    const [scheme = '', rest = ''] = authorization.split(' ', 2);
    switch (scheme.toLowerCase()) {
      case 'basic': {
        const credentials = parseBasic(rest);
        if (credentials === undefined) throw wrong();
        return login(credentials, remoteAddress);
      }
      case 'bearer': {
        // An expired token is everyday life and a bad one costs little: neither counts as a failed login.
        const identity = await verifyToken?.(rest);
        if (identity === undefined) throw wrong('invalid_token');
        return identity;
      }
      default:
        throw wrong();
    }
  }

  return {
    login,

    async authenticate(caller) {
      const identity = await identify(caller);
      const wait = identity.isAnonymous
        ? limits.anonymousRequests.take(networkOf(caller.remoteAddress))
        : limits.requests.take(identity.id);
      assertWithin(wait, 'too many requests');
      return identity;
    },

    decide(identity, action) {
      const { token } = identity;
      const current = policy();
      const byPolicy = token?.issuedBy === 'outside' ? !isFrozen(current, action) : current.allows(identity, action);
      const byToken = token === undefined || covers(token.grants, action);
      // With tokens, even a stranger gets one first; the probe is where clients learn that.
      const isUnnamed = identity.isAnonymous && token === undefined;
      if (byPolicy && byToken && !(isUnnamed && action.kind === 'probe' && verifyToken !== undefined)) return ALLOWED;
      return refusal(identity, action, { byPolicy, byToken });
    },
  };

  function refusal(
    { id, isAnonymous, token }: Identity,
    action: Action,
    { byPolicy, byToken }: { readonly byPolicy: boolean; readonly byToken: boolean },
  ): Decision {
    const reason = `cannot ${describe(action)}: ${isAnonymous ? 'log in first' : `${id} may not`}`;
    const mayHelp = isAnonymous || (byPolicy && !byToken) || (token?.issuedBy === 'outside' && !byToken);
    if (!mayHelp) return { allowed: false, reason };
    return {
      allowed: false,
      reason,
      challenge: challenge(action, token === undefined ? undefined : 'insufficient_scope'),
    };
  }
}

/** Whether immutability forbids it, which holds for everybody. */
function isFrozen(policy: Policy, action: Action): boolean {
  if (action.kind !== 'tag-overwrite' && action.kind !== 'tag-delete') return false;
  return policy.isImmutable(action.repository, action.tag);
}

/** Scopes know no tags: whoever may push may create and move them as far as a token is concerned. */
function covers({ catalog, repositories }: NonNullable<Identity['token']>['grants'], action: Action): boolean {
  switch (action.kind) {
    case 'probe':
      return true;
    // No scope means them: a password does.
    case 'metrics':
      return false;
    case 'catalog':
    case 'list':
      return catalog;
    case 'pull':
    case 'push':
    case 'delete':
      return repositories.get(action.repository)?.has(action.kind) === true;
    case 'tag-create':
    case 'tag-overwrite':
      return repositories.get(action.repository)?.has('push') === true;
    case 'tag-delete':
      return repositories.get(action.repository)?.has('delete') === true;
    default:
      return action satisfies never;
  }
}

function describe(action: Action): string {
  if (action.kind === 'probe') return 'use this registry';
  return 'tag' in action ? `${action.kind} ${action.repository}:${action.tag}` : (scopeOf(action) ?? action.kind);
}

/** undefined = not base64 of `name:password`. https://www.rfc-editor.org/rfc/rfc7617 */
export function parseBasic(encoded: string): Credentials | undefined {
  if (!/^[A-Za-z0-9+/]{1,4096}={0,2}$/.test(encoded)) return undefined;
  const text = Buffer.from(encoded, 'base64').toString();
  const colon = text.indexOf(':');
  return colon < 1 ? undefined : { name: text.slice(0, colon), password: text.slice(colon + 1) };
}
